"Ranks killed, hanging, absent; a node lost; restarts that end; the SLURM template"
import json, os, re, subprocess, sys, time
from pathlib import Path
import pytest, torch
from labkit.core.settings import UserError
from labkit.pretrain.checkpoint import Stored, checkpoints
from labkit.pretrain.faults import Fault, HungRank, beat, beats, daly_interval, faulty_run, goodput, launch_nodes, launch_until_done, naming_the_silent, silent_rank, torchrun_command, until_done
from labkit.pretrain.parallel import RankError, launch, rank_environment

ROOT = Path(__file__).parents[2]
RANK = 'labkit.pretrain.faults:faulty_run'
CALL = dict(last=8, parallel='fsdp:2', save_every=2, keep_last=9, dim=32, vocab=61)
quiet = lambda line: None
linux = pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='finds processes through /proc')

def bits(out, step=8): return {f'{part}.{k}': v for part in ('model', 'optimizer') for k, v in Stored(Path(out)/f'step-{step}', part).items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')
    return out, launch(RANK, 2, on_line=quiet, out=str(out), **CALL)[0]

# ---- with processes

def test_a_rank_that_never_starts_and_one_that_is_killed(whole, tmp_path):
    "two restarts, and the bits of a run in which nothing happened, with checkpoints written in the background"
    said, out = [], tmp_path/'out'
    r = launch_until_done(RANK, 2, str(out), say=said.append, faults=[dict(kind='start', rank=1), dict(kind='kill', rank=1, step=5)], asynchronous=True, **CALL)[0]
    restarts = [l for l in said if 'starting again' in l]
    assert len(restarts) == 2 and 'no GPU any more' in restarts[0] and 'the beginning' in restarts[0] and 'rank 1 of 2 was killed by SIGKILL' in restarts[1] and re.search(r'from step-[24]$', restarts[1])
    assert r['begin'] in (2, 4) and r['losses'] == whole[1]['losses'][r['begin']:]
    assert same(bits(out), bits(whole[0]))

def test_a_hung_rank_is_named_and_torchrun_starts_all_again(whole, tmp_path):
    "elastic mode: the store outlives the ranks, and the second attempt must not meet the first one's addresses"
    out = str(tmp_path/'out')
    r = launch_nodes(RANK, ranks=2, restarts=1, on_line=quiet, out=out, timeout=6, faults=[dict(kind='hang', rank=0, step=5)], **CALL)[0]
    assert r['begin'] == 4 and same(bits(out), bits(whole[0]))

@pytest.mark.slow # the same fault as above; its sentence: test_the_silent_rank
def test_a_hung_rank_without_restarts_is_one_sentence(tmp_path):
    t = time.monotonic()
    with pytest.raises(RankError, match=r'rank 1 of 2 failed: HungRank: waited in vain for the other ranks; rank 0 has been silent for \d+ s, since step 2'):
        launch_nodes(RANK, ranks=2, on_line=quiet, out=str(tmp_path/'out'), timeout=6, faults=[dict(kind='hang', rank=0, step=3)], **CALL)
    assert time.monotonic() - t < 60

@linux
def test_a_lost_node(whole, tmp_path):
    "the other one ends with a sentence; one rank alone goes on"
    out = str(tmp_path/'out')
    with pytest.raises(RankError, match='node 1 of 2 is gone: its launcher was ended by SIGKILL'):
        launch_nodes(RANK, nodes=2, ranks=1, on_line=quiet, out=out, timeout=30, faults=[dict(kind='node', rank=1, step=5)], **CALL)
    r = faulty_run(out, **{**CALL, 'parallel': ''})
    assert r['begin'] == 4 and r['losses'] == pytest.approx(whole[1]['losses'][4:], abs=1e-5)

# ---- without

def test_a_fault_strikes_once_at_its_place(tmp_path):
    f, model = Fault('nan', 1, 3), torch.nn.Linear(2, 2)
    struck = lambda: model.weight.grad.isnan().any().item()
    for step, rank, want in ((2, 1, False), (3, 0, False), (3, 1, True), (3, 1, False)):
        model.weight.grad = torch.ones(2, 2)
        f.strike(tmp_path, step, rank, model)
        assert struck() == want

def test_the_silent_rank(tmp_path):
    assert silent_rank(tmp_path) is None
    for rank, step in ((0, 1), (1, 1), (0, 2)): beat(tmp_path, rank, step)
    assert silent_rank(tmp_path)[:2] == (1, 1) and [s for s, _ in beats(tmp_path)[0]] == [1, 2]
    with pytest.raises(HungRank, match='rank 1 has been silent for 0 s, since step 1'), naming_the_silent(tmp_path): raise RuntimeError('Timed out waiting 8000ms for recv')
    with pytest.raises(RuntimeError, match='something else'), naming_the_silent(tmp_path): raise RuntimeError('something else')

def fails(*errors):
    errors = list(errors)
    def run():
        if errors: raise errors.pop(0)
        return 'done'
    return run

def fake_checkpoint(out, step):
    (out/f'step-{step}').mkdir(parents=True); (out/f'step-{step}'/'digests.json').write_text('{}')

KILLED = 'rank 1 of 2 was killed by SIGKILL'

def test_restarts_end_where_there_is_no_progress(tmp_path):
    said = []
    assert until_done(fails(*[RankError(KILLED)]*3), tmp_path, 3, said.append) == 'done' and len(said) == 3
    with pytest.raises(RankError, match='failure 4 without a new checkpoint'): until_done(fails(*[RankError(KILLED)]*4), tmp_path, 3, quiet)

def test_progress_makes_restarts_free(tmp_path):
    n = []
    def run():
        n.append(1); fake_checkpoint(tmp_path, len(n))
        if len(n) < 9: raise RankError(KILLED)
        return 'done'
    assert until_done(run, tmp_path, 1, quiet) == 'done' and len(n) == 9

@pytest.mark.parametrize('error', [RankError('nowhere: no folder train/ with token shards here'), UserError('a bad setting'), KeyboardInterrupt(), ValueError('a bug')])
def test_what_starting_again_does_not_mend_ends_it_at_once(tmp_path, error):
    with pytest.raises(type(error)): until_done(fails(error), tmp_path, 3, quiet)

@pytest.mark.parametrize('message', [KILLED, 'ranks 0, 1 of 4 waited in vain for rank 2', 'node 1 of 2 is gone'])
def test_what_is_a_crash(tmp_path, message): assert until_done(fails(RankError(message)), tmp_path, 1, quiet) == 'done'

@pytest.mark.parametrize('save, mtbf', [(1., 100.), (5., 100.), (.1, 60.)])
def test_dalys_interval_is_where_the_simulation_is_best(save, mtbf):
    best = daly_interval(save, mtbf)
    share = lambda i: goodput(i, save, 2., mtbf, 20000)
    assert share(best) > max(share(best*f) for f in (.25, .5, 2, 4)) - .005 and share(best) > share(best*4) and share(best) > share(best/4)

def test_goodput_at_its_ends():
    assert goodput(10., 0., 0., 1e9, 10) > .999 and goodput(10., 0., 1e9, 1., 10) == 0. and daly_interval(300., 100.) == 100.

# ---- SLURM

SBATCH = ROOT/'examples'/'slurm'/'pretrain.sbatch'

def test_the_template_is_a_shell_script(): subprocess.run(['bash', '-n', SBATCH], check=True)

def fake_cluster(folder: Path, srun: str) -> dict:
    "`srun` and `scontrol` that write down how they were called"
    folder.mkdir()
    for name, text in dict(srun=srun, scontrol='[ "$1" = show ] && echo node-a && sleep .1 && echo node-b; echo "scontrol $*" >> "$LOG"').items():
        (folder/name).write_text(f'#!/bin/bash\n{text}\n'); (folder/name).chmod(0o755)
    return {**os.environ, 'PATH': f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}", 'LOG': str(folder/'log'), 'SLURM_JOB_NODELIST': 'node-[a-b]', 'SLURM_JOB_ID': '4711', 'SLURM_GPUS_ON_NODE': '2',
            'SLURM_CPUS_PER_TASK': '4', 'SLURM_NNODES': '2', 'SLURM_NODEID': '1'}

