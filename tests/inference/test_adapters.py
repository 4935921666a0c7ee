"Adapters beside a model: the same numbers as merged models, loaded and dropped at any time"
import shutil
import pytest, torch
from pathlib import Path
from interpreted import assert_said, on_gpu
from labkit.core.settings import UserError
from labkit.finetune.lora import LoraConfig, add_lora, load_adapter, lora_layers, merge_lora, read_adapter, save_adapter
from labkit.inference.adapters import AdapterError, Adapters, delta
from labkit.inference.quantize import W4Linear, linears, quantize_model, twin
from labkit.model.config import preset
from labkit.model.transformer import Transformer

def make(folder, model, seed, **config):
    "A saved adapter whose corrections are not zero"
    cfg = LoraConfig(**config)
    g, m = torch.Generator().manual_seed(seed), add_lora(twin(model), cfg)
    for _, l in lora_layers(m): l.lora_A.data.normal_(0, .05, generator=g); l.lora_B.data.normal_(0, .05, generator=g)
    save_adapter(m, folder, cfg)
    return str(folder)

def merged(model, folder):
    m = twin(model)
    load_adapter(m, folder)
    return merge_lora(m)

@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return Transformer(preset('lab-1m', vocab_size=300, n_layers=3)).eval().requires_grad_(False)

@pytest.fixture(scope='module')
def folders(model, tmp_path_factory):
    tmp = tmp_path_factory.mktemp('adapters')
    return dict(a=make(tmp/'a', model, 1, rank=4), b=make(tmp/'b', model, 2, rank=16, alpha=8), qv=make(tmp/'qv', model, 3, rank=2, targets=('q_proj', 'v_proj')),
                last=make(tmp/'last', model, 4, rank=8, last=1, rslora=True), wide=make(tmp/'wide', model, 5, rank=64))

@pytest.fixture
def adapters(model, folders):
    ad = Adapters(model)
    for name, f in folders.items(): ad.load(name, f)
    yield ad
    for name in list(ad.loaded): ad.unload(name)

def close(got, want): assert (got - want).norm() <= 1e-5*want.norm(), ((got - want).norm()/want.norm())

@pytest.mark.parametrize('names, T', [((None, 'a', 'b', 'qv', 'last', 'a'), 7), (('wide', 'a', None), 40), (('qv',), 1), (('b', 'a', 'wide', 'qv'), 1)])
@torch.inference_mode()
def test_each_row_of_a_mixed_batch_equals_the_merged_model(model, folders, adapters, names, T):
    ids = torch.randint(0, 300, (len(names), T), generator=torch.Generator().manual_seed(T))
    with adapters.use([n for n in names for _ in range(T)]): got = model(ids)
    for row, x, n in zip(got, ids, names): close(row, (merged(model, folders[n]) if n else model)(x[None])[0])

@torch.inference_mode()
def test_one_part_for_each_and_one_for_all_agree(model, adapters):
    names = ['wide'] * 20 + ['b'] * 20
    step, pool = adapters.plan(names), adapters._pools['layers.1.mlp.up_proj']
    assert len(step.parts) == 2 and len(adapters.plan(names[:1] + names[-1:]).parts) == 1 and adapters.plan([None]) is None
    x = torch.randn(40, model.cfg.dim)
    each = delta(x, pool, step)
    assert each.norm() > .1
    close(each, torch.stack([delta(row[None], pool, adapters.plan([n]))[0] for row, n in zip(x, names)]))

@torch.inference_mode()
def test_base_weights_stay_and_hooks_go(model, folders):
    ids, before = torch.arange(9)[None], {n: p.clone() for n, p in model.named_parameters()}
    plain, ad = model(ids), Adapters(model)
    ad.load('a', folders['a'])
    assert torch.equal(model(ids), plain)
    with ad.use([None]*9): assert torch.equal(model(ids), plain)
    with ad.use(['a']*9): assert not torch.equal(model(ids), plain)
    assert ad.unload('a') and ad.nbytes == 0 and not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())

