"DeepSpeed as a second engine: losses of our own path, a checkpoint, and one sentence for what is missing"
import builtins, itertools, os, re, types
import pytest, torch
from labkit.core.settings import UserError
from labkit.model.checkpoint import load_model
from labkit.pretrain.parallel import launch
from labkit.pretrain.trainer import train
from labkit.pretrain.zero import train_sharded
from labkit.pretrain.zero_deepspeed import DeepSpeed, import_deepspeed, stale_locks
from small import RUN, as_file, losses, quiet, tiny

TRAIN, STEPS, RUN_RANK, SPOIL = 'labkit.pretrain.zero_deepspeed:train_deepspeed', 'labkit.pretrain.worker:few_steps', 'run_ranks:run', 'run_ranks:spoil'

@pytest.fixture(scope='module')
def two(corpus, tmp_path_factory):
    "All that two ranks do with DeepSpeed, in one start: answers of the last rank by name, of the first one's runs, the lines that were printed, and the folder"
    pytest.importorskip('deepspeed')
    top, said = tmp_path_factory.mktemp('deepspeed'), []
    count = itertools.count()
    def run(out, **changes): return dict(target=RUN_RANK, settings=as_file(tiny(corpus, top/out, **{**dict(steps=6, min_lr=1e-2, parallel='fsdp:2', backend='deepspeed', zero=2, save_every=2), **changes}), top/f'{next(count)}.ini'))
    def spoil(out, step, name, how): return dict(target=SPOIL, path=str(top/out/f'step-{step}'), name=name, how=how)
    calls = {f'stage {s}': dict(target=TRAIN, corpus=str(corpus), stage=s) for s in (1, 2, 3)}
    calls |= {'bf16': dict(target=TRAIN, corpus=str(corpus), bf16=True), 'half': dict(target=TRAIN, corpus=str(corpus), stage=3, steps=2, save=str(top/'half')), 'rest': dict(target=TRAIN, corpus=str(corpus), stage=3, load=str(top/'half'))}
    calls |= {f'{b} {z}': dict(target=STEPS, layouts=['fsdp:2'], backend=b, zero=z, clip=.5) for z in (2, 3) for b in ('torch', 'deepspeed')}
    calls['whole'] = run('whole')
    calls['copy'] = dict(target='run_ranks:copy', path=str(top/'whole'), to=str(top/'copy'))
    calls['four'] = run('parts', steps=4)
    calls['cut'] = spoil('parts', 4, '*optim_states.pt', 'cut')
    calls['after one'] = run('parts')
    calls['gone'], calls['cut too'] = spoil('parts', 6, '*model_states.pt', 'gone'), spoil('parts', 4, '*optim_states.pt', 'cut')
    calls['after two'] = run('parts')
    for step, name, how in ((2, '*optim_states.pt', 'gone'), (4, 'config.json', 'cut'), (6, 'digests.json', 'cut')): calls[f'all {step}'] = spoil('parts', step, name, how)
    calls['none'] = run('parts', steps=8)
    calls['2 → 3'], calls['2 → 1'] = run('copy', zero=3, steps=8), run('copy', zero=1, steps=8)
    calls['3'], calls['3 → 2'] = run('three', zero=3, steps=2), run('three')
    calls['ours'], calls['not ours'] = run('torch', backend='torch', steps=2), run('torch')
    first, last = launch('labkit.pretrain.parallel:each', 2, 1, said.append, calls=list(calls.values()))
    return dict(zip(calls, last)), dict(zip(calls, first)), said, top

def test_losses_of_one_process_and_resume(two, corpus):
    got, alone = two[0], train_sharded(str(corpus))
    for s in (1, 2, 3): assert got[f'stage {s}']['losses'] == pytest.approx(alone['losses'], abs=1e-5) and got[f'stage {s}']['norms'] == pytest.approx(alone['norms'], rel=1e-3)
    assert got['bf16']['losses'] == pytest.approx(alone['losses'], abs=.05)
    for z in (2, 3): # the trainer's workers
        ours, theirs = got[f'torch {z}']['fsdp:2'], got[f'deepspeed {z}']['fsdp:2']
        assert theirs['losses'] == pytest.approx(ours['losses'], abs=1e-5) and theirs['norms'] == pytest.approx(ours['norms'], rel=1e-3) and theirs['held_out'] == pytest.approx(ours['held_out'], rel=1e-5)
    assert got['half']['losses'] + got['rest']['losses'] == got['stage 3']['losses'] and got['rest']['weights'] == got['stage 3']['weights']