def ini(folder, text='steps = 9'):
    (folder/'my settings.ini').write_text(f'[pretrain]\n{text}\n')
    return str(folder/'my settings.ini')

def test_what_each_node_runs_is_what_torchrun_and_labkit_understand(tmp_path, corpus):
    "the command line that reaches a node, read by torchrun's own parser, and its end by ours"
    env = fake_cluster(tmp_path/'bin', 'shift; "$@"')
    (tmp_path/'bin'/'torchrun').write_text('#!/bin/bash\nprintf "%s\\n" "$@" >> "$LOG"; echo "threads=$OMP_NUM_THREADS" >> "$LOG"\n'); (tmp_path/'bin'/'torchrun').chmod(0o755)
    file = ini(tmp_path)
    subprocess.run(['bash', SBATCH, file, '--steps', '7'], env=env, check=True, timeout=150)
    lines = [l for l in (tmp_path/'bin'/'log').read_text().splitlines() if not l.startswith('scontrol')]
    assert lines[-1] == 'threads=2'
    from torch.distributed.run import parse_args
    a = parse_args(lines[:-1])
    assert (a.nnodes, a.node_rank, a.nproc_per_node, a.master_addr, a.master_port, a.max_restarts, a.no_python) == ('2', 1, '2', 'node-a', 24711, 3, True)
    assert [a.training_script, *a.training_script_args] == ['labkit', 'pretrain', '--settings', file, '--steps', '7']

