"Processes that die, hang, raise or are interrupted."
import json, operator, os, signal, time
import pytest
from labkit.core.settings import UserError
from labkit.corpus.executor import Failed, OneProcess, Processes, RayCluster, die_at, executor_for

def double(x): return 2 * x
def slow(x): time.sleep(3600 if x else 0); return x
def interrupt_parent(x):
    if x == 1: os.kill(os.getppid(), signal.SIGINT); time.sleep(5)
    return x

@pytest.mark.parametrize('spec', ['one', 'processes:2', pytest.param('ray:2', marks=pytest.mark.slow)])
def test_all_agree(spec):
    if spec.startswith('ray'): pytest.importorskip('ray')
    with executor_for(spec) as ex:
        assert dict(ex.map(operator.neg, [])) == {}
        for n in (1, 7): assert dict(ex.map(operator.neg, range(n))) == {i: -i for i in range(n)}
        with pytest.raises(json.JSONDecodeError, match='Expecting value'): list(ex.map(json.loads, ['1', 'no']))
        assert dict(ex.map(operator.neg, [5])) == {0: -5}, 'an error leaves the executor usable'

def test_a_dead_process_costs_its_own_task_alone():
    with Processes(2) as ex:
        got = dict(ex.map(die_at, [(i, 3) for i in range(8)]))
        assert got.pop(3) == Failed('its process died (SIGKILL)') and got == {i: i for i in range(8) if i != 3}
        assert dict(ex.map(double, [1, 2])) == {0: 2, 1: 4}, 'the pool goes on'

@pytest.mark.slow
def test_a_dead_process_on_ray():
    pytest.importorskip('ray')
    with RayCluster(2) as ex:
        got = dict(ex.map(die_at, [(i, 1) for i in range(4)]))
        assert isinstance(got.pop(1), Failed) and got == {0: 0, 2: 2, 3: 3}

def test_a_task_that_hangs_is_ended():
    t0 = time.time()
    with Processes(2, timeout=1) as ex: got = dict(ex.map(slow, [0, 1, 0]))
    assert 'longer than 1 s' in got[1].why and (got[0], got[2]) == (0, 0) and time.time() - t0 < 60

def test_interrupted_from_the_keyboard_no_worker_stays():
    import psutil
    with pytest.raises(KeyboardInterrupt):
        with Processes(2) as ex: list(ex.map(interrupt_parent, range(4)))
    time.sleep(.2)
    assert not [p for p in psutil.Process().children() if 'spawn_main' in ' '.join(p.cmdline())]

@pytest.mark.parametrize('spec', ['', 'threads', 'processes:0', 'processes:two', 'ray:', 'spark'])
def test_unknown_executors(spec):
    with pytest.raises(UserError, match='expected auto, one'): executor_for(spec)

def test_kinds():
    assert isinstance(executor_for('one'), OneProcess) and executor_for('processes:3').workers == 3 and executor_for('ray').address is None
    assert executor_for('ray://head:10001').address == 'ray://head:10001' and executor_for('ray:auto').address == 'auto'
