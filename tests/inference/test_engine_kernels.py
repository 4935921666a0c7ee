"The engine's kernels against plain torch: interpreted on the CPU, compiled where there is a GPU"
import os, pytest, subprocess, sys, torch
from pathlib import Path

NAMES = ('small', 'products', 'attention', 'runner')

def run(device, **env):
    "All checks in one process: what it printed"
    p = subprocess.run([sys.executable, str(Path(__file__).with_name('engine_kernel_checks.py')), device], capture_output=True, text=True, env={**os.environ, **env}, timeout=900)
    return p.stdout + p.stderr

@pytest.fixture(scope='module')
def interpreted(): return run('cpu', TRITON_INTERPRET='1', CUDA_VISIBLE_DEVICES='')

@pytest.fixture(scope='module')
def compiled(): return run('cuda', TRITON_INTERPRET='0')

@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_interpreted_equals_torch(interpreted, name): assert f'{name} equal' in interpreted.splitlines(), interpreted[-3000:]

@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('name', NAMES)
def test_compiled_equals_torch(compiled, name): assert f'{name} equal' in compiled.splitlines(), compiled[-3000:]
