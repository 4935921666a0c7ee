"Scripts that check Triton's kernels, each in a process of its own: Triton reads TRITON_INTERPRET when it is imported"
import functools, os, subprocess, sys, pytest, torch

@functools.cache
def said(script, *args) -> str:
    "What a script printed; its last argument is the device: interpreted on the `cpu`, compiled for `cuda`. Run once for all tests that ask"
    env = dict(TRITON_INTERPRET='1', CUDA_VISIBLE_DEVICES='') if args[-1] == 'cpu' else dict(TRITON_INTERPRET='0')
    p = subprocess.run([sys.executable, str(script), *args], capture_output=True, text=True, env={**os.environ, **env}, timeout=900)
    return p.stdout + p.stderr

def assert_said(line, script, *args): assert line in said(script, *args).splitlines(), said(script, *args)[-3000:]

def on_gpu(test): return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')(test))
