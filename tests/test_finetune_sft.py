"""Fine-tuning runs: learning, exact resume after Ctrl-C, checkpoints of other runs, broken data, a full disk, the command line."""
import errno, json, os, signal, subprocess, sys, time, pytest, torch
from dataclasses import replace
from pathlib import Path
from labkit.core.settings import RunSettings, UserError, load
from labkit.corpus.tokens import train_tokenizer
from labkit.finetune import sft
from labkit.finetune.lora import load_adapter
from labkit.finetune.sft import FinetuneSettings, Run, ToolScore, finetune, lr_at, main, read_examples, reply, tool_score, write
from labkit.model.checkpoint import open_model, save_model
from labkit.model.config import ModelConfig
from labkit.model.transformer import Transformer

RUN = RunSettings(device='cpu', dtype='float32', threads=1)
CHATS = [dict(messages=[dict(role='user', content=f'say {w}'), dict(role='assistant', content=w * 2)]) for w in ('ant', 'bee', 'cat', 'dog', 'elk', 'fox')]

def write_chats(path, chats=CHATS, extra=''):
    path.write_text(''.join(json.dumps(c) + '\n' for c in chats) + extra, encoding='utf-8')
    return path

@pytest.fixture(scope='module')
def base(tmp_path_factory):
    "A tiny model and a tokenizer in a Hugging Face folder"
    folder = tmp_path_factory.mktemp('base')/'m'
    tok = train_tokenizer([json.dumps(c) for c in CHATS] * 3, 300)
    torch.manual_seed(0)
    save_model(Transformer(ModelConfig(vocab_size=tok.vocab_size, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64)), folder, tok)
    return folder

@pytest.fixture
def settings(base, tmp_path):
    return FinetuneSettings(data=write_chats(tmp_path/'chats.jsonl'), model=str(base), out=tmp_path/'out', epochs=4, lr=.02, batch_tokens=40, rank=4, dropout=.1, checkpoint_every=3)

def rows(out): return [json.loads(l) for l in (out/'log.jsonl').read_text().splitlines()]
def weights(out): return (out/'adapter'/'adapter_model.safetensors').read_bytes()
def left(out): return sorted(p.name for p in out.iterdir())

def test_a_run_learns_and_leaves_what_it_says(settings, base):
    r = finetune(replace(settings, heldout=settings.data, epochs=12), RUN)
    assert r.heldout_after < r.heldout_before - .5 and r.loss < r.heldout_before and (r.chats, r.skipped) == (6, 0)
    log = rows(settings.out)
    assert len(log) == r.steps and [x['step'] for x in log] == list(range(1, r.steps + 1)) and sum(x['tokens'] for x in log) == r.tokens
    assert left(settings.out) == ['adapter', 'log.jsonl', 'loss.svg', 'result.json', 'settings.ini']
    assert json.loads((settings.out/'result.json').read_text())['loss'] == r.loss and '<svg' in Path(r.figure).read_text()
    model, tok = open_model(str(base)); load_adapter(model, r.adapter)
    examples, _ = read_examples(settings.data, tok)
    assert sft.mean_loss(model, examples) == pytest.approx(r.heldout_after, abs=1e-4)
    assert load(FinetuneSettings, 'finetune', settings.out/'settings.ini').lora == settings.lora

def test_the_same_seed_gives_the_same_adapter(settings):
    finetune(settings, RUN); a = weights(settings.out)
    finetune(settings, RUN); assert weights(settings.out) == a
    finetune(settings, replace(RUN, seed=1)); assert weights(settings.out) != a

@pytest.mark.parametrize('at', [2, 3, 7])
def test_interrupted_and_resumed_equals_uninterrupted(settings, monkeypatch, at):
    finetune(replace(settings, out=settings.out/'whole'), RUN)
    learn = Run.learn
    def learn_then_interrupt(self, *a):
        row = learn(self, *a)
        if row['step'] == at: os.kill(os.getpid(), signal.SIGINT)
        return row
    monkeypatch.setattr(Run, 'learn', learn_then_interrupt)
    part = replace(settings, out=settings.out/'part')
    with pytest.raises(KeyboardInterrupt): finetune(part, RUN)
    assert left(part.out) == ['checkpoint', 'log.jsonl'] and len(rows(part.out)) == at
    monkeypatch.setattr(Run, 'learn', learn)
    finetune(part, RUN)
    assert weights(part.out) == weights(settings.out/'whole') and [r['loss'] for r in rows(part.out)] == [r['loss'] for r in rows(settings.out/'whole')]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and 'checkpoint' not in left(part.out)

def test_killed_between_checkpoints(settings, monkeypatch):
    finetune(replace(settings, out=settings.out/'whole'), RUN)
    part, learn = replace(settings, out=settings.out/'part'), Run.learn
    def die(self, *a):
        if self.step == 5: raise RuntimeError('power cut')
        return learn(self, *a)
    monkeypatch.setattr(Run, 'learn', die)
    with pytest.raises(RuntimeError): finetune(part, RUN)
    monkeypatch.setattr(Run, 'learn', learn)
    finetune(part, RUN) # goes on from step 3
    assert weights(part.out) == weights(settings.out/'whole') and len(rows(part.out)) == len(rows(settings.out/'whole'))

