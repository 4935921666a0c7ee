"Runs in two processes: the same losses as one, and what happens when a rank dies, never starts, or Ctrl-C comes"
import dataclasses, json, os, re, signal, subprocess, sys, time
from pathlib import Path
import pytest
from labkit.core.files import read_jsonl
from labkit.core.settings import SettingsError, UserError
from labkit.model.config import preset
from labkit.pretrain.checkpoint import checkpoints
from labkit.pretrain.parallel import Layout, RankError, check_layout, launch, parse_parallel, rank_environment, threads_per_rank
from labkit.pretrain.trainer import train
from small import RUN, assert_same_bits, command, quiet, tiny, weights

@pytest.mark.parametrize('text, world', [('', 1), ('  ', 1), ('ddp:1', 1), ('ddp:2', 2), (' ddp : 16 ', 16)])
def test_parallel_is_read(text, world): assert parse_parallel(text) == Layout(ddp=world) and parse_parallel(text).world == world

@pytest.mark.parametrize('text', ['ddp', 'ddp:', 'ddp:0', 'ddp:-1', 'ddp:two', '2', 'dp:2', 'ddp:2,ddp:2', 'fsdp=2', 'ddp:1.5', 'ddp:2 tp:2'])
def test_parallel_that_cannot_be(text):
    with pytest.raises(SettingsError, match=re.escape(f'parallel = {text}')): parse_parallel(text)

def test_parts_are_read_in_any_order():
    layout = parse_parallel('tp:2, fsdp:4 ,ddp:3,')
    assert layout == Layout(ddp=3, fsdp=4, tp=2) and (layout.world, layout.data_ranks) == (24, 12) and str(layout) == 'ddp:3,fsdp:4,tp:2'

def test_a_wrong_part_is_named():
    with pytest.raises(SettingsError, match=r"unknown part 'fdsp'. Did you mean 'fsdp'\? Known: pp, ddp, fsdp, cp, tp"): parse_parallel('ddp:2,fdsp:2')

@pytest.mark.parametrize('layout, seq_len, devices, what', [
    (Layout(tp=3), 512, None, 'heads = 4 cannot be cut into 3'), (Layout(tp=4), 512, None, 'kv_heads = 2 cannot be cut into 4'), (Layout(pp=2), 512, None, 'layers = 3'),
    (Layout(cp=2), 510, None, r'seq_len = 510 cannot be cut into 4 equal parts \(cp:2\)'), (Layout(tp=2), 511, None, 'seq_len = 511'),
    (Layout(ddp=2, fsdp=2), 512, 2, '4 processes need a GPU each, and there are 2')])
def test_layouts_that_cannot_be(layout, seq_len, devices, what):
    with pytest.raises(SettingsError, match=what): check_layout(layout, preset('lab-1m'), seq_len, devices)

def test_layouts_that_can_be():
    for layout in (Layout(), Layout(pp=3, ddp=5, fsdp=7, cp=2, tp=2)): check_layout(layout, preset('lab-1m'), 512)

