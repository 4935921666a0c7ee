"DeepSpeed as a second engine: losses of our own path, a checkpoint, and one sentence for what is missing"
import builtins, os, time
import pytest
from labkit.core.settings import UserError
from labkit.pretrain.parallel import launch
from labkit.pretrain.zero import train_sharded
from labkit.pretrain.zero_deepspeed import DeepSpeed, import_deepspeed, settings_for, stale_locks
from small import quiet

def test_losses_of_one_process_and_resume(corpus, tmp_path):
    pytest.importorskip('deepspeed')
    call = dict(target='labkit.pretrain.zero_deepspeed:train_deepspeed', corpus=str(corpus))
    calls = [*(dict(call, stage=s) for s in (1, 2, 3)), dict(call, bf16=True), dict(call, stage=3, steps=2, save=str(tmp_path/'half')), dict(call, stage=3, load=str(tmp_path/'half')),
             *(dict(target='labkit.pretrain.worker:few_steps', layouts=['fsdp:2'], backend=b, zero=z, clip=.5) for z in (2, 3) for b in ('torch', 'deepspeed'))]
    *stages, bf16, half, rest, ours2, theirs2, ours3, theirs3 = launch('labkit.pretrain.parallel:each', 2, 1, quiet, calls=calls)[1]
    alone = train_sharded(str(corpus))
    for r in stages: assert r['losses'] == pytest.approx(alone['losses'], abs=1e-5) and r['norms'] == pytest.approx(alone['norms'], rel=1e-3)
    assert bf16['losses'] == pytest.approx(alone['losses'], abs=.05)
    for ours, theirs in ((ours2['fsdp:2'], theirs2['fsdp:2']), (ours3['fsdp:2'], theirs3['fsdp:2'])): # the trainer's workers
        assert theirs['losses'] == pytest.approx(ours['losses'], abs=1e-5) and theirs['norms'] == pytest.approx(ours['norms'], rel=1e-3) and theirs['held_out'] == pytest.approx(ours['held_out'], rel=1e-5)
    assert half['losses'] + rest['losses'] == stages[2]['losses'] and rest['weights'] == stages[2]['weights']

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
