"Checkpoints by shards: other numbers and kinds of ranks, damage, errors in the background, export"
import errno, json, os, shutil
from concurrent.futures import Future
from pathlib import Path
import pytest, torch
from labkit.core.settings import UserError
from labkit.model.checkpoint import load_model
from labkit.model.config import preset
from labkit.model.transformer import Transformer
from labkit.pretrain import checkpoint as module
from labkit.pretrain.checkpoint import (DamagedCheckpoint, Saver, Stored, checkpoints, clear_leftovers, damage, export_model, flat_state, load_checkpoint, load_newest, main,
                                        save_checkpoint, small_run, to_host)
from labkit.pretrain.optimizer import make_optimizer
from labkit.pretrain.parallel import launch
from small import in_one_start, quiet

RUN = 'labkit.pretrain.checkpoint:small_run'

def fresh(seed=0, **changes):
    torch.manual_seed(seed)
    model = Transformer(preset('lab-1m', **{**dict(vocab_size=61, dim=16, n_layers=2), **changes}))
    return model, make_optimizer(model, 1e-2)

def trained(seed=0, **changes):
    model, optimizer = fresh(seed, **changes)
    for p in model.parameters(): p.grad = torch.randn_like(p)
    optimizer.step()
    return model, optimizer

def saved(out, *steps):
    run = trained()
    for step in steps: save_checkpoint(out, *run, None, dict(step=step))
    return run

def bits(path): return {f'{part}.{k}': v for part in ('model', 'optimizer') for k, v in Stored(path, part).items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def spoil(file, at=.5):
    b = bytearray(file.read_bytes()); b[int(len(b)*at)] ^= 1; file.write_bytes(b)

# ---- other ranks

@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp('alone')
    return out, small_run(out, 12, save_every=4, keep_last=9)

def test_the_vocabulary_of_these_tests_is_uneven(alone): assert Stored(alone[0]/'step-12')['embed_tokens.weight'].shape[0] == 509

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "What two ranks do in one start: a run, written in the background; the same from its first checkpoint; a checkpoint that wanders through layouts"
    top = tmp_path_factory.mktemp('two')
    folders = [str(top/n) for n in 'defg']
    save_checkpoint(folders[0], *trained(vocab_size=512, dim=64), None, dict(step=3))
    call = dict(target=RUN, last=12, parallel='fsdp:2', save_every=4, keep_last=9, asynchronous=True)
    whole, _, again, _ = in_one_start(2, dict(call, out=str(top/'a')), dict(target='run_ranks:copy', path=str(top/'a'/'step-4'), to=str(top/'c'/'step-4')), dict(call, out=str(top/'c')),
                                      dict(target='labkit.pretrain.checkpoint:convert', folders=folders, layouts=['fsdp:2', 'tp:2', 'ddp:2']))
    return top, whole[0], again[0]

def test_two_ranks_go_on_as_one_and_as_two(alone, two, tmp_path):
    "a vocabulary that two ranks cannot share evenly (torchtitan's issue 1136), written in the background: one rank goes on with the same losses, two with the same bits"
    top, whole, again = two
    assert whole['losses'] == pytest.approx(alone[1]['losses'], abs=1e-5) and len(list((top/'a'/'step-4').glob('*.distcp'))) == 2
    shutil.copytree(top/'a'/'step-4', tmp_path/'step-4')
    one = small_run(tmp_path, 12, save_every=4, keep_last=9)
    assert one['begin'] == 4 and one['losses'] == pytest.approx(alone[1]['losses'][4:], abs=1e-5)
    assert again['begin'] == 4 and again['losses'] == whole['losses'][4:]
    assert same(bits(top/'a'/'step-12'), bits(top/'c'/'step-12'))

def test_a_checkpoint_keeps_its_bits_through_other_layouts(two):
    want = bits(two[0]/'d'/'step-3')
    for f in 'efg': assert same(bits(two[0]/f/'step-3'), want), f

@pytest.mark.slow
def test_four_ranks(alone, tmp_path):
    "2 → 1 → 4, shards and copies; and layouts of two axes keep the bits"
    out = tmp_path/'out'
    losses = launch(RUN, 2, on_line=quiet, out=str(out), last=4, parallel='fsdp:2', save_every=4)[0]['losses']
    losses += small_run(out, 8, save_every=4)['losses']
    losses += launch(RUN, 4, on_line=quiet, out=str(out), last=12, parallel='ddp:2,fsdp:2', save_every=4)[0]['losses']
    assert losses == pytest.approx(alone[1]['losses'], abs=1e-5)
    folders = [str(tmp_path/n) for n in 'abcd']
    save_checkpoint(folders[0], *trained(vocab_size=512, dim=64), None, dict(step=3))
    launch('labkit.pretrain.checkpoint:convert', 4, on_line=quiet, folders=folders, layouts=['fsdp:4', 'fsdp:2,tp:2', 'ddp:2,fsdp:2'])
    for f in folders[1:]: assert same(bits(Path(f)/'step-3'), bits(Path(folders[0])/'step-3')), f

def test_the_stages_of_a_pipeline_are_one_model(tmp_path):
    "a rank that holds several stages saves them under the names of the whole"
    class Part(torch.nn.Module):
        def __init__(self, whole, names): super().__init__(); self.cfg = whole.cfg; [setattr(self, n, getattr(whole, n)) for n in names]
    model, optimizer = trained(tie_embeddings=False)
    parts = [Part(model, ['embed_tokens']), Part(model, ['layers', 'norm', 'lm_head'])]
    save_checkpoint(tmp_path, parts, optimizer, None, dict(step=1))
    other = fresh(1, tie_embeddings=False)
    load_checkpoint(tmp_path/'step-1', *other)
    assert same(flat_state(*other), flat_state(model, optimizer))

# ---- whole or not there

def test_what_a_killed_save_leaves_is_no_checkpoint(tmp_path):
    saved(tmp_path, 1)
    (tmp_path/'.step-2').mkdir(); (tmp_path/'step-3').mkdir(); (tmp_path/'step-3'/'state.json').write_text('{}')
    assert [p.name for p in checkpoints(tmp_path)] == ['step-1']
    clear_leftovers(tmp_path)
    assert not (tmp_path/'.step-2').exists()

def test_every_file_has_its_digest(tmp_path):
    saved(tmp_path, 1)
    files = json.loads((tmp_path/'step-1'/'digests.json').read_text())['files']
    assert set(files) | {'digests.json'} == {p.name for p in (tmp_path/'step-1').iterdir()} and damage(tmp_path/'step-1') == ''

@pytest.mark.parametrize('name, how', [('__0_0.distcp', 'bit'), ('__0_0.distcp', 'cut'), ('__0_0.distcp', 'gone'), ('.metadata', 'bit'), ('state.json', 'cut'), ('config.json', 'gone'), ('digests.json', 'cut')])
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path, name, how):
    run = saved(tmp_path, 1, 2)
    file, said = tmp_path/'step-2'/name, []
    if how == 'bit': spoil(file)
    elif how == 'cut': file.write_bytes(file.read_bytes()[:-7])
    else: file.unlink()
    other = fresh(1)
    path, state = load_newest(tmp_path, *other, say=said.append)
    assert path.name == 'step-1' and state == dict(step=1) and same(flat_state(*other), flat_state(*run))
    assert len(said) == 1 and str(file) in said[0] and 'step-2 is not used' in said[0]
    assert (tmp_path/'damaged-step-2').is_dir() and [p.name for p in checkpoints(tmp_path)] == ['step-1']
    with pytest.raises(DamagedCheckpoint): export_model(tmp_path/'damaged-step-2', tmp_path/'hf')