def test_ranks_share_the_cores():
    cores = len(os.sched_getaffinity(0))
    assert threads_per_rank(2) == max(1, cores // 2) and threads_per_rank(10**6) == 1 and threads_per_rank(2, 3) == 3
    assert rank_environment(2)['OMP_NUM_THREADS'] == str(threads_per_rank(2))

def losses(log): return [r['loss'] for r in read_jsonl(log) if 'loss' in r]

@pytest.fixture(scope='module')
def two(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp('two')
    return out, train(tiny(corpus, out, parallel='ddp:2', min_lr=1e-2), RUN, say=quiet) # a rate that does not depend on `steps`

def test_two_processes_have_the_losses_of_one(two, corpus, tmp_path):
    one = train(tiny(corpus, tmp_path, min_lr=1e-2), RUN, say=quiet)
    assert losses(two[1].log) == pytest.approx(losses(one.log), abs=1e-5)
    assert two[1].valid_loss == pytest.approx(one.valid_loss, abs=1e-5) and two[1].tokens == one.tokens

def children(pid: int) -> list[int]: return [int(c) for t in Path(f'/proc/{pid}/task').iterdir() for c in (t/'children').read_text().split()]

def run_two(corpus, out, upto: str, **changes):
    "`labkit pretrain` on two processes, until a line that starts with `upto`; the process"
    s = tiny(corpus, out, parallel='ddp:2', **changes)
    fields = {f.name: getattr(s, f.name) for f in dataclasses.fields(s)}
    ini = Path(out).parent/'run.ini'
    ini.write_text('[run]\ndevice = cpu\ndtype = float32\nthreads = 1\n[pretrain]\n' + ''.join(f"{k} = {', '.join(map(str, v)) if isinstance(v, tuple) else 'none' if v is None else v}\n" for k, v in fields.items()))
    p = subprocess.Popen(command('--settings', ini), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in p.stdout:
        if line.startswith(upto): return p
    raise AssertionError(p.stderr.read())

@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='finds the ranks through /proc')
def test_a_killed_rank_ends_the_run_with_one_message_and_it_goes_on_bit_for_bit(two, corpus, tmp_path):
    p = run_two(corpus, tmp_path/'out', 'step 5/', steps=10**6, min_lr=1e-2, keep_last=10**6)
    torchrun, = children(p.pid)
    os.kill(children(torchrun)[1], signal.SIGKILL)
    rest, err = p.communicate(timeout=40)
    assert p.returncode == 1 and 'RankError: rank 1 of 2 was killed by SIGKILL' in err and 'The newest checkpoint is' in err
    for old in checkpoints(tmp_path/'out')[1:]: # go on from step 4, as if it had been killed right behind it
        for f in old.iterdir(): f.unlink()
        old.rmdir()
    r = train(tiny(corpus, tmp_path/'out', parallel='ddp:2', min_lr=1e-2), RUN, say=quiet)
    assert r.resumed_from == 4
    assert_same_bits(weights(tmp_path/'out', 10), weights(two[0], 10))

def test_ctrl_c_in_two_processes(corpus, tmp_path):
    p = run_two(corpus, tmp_path/'out', 'step 3/', steps=10**6)
    torchrun, = children(p.pid)
    ranks = children(torchrun)
    p.send_signal(signal.SIGINT)
    rest, err = p.communicate(timeout=40)
    step = checkpoints(tmp_path/'out')[-1].name
    assert p.returncode == 130 and step in err and 'goes on from there' in err and 'Traceback' not in err
    assert not any(Path(f'/proc/{pid}').exists() for pid in (torchrun, *ranks))

def test_a_rank_that_cannot_start_says_so():
    t = time.monotonic()
    with pytest.raises(RankError, match=r"rank \d of 2 failed: ModuleNotFoundError: No module named 'no_such_module'"): launch('no_such_module:f', 2, on_line=quiet)
    assert time.monotonic() - t < 30

def test_what_a_person_can_mend_comes_as_one_sentence(corpus, tmp_path):
    "a lack that only the ranks see"
    train(tiny(corpus, tmp_path, steps=2), RUN, say=quiet)
    with pytest.raises(UserError, match=r'step-2 holds another model') as e: train(tiny(corpus, tmp_path, layers=1, parallel='ddp:2'), RUN, say=quiet)
    assert 'Traceback' not in str(e.value)

def test_an_evaluation_that_the_ranks_could_not_import(corpus, tmp_path):
    with pytest.raises(SettingsError, match='importable|imported'): train(tiny(corpus, tmp_path, parallel='ddp:2'), RUN, evaluate=lambda m, s: {}, say=quiet)

def test_launch_returns_what_the_ranks_return():
    assert launch('builtins:dict', 2, on_line=quiet, a=[1, 'x'], b=None) == [dict(a=[1, 'x'], b=None)] * 2
