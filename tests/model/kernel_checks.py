"""Each Triton kernel against plain torch, forward and backward. Run as `python kernel_checks.py NAME DEVICE` (all: every one): a process of its own, because Triton reads TRITON_INTERPRET when it is imported."""
import sys, torch, traceback
import torch.nn.functional as F

def agree(name, ours, plain, inputs, device, tol=2e-5, low_tol=2e-2, kinds=slice(2)):
    "Equal outputs and gradients: in float32 to `tol`, in bfloat16 (of the plain one in float32) to `low_tol`, both relative to the largest number"
    for dtype, most in ((torch.float32, tol), (torch.bfloat16, low_tol))[kinds]:
        results, grads = [], None
        for f, kind in ((ours, dtype), (plain, torch.float32)):
            xs = [x.to(device, dtype).to(kind).requires_grad_() for x in inputs]
            ys = f(*xs); ys = ys if isinstance(ys, tuple) else (ys,)
            grads = grads or [torch.randn_like(y) for y in ys]
            results.append([*ys, *torch.autograd.grad(ys, xs, [g.to(y.dtype) for g, y in zip(grads, ys)])])
        for i, (got, want) in enumerate(zip(*results)):
            err, scale = (got.float() - want.float()).abs().max().item(), max(1, want.float().abs().max().item())
            assert got.shape == want.shape and err <= most*scale, (name, dtype, i, tuple(got.shape), err, scale)

def norm(device):
    from labkit.model.kernels import add_rms_norm, rms_norm
    plain = lambda x, w: F.rms_norm(x, w.shape, w, 1e-5)
    for shape in ((1, 8), (2, 3, 100), (5, 64), (7, 1), (33, 24)) + (((3, 4096), (300, 576), (2000, 2048), (70, 6144)) if device == 'cuda' else ()):
        x, r, w = 3*torch.randn(shape), torch.randn(shape), torch.rand(shape[-1]) + .5
        agree('rms_norm', rms_norm, plain, (x, w), device)
        agree('add_rms_norm', add_rms_norm, lambda x, r, w: (plain(x + r, w), x + r), (x, r, w), device)
    x = torch.randn(6, 4, device=device).T # not contiguous
    assert torch.allclose(rms_norm(x, torch.ones(6, device=device)), F.rms_norm(x, (6,)), atol=1e-4)
    assert rms_norm(torch.zeros(0, 8, device=device), torch.ones(8, device=device)).shape == (0, 8)

def swiglu(device):
    from labkit.model.kernels import swiglu
    for shape in ((1, 3), (2, 5, 100), (3, 2048)): agree('swiglu', swiglu, lambda g, u: F.silu(g)*u, (2*torch.randn(shape), torch.randn(shape)), device)