@pytest.mark.parametrize('text, count, queued, code', [('steps = 9', '0', True, 0), ('steps = 9', '5', False, 1), ('stepz = 9', '0', False, 2)])
def test_the_job_goes_back_into_the_queue_after_a_crash_and_not_after_a_mistake(tmp_path, text, count, queued, code):
    env = fake_cluster(tmp_path/'bin', 'exit 1')
    if code != 2: (tmp_path/'bin'/'python').write_text('#!/bin/bash\n'); (tmp_path/'bin'/'python').chmod(0o755) # the settings are right: three seconds less
    p = subprocess.run(['bash', SBATCH, ini(tmp_path, text)], env={**env, 'SLURM_RESTART_COUNT': count}, timeout=150, capture_output=True, text=True)
    log = tmp_path/'bin'/'log'
    assert (log.exists() and 'requeue 4711' in log.read_text()) == queued and p.returncode == code
    if code == 2: assert 'stepz' in p.stderr

@pytest.mark.slow
def test_the_template_trains(tmp_path, corpus):
    "one node of two ranks, through torchrun and `labkit pretrain`"
    env = {**fake_cluster(tmp_path/'bin', 'shift; "$@"'), 'SLURM_NNODES': '1', 'SLURM_NODEID': '0', 'OMP_NUM_THREADS': '1'}
    (tmp_path/'bin'/'scontrol').write_text('#!/bin/bash\necho 127.0.0.1\n')
    file = tmp_path/'s.ini'
    file.write_text(f'[run]\ndevice = cpu\ndtype = float32\nthreads = 1\n[pretrain]\ndata = {corpus}\nout = {tmp_path}/out\nmodel = lab-1m\nlayers = 2\ndim = 16\nheads = 2\nkv_heads = 1\nffn_dim = 32\nsteps = 4\nseq_len = 16\n'
                   'batch_tokens = 64\nmicro_batch = 2\nsave_every = 2\nparallel = fsdp:2\ntensorboard = false\n')
    p = subprocess.run(['bash', SBATCH, file], env=env, timeout=200, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr[-2000:]
    assert checkpoints(tmp_path/'out')[-1].name == 'step-4' and (tmp_path/'out'/'final'/'model.safetensors').exists()
