"Runs in one process: exact resume, Ctrl-C, a full disk, bad input"
import dataclasses, errno, json, math, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file
from labkit.core.files import read_jsonl
from labkit.core.settings import RunSettings, SettingsError, UserError, load
from labkit.corpus.tokens import train_tokenizer, write_shards
from labkit.pretrain import checkpoint as checkpoint_module
from labkit.pretrain.checkpoint import checkpoints, export_model
from labkit.pretrain.data import open_corpus
from labkit.pretrain.parallel import Group
from labkit.pretrain.monitor import StopRequest, loss_figure
from labkit.pretrain.trainer import Interrupted, PretrainSettings, Trainer, main, train
from labkit.pretrain.worker import Worker

from small import RUN, assert_same_bits, command, quiet, tiny, weights, write_corpus

@pytest.fixture(scope='module')
def whole(corpus, tmp_path_factory):
    "A run that nothing interrupted"
    out = tmp_path_factory.mktemp('whole')
    return out, train(tiny(corpus, out), RUN, say=quiet)

def test_what_a_run_leaves(whole):
    out, r = whole
    assert sorted(p.name for p in out.iterdir()) == ['final', 'log.jsonl', 'settings.ini', 'step-10', 'step-4', 'step-8']
    assert sorted(p.name for p in (out/'final').iterdir()) == ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']
    rows = [x for x in read_jsonl(r.log) if 'loss' in x]
    assert [x['step'] for x in rows] == list(range(1, 11)) and rows[-1]['tokens'] == 640 == r.tokens
    assert set(rows[0]) == {'step', 'loss', 'lr', 'grad_norm', 'tokens', 'tokens_per_s', 'mfu', 'memory_gb', 'peak_gb', 'seconds'}
    assert sum(x['loss'] for x in rows[-3:]) < sum(x['loss'] for x in rows[:3]) and r.valid_loss and loss_figure(r.log).axes[0].lines

def test_the_final_model_opens_in_transformers(whole):
    transformers = pytest.importorskip('transformers')
    from labkit.model.checkpoint import load_model
    final = whole[1].final
    ids = torch.arange(12)[None]
    theirs, ours = transformers.AutoModelForCausalLM.from_pretrained(final)(ids).logits, load_model(final)(ids)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)

def test_settings_can_be_read_back(whole, corpus):
    assert load(PretrainSettings, 'pretrain', whole[0]/'settings.ini') == tiny(corpus, whole[0])
    assert load(RunSettings, 'run', whole[0]/'settings.ini') == RUN

class Crash(Exception): pass

def crash_at(step):
    def evaluate(model, now):
        if now == step: raise Crash
    return evaluate

@pytest.mark.parametrize('stop', [5, 10])
def test_a_crashed_run_goes_on_bit_for_bit(whole, corpus, tmp_path, stop):
    with pytest.raises(Crash): train(tiny(corpus, tmp_path), RUN, evaluate=crash_at(stop), say=quiet)
    r = train(tiny(corpus, tmp_path), RUN, say=quiet)
    assert r.resumed_from == 4 * (stop // 4)
    assert_same_bits(weights(tmp_path, 10), weights(whole[0], 10))
    keep = lambda path: [(x['step'], x['loss'], x['grad_norm']) for x in read_jsonl(path) if 'loss' in x]
    assert keep(r.log) == keep(whole[1].log)

def test_ctrl_c_writes_a_checkpoint_and_the_run_goes_on(whole, corpus, tmp_path):
    ask = lambda model, step: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Interrupted, match=r'interrupted at step 6: the newest checkpoint is .*step-6; the same command goes on'): train(tiny(corpus, tmp_path), RUN, evaluate=ask, say=quiet)
    assert [p.name for p in checkpoints(tmp_path)] == ['step-4', 'step-6']
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(tiny(corpus, tmp_path), RUN, say=quiet)
    assert_same_bits(weights(tmp_path, 10), weights(whole[0], 10))


def test_ctrl_c_on_the_command_line_exits_with_130(corpus, tmp_path):
    (tmp_path/'s.ini').write_text('[run]\nthreads = 1\n')
    args = command('--settings', tmp_path/'s.ini', '--data', corpus, '--out', tmp_path/'out', '--model', 'lab-1m', '--steps', 100000, '--seq-len', 16, '--batch-tokens', 64, '--log-every', 1, '--no-tensorboard')
    p = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in p.stdout:
        if line.startswith('step 3/'): p.send_signal(signal.SIGINT); break
    rest, err = p.communicate(timeout=30)
    step = checkpoints(tmp_path/'out')[-1].name
    assert p.returncode == 130 and step in err and 'the same command goes on from there' in err and 'Traceback' not in err