def rope(device):
    from labkit.model.kernels import rope_
    from labkit.model.transformer import apply_rope
    for B, T, H, K, d, b in ((1, 3, 2, 1, 8, 1), (2, 5, 3, 3, 16, 2), (2, 4, 6, 2, 12, 1), (2, 7, 16, 8, 128, 2)):
        a = torch.randn(b, T, 1, d//2, device=device)
        own = lambda q, k: rope_((q*1).view(B, T, H, d), (k*1).view(B, T, K, d), a.cos(), a.sin())
        agree('rope', own, lambda q, k: tuple(apply_rope(x.view(B, T, -1, d), a.cos(), a.sin()) for x in (q, k)), (torch.randn(B, T, H*d), torch.randn(B, T, K*d)), device)
    q = torch.randn(1, 4, 2, 8, device=device)
    before = q.data_ptr()
    assert rope_(q, q.clone(), a.cos()[:1, :4, :, :4], a.sin()[:1, :4, :, :4])[0].data_ptr() == before

def cross_entropy(device):
    from labkit.model.cross_entropy import _by_triton, cross_entropy_sum
    for n, v in ((5, 100), (3, 9000), (1, 2), (4, 8192)) + (((64, 92544),) if device == 'cuda' else ()):
        for dtype, tol in ((torch.float32, 1e-5), (torch.bfloat16, 5e-3)):
            z, y = 5*torch.randn(n, v, device=device).to(dtype), torch.randint(0, v, (n,), device=device)
            y[0] = -100 if n > 3 else v - 1
            ref = z.double().requires_grad_()
            want = F.cross_entropy(ref, y, reduction='none'); want.sum().backward()
            alone, _ = _by_triton(z.clone(), y, False)
            loss, p = _by_triton(z, y, True)
            assert p.data_ptr() == z.data_ptr() and torch.equal(loss, alone)
            assert (loss - want).abs().max() < 1e-4 and (p - ref.grad).abs().max() < tol, (n, v, dtype)
    loss, _ = _by_triton(torch.randn(3, 10, device=device), torch.tensor([1, 10, -3], device=device), True)
    assert loss.isnan().tolist() == [False, True, True], 'a target outside the vocabulary'
    if device == 'cuda': whole_cross_entropy(device, cross_entropy_sum)

def whole_cross_entropy(device, f):
    h, w = (torch.randn(n, 256, device=device, requires_grad=True) for n in (1000, 5008))
    y = torch.randint(0, 5008, (1000,), device=device); y[::7] = -100
    want = F.cross_entropy((h @ w.T).float(), y, reduction='sum'); grads = torch.autograd.grad(want, (h, w))
    for chunk in (0, 96, 1000):
        with torch.autocast('cuda', torch.bfloat16): got = f(h, w, y, chunk)
        assert abs(got/want - 1) < 1e-2, (got, want)
        for a, b in zip(torch.autograd.grad(got, (h, w)), grads): assert a.dtype == torch.float32 and (a - b).norm()/b.norm() < 2e-2

def plain_attention(q, k, v, window=None, documents=None): # (B, T, H, d), (B, T, K, d) -> out, log-sum-exp
    T, group, t = q.shape[1], q.shape[2]//k.shape[2], torch.arange(q.shape[1], device=q.device)
    seen = (t <= t[:, None])[None]
    if window: seen = seen & (t > t[:, None] - window)
    if documents is not None: seen = seen & (documents[:, :, None] == documents[:, None])
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    s = (torch.einsum('bthd,bshd->bhts', q, k)/q.shape[-1]**.5).masked_fill(~seen[:, None], -torch.inf)
    return torch.einsum('bhts,bshd->bthd', s.softmax(-1), v), s.logsumexp(-1)

def flash(device):
    from labkit.model.flash import attention_with_lse, visible
    torch.backends.cuda.matmul.allow_tf32 = False
    shapes = [(1, 32, 1, 1, 16), (2, 70, 2, 1, 16), (1, 100, 1, 1, 32), (1, 1, 2, 2, 16), (1, 45, 4, 2, 20)]
    if device == 'cuda': shapes = [(1, 45, 4, 2, 20), (2, 1000, 4, 2, 128)] # each width and number of heads is compiled
    for B, T, H, K, d in shapes:
        torch.manual_seed(T)
        documents = (torch.rand(B, T, device=device) < .05).cumsum(1)
        for window, docs in ((None, None), (37, None), (None, documents), (29, documents)):
            bounds = visible(T, window, docs, device) if window or docs is not None else (None, None)
            agree(f'flash {B, T, H, K, d} window {window} documents {docs is not None}', lambda q, k, v: attention_with_lse(q, k, v, *bounds), lambda q, k, v: plain_attention(q, k, v, window, docs),
                  [torch.randn(B, T, h, d) for h in (H, K, K)], device, tol=2e-4 if device == 'cuda' else 2e-5, low_tol=3e-2, kinds=slice(1, 2) if device == 'cuda' else slice(1 + (T < 40))) # the interpreter takes bfloat16 as float32; compiling float32 takes minutes

def fp8(device):
    from labkit.model.fp8 import to_fp8
    for n, kind in ((64, torch.float32), (19, torch.float32), (64, torch.bfloat16)):
        model = to_fp8(torch.nn.Linear(256, 48, device=device, dtype=kind), skip=())
        x = torch.randn(n, 256, device=device, dtype=kind, requires_grad=True)
        y, want = model(x), F.linear(x, model.weight, model.bias)
        g = torch.randn_like(y)
        got, plain = ([a, *torch.autograd.grad(a, (x, model.weight, model.bias), g)] for a in (y, want))
        for a, b in zip(got, plain): assert a.dtype == b.dtype and (a.float() - b.float()).norm()/b.float().norm() < .08, (n, kind, (a.float() - b.float()).norm()/b.float().norm())

CHECKS = dict(norm=norm, swiglu=swiglu, rope=rope, cross_entropy=cross_entropy, flash=flash, fp8=fp8)

if __name__ == '__main__':
    for name in CHECKS if sys.argv[1] == 'all' else sys.argv[1:2]:
        torch.manual_seed(0)
        try: CHECKS[name](sys.argv[2]); print(name, 'equal', flush=True)
        except Exception: print(f'{name} fails:\n{traceback.format_exc()}', flush=True) # and on to the next one
