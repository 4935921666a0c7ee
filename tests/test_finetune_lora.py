"""LoRA: equal to peft both ways, exact merging, and adapters that cannot be."""
import errno, json, pytest, torch
from labkit.core.settings import UserError
from labkit.finetune import lora
from labkit.finetune.lora import LINEARS, LoraConfig, LoRALinear, adapter_state, add_lora, load_adapter, lora_layers, lora_parameters, merge_lora, remove_lora, save_adapter
from labkit.model.checkpoint import save_model
from labkit.model.config import ModelConfig
from labkit.model.transformer import Transformer

CFG = ModelConfig(vocab_size=96, dim=36, n_layers=3, n_heads=9, n_kv_heads=3, ffn_dim=48, tie_embeddings=True) # SmolLM2's proportions
X = torch.arange(40)[None] % 96
CASES = [LoraConfig(4, 8.), LoraConfig(8, 4., rslora=True), LoraConfig(2, 2., targets=('q_proj', 'v_proj')), LoraConfig(4, 16., dropout=.1, targets=LINEARS[4:]), LoraConfig(4, 8., last=2)]

def tiny(seed=0, cfg=CFG):
    torch.manual_seed(seed)
    return Transformer(cfg).eval()

def shaken(model, cfg, seed=1):
    "The model with an adapter that does something"
    add_lora(model, cfg)
    g = torch.Generator().manual_seed(seed)
    for _, m in lora_layers(model): m.lora_B.data.normal_(0, .1, generator=g)
    return model.eval()

@torch.no_grad()
def logits(model, x=X): out = model(x); return getattr(out, 'logits', out)

@pytest.mark.parametrize('cfg', CASES, ids=str)
def test_peft_loads_ours(cfg, tmp_path):
    peft, transformers = pytest.importorskip('peft'), pytest.importorskip('transformers')
    save_model(tiny(), tmp_path/'base')
    ours = shaken(tiny(), cfg); save_adapter(ours, tmp_path/'adapter', cfg, 'base')
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/'base', dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path/'adapter').eval()
    assert (logits(theirs) - logits(ours)).abs().max() < 1e-5 < (logits(tiny()) - logits(ours)).abs().max()
    assert sum('lora_A' in n for n, _ in theirs.named_parameters()) == len(list(lora_layers(ours)))

@pytest.mark.parametrize('more', [{}, dict(use_rslora=True), dict(target_modules=['q_proj', 'down_proj']), dict(target_modules=r'.*layers\.1\..*(gate|up)_proj'), dict(layers_to_transform=[0, 2], layers_pattern='layers'), dict(target_modules='all-linear')], ids=str)
def test_ours_loads_peft(more, tmp_path):
    peft, transformers = pytest.importorskip('peft'), pytest.importorskip('transformers')
    save_model(tiny(), tmp_path/'base')
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/'base', dtype=torch.float32)
    torch.manual_seed(2)
    theirs = peft.get_peft_model(base, peft.LoraConfig(**{**dict(r=4, lora_alpha=8, target_modules=list(LINEARS), init_lora_weights=False, task_type='CAUSAL_LM'), **more})).eval()
    theirs.save_pretrained(tmp_path/'adapter')
    ours = tiny(); load_adapter(ours, tmp_path/'adapter')
    assert (logits(theirs) - logits(ours)).abs().max() < 1e-5
    merge_lora(ours)
    assert (logits(theirs) - logits(ours)).abs().max() < 1e-5

def test_the_same_training_as_peft(tmp_path):
    "Three optimizer steps from the same adapter give the same adapter"
    peft, transformers = pytest.importorskip('peft'), pytest.importorskip('transformers')
    cfg = LoraConfig(4, 8.)
    save_model(tiny(), tmp_path/'base')
    ours = add_lora(tiny(), cfg); save_adapter(ours, tmp_path/'adapter', cfg)
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(tmp_path/'base', dtype=torch.float32), tmp_path/'adapter', is_trainable=True)
    for model, params in ((ours, lora_parameters(ours)), (theirs, [p for p in theirs.parameters() if p.requires_grad])):
        optimizer = torch.optim.SGD(params, lr=.5)
        for _ in range(3):
            out = model(X); out = getattr(out, 'logits', out)
            optimizer.zero_grad(); torch.nn.functional.cross_entropy(out[0, :-1], X[0, 1:]).backward(); optimizer.step()
    assert (logits(theirs) - logits(ours)).abs().max() < 1e-5 and (logits(ours) - logits(tiny())).abs().max() > 1e-3

@pytest.mark.slow
def test_real_weights_with_peft(tmp_path):
    "SmolLM2-135M itself: our adapter on transformers' Llama through peft, and peft's merged weights"
    peft, transformers = pytest.importorskip('peft'), pytest.importorskip('transformers')
    from labkit.model.checkpoint import open_model
    model, tok = open_model('smollm2-135m-instruct')
    save_model(model, tmp_path/'base', tok)
    ours = shaken(model, cfg := LoraConfig(8, 16., last=10)); save_adapter(ours, tmp_path/'adapter', cfg)
    x = torch.tensor([tok.encode('The capital of France is Paris. 法国的首都是巴黎。')])
    want = logits(ours, x)
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(tmp_path/'base', dtype=torch.float32), tmp_path/'adapter').eval()
    assert (logits(theirs, x) - want).abs().max() < 1e-3 * want.abs().max()
    assert (logits(merge_lora(ours), x) - want).abs().max() < 1e-3 * want.abs().max()