def test_none_is_whole(tmp_path):
    saved(tmp_path, 1, 2)
    for s in (1, 2): spoil(tmp_path/f'step-{s}'/'__0_0.distcp')
    with pytest.raises(UserError, match='none of the 2 checkpoints in .* is whole'): load_newest(tmp_path, *fresh(), say=quiet)
    assert len(checkpoints(tmp_path)) == 2
    assert load_newest(tmp_path/'nothing', *fresh(), say=quiet) is None

def test_saving_a_step_again_replaces_it(tmp_path):
    saved(tmp_path, 1); new = trained(5)
    save_checkpoint(tmp_path, *new, None, dict(step=1))
    assert same(bits(tmp_path/'step-1'), {k: v.detach() for k, v in flat_state(*new).items()}) and [p.name for p in tmp_path.iterdir()] == ['step-1']

def test_before_the_first_step(tmp_path):
    "a run can be saved before its optimizer has averages, and goes on exactly"
    a, b = fresh(0), fresh(1)
    save_checkpoint(tmp_path, *a, None, dict(step=0)); load_checkpoint(tmp_path/'step-0', *b)
    c = fresh(0) # never saved
    for run in (a, b, c):
        torch.manual_seed(7)
        for p in run[0].parameters(): p.grad = torch.randn_like(p)
        run[1].step()
    assert same(dict(c[0].state_dict()), dict(b[0].state_dict())) and same(dict(c[0].state_dict()), dict(a[0].state_dict()))

# ---- another run's

def test_another_architecture_is_one_sentence(tmp_path):
    saved(tmp_path, 1)
    with pytest.raises(UserError, match=r'step-1 holds another model'): load_newest(tmp_path, *fresh(n_layers=3), say=quiet)
    assert [p.name for p in checkpoints(tmp_path)] == ['step-1']

def test_another_optimizer_is_one_sentence(tmp_path):
    model, _ = trained()
    save_checkpoint(tmp_path, model, torch.optim.SGD(model.parameters(), 1e-2), None, dict(step=1))
    with pytest.raises(UserError, match=r'saved with another optimizer: it holds no optimizer\.'): load_checkpoint(tmp_path/'step-1', *fresh())

