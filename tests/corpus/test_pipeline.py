"The whole run: repeated, shared out, interrupted, killed, out of room, without input."
import errno, json, os, re, signal, subprocess, sys, textwrap, time
from dataclasses import dataclass, replace
from pathlib import Path
import numpy as np, pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st
from labkit.core.files import samples
from labkit.core.settings import UserError, as_ini, load
from labkit.corpus import pipeline
from labkit.corpus.documents import Document, read_documents, text_id
from labkit.corpus.language import LANGUAGES
from labkit.corpus.batches import Piece, batches, repeated_ids
from labkit.corpus.pipeline import CorpusSettings, STEPS, fingerprints, is_valid, main, run_corpus
from labkit.corpus.sources import SourceFile
from labkit.corpus.tokens import Shards

quiet = lambda line: None

def content(out): return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob('*')) if p.is_file() and (p.suffix in ('.jsonl', '.bin') or p.parent.name in ('tokenizer', 'train', 'valid'))}
def rows(path): return [json.loads(l) for l in open(path)]

SMALL = CorpusSettings(inputs=(str(samples('corpus')), 'env:numpy'), max_mb=.3, vocab_size=400, valid_share=.2, docstrings=.3, batch_mb=.05, executor='one')

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
    fallen, dead = rows(small.out/'fallen.jsonl'), rows(small.out/'dead.jsonl')
    steps = {r['step']: r for r in report['steps']}
    assert list(steps) == ['select', 'extract', 'language', 'rules', 'dedup', 'privacy']
    for r in report['steps']: assert r['n_in'] == r['n_out'] + sum(r['why'].values()), r['step']
    for a, b in zip(report['steps'][1:], report['steps'][2:]): assert a['n_out'] == b['n_in'], f"lost between {a['step']} and {b['step']}"
    assert len(fallen) == sum(sum(r['why'].values()) for s, r in steps.items() if s != 'select') and {(r['step'], r['id']) for r in dead} <= {(r['step'], r['id']) for r in fallen}
    assert {'corpus/broken/latin1.txt'} <= {r['id'] for r in dead} and sum(r['id'].startswith('corpus/broken/lines.jsonl') for r in dead) == 5
    assert {'n1', 'n3'} - docs.keys() == {'n1'}, 'of the near-duplicates the longer one stays'
    assert docs['corpus/tea_zh.html'].language == 'zh' and report['languages']['zh'] > 0
    assert sum(report['lengths'].values()) == len(docs)
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

@pytest.mark.parametrize('change', [dict(executor='processes:2'), dict(executor='ray:2')], ids=lambda c: str(c['executor']))
def test_the_executor_does_not_matter(small, whole, change):
    if change['executor'].startswith('ray'): pytest.importorskip('ray')
    run_corpus(replace(small, **change), say=quiet)
    assert content(small.out) == whole

def test_the_size_of_batches_does_not_matter(small, whole):
    run_corpus(replace(small, batch_mb=100.), say=quiet)
    public = lambda files: {k: v for k, v in files.items() if not k.startswith('steps/')}
    got, want = public(content(small.out)), public(whole)
    for name in ('fallen.jsonl', 'dead.jsonl'): assert sorted(got.pop(name).splitlines()) == sorted(want.pop(name).splitlines())
    assert got == want

def test_a_changed_setting_repeats_only_what_depends_on_it(small):
    run_corpus(small, say=quiet); lines = []
    run_corpus(replace(small, vocab_size=350), say=lines.append)
    assert [l.split()[0] for l in lines if 'done before' in l] == ['clean', 'dedup', 'finish']
    a, b = fingerprints(small, 'x'), fingerprints(replace(small, jaccard=.7), 'x')
    assert [a[s] == b[s] for s in a] == [True, False, False, False, False]

WHERE = {'clean': 3, 'compare': 3, 'choose_kept': 1, 'finish': 2, 'train_tokenizer': 1, 'write_shards': 2}