def test_checkpoint_of_another_run(settings, monkeypatch):
    def stop(self, *a): os.kill(os.getpid(), signal.SIGINT); return learn(self, *a)
    learn = Run.learn
    monkeypatch.setattr(Run, 'learn', stop)
    with pytest.raises(KeyboardInterrupt): finetune(settings, RUN)
    monkeypatch.setattr(Run, 'learn', learn)
    with pytest.raises(UserError, match=r'belongs to another run: rank was 4, is 8'): finetune(replace(settings, rank=8), RUN)
    write_chats(settings.data, CHATS[:3])
    with pytest.raises(UserError, match='data was'): finetune(settings, RUN)
    finetune(replace(settings, resume=False), RUN)
    assert 'adapter' in left(settings.out)

def test_broken_lines_are_reported_and_counted(settings, capsys):
    write_chats(settings.data, extra='{"messages": [\n{"messages": [{"role": "user", "content": "a"}]}\n')
    r = finetune(replace(settings, epochs=1), RUN)
    err = capsys.readouterr().err
    assert r.skipped == 2 and f'{settings.data}:7: not JSON' in err and f'{settings.data}:8: no assistant turn' in err

@pytest.mark.parametrize('content', [b'', b'\x00\xff\xfe', b'hello\n', b'{"messages": []}\n'])
def test_data_without_a_chat(settings, content):
    settings.data.write_bytes(content)
    with pytest.raises(UserError, match='no chat to learn from'): finetune(settings, RUN)
    assert not settings.out.exists()

def test_missing_files(settings, tmp_path):
    with pytest.raises(UserError, match='no such file of chats'): finetune(replace(settings, data=tmp_path/'none.jsonl'), RUN)
    with pytest.raises(UserError): finetune(replace(settings, model=str(tmp_path/'nothing')), RUN)
    with pytest.raises(UserError, match='no linear layer'): finetune(replace(settings, targets=('Wqkv',)), RUN)

def test_a_loss_that_is_no_number(settings):
    with pytest.raises(UserError, match='a smaller lr'): finetune(replace(settings, lr=1e30, clip=1e30, epochs=8), RUN)

def test_a_full_disk_leaves_nothing_half_written(settings, monkeypatch):
    def full(*a, **k): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr('safetensors.torch.save_file', full)
    with pytest.raises(OSError): finetune(settings, RUN)
    assert left(settings.out) == ['log.jsonl']

def test_ctrl_c_on_the_command_line(settings, base):
    "A real process and a real signal: exit status not 0, a checkpoint, no traceback; the next call finishes"
    argv = [sys.executable, '-c', 'import sys; from labkit.cli import main; sys.exit(main(sys.argv[1:]))', 'finetune', str(settings.data), '--model', str(base), '--out', str(settings.out), '--epochs', '400', '--batch-tokens', '40']
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    p = subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True)
    log, deadline = settings.out/'log.jsonl', time.monotonic() + 120
    while not (log.exists() and log.stat().st_size > 500): assert p.poll() is None and time.monotonic() < deadline; time.sleep(.05)
    p.send_signal(signal.SIGINT); err = p.communicate(timeout=120)[1]
    assert p.returncode not in (0, None) and 'Traceback' not in err and left(settings.out) == ['checkpoint', 'log.jsonl']
    assert len(rows(settings.out)) == len(json.loads((settings.out/'checkpoint'/'state.json').read_text())['rows'])

@pytest.mark.parametrize('argv, why', [(['none.jsonl'], 'no such file of chats'), (['--model', 'no-such-model'], 'no-such-model')])
def test_errors_of_the_command_line(argv, why, capsys, tmp_path, monkeypatch):
    from labkit.cli import main as labkit
    monkeypatch.chdir(tmp_path)
    assert labkit(['finetune', *argv]) == 2
    err = capsys.readouterr().err
    assert why in err and 'Traceback' not in err

def test_the_command_line(settings, capsys):
    assert main([str(settings.data), '--model', settings.model, '--out', str(settings.out), '--epochs', '1', '--targets', 'q_proj', 'v_proj']) == 0
    assert '6 chats' in capsys.readouterr().out and json.loads((settings.out/'adapter'/'adapter_config.json').read_text())['target_modules'] == ['q_proj', 'v_proj']

def test_learning_rate():
    lrs = [lr_at(i, 20, 1., .2) for i in range(20)]
    assert lrs[:4] == [.25, .5, .75, 1.] and lrs[4] == 1. and all(a > b for a, b in zip(lrs[4:], lrs[5:])) and 0 < lrs[-1] < .02 and lr_at(0, 1, 1., 0.) == 1.

def test_greedy_writing_equals_whole_forward_passes(base):
    model, tok = open_model(str(base))
    ids = tok.encode('say ant'); want = list(ids)
    with torch.inference_mode():
        for _ in range(12): want.append(model(torch.tensor([want]))[0, -1].argmax().item())
    assert write(model, ids, (), 12) == want[len(ids):]
    assert write(model, ids, (want[len(ids) + 3],), 12) == want[len(ids):len(ids) + want[len(ids):].index(want[len(ids) + 3])]
    assert reply(model, tok, CHATS[0]['messages'][:1], max_tokens=3)['role'] == 'assistant'

def call(name, args): return dict(role='assistant', content='', tool_calls=[dict(function=dict(name=name, arguments=args))])
def test_tool_score():
    tools = [dict(type='function', function=dict(name='f'))]
    ask = lambda q: dict(messages=[dict(role='user', content=q), call('f', '{"a": 1}')], tools=tools)
    answers = dict(right=call('f', '{ "a":1 }'), wrong=call('f', '{"a": 2}'), unknown=call('g', '{"a": 1}'), silent=dict(role='assistant', content='no'))
    score = tool_score(lambda ms, tools: answers[ms[-1]['content']], [*map(ask, answers), CHATS[0]])
    assert score == ToolScore(n=4, valid=2, exact=1) and str(score) == '2/4 valid, 1/4 exact'
