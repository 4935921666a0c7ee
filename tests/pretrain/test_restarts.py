"A rank that is killed, and `restarts`: the run goes on by itself, or says that it will not"
import os, re
from pathlib import Path
import pytest
from labkit.core.settings import SettingsError
from labkit.model.checkpoint import load_model
from labkit.pretrain.checkpoint import checkpoints
from labkit.pretrain.parallel import RankError
from labkit.pretrain.trainer import train
import dying_ranks
from small import RUN, assert_same_bits, quiet, tiny, weights

@pytest.fixture
def mark(tmp_path, monkeypatch):
    monkeypatch.setenv('LABKIT_TEST_MARK', str(tmp_path/'mark'))
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get('PYTHONPATH')))))

@pytest.fixture(scope='module')
def whole(corpus, tmp_path_factory):
    "A run that nothing interrupted"
    out = tmp_path_factory.mktemp('whole')
    return out, train(tiny(corpus, out, parallel='ddp:2'), RUN, say=quiet)

def test_a_killed_rank_and_one_restart(whole, corpus, tmp_path, mark):
    said, out = [], tmp_path/'out'
    r = train(tiny(corpus, out, parallel='ddp:2', restarts=1), RUN, evaluate=dying_ranks.die_once, say=said.append)
    again = [l for l in said if 'starting again' in l]
    assert len(again) == 1 and re.match('rank 0 of 2 was killed by SIGKILL.*; starting again from step-4$', again[0])
    assert r.resumed_from == 4 and r.loss == whole[1].loss
    assert_same_bits(weights(out, 10), weights(whole[0], 10))

def test_without_restarts_the_error_says_so(corpus, tmp_path, mark):
    with pytest.raises(RankError, match=r'(?s)rank 0 of 2 was killed by SIGKILL.*restarts = 0: nobody starts it again; with restarts = 3 it goes on by itself\nThe newest checkpoint is .*step-4: the same command goes on'):
        train(tiny(corpus, tmp_path/'out', parallel='ddp:2'), RUN, evaluate=dying_ranks.die_once, say=quiet)

def test_one_process_is_started_again_too_and_starts_over_only_once(corpus, tmp_path, mark):
    "resume = false removes the old run, and not what the new one has saved before it died"
    said, out = [], tmp_path/'out'
    old = train(tiny(corpus, out), RUN, say=quiet)
    r = train(tiny(corpus, out, restarts=1, resume=False), RUN, evaluate=dying_ranks.die_once, say=said.append)
    assert sum(l.endswith('starting again from step-4') for l in said) == 1 and r.resumed_from == 4 and r.loss == old.loss and checkpoints(out)[-1].name == 'step-10'

def test_a_crash_that_comes_back_ends_it(corpus, tmp_path, mark):
    said = []
    with pytest.raises(RankError, match='(?s)failure 2 without a new checkpoint in .*starting again does not help'):
        train(tiny(corpus, tmp_path/'out', restarts=1, save_every=100), RUN, evaluate=dying_ranks.die_always, say=said.append)
    assert sum('starting again from the beginning' in l for l in said) == 1

def test_what_only_a_person_can_mend_is_said_once(corpus, tmp_path):
    said = []
    with pytest.raises(SettingsError, match='restarts = -1: must be at least 0'): train(tiny(corpus, tmp_path/'out', restarts=-1), RUN, say=said.append)
    with pytest.raises(SettingsError, match='must be a function at the top of a module'): train(tiny(corpus, tmp_path/'out', restarts=1), RUN, evaluate=lambda m, s: None, say=said.append)
    assert not said
