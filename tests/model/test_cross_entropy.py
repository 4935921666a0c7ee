"The cross-entropy that never holds whole logits, against torch's (its kernel is checked in test_kernels.py)"
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from labkit.model.cross_entropy import cross_entropy_sum

@given(n=st.integers(1, 40), chunk=st.integers(1, 50), v=st.integers(2, 30), ignored=st.booleans(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_chunked_equals_plain(n, chunk, v, ignored, seed):
    g = torch.Generator().manual_seed(seed)
    h, w = (torch.randn(*s, generator=g, dtype=torch.float64).float().requires_grad_() for s in ((n, 5), (v, 5)))
    y = torch.randint(0, v, (n,), generator=g)
    if ignored: y[::3] = -100
    ours, plain = cross_entropy_sum(h, w, y, chunk) / n, F.cross_entropy(h @ w.T, y, reduction='sum') / n
    for a, b in zip(torch.autograd.grad(ours, (h, w)), torch.autograd.grad(plain, (h, w))): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)

def test_logits_of_any_size_do_not_overflow():
    h, w = torch.full((2, 1), 1e4, requires_grad=True), torch.tensor([[1.], [-1.]], requires_grad=True)
    loss = cross_entropy_sum(h, w, torch.tensor([0, 1])); loss.backward()
    assert loss.item() == pytest.approx(2e4) and torch.isfinite(h.grad).all() and torch.isfinite(w.grad).all()

def test_bf16_gradients_are_close_and_without_gradients_nothing_is_kept():
    h, w, y = torch.randn(64, 32, requires_grad=True), torch.randn(50, 32, requires_grad=True), torch.randint(0, 50, (64,))
    with torch.autocast('cpu', torch.bfloat16): low = cross_entropy_sum(h, w, y)
    with torch.no_grad(): alone = cross_entropy_sum(h, w, y)
    assert low.dtype == torch.float32 and alone.grad_fn is None
    assert low.item() == pytest.approx(alone.item(), rel=1e-2)
    a, b = torch.autograd.grad(low, (h, w)), torch.autograd.grad(cross_entropy_sum(h, w, y), (h, w))
    for x, z in zip(a, b): assert x.dtype == z.dtype == torch.float32 and ((x - z).norm()/z.norm()).item() < 2e-2

def test_a_target_outside_the_vocabulary_is_an_error():
    with pytest.raises((RuntimeError, IndexError)): cross_entropy_sum(torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 5, 1]))

def test_nothing_breaks_a_compiled_graph():
    h, w, y = torch.randn(10, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True), torch.randint(0, 20, (10,))
    f = torch.compile(lambda: cross_entropy_sum(h*2, w, y)/len(y), fullgraph=True, backend='aot_eager')
    for a, b in zip(torch.autograd.grad(f(), (h, w)), torch.autograd.grad(F.cross_entropy(2*h @ w.T, y), (h, w))): torch.testing.assert_close(a, b)
