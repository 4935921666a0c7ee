"The Triton kernels and the fp8 layer against plain torch: interpreted on the CPU, compiled where there is a GPU"
import pytest
from pathlib import Path
from interpreted import assert_said, on_gpu

NAMES, CHECKS = ('norm', 'swiglu', 'rope', 'cross_entropy', 'flash', 'fp8'), Path(__file__).with_name('kernel_checks.py')

@pytest.mark.parametrize('name', NAMES)
def test_interpreted_equals_torch(name): assert_said(f'{name} equal', CHECKS, 'all', 'cpu')

@on_gpu
@pytest.mark.parametrize('name', NAMES)
def test_compiled_equals_torch(name): assert_said(f'{name} equal', CHECKS, 'all', 'cuda')
