"The cross-entropy that never holds whole logits: against torch's, in torch and in Triton (interpreted on a CPU, compiled where there is a GPU)"
import os, pytest, subprocess, sys, torch
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

CHECK = '''
import sys, torch, torch.nn.functional as F
from labkit.model.cross_entropy import _by_triton
device = sys.argv[1]
for n, v in ((5, 100), (3, 9000), (1, 2), (4, 8192)) + (((64, 92544),) if device == 'cuda' else ()):
    for dtype, tol in ((torch.float32, 1e-5), (torch.bfloat16, 5e-3)):
        torch.manual_seed(0)
        z, y = 5*torch.randn(n, v, device=device).to(dtype), torch.randint(0, v, (n,), device=device)
        y[0] = -100 if n > 3 else v - 1
        ref = z.double().requires_grad_()
        want = F.cross_entropy(ref, y, reduction='none'); want.sum().backward()
        alone, _ = _by_triton(z.clone(), y, False)
        loss, p = _by_triton(z, y, True)
        assert p.data_ptr() == z.data_ptr() and torch.equal(loss, alone)
        assert (loss - want).abs().max() < 1e-4, (n, v, dtype, loss, want)
        assert (p - ref.grad).abs().max() < tol, (n, v, dtype, (p - ref.grad).abs().max())
loss, _ = _by_triton(torch.randn(3, 10, device=device), torch.tensor([1, 10, -3], device=device), True)
assert loss.isnan().tolist() == [False, True, True]
if device == 'cuda':
    from labkit.model.cross_entropy import cross_entropy_sum
    h, w = torch.randn(1000, 256, device=device, requires_grad=True), torch.randn(5000, 256, device=device, requires_grad=True)
    y = torch.randint(0, 5000, (1000,), device=device); y[::7] = -100
    want = F.cross_entropy((h @ w.T).float(), y, reduction='sum'); gs = torch.autograd.grad(want, (h, w))
    for chunk in (0, 96, 1000):
        with torch.autocast('cuda', torch.bfloat16): got = cross_entropy_sum(h, w, y, chunk)
        assert abs(got/want - 1) < 1e-2, (got, want)
        for a, b in zip(torch.autograd.grad(got, (h, w)), gs): assert a.dtype == torch.float32 and (a - b).norm()/b.norm() < 2e-2
print('equal')
'''

def run(device, **env):
    return subprocess.run([sys.executable, '-c', CHECK, device], capture_output=True, text=True, env={**os.environ, **env}, timeout=300)

def test_interpreted_equals_torch():
    out = run('cpu', TRITON_INTERPRET='1', CUDA_VISIBLE_DEVICES='')
    assert out.stdout.strip() == 'equal', out.stderr[-3000:]

@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_compiled_equals_torch():
    out = run('cuda', TRITON_INTERPRET='0')
    assert out.stdout.strip() == 'equal', out.stderr[-3000:]
