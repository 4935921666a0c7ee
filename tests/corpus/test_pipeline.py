"The whole run: repeated, interrupted, out of room, without input."
import errno, json, os, subprocess, sys, textwrap
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest
from labkit.core.files import samples
from labkit.core.settings import UserError, as_ini, load
from labkit.corpus import pipeline
from labkit.corpus.documents import read_documents
from labkit.corpus.pipeline import CorpusSettings, STEPS, fingerprints, is_valid, main, run_corpus
from labkit.corpus.tokens import Shards

quiet = lambda line: None

def content(out): return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob('*')) if p.is_file() and (p.suffix in ('.jsonl', '.bin', '.npy') or p.parent.name in ('tokenizer', 'train', 'valid'))}

SMALL = CorpusSettings(inputs=(str(samples('corpus')), 'env:numpy'), max_mb=.3, vocab_size=400, valid_share=.2, docstrings=.3)

@pytest.fixture
def small(tmp_path): return replace(SMALL, out=tmp_path/'out')

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A run that nothing disturbed"
    run_corpus(replace(SMALL, out=(out := tmp_path_factory.mktemp('whole')/'out')), say=quiet)
    return content(out)

def test_run(small):
    report = run_corpus(small, say=quiet)
    docs = {d.id: d for d in read_documents(small.out/'documents.jsonl')}
    fallen = [json.loads(l) for l in open(small.out/'fallen.jsonl')]
    steps = {r['step']: r for r in report['steps']}
    for r in report['steps']: assert r['step'] in ('select', 'tokenizer') or r['n_in'] == r['n_out'] + sum(r['why'].values()), r['step']
    assert len(fallen) == sum(sum(steps[s]['why'].values()) for s in ('extract', 'rules', 'dedup'))
    assert steps['extract']['why']['broken JSONL line'] == 5 and {'corpus/broken/lines.jsonl:2', 'corpus/broken/latin1.txt'} <= {r['id'] for r in fallen}
    assert {'n1', 'n3'} - docs.keys() == {'n1'}, 'of the near-duplicates the longer one stays'
    assert docs['corpus/tea_zh.html'].language == 'zh'
    train, valid = Shards(small.out/'train'), Shards(small.out/'valid')
    tok = train.tokenizer()
    texts = [tok.decode(d) for sh in (train, valid) for d in sh.documents()]
    assert sorted(texts) == sorted(d.text for d in docs.values()), 'the shards hold the documents and nothing else'
    assert report['tokens']['train'] == len(train) and report['tokens']['valid'] == len(valid) > 0
    page = (small.out/'report.html').read_text()
    assert '<svg' in page and 'src=' not in page and 'corpus/broken/latin1.txt' in page
    before = content(small.out); lines = []
    run_corpus(small, say=lines.append)
    assert sum('done before' in l for l in lines) == len(STEPS) and content(small.out) == before

def test_same_result_in_another_place(small, whole):
    run_corpus(small, say=quiet)
    assert content(small.out) == whole

def test_a_changed_setting_repeats_only_what_depends_on_it(small):
    run_corpus(small, say=quiet); lines = []
    run_corpus(replace(small, vocab_size=350), say=lines.append)
    assert [l.split()[0] for l in lines if 'done before' in l] == ['extract', 'rules', 'dedup']
    a, b = fingerprints(small, 'x'), fingerprints(replace(small, jaccard=.7), 'x')
    assert [a[s] == b[s] for s in a] == [True, True, False, False, False]

@pytest.mark.parametrize('where', ['read_file', 'measure', 'cluster', 'train_tokenizer', 'write_shards'])
def test_interrupted_anywhere_and_resumed(small, whole, monkeypatch, where):
    calls, real = [], getattr(pipeline, where)
    def stop(*a, **k):
        calls.append(1)
        if len(calls) == (5 if where in ('read_file', 'measure') else 1): raise KeyboardInterrupt
        return real(*a, **k)
    with monkeypatch.context() as m:
        m.setattr(pipeline, where, stop)
        with pytest.raises(KeyboardInterrupt): run_corpus(small, say=quiet)
    assert not [p for p in small.out.rglob('.*')], 'no temporary file is left'
    done = [s.__name__ for s in STEPS if (small.out/'steps'/f'{s.__name__}.json').exists()]
    lines = []; run_corpus(small, say=lines.append)
    assert [l.split()[0] for l in lines if 'done before' in l] == done and len(done) == ['read_file', 'measure', 'cluster', 'train_tokenizer', 'write_shards'].index(where)
    assert content(small.out) == whole

