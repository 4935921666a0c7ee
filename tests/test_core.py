"Settings, files, recordings and the command line under bad input"
import errno, json, subprocess, sys
from pathlib import Path
import pytest
from hypothesis import given, settings as hyp, strategies as st
from labkit.cli import COMMANDS, explain, main
from labkit.core.device import pick_device
from labkit.core.files import read_jsonl, replacing, replacing_dir, write_jsonl
from labkit.core.lm import Completion, MissingRecording, Recorder, Recording, Sampling
from labkit.core.settings import RunSettings, SettingsError, as_ini, check_sections, from_command_line, load

LABKIT = Path(sys.executable).parent/'labkit'

def ini(tmp_path, text):
    (tmp_path/'settings.ini').write_text(text)
    return tmp_path/'settings.ini'

@pytest.mark.parametrize('text, line, words', [
    ('[run]\nsead = 1\n', 2, ['sead', "Did you mean 'seed'", 'Known: device']),
    ('# x\n\n[run]\nseed = many\n', 4, ["'many'", 'whole number']),
    ('[run]\ndtype = fp8\n', 2, ['float32', 'bfloat16']),
    ('[run\nseed = 1\n', 1, []),
    ('[run]\nseed = 1\nseed = 2\n', 3, []),
])
def test_a_bad_file_names_its_line(tmp_path, text, line, words):
    with pytest.raises(SettingsError) as e: load(RunSettings, 'run', ini(tmp_path, text))
    assert f'settings.ini:{line}:' in str(e.value)
    for w in words: assert w in str(e.value)

def test_unknown_sections_missing_and_undecodable_files(tmp_path):
    with pytest.raises(SettingsError, match=r':3: \[trian\]'): check_sections(ini(tmp_path, '[run]\n\n[trian]\n'), ['run', 'train'])
    with pytest.raises(SettingsError, match='no such settings file'): load(RunSettings, 'run', tmp_path/'nowhere.ini')
    (tmp_path/'latin.ini').write_bytes('[run]\nout = caf\xe9\n'.encode('latin-1'))
    with pytest.raises(SettingsError, match='UTF-8'): load(RunSettings, 'run', tmp_path/'latin.ini')

@hyp(max_examples=30, deadline=None)
@given(threads=st.integers(0, 512), seed=st.integers(-2**40, 2**40), out=st.from_regex(r'[a-z][a-z0-9_/.-]{0,20}[a-z]', fullmatch=True))
def test_settings_survive_the_file(tmp_path_factory, threads, seed, out):
    s = RunSettings(threads=threads, seed=seed, out=Path(out))
    assert load(RunSettings, 'run', ini(tmp_path_factory.mktemp('s'), as_ini('run', s))) == s

def test_command_line_beats_file_beats_default(tmp_path):
    f = ini(tmp_path, '[run]\nseed = 5\nthreads = 3\n')
    s = from_command_line(RunSettings, 'run', ['--settings', str(f), '--seed', '9'])
    assert (s.seed, s.threads, s.dtype) == (9, 3, 'auto')

def test_the_shipped_settings_are_valid_and_complete():
    "settings.ini at the root can be read by every stage"
    import importlib
    root = Path(__file__).resolve().parents[1]/'settings.ini'
    for section, where in {'run': 'core.settings:RunSettings', 'corpus': 'corpus.pipeline:CorpusSettings', 'pretrain': 'pretrain.trainer:PretrainSettings',
                           'finetune': 'finetune.sft:FinetuneSettings', 'inference': 'inference.engine:EngineSettings', 'serve': 'serve.http:ServeSettings',
                           'evaluate': 'evaluate.report:EvaluateSettings', 'agent': 'agents.react:AgentSettings', 'chain': 'chain.run:ChainSettings'}.items():
        module, cls = where.split(':')
        load(getattr(importlib.import_module(f'labkit.{module}'), cls), section, root)

def test_a_device_that_is_not_here():
    with pytest.raises(SettingsError, match='CUDA device'): pick_device(RunSettings(device='cuda:77'))
    with pytest.raises(SettingsError, match='expected auto'): pick_device(RunSettings(device='tpu'))

@pytest.mark.parametrize('folder', [False, True])
def test_nothing_half_written(tmp_path, folder):
    target = tmp_path/'out'
    if folder: target.mkdir(); (target/'old').write_text('old')
    else: target.write_text('old')
    with pytest.raises(OSError):
        with (replacing_dir if folder else replacing)(target) as f:
            (f/'new').write_text('x') if folder else f.write('new')
            raise OSError(errno.ENOSPC, 'No space left on device')
    assert [p.name for p in tmp_path.iterdir()] == ['out']
    assert (target/'old').read_text() == 'old' if folder else target.read_text() == 'old'

