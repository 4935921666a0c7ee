"Four bits: packed, saved, loaded again, and the same on both backends."
import pytest, torch
from hypothesis import given, settings as hyp, strategies as st
from labkit.core.lm import Sampling
from labkit.core.settings import UserError
from labkit.corpus.tokens import train_tokenizer
from labkit.inference.engine import Engine, EngineSettings
from labkit.inference.quantize import W4Linear, dequantize_groups, group_size, load_quantized, pack, perplexity, quantize_groups, quantize_model, save_quantized, unpack
from labkit.model.config import ModelConfig
from labkit.model.transformer import Transformer

torch.set_num_threads(1)
TOKENIZER = train_tokenizer(['hello 你好世界 🦊🦊 naïve '] * 3, 300)

@given(st.integers(1, 4), st.integers(1, 5))
@hyp(max_examples=30, deadline=None)
def test_packing_round_trip(rows, blocks):
    q = torch.randint(0, 16, (rows, 32 * blocks), dtype=torch.uint8)
    assert (unpack(pack(q)) == q).all() and pack(q).shape == (rows, 16 * blocks)

@given(st.integers(0, 10**6), st.sampled_from([32, 64]), st.floats(1e-3, 10))
@hyp(max_examples=30, deadline=None)
def test_a_quantized_weight_is_off_by_less_than_a_step(seed, group, size):
    w = torch.randn(4, 128, generator=torch.Generator().manual_seed(seed)) * size
    plain, best = (dequantize_groups(*quantize_groups(w, group, shrink=s)) for s in ((1.,), (1., .9, .8)))
    step = quantize_groups(w, group, shrink=(1.,))[1].float().repeat_interleave(group, 1)
    assert ((plain - w).abs() <= step * 1.01).all()
    assert (best - w).norm() <= (plain - w).norm() * (1 + 1e-6)

def test_quantizing_what_is_on_the_grid_changes_nothing():
    w = torch.tensor([[-7., 8.] + [float(i % 16 - 7) for i in range(62)]]) / 4
    assert torch.equal(dequantize_groups(*quantize_groups(w, 64)), w)

def test_group_sizes():
    assert [group_size(c) for c in (1536, 576, 96, 32)] == [128, 64, 32, 32]
    with pytest.raises(UserError, match='cannot be cut'): group_size(40)

def tiny(): 
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=300, dim=64, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=96, qkv_bias=True, family='qwen2')).eval().requires_grad_(False)

def test_saved_and_loaded_again(tmp_path):
    q = quantize_model(tiny())
    save_quantized(q, tmp_path/'q', TOKENIZER)
    ids = torch.arange(12)[None]
    again = load_quantized(tmp_path/'q')
    assert torch.equal(again(ids), q(ids)) and isinstance(again.layers[1].mlp.down_proj, W4Linear)
    assert not list(tmp_path.glob('.*')) and sorted(p.name for p in (tmp_path/'q').iterdir())[:2] == ['config.json', 'model.safetensors']

def test_another_quantization_is_refused(tmp_path):
    save_quantized(quantize_model(tiny()), tmp_path/'q')
    f = tmp_path/'q'/'config.json'; f.write_text(f.read_text().replace('"labkit"', '"bitsandbytes"'))
    with pytest.raises(UserError, match='bitsandbytes'): load_quantized(tmp_path/'q')

def test_truncated_weights_are_refused(tmp_path):
    save_quantized(quantize_model(tiny()), tmp_path/'q')
    f = tmp_path/'q'/'model.safetensors'; f.write_bytes(f.read_bytes()[:2000])
    with pytest.raises(UserError): load_quantized(tmp_path/'q')

@pytest.mark.parametrize('scheme, apart', [('w4', .05), ('int8', .1)])
def test_both_backends_agree_on_quantized_layers(scheme, apart):
    from labkit.inference.cpu_runner import packed_layers
    q, P = quantize_model(tiny(), scheme=scheme), Sampling(max_tokens=8, ignore_eos=True, logprobs=0)
    fast, plain = (Engine(q, TOKENIZER, EngineSettings(backend=b, cache_tokens=256), packed=packed_layers(q)).generate(['hello'], P)[0] for b in ('numba', 'torch'))
    assert fast.logprobs == pytest.approx(plain.logprobs, abs=apart) # the compiled step rounds activations to 8 bits

def test_perplexity_of_a_model_that_knows_nothing():
    class Flat(torch.nn.Module):
        def __init__(self): super().__init__(); self.p = torch.nn.Parameter(torch.zeros(1))
        def forward(self, x, attention=None): return torch.zeros(*x.shape, 300)
    assert perplexity(Flat(), TOKENIZER, 'hello world ' * 20) == pytest.approx(300, rel=1e-4)
    with pytest.raises(UserError, match='two tokens'): perplexity(Flat(), TOKENIZER, '')