def test_full_disk_by_error(small, monkeypatch):
    def full(*a, **k): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as m:
        m.setattr(np, 'save', full)
        with pytest.raises(UserError, match=r"no room.*'rules' was not finished.*Free some space"): run_corpus(small, say=quiet)
    assert not (small.out/'steps'/'signatures.npy').exists() and not (small.out/'steps'/'rules.json').exists() and (small.out/'steps'/'extract.json').exists()
    assert run_corpus(small, say=quiet)['tokens']['train'] > 0

def test_full_disk_by_file_size_limit(small):
    "The kernel itself refuses to let a file grow: real short writes, in a real process"
    code = f'''
        import resource, sys
        from labkit.cli import main
        from labkit.corpus.language import LANGUAGES, identify
        identify('a', LANGUAGES), identify('a', ('en', 'zh')) # py3langid unpacks its model into a temporary file
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        sys.exit(main(['corpus', {str(samples("corpus"))!r}, 'env:numpy', '--out', {str(small.out)!r}, '--max-mb', '1']))'''
    p = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert p.returncode == 2 and 'no room to write' in p.stderr and 'Traceback' not in p.stderr, p.stderr
    assert not (small.out/'documents.jsonl').exists() and not list(small.out.rglob('.*'))

@pytest.mark.parametrize('texts, message', [([], 'no such file'), (['too short'] * 3, "step 'rules' left none of 3 documents: rule stop_words"), (['这是一段很短的话。'], "'rules' left none")])
def test_nothing_left(tmp_path, texts, message):
    (tmp_path/'in').mkdir()
    for i, t in enumerate(texts): (tmp_path/'in'/f'{i}.txt').write_text(t)
    with pytest.raises(UserError, match=message): run_corpus(CorpusSettings(inputs=(str(tmp_path/'in'),), out=tmp_path/'out'), say=quiet)
    assert not (tmp_path/'out'/'train').exists()

def test_duplicate_ids_get_names_of_their_own(tmp_path):
    text = samples('corpus/library.txt').read_text()
    rows = [dict(id='a', text=text), dict(id='a', text=text.replace('library', 'museum').replace('books', 'ships').replace('sea', 'sky')), dict(id='b', text=text[::-1])]
    (tmp_path/'x.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    run_corpus(CorpusSettings(inputs=(str(tmp_path/'x.jsonl'),), out=tmp_path/'out', jaccard=.99, profile='none', languages=('en',), vocab_size=300, valid_share=0.), say=quiet)
    assert {'a', 'a#2'} <= {d.id for d in read_documents(tmp_path/'out'/'documents.jsonl')}

def test_damaged_step_file(small):
    run_corpus(small, say=quiet)
    (small.out/'steps'/'rules.json').write_text('{"step"')
    with pytest.raises(UserError, match='rules.json.*delete'): run_corpus(small, say=quiet)

def test_settings_round_trip(tmp_path):
    (tmp_path/'settings.ini').write_text(as_ini('corpus', CorpusSettings(languages=('zh',))))
    assert load(CorpusSettings, 'corpus', tmp_path/'settings.ini') == CorpusSettings(languages=('zh',))

def test_main(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('LABKIT_SETTINGS', str(tmp_path/'settings.ini')); (tmp_path/'settings.ini').write_text('[corpus]\nvocab_size = 500\n')
    assert main([str(samples('corpus')), '--out', str(tmp_path/'out'), '--valid-share', '0.3']) == 0
    out = capsys.readouterr().out
    assert 'report.html' in out and json.loads((tmp_path/'out'/'report.json').read_text())['tokens']['vocab_size'] <= 500

def test_split_is_about_as_asked_and_stable():
    ids = [f'doc {i}' for i in range(20_000)]
    n = sum(is_valid(i, .02) for i in ids)
    assert abs(n - 400) < 5 * 20 and all(is_valid(i, .05) for i in ids if is_valid(i, .02)), 'a larger share contains the smaller one'

@pytest.mark.parametrize('change', [dict(vocab_size=100), dict(valid_share=1.), dict(bands=0), dict(languages=('en', 'klingon')), dict(max_files=0), dict(jaccard=1.5)])
def test_settings_that_cannot_work_are_refused_at_once(small, change):
    with pytest.raises(UserError, match=f'{next(iter(change))}|klingon'): run_corpus(replace(small, **change), say=quiet)
    assert not small.out.exists()