@pytest.mark.parametrize('cfg', CASES, ids=str)
def test_add_merge_remove(cfg, tmp_path):
    plain = logits(tiny())
    model = add_lora(tiny(), cfg).eval()
    assert torch.equal(logits(model), plain) # B is zero
    assert set(n for n, p in model.named_parameters() if p.requires_grad) == set(n for n, _ in model.named_parameters() if 'lora_' in n)
    names = set(tiny().state_dict())
    assert names <= set(model.state_dict()) # the base keeps its names
    model = shaken(remove_lora(model), cfg); want = logits(model)
    assert torch.equal(logits(remove_lora(shaken(tiny(), cfg))), plain)
    merged = merge_lora(model)
    assert (logits(merged) - want).abs().max() < 1e-5 and set(merged.state_dict()) == names and not list(lora_layers(merged))

def test_merging_leaves_the_shared_base_alone():
    base = tiny(); before = {k: v.clone() for k, v in base.state_dict().items()}
    merge_lora(shaken(base, CASES[0]))
    assert torch.equal(base.embed_tokens.weight, before['embed_tokens.weight'])
    other = tiny()
    shared = torch.nn.ModuleDict(dict(q_proj=other.layers[0].self_attn.q_proj))
    keep = other.layers[0].self_attn.q_proj.weight.clone()
    merge_lora(shaken(shared, LoraConfig(4, 8.)))
    assert torch.equal(other.layers[0].self_attn.q_proj.weight, keep)

def test_bfloat16_base_keeps_float32_adapters():
    model = shaken(tiny().bfloat16(), LoraConfig(4, 8.))
    assert all(p.dtype == torch.float32 for p in lora_parameters(model)) and logits(model).dtype == torch.bfloat16
    assert merge_lora(model).layers[0].mlp.up_proj.weight.dtype == torch.bfloat16

def test_biases_and_dropout():
    layer = LoRALinear(torch.nn.Linear(6, 5), LoraConfig(2, 4., dropout=.5)); layer.lora_B.data.normal_()
    x = torch.randn(3, 6)
    assert not torch.equal(layer.train()(x), layer(x)) and torch.equal(layer.eval()(x), layer(x))
    assert torch.allclose(layer(x), x @ (layer.weight + layer.delta()).T + layer.bias, atol=1e-6)

def test_save_and_load_are_exact(tmp_path):
    model = shaken(tiny(), CASES[4]); save_adapter(model, tmp_path/'a', CASES[4])
    back = tiny(); cfg = load_adapter(back, tmp_path/'a')
    a, b = adapter_state(model), adapter_state(back)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) and torch.equal(logits(model), logits(back)) and (cfg.rank, cfg.alpha, cfg.last) == (4, 8, 2)

@pytest.fixture
def adapter(tmp_path):
    save_adapter(shaken(tiny(), CASES[0]), tmp_path/'a', CASES[0])
    return tmp_path/'a'

def edit(folder, **changes):
    file = folder/'adapter_config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))

@pytest.mark.parametrize('other, why', [(dict(n_layers=2), r'has no layer layers\.2'), (dict(ffn_dim=52), 'is 36×52 here, 36×48 in the adapter'), (dict(dim=54), 'another model')])
def test_adapter_of_another_model(adapter, other, why):
    from dataclasses import replace
    model = tiny(cfg=replace(CFG, **{**other, **(dict(head_dim=6) if 'dim' in other else {})}))
    with pytest.raises(UserError, match=why): load_adapter(model, adapter)
    assert not list(lora_layers(model)) # nothing was changed

@pytest.mark.parametrize('damage, why', [
    (lambda a: (a/'adapter_config.json').unlink(), 'no adapter here'), (lambda a: (a/'adapter_model.safetensors').unlink(), 'is missing'), (lambda a: (a/'adapter_config.json').write_text('{'), 'cannot be read'),
    (lambda a: (a/'adapter_model.safetensors').write_bytes((a/'adapter_model.safetensors').read_bytes()[:-50]), 'not a whole'), (lambda a: (a/'adapter_model.safetensors').write_bytes(b''), 'not a whole'),
    (lambda a: edit(a, use_dora=True), 'use_dora'), (lambda a: edit(a, peft_type='IA3'), 'IA3'), (lambda a: edit(a, r=8), 'rank of'), (lambda a: edit(a, bias='all'), 'bias'), (lambda a: edit(a, rank_pattern={'q_proj': 2}), 'rank_pattern')])
def test_damaged_adapters(adapter, damage, why):
    damage(adapter); model = tiny()
    with pytest.raises(UserError, match=why): load_adapter(model, adapter)
    assert not list(lora_layers(model))

def test_errors_of_use(adapter, tmp_path):
    with pytest.raises(UserError, match='no linear layer is named Wq'): add_lora(tiny(), LoraConfig(targets=('Wq',)))
    with pytest.raises(UserError, match='already'): add_lora(add_lora(tiny()))
    with pytest.raises(UserError, match='already'): load_adapter(add_lora(tiny()), adapter)
    with pytest.raises(UserError, match='no adapter to save'): save_adapter(tiny(), tmp_path/'b', CASES[0])
    with pytest.raises(UserError, match='no adapter here'): load_adapter(tiny(), tmp_path/'nowhere')

def test_a_full_disk_leaves_the_old_adapter(adapter, monkeypatch):
    before = {p.name: p.read_bytes() for p in adapter.iterdir()}
    def full(*a, **k): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr('safetensors.torch.save_file', full)
    with pytest.raises(OSError): save_adapter(shaken(tiny(), CASES[1]), adapter, CASES[1])
    assert {p.name: p.read_bytes() for p in adapter.iterdir()} == before and [p.name for p in adapter.parent.iterdir()] == ['a']