def test_a_full_disk_leaves_the_old_file(tmp_path):
    "A real limit on file size, in a process of its own"
    code = '''
import resource, signal, sys
from labkit.core.files import write_jsonl
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
write_jsonl(sys.argv[1], ({'text': 'x' * 100} for _ in range(1000)))'''
    write_jsonl(tmp_path/'docs.jsonl', [{'text': 'old'}])
    p = subprocess.run([sys.executable, '-c', code, tmp_path/'docs.jsonl'], capture_output=True, text=True)
    assert p.returncode and 'File too large' in p.stderr
    assert [r['text'] for r in read_jsonl(tmp_path/'docs.jsonl')] == ['old'] and len(list(tmp_path.iterdir())) == 1

def test_broken_lines_are_reported_and_skipped(tmp_path):
    f = tmp_path/'x.jsonl'
    f.write_bytes(b'{"a": 1}\n{"a": \n\xff\xfe\n"text"\n\n{"a": 2}\n')
    bad = []
    assert [r['a'] for r in read_jsonl(f, bad.append)] == [1, 2]
    assert [b.line for b in bad] == [2, 3, 4]
    with pytest.raises(ValueError, match=r'x\.jsonl:2'): list(read_jsonl(f))

@hyp(max_examples=30, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=4), max_size=5), gz=st.booleans())
def test_jsonl_round_trip(tmp_path_factory, rows, gz):
    f = tmp_path_factory.mktemp('j')/('x.jsonl.gz' if gz else 'x.jsonl')
    assert write_jsonl(f, rows) == len(rows) and list(read_jsonl(f)) == rows

class Parrot:
    def generate(self, prompts, params=Sampling()): return [Completion(p[::-1], (1, 2), 'stop', 3, (-.5, -.25)) for p in prompts]
    def loglikelihood(self, pairs): return [(-float(len(b)), True) for _, b in pairs]
    def chat(self, messages, tools=None, **params): return dict(role='assistant', content=messages[-1]['content'])

def test_a_recording_answers_what_it_heard_and_nothing_else(tmp_path):
    rec = Recorder(Parrot())
    first = rec.generate(['你好', 'abc'], Sampling(stop=('x',))), rec.loglikelihood([('a', 'bc')]), rec.chat([{'role': 'user', 'content': 'hi'}], temperature=.5)
    rec.save(tmp_path/'r.jsonl')
    again = Recording(tmp_path/'r.jsonl')
    assert (again.generate(['你好', 'abc'], Sampling(stop=('x',))), again.loglikelihood([('a', 'bc')]), again.chat([{'role': 'user', 'content': 'hi'}], temperature=.5)) == first
    for call in (lambda: again.generate(['abc'], Sampling()), lambda: again.chat([{'role': 'user', 'content': 'hi'}])):
        with pytest.raises(MissingRecording, match='holds no'): call()

def test_errors_become_sentences(capsys):
    assert main(['corpsu']) == 2 and "Did you mean 'corpus'" in capsys.readouterr().err
    assert main([]) == 2 and main(['--help']) == 0 and 'usage' in capsys.readouterr().out
    assert main(['--version']) == 0
    assert 'disk is full' in explain(OSError(errno.ENOSPC, 'No space left on device'))
    assert 'labkit doctor' in explain(ModuleNotFoundError("No module named 'fastapi'", name='fastapi'))
    assert explain(ZeroDivisionError()) is None

@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_has_help(name):
    p = subprocess.run([LABKIT, name, '--help'], capture_output=True, text=True)
    assert p.returncode == 0 and f'labkit {name}' in p.stdout, p.stderr

def test_an_unknown_key_in_the_nearest_settings_stops_a_command(tmp_path):
    (tmp_path/'settings.ini').write_text('[run]\n[pretrian]\nsteps = 3\n')
    p = subprocess.run([LABKIT, 'pretrain'], cwd=tmp_path, capture_output=True, text=True)
    assert p.returncode == 2 and "settings.ini:2: [pretrian]" in p.stderr and "Did you mean 'pretrain'" in p.stderr and 'Traceback' not in p.stderr

def test_doctor_passes_here_and_prints_json():
    p = subprocess.run([LABKIT, 'doctor', '--json'], capture_output=True, text=True)
    found = {f['name']: f['state'] for f in json.loads(p.stdout)}
    assert p.returncode == 0 and found['default model'] == 'ok' and 'missing' not in found.values()
