"The log of a run, the judge of spikes, and the stop that waits"
import json, math, signal, sys, types
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.files import read_jsonl
from labkit.core.settings import UserError
from labkit.pretrain.monitor import LiveFigure, Log, Spikes, StopRequest, loss_figure, matmul_peak, median_mad, memory_row

def rows(out): return list(read_jsonl(out/'log.jsonl'))

def test_rows_behind_the_checkpoint_go_and_a_broken_line_too(tmp_path):
    log = Log(tmp_path, tensorboard=False)
    for s in range(1, 6): log.write(step=s, loss=1.)
    log.close()
    with open(tmp_path/'log.jsonl', 'a') as f: f.write('{"step": 6, "lo')
    Log(tmp_path, step=3, tensorboard=False).close()
    assert [r['step'] for r in rows(tmp_path)] == [1, 2, 3]

def test_what_is_no_number_is_valid_json_and_stays_off_the_boards(tmp_path):
    log = Log(tmp_path)
    log.write(step=1, loss=math.nan, best=math.inf, note='words', ok=True, lr=.5); log.close()
    assert json.loads((tmp_path/'log.jsonl').read_text(), parse_constant=lambda c: pytest.fail(c)) == dict(step=1, loss=None, best=None, note='words', ok=True, lr=.5)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    board = EventAccumulator(str(tmp_path/'tensorboard')).Reload()
    assert board.Scalars('lr')[0].value == .5 and 'note' not in board.Tags()['scalars'] and 'loss' not in board.Tags()['scalars']

def test_weights_and_biases_is_asked_for_or_left_alone(tmp_path, monkeypatch):
    calls = []
    class Run:
        def log(self, row, step): calls.append((step, row))
        def finish(self): calls.append('end')
    fake = types.ModuleType('wandb'); fake.__spec__ = types.SimpleNamespace()
    fake.init = lambda **how: calls.append(how) or Run()
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    Log(tmp_path, tensorboard=False).close()
    assert calls == []
    for step in (1, 2):
        log = Log(tmp_path, step=step - 1, tensorboard=False, wandb=True, about=dict(lr=1)); log.write(step=step, loss=2., note='x'); log.close()
    assert calls[1] == (1, dict(loss=2.)) and calls[2] == 'end' and calls[0]['id'] == calls[3]['id'] and calls[0]['config'] == dict(lr=1)

def test_weights_and_biases_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match='pip install wandb'): Log(tmp_path/'new', wandb=True)
    assert not (tmp_path/'new').exists()

numbers = st.lists(st.floats(.1, 100), min_size=1, max_size=60)

@given(values=numbers)
def test_median_and_mad_are_numpys(values):
    middle, width = median_mad(values)
    assert middle == pytest.approx(np.median(values)) and width == pytest.approx(1.4826*np.median(np.abs(np.array(values) - np.median(values))), abs=1e-9)

@given(seed=st.integers(0, 999), factor=st.floats(2, 1e6), scale=st.floats(1e-6, 1e6))
@settings(deadline=None, max_examples=30)
def test_a_planted_spike_is_seen_at_any_scale_and_nothing_else(seed, factor, scale):
    r = np.random.default_rng(seed)
    values = scale*np.exp(.05*r.standard_normal(120)); values[100] *= factor
    judge = Spikes()
    assert [s.step for i, v in enumerate(values) for s in judge.look(i, loss=float(v))] == [100]

@given(seed=st.integers(0, 99), cut=st.integers(0, 150))
@settings(deadline=None, max_examples=20)
def test_a_resumed_judge_says_what_an_uninterrupted_one_says(seed, cut):
    r = np.random.default_rng(seed); values = np.exp(r.standard_cauchy(150).clip(-20, 20)).tolist()
    whole, first = Spikes(), Spikes()
    said = [str(s) for i, v in enumerate(values) for s in whole.look(i, loss=v)]
    parts = [str(s) for i, v in enumerate(values[:cut]) for s in first.look(i, loss=v)]
    again = Spikes(recent=json.loads(json.dumps(first.state())))
    assert parts + [str(s) for i, v in enumerate(values[cut:], cut) for s in again.look(i, loss=v)] == said

def test_no_number_is_a_spike_and_is_not_remembered():
    judge = Spikes(least=2)
    assert 'loss is nan' in str(judge.look(1, loss=math.nan)[0])
    for i in range(9): assert judge.look(i, loss=2., grad_norm=0.) == []
    assert 'usual is 2' in str(judge.look(10, loss=math.inf)[0]) and judge.state()['loss'] == [2.]*9

def test_a_level_that_moves_for_good_is_soon_usual():
    judge = Spikes(window=20)
    said = [i for i, v in enumerate([1.]*30 + [5.]*30) for _ in judge.look(i, loss=v)]
    assert said[0] == 30 and max(said) < 42

def test_ctrl_c_is_a_wish_then_an_order():
    with StopRequest() as stop:
        assert not stop.asked
        signal.raise_signal(signal.SIGINT); assert stop.asked
        with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)
    with StopRequest(patient=True) as stop: signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGINT)
    assert stop.asked and signal.getsignal(signal.SIGINT) is signal.default_int_handler

def test_the_figure_reads_any_log(tmp_path):
    log = Log(tmp_path, tensorboard=False)
    for s in range(1, 9): log.write(step=s, tokens=s*1000, loss=math.nan if s == 4 else 1.)
    log.write(step=5, spike='loss', note='…'); log.write(step=8, valid_loss=1.2); log.close()
    assert [t.get_text() for t in loss_figure(tmp_path/'log.jsonl').axes[0].get_legend().get_texts()] == ['training batch', 'held-out text', 'spike']

def test_outside_a_notebook_the_live_figure_prints(tmp_path, capsys):
    LiveFigure(tmp_path/'none.jsonl')('step 1')
    assert capsys.readouterr().out == 'step 1\n'

def test_memory_and_peak():
    row = memory_row()
    assert 0 < row['memory_gb'] <= row['peak_gb'] < 64 and matmul_peak(seconds=0.) > 0
