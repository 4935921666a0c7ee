"""Checkpoints are read and written piece by piece: peak memory of child processes, weights from an iterator."""
import json, pytest, subprocess, sys, torch
from labkit.core.settings import UserError
from labkit.model.checkpoint import CheckpointError, load_model, save_model, stored_tensors, write_model
from labkit.model.config import preset, to_hf
from labkit.model.transformer import Transformer

CHILD = '''
import os, sys, torch
from pathlib import Path
from labkit.model.checkpoint import load_model, save_model, write_model
from labkit.model.config import ModelConfig
from labkit.model.transformer import Transformer, without_numbers
what, folder = sys.argv[1], Path(sys.argv[2])
cfg = ModelConfig(48000, 1024, 6, 8, 4, 2816, family='internlm2')
def status(key): return 1024*int(next(l.split()[1] for l in open('/proc/self/status') if l.startswith(key)))
def names():
    return [(k, p.shape) for k, p in without_numbers(cfg).named_parameters()]
def weights(): # one at a time
    for i, (name, shape) in enumerate(names()): yield name, torch.full(shape, i/64, dtype=torch.bfloat16)
save_model(Transformer(ModelConfig(64, 16, 1, 2, 1, 16, family='internlm2')).bfloat16(), folder/'warm'); load_model(folder/'warm', dtype=torch.bfloat16) # imports and buffers
model = load_model(folder/'m', dtype=torch.bfloat16) if what == 'save' else None
open('/proc/self/clear_refs', 'w').write('5') # the peak begins anew
before = status('VmRSS')
if what == 'write':
    (folder/'m').mkdir()
    write_model(folder/'m', cfg, weights(), shard_bytes=100_000_000)
elif what == 'load': model = load_model(folder/'m', dtype=torch.bfloat16)
elif what == 'save': save_model(model, folder/'again', shard_bytes=100_000_000)
if model is not None: assert [p.flatten()[-1].item() for p in model.parameters()] == [torch.tensor(i/64).bfloat16().item() for i, _ in enumerate(names())]
print((status('VmHWM') - before)/sum(2*s.numel() for _, s in names()), sum(2*s.numel() for _, s in names()))
'''

@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_peak_memory(tmp_path):
    "In a process each: 0.3 GB of weights are written from an iterator in a fraction of their size, loaded in 1.2 times, saved from a model with a tenth more"
    for what, most in (('write', .4), ('load', 1.2), ('save', .2)):
        out = subprocess.run([sys.executable, '-c', CHILD, what, str(tmp_path)], capture_output=True, text=True, timeout=300)
        assert out.returncode == 0, out.stderr[-2000:]
        peak, size = map(float, out.stdout.split())
        assert size > 3e8 and peak <= most, f'{what}: peak {peak:.2f} of {size/1e6:.0f} MB'
    assert len(list((tmp_path/'m').glob('*.safetensors'))) > 2

CFG = preset('lab-1m', vocab_size=64, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, tie_embeddings=False, family='internlm2')

def test_an_iterator_in_any_order(tmp_path):
    model = Transformer(CFG)
    pairs = list(model.state_dict().items())
    (tmp_path/'m').mkdir(); write_model(tmp_path/'m', CFG, reversed(pairs), shard_bytes=9000)
    save_model(model, tmp_path/'n', shard_bytes=9000)
    for p in (tmp_path/'n').iterdir(): assert p.read_bytes() == (tmp_path/'m'/p.name).read_bytes()
    assert all(torch.equal(a, b) for a, b in zip(load_model(tmp_path/'m').parameters(), model.parameters()))

@pytest.mark.parametrize('change, why', [
    (lambda p: p[:-1], 'did not come, among them output.weight'), (lambda p: [*p, p[0]], 'tok_embeddings.weight is no tensor of this architecture, or came twice'),
    (lambda p: [*p, ('extra.weight', torch.zeros(1))], 'extra.weight is no tensor'), (lambda p: [(n, t[:-1] if n == 'norm.weight' else t) for n, t in p], r'norm.weight has shape \(31,\), the config asks for \(32,\)'),
    (lambda p: [(n, t.bfloat16() if n == 'norm.weight' else t) for n, t in p], 'norm.weight is bfloat16, the file float32: give `dtype`'),
    (lambda p: [x for x in p if 'layers.1.self_attn.v_proj' not in x[0]], 'layers.1.attention: q, k and v did not come all three')])
def test_weights_that_are_not_the_configs(change, why, tmp_path):
    with pytest.raises(UserError, match=why): save_model(Transformer(CFG), tmp_path/'m', state=iter(change(list(Transformer(CFG).state_dict().items()))))
    assert not list(tmp_path.iterdir()), 'nothing half-written is left'

def test_converted_on_the_way(tmp_path):
    model = Transformer(CFG)
    model.norm.bfloat16()
    save_model(model, tmp_path/'m', dtype=torch.float16)
    assert {t.dtype for t in stored_tensors(tmp_path/'m'/'model.safetensors').values()} == {torch.float16}
    assert json.loads((tmp_path/'m'/'config.json').read_text())['torch_dtype'] == 'float16'

def test_headers_as_the_library_reads_them(tmp_path):
    from safetensors import safe_open
    save_model(Transformer(preset('lab-moe', vocab_size=64)), tmp_path/'m')
    path = tmp_path/'m'/'model.safetensors'
    with safe_open(path, 'pt') as f:
        assert f.metadata() == {'format': 'pt'} and set(f.keys()) == set(stored_tensors(path))
        for name, t in stored_tensors(path).items(): assert torch.equal(t.load(), f.get_tensor(name))

@pytest.mark.parametrize('header', [b'{}', b'[]', b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', b'{"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}',
                                    b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}', b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}', b'\xff\xfe'])
def test_headers_that_lie(header, tmp_path):
    (tmp_path/'m').mkdir(); (tmp_path/'m'/'config.json').write_text(json.dumps(to_hf(CFG)))
    (tmp_path/'m'/'model.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header + bytes(4))
    with pytest.raises(UserError, match='not a whole safetensors file|tensors are missing'): load_model(tmp_path/'m')

def test_scalars_and_empty_tensors(tmp_path):
    from safetensors.torch import save_file
    want = {'a': torch.tensor(3.5), 'b': torch.zeros(0, 4), 'c': torch.arange(6, dtype=torch.int64).view(1, 2, 3), 'd': torch.tensor([True, False])}
    save_file(want, tmp_path/'x.safetensors')
    got = {k: t.load() for k, t in stored_tensors(tmp_path/'x.safetensors').items()}
    assert got.keys() == want.keys() and all(torch.equal(got[k], want[k]) and got[k].dtype == want[k].dtype for k in want)