def test_a_run_is_that_of_one_process(two, corpus, tmp_path):
    one, many = train(tiny(corpus, tmp_path, steps=6, min_lr=1e-2), RUN, say=quiet), two[1]['whole']
    assert losses(many['log']) == pytest.approx(losses(one.log), abs=2e-4)
    ours, theirs = (load_model(x).state_dict() for x in (many['final'], one.final))
    assert max(float((ours[k] - theirs[k]).abs().max()) for k in theirs) < 2e-3

@pytest.mark.parametrize('again, damaged', [('after one', ['cut']), ('after two', ['gone', 'cut too'])])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(two, again, damaged):
    _, got, said, top = two
    assert got[again]['resumed_from'] == 2 and losses(got[again]['log']) == losses(got['whole']['log'])
    for name in damaged: assert any(got[name] in line and 'is not used' in line for line in said), name
    assert got['gone'].endswith('model_states.pt') and any(f"{got['gone']} is missing: step-6 is not used" in line for line in said)
    assert {p.name for p in top.glob('parts/damaged-*')} == {'damaged-step-4', 'damaged-step-6'}

def test_the_end_of_a_run_with_damage_has_the_bits_of_one_without(two):
    a, b = (load_model(two[1][k]['final']).state_dict() for k in ('whole', 'after two'))
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_stages_1_and_2_read_each_other(two): assert two[1]['2 → 1']['resumed_from'] == 6 and losses(two[1]['2 → 1']['log'])[:6] == losses(two[1]['whole']['log'])

def test_where_no_checkpoint_is_whole_or_ours_there_is_one_error(two):
    got = two[1]
    assert re.match('none of the 3 checkpoints in .*parts is whole. Restore one from a copy, or start over with resume = false$', got['none']['error'])
    assert re.search('step-6 was written by 2 processes with zero = 1 or 2, now it is 2 with zero = 3: DeepSpeed can read it only as it was written', got['2 → 3']['error'])
    assert re.search('step-2 was written by 2 processes with zero = 3, now it is 2 with zero = 2', got['3 → 2']['error'])
    assert 'no checkpoint of the backend deepspeed here' in got['not ours']['error']
    for name in ('none', '2 → 3', '3 → 2', 'not ours'): assert two[0][name] == got[name], 'all ranks end'

def test_one_process_of_our_own_says_whose_checkpoint_it_is(two, corpus):
    with pytest.raises(UserError, match='step-6 was written by backend = deepspeed: go on with it, or use another out'): train(tiny(corpus, two[3]/'whole', steps=8), RUN, say=quiet)

def test_a_lock_that_nobody_holds(tmp_path, monkeypatch):
    lock = tmp_path/'py311_cpu'/'kernel'/'lock'; lock.parent.mkdir(parents=True); lock.touch()
    assert stale_locks(tmp_path) == [], 'a young one may be somebody\'s'
    os.utime(lock, (0, 0))
    assert stale_locks(tmp_path) == [lock]
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path))
    with pytest.raises(UserError, match=f'left {lock}; DeepSpeed would wait for it for ever: remove the folder {lock.parent} '): import_deepspeed()
    monkeypatch.chdir(lock.parent) # as a compiler does
    assert stale_locks(tmp_path) == []

def test_missing_deepspeed(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path))
    real = builtins.__import__
    def without(name, *args, **kw):
        if name == 'deepspeed': raise ModuleNotFoundError("No module named 'deepspeed'", name='deepspeed')
        return real(name, *args, **kw)
    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(UserError, match=r"backend = deepspeed: DeepSpeed is not installed: pip install 'labkit\[deepspeed\]'"): import_deepspeed()

def test_no_checkpoint_here(tmp_path):
    with pytest.raises(UserError, match='no checkpoint of the backend deepspeed'): DeepSpeed.load(object(), tmp_path)

def test_a_checkpoint_of_other_ranks(tmp_path):
    (tmp_path/'deepspeed').mkdir()
    for name in ('mp_rank_00_model_states.pt', *(f'bf16_zero_pp_rank_{r}_mp_rank_00_optim_states.pt' for r in range(4))): (tmp_path/'deepspeed'/name).touch()
    engine = types.SimpleNamespace(dp_world_size=2, zero_optimization_stage=lambda: 2)
    with pytest.raises(UserError, match='was written by 4 processes with zero = 1 or 2, now it is 2 with zero = 2'): DeepSpeed.load(types.SimpleNamespace(engine=engine), tmp_path)
