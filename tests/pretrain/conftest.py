import os
from functools import partial
from pathlib import Path
import pytest
from labkit.pretrain import trainer
from labkit.pretrain.monitor import matmul_peak
from small import write_corpus

os.environ['PYTHONPATH'] = f'{Path(__file__).parent}:{Path(__file__).parents[2]}:{os.environ.get("PYTHONPATH", "")}' # ranks find the modules of this folder

@pytest.fixture(scope='session')
def corpus(tmp_path_factory): return write_corpus(tmp_path_factory.mktemp('corpus'))

@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    "Each run looks for 0.2 s at what a matrix product reaches; here it looks at one product"
    monkeypatch.setattr(trainer, 'matmul_peak', partial(matmul_peak, seconds=0.))