def test_finished_runs_are_not_trained_again(corpus, tmp_path):
    a = train(tiny(corpus, tmp_path), RUN, say=quiet)
    b = train(tiny(corpus, tmp_path), RUN, say=quiet)
    assert b.resumed_from == 10 and dataclasses.replace(b, resumed_from=0, mfu=a.mfu) == a # the peak is measured anew

def test_more_steps_go_on_and_resume_false_starts_over(corpus, tmp_path):
    train(tiny(corpus, tmp_path), RUN, say=quiet)
    assert train(tiny(corpus, tmp_path, steps=12), RUN, say=quiet).resumed_from == 10
    r = train(tiny(corpus, tmp_path, steps=4, resume=False), RUN, say=quiet)
    assert r.resumed_from == 0 and [p.name for p in checkpoints(tmp_path)] == ['step-4'] and max(x['step'] for x in read_jsonl(r.log)) == 4

def test_accumulation_gives_the_same_losses(corpus, tmp_path):
    losses = [[x['loss'] for x in read_jsonl(train(tiny(corpus, tmp_path/str(m), micro_batch=m), RUN, say=quiet).log) if 'loss' in x] for m in (1, 3, 4)]
    assert losses[0] == pytest.approx(losses[2], abs=1e-5) and losses[1] == pytest.approx(losses[2], abs=1e-5)

