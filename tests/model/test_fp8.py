"The fp8 linear layer: same parameters, small errors, a model that still learns"
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from labkit.core.settings import SettingsError
from labkit.model.config import preset
from labkit.model.fp8 import Fp8Linear, cast_fp8, to_fp8
from labkit.model.transformer import Transformer

@given(size=st.floats(1e-20, 1e20), seed=st.integers(0, 99), kind=st.sampled_from([torch.float8_e4m3fn, torch.float8_e5m2]))
@settings(deadline=None, max_examples=40)
def test_a_cast_is_as_exact_for_any_size(size, seed, kind):
    x = size*torch.randn(300, generator=torch.Generator().manual_seed(seed))
    x8, s = cast_fp8(x, kind)
    assert ((x8.float()*s - x).abs().max()/x.abs().max()).item() < (.07 if kind is torch.float8_e4m3fn else .13)

def test_zeros_stay_zeros(): x8, s = cast_fp8(torch.zeros(5), torch.float8_e4m3fn); assert (x8.float()*s == 0).all()

def test_parameters_stay_the_same_tensors_under_the_same_names():
    model = Transformer(preset('lab-1m', tie_embeddings=False))
    before = {n: p.data_ptr() for n, p in model.named_parameters()}
    assert {n: p.data_ptr() for n, p in to_fp8(model).named_parameters()} == before
    assert type(model.lm_head) is torch.nn.Linear and isinstance(model.layers[0].mlp.up_proj, Fp8Linear)

def test_sides_that_do_not_fit_name_the_layer():
    with pytest.raises(SettingsError, match='^fp8: 1 is 16 by 20; .*multiples of 16'): to_fp8(torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 20)))

@pytest.mark.parametrize('n', [16, 5])
def test_autocast_decides_the_output_and_gradients_keep_the_weights_kind(n):
    layer, x = to_fp8(torch.nn.Linear(32, 48)), torch.randn(2, n, 32, requires_grad=True)
    layer = to_fp8(torch.nn.Sequential(layer))[0]
    with torch.autocast('cpu', torch.bfloat16): y = layer(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad.dtype == layer.weight.grad.dtype == torch.float32
    want = F.linear(x, layer.weight, layer.bias)
    assert ((y - want).norm()/want.norm()).item() < .06

def test_nothing_breaks_a_compiled_graph():
    model, x = to_fp8(torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.Linear(48, 16))), torch.randn(16, 32, requires_grad=True)
    a, b = (f(x) for f in (model, torch.compile(model, fullgraph=True, backend='aot_eager')))
    assert torch.equal(a, b) and torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (a, b)))
