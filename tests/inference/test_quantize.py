"Quantized layers: what they stand for, how large they are, and how far off."
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings as hyp, strategies as st
from torch import nn
from labkit.core.settings import UserError
from labkit.corpus.tokens import train_tokenizer
from labkit.inference.quantize import Float8Linear, Int8Linear, W4Linear, kv_attention, linears, load_quantized, perplexity, quantize_groups, quantize_model, round_rows, save_quantized
from labkit.model.config import ModelConfig
from labkit.model.transformer import Transformer

torch.set_num_threads(1)
KINDS = {'w4': W4Linear, 'int8': Int8Linear, 'fp8': Float8Linear}
ERRORS = {'w4': .12, 'int8': .02, 'fp8': .06} # relative, normal weights and inputs

def linear(rows=48, columns=64, bias=True):
    torch.manual_seed(0)
    return nn.Linear(columns, rows, bias=bias).requires_grad_(False)

def tiny(**changes):
    torch.manual_seed(0)
    return Transformer(ModelConfig(**{**dict(vocab_size=300, dim=64, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=96, qkv_bias=True, family='qwen2'), **changes})).eval().requires_grad_(False)

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('bias', [True, False])
def test_a_layer_is_its_dequantized_weights(kind, bias):
    lin, x = linear(bias=bias), torch.randn(2, 5, 64)
    new = KINDS[kind].of(lin)
    seen = x if kind == 'w4' else (lambda q, s: q.float() * s)(*round_rows(x, KINDS[kind].dtype))
    torch.testing.assert_close(new(x), F.linear(seen, new.dequantize(), lin.bias), atol=1e-5, rtol=1e-4)
    assert torch.equal(new.weight, new.dequantize()) and new(x).shape == (2, 5, 48)
    assert 0 < (new(x) - lin(x)).norm() / lin(x).norm() < ERRORS[kind]

@pytest.mark.parametrize('kind, size', [('w4', 48 * 64 // 2 + 48 * 3), ('int8', 48 * 64 + 48 * 4), ('fp8', 48 * 64 + 48 * 4)])
def test_bytes(kind, size): assert KINDS[kind].of(linear()).nbytes == size

@pytest.mark.parametrize('dtype, top', [(torch.int8, 127), (torch.float8_e4m3fn, 448)])
def test_rows_use_the_whole_format_and_zeros_stay(dtype, top):
    x = torch.cat([torch.randn(3, 32) * torch.tensor([[1e-3], [1.], [1e4]]), torch.zeros(1, 32)])
    q, s = round_rows(x, dtype)
    assert q.float().abs().amax(1).tolist() == pytest.approx([top, top, top, 0]) and torch.isfinite(q.float() * s).all()

def test_an_outlier_ruins_int8_and_not_fp8():
    x = torch.randn(1, 1024); x[0, 0] = 500.
    lost = lambda d: float((lambda q, s: (q.float() * s - x)[0, 1:].norm() / x[0, 1:].norm())(*round_rows(x, d)))
    assert lost(torch.int8) > .5 and lost(torch.float8_e4m3fn) < .1

@given(st.integers(0, 10**6))
@hyp(max_examples=20, deadline=None)
def test_important_columns_are_served_first(seed):
    g = torch.Generator().manual_seed(seed)
    w, imp = torch.randn(8, 32, generator=g), torch.ones(32)
    imp[3] = 1e4
    off = lambda importance: (lambda q, s, z: ((q.float() - z) * s - w)[:, 3].abs().sum())(*quantize_groups(w, 32, shrink=(1., .9, .8, .7), importance=importance))
    assert off(imp) <= off(None) + 1e-5

@pytest.mark.parametrize('low', [-1., 0., .5])
def test_no_zero_point_is_zero(low):
    "GPTQ's files hold it less one"
    w = torch.rand(4, 64, generator=torch.Generator().manual_seed(1)) + low
    q, s, z = quantize_groups(w, 32)
    assert z.min() >= 1 and z.max() <= 15
    assert ((q.float() - z.repeat_interleave(32, 1)) * s.float().repeat_interleave(32, 1) - w).abs().max() < (w.max() - min(0, low)) / 14 * .8

@pytest.mark.parametrize('scheme', KINDS)
def test_a_model_in_each_scheme_and_from_disk(scheme, tmp_path):
    model, q = tiny(), quantize_model(tiny(), scheme=scheme)
    ids = torch.arange(12)[None]
    assert len(linears(q, KINDS[scheme])) == 14 and not linears(q)
    off = (q(ids) - model(ids)).norm() / model(ids).norm()
    assert 0 < off < 3 * ERRORS[scheme]
    save_quantized(q, tmp_path/'q')
    again = load_quantized(tmp_path/'q', dtype=torch.float32)
    assert torch.equal(again(ids), q(ids)) and isinstance(again.layers[1].mlp.down_proj, KINDS[scheme])

def test_what_cannot_be_quantized_is_refused():
    with pytest.raises(UserError, match='w3'): quantize_model(tiny(), scheme='w3')
    with pytest.raises(UserError, match='mixture'): quantize_model(tiny(n_experts=2, experts_per_token=1, family='mixtral', qkv_bias=False))
    with pytest.raises(UserError, match='no quantized layers'): save_quantized(tiny(), '/nowhere')

def test_an_unknown_scheme_in_a_file_is_named(tmp_path):
    save_quantized(quantize_model(tiny(), scheme='int8'), tmp_path/'q')
    f = tmp_path/'q'/'config.json'; f.write_text(f.read_text().replace('"int8"', '"int3"'))
    with pytest.raises(UserError, match="'int3' is unknown"): load_quantized(tmp_path/'q')

def test_fewer_bits_for_keys_and_values_cost_more():
    model, ids = tiny(), torch.arange(40)[None]
    off = {k: float((model(ids, attention=kv_attention(model.attention, k)) - model(ids)).norm()) for k in ('int8', 'fp8', 'int4')}
    assert 0 < off['int8'] < off['fp8'] < off['int4']
    with pytest.raises(UserError, match="'int2' is unknown"): kv_attention(model.attention, 'int2')

@pytest.mark.slow
def test_smollm2_schemes_on_real_text():
    from pydoc_data.topics import topics
    from labkit.model.checkpoint import open_model
    model, tok = open_model('smollm2-135m-instruct')
    text = topics['class'] + topics['import']
    base = perplexity(model, tok, text, max_tokens=1024)
    rise = {s: perplexity(quantize_model(open_model('smollm2-135m-instruct')[0], 64, s), tok, text, max_tokens=1024) / base - 1 for s in ('int8', 'fp8')}
    assert abs(perplexity(model, tok, text, max_tokens=1024, attention=kv_attention(model.attention)) / base - 1) < .005
    assert rise['int8'] < .1 and rise['fp8'] < .1, rise