@pytest.mark.parametrize('where', WHERE)
def test_interrupted_anywhere_and_resumed(small, whole, monkeypatch, where):
    real, calls = getattr(pipeline, where), []
    def stop(*a, **k):
        calls.append(1)
        if len(calls) == WHERE[where]: raise KeyboardInterrupt
        return real(*a, **k)
    with monkeypatch.context() as m:
        m.setattr(pipeline, where, stop)
        with pytest.raises(KeyboardInterrupt): run_corpus(small, say=quiet)
        if where in ('clean', 'finish', 'compare'):
            finished = len(calls) - 1; calls[:] = [1] * 1000
            n = len(list((small.out/'steps'/('dedup' if where == 'compare' else where)).glob('*.json')))
            assert n >= finished, 'what was finished is kept'
    assert not [p for p in small.out.rglob('.*')], 'no temporary file is left'
    run_corpus(small, say=quiet)
    assert content(small.out) == whole

def test_parts_of_other_settings_are_not_taken_over(small, monkeypatch):
    real, calls = pipeline.clean, []
    def stop(task):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        return real(task)
    with monkeypatch.context() as m:
        m.setattr(pipeline, 'clean', stop)
        with pytest.raises(KeyboardInterrupt): run_corpus(small, say=quiet)
    run_corpus(other := replace(small, profile='none'), say=quiet)
    run_corpus(replace(other, out=small.out.parent/'fresh'), say=quiet)
    assert content(small.out) == content(small.out.parent/'fresh')

@dataclass(frozen=True)
class Killer:
    "A stage that ends its process when it meets a certain document"
    profile: str = ''
    def __call__(self, docs):
        if any(d.id.endswith('weather.rst') for d in docs): os.kill(os.getpid(), signal.SIGKILL)
        return list(docs)

def test_a_document_that_kills_its_process_is_named_and_the_rest_goes_on(small, monkeypatch):
    monkeypatch.setattr(pipeline, 'Rules', Killer)
    run_corpus(replace(small, executor='processes:2'), say=quiet)
    (row,) = [r for r in rows(small.out/'dead.jsonl') if r['why'] == 'killed its process']
    assert row['id'] == 'corpus/weather.rst' and 'SIGKILL' in row['detail']
    ids = {d.id for d in read_documents(small.out/'documents.jsonl')}
    assert 'corpus/weather.rst' not in ids and 'corpus/tea_zh.html' in ids

@dataclass(frozen=True)
class Raiser:
    "A stage that does not expect a certain document"
    profile: str = ''
    def __call__(self, docs):
        for d in docs:
            if d.id == 'corpus/tides.html': raise ZeroDivisionError('not expected')
        return list(docs)

def test_a_document_that_makes_a_stage_raise_is_a_dead_letter_with_its_text(small, monkeypatch):
    monkeypatch.setattr(pipeline, 'Rules', Raiser)
    run_corpus(small, say=quiet)
    (row,) = [r for r in rows(small.out/'dead.jsonl') if r['why'] == 'error']
    assert row['id'] == 'corpus/tides.html' and row['error'] == 'ZeroDivisionError: not expected' and len(row['document']['text']) > 300

