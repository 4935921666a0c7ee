"The Triton kernels and the fp8 layer against plain torch: interpreted on the CPU, compiled where there is a GPU"
import os, pytest, subprocess, sys, torch
from pathlib import Path

NAMES = ('norm', 'swiglu', 'rope', 'cross_entropy', 'flash', 'fp8')

def run(name, device, **env):
    script = Path(__file__).with_name('kernel_checks.py')
    out = subprocess.run([sys.executable, str(script), name, device], capture_output=True, text=True, env={**os.environ, **env}, timeout=300)
    assert out.stdout.strip() == f'{name} equal', out.stderr[-3000:]

@pytest.mark.parametrize('name', NAMES)
def test_interpreted_equals_torch(name): run(name, 'cpu', TRITON_INTERPRET='1', CUDA_VISIBLE_DEVICES='')

@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('name', NAMES)
def test_compiled_equals_torch(name): run(name, 'cuda', TRITON_INTERPRET='0')