def test_another_tokenizer_is_one_sentence(corpus, tmp_path):
    from labkit.corpus.tokens import Tokenizer, train_tokenizer
    mine, other = Tokenizer.load(corpus/'tokenizer'), train_tokenizer(['something else ' * 30], 270)
    save_checkpoint(tmp_path, *trained(), mine, dict(step=1))
    load_checkpoint(tmp_path/'step-1', *fresh(), mine)
    with pytest.raises(UserError, match='another tokenizer'): load_checkpoint(tmp_path/'step-1', *fresh(), other)

# ---- in the background

def failing(monkeypatch, error, at='step-2'):
    real = module.save_shards
    def fail(flat, folder, *args):
        if at in folder.name: (folder/'__0_0.distcp').write_bytes(b'half'); raise error
        real(flat, folder, *args)
    monkeypatch.setattr(module, 'save_shards', fail)

def test_the_copy_does_not_change_with_training(tmp_path):
    run = trained(); saver = Saver(tmp_path, asynchronous=True)
    before = {k: v.detach().clone() for k, v in flat_state(*run).items()}
    gate = Future()
    saver.thread.submit(gate.result)                # the thread is busy
    saver.save(*run, None, dict(step=1))
    with torch.no_grad(): [p.zero_() for p in run[0].parameters()]
    gate.set_result(None); saver.wait()
    assert same(bits(tmp_path/'step-1'), before)

def test_an_error_in_the_background_is_raised_at_the_next_step_with_its_cause(tmp_path, monkeypatch):
    failing(monkeypatch, OSError(errno.ENOSPC, 'No space left on device'))
    run, saver = trained(), Saver(tmp_path, asynchronous=True)
    saver.save(*run, None, dict(step=1)); saver.wait()
    saver.save(*run, None, dict(step=2))
    saver.thread.submit(int).result()
    with pytest.raises(UserError, match=r'(?s)step-2 was not written: no space left on the disk.*step-1 is intact') as e: saver.check()
    causes = []; x = e.value
    while x: causes.append(type(x)); x = x.__cause__
    assert OSError in causes
    saver.check(); saver.save(*run, None, dict(step=3)); assert saver.wait().name == 'step-3'

def test_the_next_save_waits_and_raises(tmp_path, monkeypatch):
    failing(monkeypatch, RuntimeError('bad luck'))
    run, saver = trained(), Saver(tmp_path, asynchronous=True)
    saver.save(*run, None, dict(step=2))
    with pytest.raises(UserError, match='step-2 was not written: RuntimeError: bad luck. There is no earlier checkpoint'): saver.save(*run, None, dict(step=4))

def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    saved(tmp_path, 1); failing(monkeypatch, OSError(errno.EDQUOT, 'Disk quota exceeded'))
    with pytest.raises(UserError, match='no space left'): save_checkpoint(tmp_path, *trained(), None, dict(step=2))
    assert [p.name for p in tmp_path.iterdir()] == ['step-1'] and damage(tmp_path/'step-1') == ''

def test_a_file_size_limit_is_a_full_disk(tmp_path):
    "RLIMIT_FSIZE, in a process of its own"
    import subprocess, sys
    code = f'''
import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_resharding import trained, save_checkpoint, UserError
save_checkpoint({str(tmp_path)!r}, *trained(), None, dict(step=1))
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
try: save_checkpoint({str(tmp_path)!r}, *trained(), None, dict(step=2))
except UserError as e: print(e)
'''
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert 'step-2 was not written: no space left' in p.stdout and 'step-1 is intact' in p.stdout, p.stderr
    assert [q.name for q in tmp_path.iterdir()] == ['step-1']

# ---- export

def test_export_reads_one_tensor_at_a_time(tmp_path, monkeypatch):
    run = saved(tmp_path, 1)
    export_model(tmp_path, tmp_path/'hf')
    assert same(dict(load_model(tmp_path/'hf').state_dict()), dict(run[0].state_dict()))
    sizes, real = [], module.load_shards
    monkeypatch.setattr(module, 'load_shards', lambda flat, folder: (sizes.append(len(flat)), real(flat, folder))[1])
    export_model(tmp_path/'step-1', tmp_path/'hf2', torch.bfloat16)
    assert set(sizes) == {1} and json.loads((tmp_path/'hf2'/'config.json').read_text())['torch_dtype'] == 'bfloat16'

def test_export_command(tmp_path, capsys):
    saved(tmp_path/'run', 1)
    main([str(tmp_path/'run'), str(tmp_path/'hf'), '--dtype', 'bfloat16'])
    assert 'parameters' in capsys.readouterr().out and (tmp_path/'hf'/'model.safetensors').exists()
    with pytest.raises(UserError): main([str(tmp_path/'nowhere'), str(tmp_path/'x')])
    assert not (tmp_path/'x').exists()

def test_a_tensor_of_no_dimension_and_shared_memory(tmp_path):
    flat = flat_state(*trained()); buffers = {}
    a = to_host(flat, buffers); b = to_host(flat, buffers)
    assert same(a, {k: v.detach() for k, v in flat.items()}) and all(a[k] is b[k] for k in a), 'the second copy goes into the memory of the first'