def test_killed_in_the_middle_and_run_again(small, whole):
    "A real process, a real SIGKILL, and no part is lost or half there"
    args = ['corpus', *small.inputs, '--out', str(small.out), '--max-mb', '.3', '--vocab-size', '400', '--valid-share', '.2', '--docstrings', '.3', '--batch-mb', '.05', '--executor', 'one']
    p = subprocess.Popen([sys.executable, '-c', f'import sys; from labkit.cli import main; sys.exit(main({args!r}))'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (small.out/'steps/clean/00001.json').exists() and p.poll() is None: time.sleep(.005)
    finally: p.kill(); p.wait()
    assert not (small.out/'report.json').exists()
    for tmp in small.out.rglob('.*'): tmp.unlink() # what a killed process was writing
    run_corpus(small, say=quiet)
    assert content(small.out) == whole

def test_full_disk_by_error(small, monkeypatch):
    def full(*a, **k): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as m:
        m.setattr(np, 'savez', full)
        with pytest.raises(UserError, match=r"no room.*'clean' was not finished.*Free some space"): run_corpus(small, say=quiet)
    assert not (small.out/'steps/clean/00000.json').exists() and not list(small.out.rglob('.*'))
    assert run_corpus(small, say=quiet)['tokens']['train'] > 0

def test_full_disk_by_file_size_limit(small):
    "The kernel itself refuses to let a file grow: real short writes, in a real process"
    code = f'''
        import resource, sys
        from labkit.cli import main
        from labkit.corpus.language import LANGUAGES, identify
        identify('a', LANGUAGES), identify('a', ('en', 'zh')) # py3langid unpacks its model into a temporary file
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        sys.exit(main(['corpus', {str(samples("corpus"))!r}, 'env:numpy', '--out', {str(small.out)!r}, '--max-mb', '1', '--executor', 'one']))'''
    p = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert p.returncode == 2 and 'no room to write' in p.stderr and 'Traceback' not in p.stderr, p.stderr
    assert not (small.out/'documents.jsonl').exists() and not list(small.out.rglob('.*'))

@pytest.mark.parametrize('texts, message', [([], 'no such file'), (['too short'] * 3, "step 'rules' left none of 3 documents: rule stop_words"), (['这是一段很短的话。'], "'rules' left none")])
def test_nothing_left(tmp_path, texts, message):
    (tmp_path/'in').mkdir()
    for i, t in enumerate(texts): (tmp_path/'in'/f'{i}.txt').write_text(t)
    with pytest.raises(UserError, match=message): run_corpus(CorpusSettings(inputs=(str(tmp_path/'in'),), out=tmp_path/'out', executor='one'), say=quiet)
    assert not (tmp_path/'out'/'train').exists()

def test_an_empty_file_is_an_empty_corpus(tmp_path):
    (tmp_path/'x.jsonl').write_text('')
    with pytest.raises(UserError, match='left none of 0 documents|none within|no such file'): run_corpus(CorpusSettings(inputs=(str(tmp_path/'x.jsonl'),), out=tmp_path/'out', executor='one'), say=quiet)

def different(n): # texts that share nothing
    words = np.random.default_rng(n).permutation([f'word{i}' for i in range(120)])
    return ' '.join(words)

def test_duplicate_ids_get_names_of_their_own_across_files(tmp_path):
    for name, texts in dict(x=[0, 1], y=[2]).items():
        (tmp_path/f'{name}.jsonl').write_text('\n'.join(json.dumps(dict(id='a', text=different(i))) for i in texts))
    run_corpus(CorpusSettings(inputs=(str(tmp_path/'x.jsonl'), str(tmp_path/'y.jsonl')), out=tmp_path/'out', profile='none', languages=LANGUAGES, vocab_size=300, valid_share=0., executor='one', batch_mb=.01), say=quiet)
    assert [d.id for d in read_documents(tmp_path/'out'/'documents.jsonl')] == ['a', 'a#2-' + text_id(different(1))[:6], 'a#3-' + text_id(different(2))[:6]]

@pytest.mark.parametrize('keep, stays', [('longest', 'old'), ('newest', 'new')])
def test_who_stays(tmp_path, keep, stays):
    text = different(0)
    (tmp_path/'x.jsonl').write_text('\n'.join(json.dumps(dict(id=i, text=t, date=d)) for i, t, d in [('old', text + ' and more', '2024-01-01'), ('new', text, '2026-01-01'), ('copy', text, '2025-01-01')]))
    run_corpus(CorpusSettings(inputs=(str(tmp_path/'x.jsonl'),), out=tmp_path/'out', profile='none', languages=LANGUAGES, vocab_size=300, valid_share=0., keep=keep, executor='one'), say=quiet)
    assert [d.id for d in read_documents(tmp_path/'out'/'documents.jsonl')] == [stays]
    why = {r['id']: (r['why'], r['kept']) for r in rows(tmp_path/'out'/'fallen.jsonl')}
    assert why['copy'] == (('exact' if stays == 'new' else 'near') + ' duplicate', stays)

def test_a_large_file_is_shared_out(tmp_path):
    n = 60
    (tmp_path/'x.jsonl').write_text('\n'.join(json.dumps(dict(id=str(i), text=different(i))) for i in range(n)))
    s = CorpusSettings(inputs=(str(tmp_path/'x.jsonl'),), out=tmp_path/'out', profile='none', languages=LANGUAGES, vocab_size=300, valid_share=0., executor='one', batch_mb=.01)
    run_corpus(s, say=quiet)
    assert len(list((tmp_path/'out/steps/clean').glob('*.npz'))) > 4
    assert [d.id for d in read_documents(tmp_path/'out'/'documents.jsonl')] == [str(i) for i in range(n)]

def test_damaged_step_file(small):
    run_corpus(small, say=quiet)
    (small.out/'steps'/'finish.json').write_text('{"step"')
    with pytest.raises(UserError, match='finish.json.*delete'): run_corpus(small, say=quiet)

def test_settings_round_trip(tmp_path):
    (tmp_path/'settings.ini').write_text(as_ini('corpus', CorpusSettings(languages=('zh',))))
    assert load(CorpusSettings, 'corpus', tmp_path/'settings.ini') == CorpusSettings(languages=('zh',))

def test_main(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('LABKIT_SETTINGS', str(tmp_path/'settings.ini')); (tmp_path/'settings.ini').write_text('[corpus]\nvocab_size = 500\nexecutor = one\n')
    assert main([str(samples('corpus')), '--out', str(tmp_path/'out'), '--valid-share', '0.3']) == 0
    out = capsys.readouterr().out
    assert 'report.html' in out and json.loads((tmp_path/'out'/'report.json').read_text())['tokens']['vocab_size'] <= 500

def test_split_is_about_as_asked_and_stable():
    ids = [f'doc {i}' for i in range(20_000)]
    n = sum(is_valid(i, .02) for i in ids)
    assert abs(n - 400) < 5 * 20 and all(is_valid(i, .05) for i in ids if is_valid(i, .02)), 'a larger share contains the smaller one'

@pytest.mark.parametrize('change', [dict(vocab_size=100), dict(valid_share=1.), dict(bands=0), dict(languages=('en', 'klingon')), dict(max_files=0), dict(jaccard=1.5), dict(profile='gofer'), dict(executor='threads'), dict(decontaminate=('nowhere.jsonl',))])
def test_settings_that_cannot_work_are_refused_at_once(small, change):
    with pytest.raises(UserError, match=f'{next(iter(change))}|klingon'): run_corpus(replace(small, **change), say=quiet)
    assert not small.out.exists()

@given(st.lists(st.tuples(st.sampled_from(['text', 'jsonl']), st.integers(1, 1000)), max_size=30), st.integers(1, 300))
@hypothesis_settings(deadline=None, max_examples=100)
def test_batches_hold_every_byte_once(sizes, size):
    files = [SourceFile(Path(f'{i}.{"jsonl" if k == "jsonl" else "txt"}'), str(i), k, n) for i, (k, n) in enumerate(sizes)]
    pieces = [p for b in batches(files, size) for p in b]
    for f in files:
        mine = [p for p in pieces if p.file == f]
        assert mine[0].start == 0 and mine[-1].end is None and all(a.end == b.start for a, b in zip(mine, mine[1:]))
    assert [p.file for p in pieces] == sorted((p.file for p in pieces), key=lambda f: int(f.name)), 'order is kept'
    for b in batches(files, size): assert len(b) == 1 or sum((p.end or p.file.bytes) - p.start for p in b) <= size

@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_repeated_ids(ids):
    first = {}
    pairs = np.array([(first.setdefault(x, i), i) for i, x in enumerate(ids)]).reshape(-1, 2)
    again = repeated_ids(pairs[pairs[:, 0] != pairs[:, 1]])
    names = [f'{x}#{again[i]}' if i in again else str(x) for i, x in enumerate(ids)]
    assert len(set(names)) == len(names) and all(re.fullmatch(rf'{x}(#\d+)?', n) for x, n in zip(ids, names))

def test_a_later_run_is_held_against_an_earlier_one(tmp_path):
    text = {i: different(i) for i in range(6)}
    def run(name, ids, against=None):
        (tmp_path/f'{name}.jsonl').write_text('\n'.join(json.dumps(dict(id=f'{name}{i}', text=text[i] + (' and more' if name != 'a' else ''))) for i in ids))
        s = CorpusSettings(inputs=(str(tmp_path/f'{name}.jsonl'),), out=tmp_path/name, profile='none', languages=LANGUAGES, vocab_size=300, valid_share=0., executor='one', batch_mb=.005, against=against)
        run_corpus(s, say=quiet)
        return [d.id for d in read_documents(tmp_path/name/'documents.jsonl')]
    assert run('a', [0, 1, 2]) == ['a0', 'a1', 'a2']
    assert run('b', [1, 3, 2, 4], tmp_path/'a') == ['b3', 'b4']
    assert {r['id']: r['kept'] for r in rows(tmp_path/'b'/'fallen.jsonl')} == {'b1': 'a1', 'b2': 'a2'}
    assert run('c', [0, 4, 5], tmp_path/'b') == ['c5'], 'and a third against both'
    with pytest.raises(UserError, match='no finished run'): run_corpus(replace(SMALL, against=tmp_path/'nothing', out=tmp_path/'x'), say=quiet)
    with pytest.raises(UserError, match='bands = 14, and now bands = 5'): run_corpus(replace(SMALL, against=tmp_path/'a', out=tmp_path/'x', bands=5), say=quiet)

@pytest.mark.slow
def test_every_stage_at_once(small):
    items = small.out.parent/'items.jsonl'
    items.write_text(json.dumps(dict(id='q1', question='Which of these words is the name of a harbour that nobody in the story of the ferry has seen?')))
    report = run_corpus(replace(small, safety=True, quality=.05, tiers=True, repositories=True, decontaminate=(str(items),), names=True, max_mb=1.), say=quiet)
    steps = {r['step']: r for r in report['steps']}
    assert {'safety', 'quality', 'code', 'decontaminate', 'privacy'} <= set(steps)
    docs = list(read_documents(small.out/'documents.jsonl'))
    repo = next(d for d in docs if d.id == 'numpy')
    assert repo.metadata['kind'] == 'repository' and len(repo.metadata['files']) > 3 and '```python' in repo.text
    assert all(set(d.metadata['quality']) and set(d.metadata['safety']) for d in docs if d.metadata.get('kind') in ('html', 'text', 'rst'))
    assert '<svg' in (small.out/'report.html').read_text()

def test_high_tier_code_is_read_twice_and_the_low_falls(small):
    run_corpus(replace(small, tiers=True, max_mb=1., valid_share=0.), say=quiet)
    docs = list(read_documents(small.out/'documents.jsonl'))
    assert {d.metadata['tier'] for d in docs if d.metadata.get('kind') == 'python'} <= {'high', 'moderate'}
    assert Shards(small.out/'train').n_documents == sum(d.metadata.get('repeats', 1) for d in docs) > len(docs)

PLAIN = dict(profile='none', languages=LANGUAGES, vocab_size=300, valid_share=0., executor='one', privacy=False)

def put(path, docs): path.write_text('\n'.join(json.dumps(d) for d in docs)); return (str(path),)

def test_a_file_that_changed_is_read_again(tmp_path):
    s = CorpusSettings(inputs=put(tmp_path/'x.jsonl', [dict(id='a', text=different(1))]), out=tmp_path/'out', **PLAIN)
    run_corpus(s, say=quiet)
    put(tmp_path/'x.jsonl', [dict(id='a', text=(new := different(1)[::-1]))]) # the same size
    run_corpus(s, say=quiet)
    assert [d.text for d in read_documents(tmp_path/'out'/'documents.jsonl')] == [new]

def test_items_that_changed_are_cut_out_too(tmp_path):
    words = ' '.join(map(different, range(5, 10))).split()
    s = CorpusSettings(inputs=put(tmp_path/'x.jsonl', [dict(id='a', text=' '.join(words))]), out=tmp_path/'out', decontaminate=put(tmp_path/'i.jsonl', [dict(id='q', text=different(4))]), **PLAIN)
    run_corpus(s, say=quiet)
    put(tmp_path/'i.jsonl', [dict(id='q', text=' '.join(words[300:330]))])
    run_corpus(s, say=quiet)
    (d,) = read_documents(tmp_path/'out'/'documents.jsonl')
    assert d.metadata['contaminated'] == ['q'] and ' '.join(words[300:330]) not in d.text
    for bad, message in (('{"id": ', 'i.jsonl:1'), ('', 'no item')):
        (tmp_path/'i.jsonl').write_text(bad)
        with pytest.raises(UserError, match=message): run_corpus(s, say=quiet)

def test_a_run_does_not_read_itself(tmp_path):
    (tmp_path/'in').mkdir(); put(tmp_path/'in'/'x.jsonl', [dict(id='a', text=different(1))])
    s = CorpusSettings(inputs=(str(tmp_path/'in'),), out=tmp_path/'in'/'out', **PLAIN)
    run_corpus(s, say=quiet); lines = []
    run_corpus(s, say=lines.append)
    assert sum('done before' in l for l in lines) == len(STEPS)

def test_metadata_of_strangers_decides_nothing(tmp_path):
    rows_in = [dict(id=str(i), text=different(i), repeats=r, tier='high', kind=k) for i, (r, k) in enumerate([('5', 'python'), (-5, ''), (10**9, 'text'), ([1], 'python')])]
    run_corpus(CorpusSettings(inputs=put(tmp_path/'x.jsonl', rows_in), out=tmp_path/'out', **PLAIN), say=quiet)
    assert Shards(tmp_path/'out'/'train').n_documents == 4

def test_many_broken_lines_are_counted_and_the_first_are_named(tmp_path):
    (tmp_path/'x.jsonl').write_text('x\n' * 5000 + json.dumps(dict(id='a', text=different(1))))
    report = run_corpus(CorpusSettings(inputs=(str(tmp_path/'x.jsonl'),), out=tmp_path/'out', **PLAIN), say=quiet)
    extract = report['steps'][1]
    assert extract['why'] == {'broken record': 5000} and extract['n_in'] == 5001 and len(rows(tmp_path/'out'/'dead.jsonl')) == 1000

def test_names_that_are_not_utf8_and_codecs_that_are_no_encoding(tmp_path):
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/os.fsdecode(b'bad\xff\xfe.txt')).write_text(different(1))
    (tmp_path/'in'/'escape.py').write_bytes(b'# coding: unicode_escape\nx = "\\ud800"\n' + b'y = 1\n' * 30)
    run_corpus(CorpusSettings(inputs=(str(tmp_path/'in'),), out=tmp_path/'out', docstrings=0., **PLAIN), say=quiet)
    assert [d.id for d in read_documents(tmp_path/'out'/'documents.jsonl')] == ['in/bad\\xff\\xfe.txt']
    assert [r['why'] for r in rows(tmp_path/'out'/'dead.jsonl')] == ['unknown encoding']

def test_what_is_no_file_is_said_to_be_none(tmp_path):
    os.mkfifo(tmp_path/'pipe'); (tmp_path/'loop').symlink_to('loop')
    for spec, message in ((str(tmp_path/'pipe'), 'not a regular file'), (str(tmp_path/'loop'), 'not a regular file'), ('/dev/zero', 'not a regular file'), ('', 'expected a file')):
        with pytest.raises(UserError, match=message): run_corpus(replace(SMALL, inputs=(spec,), out=tmp_path/'out'), say=quiet)
    (tmp_path/'file').write_text(''); (tmp_path/'out').mkdir(); (tmp_path/'out'/'steps').write_text('')
    for out in (tmp_path/'file', tmp_path/'out'):
        with pytest.raises(UserError, match='a file is where the folder'): run_corpus(replace(SMALL, out=out), say=quiet)

def test_two_runs_in_one_folder(small):
    import fcntl
    (small.out/'steps').mkdir(parents=True)
    with open(small.out/'steps'/'lock', 'w') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        with pytest.raises(UserError, match='another run is writing here'): run_corpus(small, say=quiet)
    run_corpus(small, say=quiet)

def test_what_a_killed_process_was_writing_is_swept_away(small, whole):
    (small.out/'steps'/'clean').mkdir(parents=True); (small.out/'steps'/'clean'/'.00000.jsonl.xyz').write_text('half'); (small.out/'.train.xyz').mkdir()
    run_corpus(small, say=quiet)
    assert not list(small.out.rglob('.*')) and content(small.out) == whole

def test_run_again_in_the_same_process_with_other_inputs(tmp_path):
    "What a process remembers of parts must not outlive them"
    s = lambda: CorpusSettings(inputs=(str(tmp_path/'x.jsonl'),), out=tmp_path/'out', **PLAIN)
    pair = lambda n: [dict(id=f'{n}{i}', text=different(n) + ' and more' * i) for i in range(2)]
    put(tmp_path/'x.jsonl', [dict(id='alone', text=different(7)), *pair(1)])
    run_corpus(s(), say=quiet)
    put(tmp_path/'x.jsonl', [*pair(2), dict(id='other', text=different(8) + ' with a longer end'), *pair(3)])
    run_corpus(s(), say=quiet)
    assert [d.id for d in read_documents(tmp_path/'out'/'documents.jsonl')] == ['21', 'other', '31']
    assert {r['id']: r['kept'] for r in rows(tmp_path/'out'/'fallen.jsonl')} == {'20': '21', '30': '31'}
