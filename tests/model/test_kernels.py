"""The Triton kernels against plain torch: interpreted on the CPU, compiled where there is a GPU."""
import os, pytest, subprocess, sys, torch

CHECK = '''
import sys, torch, torch.nn.functional as F
from labkit.model.kernels import rms_norm
device = sys.argv[1]
for shape in ((1, 8), (2, 3, 100), (5, 64), (7, 1)) + (((3, 4096), (300, 576)) if device == 'cuda' else ()):
    for dtype, tol in ((torch.float32, 2e-5), (torch.bfloat16, 2e-2)):
        torch.manual_seed(0)
        x, g = (3*torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
        w = torch.rand(shape[-1], device=device, dtype=dtype) + .5
        outs = []
        for f in (lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: F.rms_norm(x.float(), w.shape, w.float(), 1e-5).to(dtype)):
            a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
            y = f(a, b); y.backward(g); outs.append((y, a.grad, b.grad))
        for name, got, want in zip(('y', 'dx', 'dw'), *outs):
            err = (got.float() - want.float()).abs().max().item(); scale = max(1, want.float().abs().max().item())
            assert got.dtype == dtype and got.shape == want.shape and err <= tol*scale, (shape, dtype, name, err)
x = torch.randn(6, 4, device=device).T # not contiguous
assert torch.allclose(rms_norm(x, torch.ones(6, device=device)), F.rms_norm(x, (6,)), atol=1e-4)
assert rms_norm(torch.zeros(0, 8, device=device), torch.ones(8, device=device)).shape == (0, 8)
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