def test_a_time_limit_ends_the_run_with_its_learning_rate_down(corpus, tmp_path):
    r = train(tiny(corpus, tmp_path, steps=10**6, minutes=.03, save_every=10**6, eval_every=10**6), RUN, say=quiet)
    rows = [x for x in read_jsonl(r.log) if 'loss' in x]
    assert 1.7 < r.seconds < 6 and rows[-1]['lr'] < 3e-4 < rows[len(rows)//4]['lr'] and (tmp_path/'final').is_dir()

def test_bfloat16_trains(corpus, tmp_path):
    r = train(tiny(corpus, tmp_path, steps=30, lr=1e-2), dataclasses.replace(RUN, dtype='bfloat16'), say=quiet)
    rows = [x['loss'] for x in read_jsonl(r.log) if 'loss' in x]
    assert rows[-1] < rows[0] - .3
    assert all(v.dtype == torch.float32 for v in weights(tmp_path, 30)[0].values())

def test_old_checkpoints_go(corpus, tmp_path):
    train(tiny(corpus, tmp_path, save_every=1, keep_last=2), RUN, say=quiet)
    assert [p.name for p in checkpoints(tmp_path)] == ['step-9', 'step-10'] and not list(tmp_path.glob('.*'))

# ---- a full disk

def test_a_full_disk_is_said_and_the_last_checkpoint_stays(whole, corpus, tmp_path, monkeypatch):
    def full_at_8(flat, folder, *args):
        if 'step-8' in folder.name: (folder/'__0_0.distcp').write_bytes(b'half'); raise RuntimeError('PytorchStreamWriter failed writing file') from OSError(errno.ENOSPC, 'No space left on device')
        real(flat, folder, *args)
    real = checkpoint_module.save_shards
    monkeypatch.setattr(checkpoint_module, 'save_shards', full_at_8)
    with pytest.raises(UserError, match=r'(?s)step-8 was not written: no space left on the disk .*step-4 is intact'): train(tiny(corpus, tmp_path), RUN, say=quiet)
    monkeypatch.undo()
    assert [p.name for p in checkpoints(tmp_path)] == ['step-4'] and not list(tmp_path.glob('.*'))
    train(tiny(corpus, tmp_path), RUN, say=quiet)
    assert_same_bits(weights(tmp_path, 10), weights(whole[0], 10))

@pytest.mark.skipif(not shutil.which('unshare') or subprocess.run(['unshare', '-Urm', 'true'], capture_output=True).returncode != 0, reason='needs user namespaces to mount a small disk')
def test_a_disk_that_is_really_full(corpus, tmp_path):
    disk, args = tmp_path/'disk', ['--data', corpus, '--model', 'lab-1m', '--layers', 1, '--steps', 6, '--save-every', 2, '--keep-last', 9, '--seq-len', 16, '--batch-tokens', 64, '--no-tensorboard']
    disk.mkdir()
    script = f'mount -t tmpfs -o size=6m none {disk} && "$@"; code=$?; ls -A {disk}/out; exit $code'
    p = subprocess.run(['unshare', '-Urm', 'sh', '-c', script, 'sh', sys.executable, '-c', 'import sys; from labkit.cli import main; sys.exit(main())', 'pretrain', *map(str, args), '--out', str(disk/'out')],
                       capture_output=True, text=True, timeout=60, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert p.returncode == 2 and 'no space left on the disk' in p.stderr and 'is intact' in p.stderr and 'Traceback' not in p.stderr
    assert not [n for n in p.stdout.split() if n.startswith('.')] and 'step-2' in p.stdout.split()

def test_a_killed_writer_leaves_nothing_that_is_taken_for_a_checkpoint(corpus, tmp_path):
    (tmp_path/'.step-4.abc').mkdir(parents=True); (tmp_path/'step-9').mkdir()
    r = train(tiny(corpus, tmp_path, steps=4), RUN, say=quiet)
    assert r.resumed_from == 0 and not (tmp_path/'.step-4.abc').exists()

# ---- bad input

def test_another_tokenizer(corpus, tmp_path):
    other = tmp_path/'mixed'
    shutil.copytree(corpus, other); shutil.rmtree(other/'tokenizer')
    train_tokenizer(['something else entirely ' * 20], 280).save(other/'tokenizer')
    with pytest.raises(UserError, match='was made with another tokenizer'): train(tiny(other, tmp_path/'out'), RUN)

def test_missing_folders(corpus, tmp_path):
    with pytest.raises(UserError, match=r'no folder train/.*labkit corpus'): train(tiny(tmp_path, tmp_path/'out'), RUN)
    shutil.copytree(corpus/'train', tmp_path/'train')
    with pytest.raises(UserError, match='no folder tokenizer/'): train(tiny(tmp_path, tmp_path/'out'), RUN)
    assert not (tmp_path/'out').exists()

def test_no_held_out_text(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path/'c'); shutil.rmtree(tmp_path/'c'/'valid')
    assert train(tiny(tmp_path/'c', tmp_path/'out', steps=2), RUN, say=quiet).valid_loss is None

def test_damaged_shards(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path/'c')
    f = tmp_path/'c'/'train'/'shard-00000.bin'
    f.write_bytes(b'\xff\x7f' * (f.stat().st_size // 2))
    with pytest.raises(UserError, match='outside the vocabulary'): train(tiny(tmp_path/'c', tmp_path/'out'), RUN, say=quiet)

def test_damaged_checkpoint(whole, corpus, tmp_path):
    "The one before it is used, and the run comes out the same"
    train(tiny(corpus, tmp_path), RUN, say=quiet)
    (tmp_path/'step-10'/'__0_0.distcp').write_bytes(b'PK nothing')
    said = []
    r = train(tiny(corpus, tmp_path), RUN, say=said.append)
    assert r.resumed_from == 8 and any('__0_0.distcp has 10 bytes' in line for line in said) and (tmp_path/'damaged-step-10').is_dir()
    assert_same_bits(weights(tmp_path, 10), weights(whole[0], 10))

def test_all_checkpoints_damaged(corpus, tmp_path):
    train(tiny(corpus, tmp_path), RUN, say=quiet)
    for p in checkpoints(tmp_path): (p/'__0_0.distcp').write_bytes(b'PK nothing')
    with pytest.raises(UserError, match='none of the 3 checkpoints'): train(tiny(corpus, tmp_path, steps=12), RUN, say=quiet)

def poisoned(monkeypatch, step, times=1):
    "Gradients of one batch of the run, or of this and those after it, become NaN"
    before = Worker.gradients
    left = [times]
    def gradients(self, pieces):
        loss = before(self, pieces)
        if int(pieces[0][0].sum()) in step and left[0]:
            left[0] -= 1
            next(self.model.parameters()).grad.fill_(float('nan'))
        return loss
    monkeypatch.setattr(Worker, 'gradients', gradients)

def batch_marks(corpus, out): # what a batch looks like, by its number
    t = Trainer(tiny(corpus, out), RUN, say=quiet)
    marks = []
    for t.step in range(20): marks.append(int(t.pieces()[0][0].sum()))
    assert len(set(marks)) == 20
    return marks

def test_a_gradient_that_is_no_number_sends_the_run_back_and_past_the_batch(corpus, tmp_path, monkeypatch):
    marks, said = batch_marks(corpus, tmp_path/'unused'), []
    seen = []
    poisoned(monkeypatch, {marks[6]}, times=10)
    pieces = Trainer.pieces
    monkeypatch.setattr(Trainer, 'pieces', lambda self: seen.append(self.step + self.skipped) or pieces(self))
    r = train(tiny(corpus, tmp_path/'out'), RUN, say=said.append)
    assert r.steps == 10 and math.isfinite(r.loss) and seen == [0, 1, 2, 3, 4, 5, 6, *range(7, 13)] # the batches of steps 4 to 6 are not seen again
    assert any('step 4/10' in line and 'not finite: back to here, and past 3 batches' in line for line in said)
    assert [x['step'] for x in read_jsonl(r.log) if 'note' in x] == [4]

def test_a_run_that_always_diverges_ends(corpus, tmp_path, monkeypatch):
    marks = batch_marks(corpus, tmp_path/'unused')
    poisoned(monkeypatch, set(marks[5:]), times=100)
    with pytest.raises(UserError, match='the gradient of step 5 is not finite: a lower lr'): train(tiny(corpus, tmp_path/'out'), RUN, say=quiet)
    assert checkpoints(tmp_path/'out')[-1].name == 'step-4'

@pytest.mark.parametrize('change', [dict(packed=True), dict(optimizer='muon', lr=1e-3), dict(schedule='wsd'), dict(recompute='full'), dict(recompute='selective'), dict(save_async=True)], ids=str)
def test_other_ways_resume_bit_for_bit(corpus, tmp_path, change):
    train(tiny(corpus, tmp_path/'whole', **change), RUN, say=quiet)
    t = Trainer(tiny(corpus, tmp_path/'cut', **change), RUN, say=quiet)
    t.peak = 1.; stop = StopRequest()
    t.evaluate = lambda m, step: setattr(stop, 'asked', True) # asks at step 5
    t.fit(None, stop)
    assert t.step == 6
    r = train(tiny(corpus, tmp_path/'cut', **change), RUN, say=quiet)
    assert r.resumed_from == 6
    assert_same_bits(weights(tmp_path/'cut', 10), weights(tmp_path/'whole', 10))

def test_recomputation_changes_nothing(whole, corpus, tmp_path):
    train(tiny(corpus, tmp_path, recompute='full'), RUN, say=quiet)
    assert_same_bits(weights(tmp_path, 10), weights(whole[0], 10))

@pytest.mark.parametrize('change, word', [(dict(layers=3), 'another model'), (dict(seq_len=32), 'seq_len = 16, now it is 32'), (dict(batch_tokens=128), 'batch_tokens')])
def test_another_runs_checkpoint(corpus, tmp_path, change, word):
    train(tiny(corpus, tmp_path, steps=2), RUN, say=quiet)
    with pytest.raises(UserError, match=word): train(tiny(corpus, tmp_path, **change), RUN, say=quiet)

def test_another_seed(corpus, tmp_path):
    train(tiny(corpus, tmp_path, steps=2), RUN, say=quiet)
    with pytest.raises(UserError, match='seed = 0, now it is 1'): train(tiny(corpus, tmp_path), dataclasses.replace(RUN, seed=1), say=quiet)

@pytest.mark.parametrize('change', [dict(steps=0), dict(lr=0.), dict(lr=float('nan')), dict(batch_tokens=65), dict(minutes=0.), dict(betas=(.9,)), dict(betas=(.9, 1.)), dict(micro_batch=0),
                                    dict(keep_last=0), dict(seq_len=4096, batch_tokens=4096), dict(parallel='ddp:3')])
def test_settings_that_cannot_be(corpus, tmp_path, change):
    with pytest.raises(SettingsError, match=r'\[pretrain\]'): train(tiny(corpus, tmp_path/'out', **change), RUN)
    assert not (tmp_path/'out').exists()

def test_unknown_model(corpus, tmp_path):
    with pytest.raises(UserError, match='lab-10m'): train(tiny(corpus, tmp_path, model='lab-11m'), RUN)

def test_a_gradient_that_is_not_finite(corpus, tmp_path):
    with pytest.raises(UserError, match='gradient of step .* a lower lr'): train(tiny(corpus, tmp_path, lr=1e25, warmup=0, steps=50), RUN, say=quiet)

def test_unknown_option_names_it(capsys):
    with pytest.raises(SystemExit) as e: main(['--learning-rate', '1'])
    assert e.value.code == 2 and '--learning-rate' in capsys.readouterr().err

def test_the_peak_is_measured_however_busy_the_machine_is():
    from labkit.pretrain.trainer import matmul_peak
    assert matmul_peak(seconds=0.) > 0, 'a run whose time is over before the first product'

def test_starting_over_waits_until_the_new_run_is_known_to_work(corpus, tmp_path):
    train(tiny(corpus, tmp_path), RUN, say=quiet)
    before = sorted(p.name for p in tmp_path.iterdir())
    for bad in (dict(wandb=True), dict(parallel='pp:2', micro_batch=3), dict(weight_decay=-1.), dict(warmup=-1), dict(lr=math.inf), dict(heads=0)):
        with pytest.raises(UserError): train(tiny(corpus, tmp_path, resume=False, **bad), RUN, say=quiet)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert 'resume = True' in (tmp_path/'settings.ini').read_text()
    assert train(tiny(corpus, tmp_path, resume=False, steps=2), RUN, say=quiet).resumed_from == 0 and [p.name for p in checkpoints(tmp_path)] == ['step-2']

def test_a_refused_run_leaves_the_settings_of_the_old_one(corpus, tmp_path):
    train(tiny(corpus, tmp_path, steps=2), RUN, say=quiet)
    before = (tmp_path/'settings.ini').read_text()
    with pytest.raises(UserError, match='another optimizer'): train(tiny(corpus, tmp_path, optimizer='muon'), RUN, say=quiet)
    assert (tmp_path/'settings.ini').read_text() == before

def test_an_elastic_restart_goes_on_even_when_the_start_was_to_start_over(corpus, tmp_path, monkeypatch):
    train(tiny(corpus, tmp_path, steps=4), RUN, say=quiet)
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    assert train(tiny(corpus, tmp_path, resume=False), RUN, say=quiet).resumed_from == 4

def test_a_folder_that_a_settings_file_cannot_name(corpus, tmp_path):
    with pytest.raises(SettingsError, match='a comment begins'): train(tiny(corpus, tmp_path/'x #y'), RUN, say=quiet)
    assert not list(tmp_path.iterdir())

def test_new_settings_of_the_optimizer_win_over_the_checkpoint(corpus, tmp_path):
    train(tiny(corpus, tmp_path, steps=4), RUN, say=quiet)
    t = Trainer(tiny(corpus, tmp_path, weight_decay=0., betas=(.5, .5)), RUN, say=quiet)
    assert t.restore() and {g['weight_decay'] for g in t.worker.optimizer.param_groups} == {0.} and t.worker.optimizer.param_groups[0]['betas'] == (.5, .5)

def test_another_corpus(tmp_path):
    folder = write_corpus(tmp_path/'corpus')
    train(tiny(folder, tmp_path/'out', steps=2), RUN, say=quiet)
    tok = open_corpus(folder).tokenizer
    shutil.rmtree(folder/'train'); write_shards([tok.encode('Another text. ' * 99)], folder/'train', tok)
    with pytest.raises(UserError, match='corpus = '): train(tiny(folder, tmp_path/'out'), RUN, say=quiet)

def test_more_processes_than_parts(corpus, tmp_path):
    with pytest.raises(SettingsError, match='makes 1 processes, and 2 were started'): Trainer(tiny(corpus, tmp_path), RUN, Group(0, 2), say=quiet)

def test_digests_that_are_damaged_themselves(corpus, tmp_path):
    train(tiny(corpus, tmp_path), RUN, say=quiet)
    for name, text in (('step-10', '{"files": []}'), ('step-8', (tmp_path/'step-8'/'digests.json').read_text().replace('"bytes"', '"bytas"', 1))): (tmp_path/name/'digests.json').write_text(text)
    assert train(tiny(corpus, tmp_path), RUN, say=quiet).resumed_from == 4

def test_export_touches_nothing_that_is_no_model(corpus, tmp_path):
    train(tiny(corpus, tmp_path/'run', steps=2), RUN, say=quiet)
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'thesis.txt').write_text('years')
    for target in (tmp_path/'run', tmp_path, tmp_path/'mine', tmp_path/'run'/'step-2'):
        with pytest.raises(UserError, match='is no model folder'): export_model(tmp_path/'run', target)
    for _ in range(2): export_model(tmp_path/'run', tmp_path/'new') # an earlier export is replaced
    assert (tmp_path/'mine'/'thesis.txt').exists() and (tmp_path/'new'/'model.safetensors').exists() and checkpoints(tmp_path/'run')
    with pytest.raises(UserError, match='no checkpoint of a run here'): export_model(tmp_path/'nothing', tmp_path/'x')
