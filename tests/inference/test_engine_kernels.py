"The engine's kernels against plain torch: interpreted on the CPU, compiled where there is a GPU"
import pytest
from pathlib import Path
from interpreted import assert_said, on_gpu

NAMES, CHECKS = ('small', 'products', 'attention', 'runner'), Path(__file__).with_name('engine_kernel_checks.py')

@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_interpreted_equals_torch(name): assert_said(f'{name} equal', CHECKS, 'cpu')

@on_gpu
@pytest.mark.parametrize('name', NAMES)
def test_compiled_equals_torch(name): assert_said(f'{name} equal', CHECKS, 'cuda')
