"The engine with the GPU runner on Triton's interpreter: the same tokens as with torch, one step ahead."
import subprocess, sys
from pathlib import Path
import pytest

@pytest.mark.slow
def test_engine_runs_ahead_on_the_interpreter():
    r = subprocess.run([sys.executable, Path(__file__).with_name('engine_ahead.py')], capture_output=True, text=True, timeout=900)
    assert r.returncode == 0 and 'equal' in r.stdout, r.stderr[-3000:]
