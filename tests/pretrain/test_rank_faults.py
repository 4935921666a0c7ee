"A rank that dies, hangs or asks for what is not there: one message, an end, no waiting"
import time
import pytest
from labkit.core.settings import UserError
from labkit.pretrain.parallel import RankError, launch, own_gpu
from small import quiet

def fails(match, call, within=60, **kw):
    t = time.monotonic()
    with pytest.raises(RankError, match=match) as e: launch(f'failing_ranks:{call}', 2, 1, quiet, **kw)
    assert time.monotonic() - t < within
    return str(e.value)

def test_a_rank_that_hangs_is_named(): assert '\n' not in fails(r'^rank 0 of 2 waited in vain for rank 1: .*[Tt]imed out', 'hang', who=1, patience=3)

@pytest.mark.slow
@pytest.mark.parametrize('call', ['leave_early', 'never_join'])
def test_so_is_one_that_never_comes_or_never_ends(call): fails('^rank 0 of 2 waited in vain for rank 1: ', call, patience=3)

@pytest.mark.slow # test_parallel.py has one that fails even sooner
def test_the_cause_is_told_not_what_follows(): assert 'no start' in fails('^rank 1 of 2 failed: ValueError: no start', 'die_at_start')

@pytest.mark.slow
@pytest.mark.parametrize('how, match', [('raise', '^rank 1 of 2 failed: ValueError: not this time'), ('abort', '^rank 1 of 2 was ended by SIGABRT'), ('exit', '^rank 1 of 2 failed: SystemExit: 3')])
def test_a_rank_that_ends_in_the_middle(how, match): fails(match, 'die', how=how)

def test_a_gpu_for_each_rank(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '1'); monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    assert own_gpu(2) == 1
    with pytest.raises(UserError, match='^2 processes on this machine need a GPU each, and there are 1: make `parallel` smaller, or set device = cpu$'): own_gpu(1)

@pytest.mark.slow
def test_more_ranks_than_gpus():
    "an error like any other, but one that a person can mend: no traceback"
    with pytest.raises(UserError, match='^2 processes on this machine need a GPU each, and there are 1: make `parallel` smaller, or set device = cpu$'): launch('failing_ranks:use_gpus', 2, 1, quiet)

def test_groups_inside_and_after_each_other(): assert launch('failing_ranks:twice', 2, 1, quiet) == [[2., 4., 6., 6.]] * 2