@torch.inference_mode()
def test_rows_of_the_dropped_are_used_again(model, folders):
    ad = Adapters(model)
    ad.load('a', folders['a']); ad.load('b', folders['b']); ad.load('qv', folders['qv'])
    size = ad.nbytes
    ad.unload('b')
    for name in ('last', 'qv'): ad.load(name + '2', folders[name])           # 8 and 2 rows into the gap of 16
    assert ad.nbytes == size and ad.loaded['last2'].start == 4 and ad.loaded['qv2'].start == 12
    ids = torch.arange(11)[None]
    for name in ('a', 'qv', 'last2', 'qv2'):
        with ad.use([name]*11): close(model(ids), merged(model, folders[name.rstrip('2')])(ids))
    for name in list(ad.loaded): ad.unload(name)

def test_an_adapter_in_use_stays_until_its_requests_end(adapters):
    adapters.acquire('a'); adapters.acquire('a'); adapters.acquire(None)
    assert not adapters.unload('a')
    with pytest.raises(AdapterError, match="no adapter 'a' is loaded; there are: b, last, qv, wide"): adapters.acquire('a')
    with pytest.raises(AdapterError, match='leaves when its requests have ended'): adapters.load('a', 'x')
    adapters.release('a'); adapters.release(None)
    assert 'a' in adapters.loaded
    adapters.release('a')
    assert 'a' not in adapters.loaded

@torch.inference_mode()
def test_a_step_that_fails_leaves_no_adapter_behind(model, adapters):
    plain = model(torch.arange(3)[None])
    with pytest.raises(ZeroDivisionError):
        with adapters.use(['a']*3): 1/0
    assert torch.equal(model(torch.arange(3)[None]), plain)

@torch.inference_mode()
def test_on_four_bit_weights(model, folders):
    m = quantize_model(twin(model), group=32)
    assert linears(m, W4Linear)
    ids, ad = torch.arange(8)[None], Adapters(m)
    ad.load('a', folders['a'])
    base = twin(model)
    for n, l in linears(base): l.weight = torch.nn.Parameter(m.get_submodule(n).dequantize(), requires_grad=False)
    with ad.use(['a']*8): close(m(ids), merged(base, folders['a'])(ids))

def test_adapters_of_another_model_change_nothing(model, adapters, tmp_path):
    before = adapters.nbytes
    for name, change in (('wider', dict(ffn_dim=96)), ('deeper', dict(n_layers=5))):
        folder = make(tmp_path/name, Transformer(preset('lab-1m', vocab_size=300, **{**dict(n_layers=3), **change})), 0, rank=2)
        with pytest.raises(AdapterError, match='adapter of another model'): adapters.load(name, folder)
    assert adapters.nbytes == before and name not in adapters.loaded

def test_damaged_folders(folders, tmp_path):
    with pytest.raises(Exception, match='no adapter here'): read_adapter(tmp_path)
    shutil.copytree(folders['a'], tmp_path/'a'); file = tmp_path/'a/adapter_model.safetensors'
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Exception, match='not a whole safetensors file'): read_adapter(tmp_path/'a')

@pytest.mark.parametrize('config, said', [('[]', 'expected an object'), ('{"peft_type": "LORA", "r": 2, "lora_alpha": null, "target_modules": ["q_proj"]}', 'lora_alpha'), ('{"peft_type": "LORA", "lora_alpha": 2, "target_modules": ["q_proj"]}', 'r = None')])
def test_configurations_that_are_none(folders, tmp_path, config, said):
    shutil.copytree(folders['a'], tmp_path/'a'); (tmp_path/'a/adapter_config.json').write_text(config)
    with pytest.raises(UserError, match=said): read_adapter(tmp_path/'a')

def test_tensors_that_are_no_adapter(folders, tmp_path):
    from safetensors.torch import load_file, save_file
    shutil.copytree(folders['a'], tmp_path/'a'); file = tmp_path/'a/adapter_model.safetensors'
    save_file({k: v.flatten() for k, v in load_file(file).items()}, file)
    with pytest.raises(UserError, match='no matrix'): read_adapter(tmp_path/'a')
    save_file({}, file)
    with pytest.raises(UserError, match='changes no layer'): read_adapter(tmp_path/'a')

CHECKS = Path(__file__).with_name('adapter_kernels.py')

def test_kernels_interpreted_equal_torch(): assert_said('adapters equal', CHECKS, 'cpu')

@on_gpu
def test_kernels_compiled_equal_torch(): assert_said('adapters equal', CHECKS, 'cuda')
