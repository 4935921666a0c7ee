import os
from pathlib import Path
import pytest
from small import write_corpus

os.environ['PYTHONPATH'] = f'{Path(__file__).parent}:{Path(__file__).parents[2]}' # ranks find the modules of this folder

@pytest.fixture(scope='session')
def corpus(tmp_path_factory): return write_corpus(tmp_path_factory.mktemp('corpus'))
