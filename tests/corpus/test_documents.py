"Reading: broken lines, binary and undecodable files, selection, extraction."
import gzip, json
import pytest
from hypothesis import given, settings, strategies as st
from labkit.core.files import samples
from labkit.core.settings import UserError
from labkit.corpus.documents import Document, read_documents, write_documents
from labkit.corpus.sources import SourceFile, environment_files, find_files, kind_of, manifest, select_files
from labkit.corpus.extract import Unreadable, decode, from_docstrings, from_html, from_markdown, from_metadata, from_rst, read_file, tidy

TEXT = st.text(st.characters(exclude_categories=['Cs']))
JSON = st.recursive(st.none() | st.booleans() | st.integers(-2**53, 2**53) | TEXT, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x, max_size=3), max_leaves=5)

def source(path, kind=None): return SourceFile(path, path.name, kind or kind_of(path.name), path.stat().st_size)

def why(path, kind=None):
    with pytest.raises(Unreadable) as e: read_file(source(path, kind))
    return str(e.value)

@settings(max_examples=60, deadline=None)
@given(st.lists(st.builds(Document, text=TEXT, id=TEXT, source=TEXT, language=st.sampled_from(['', 'en', 'zh']), metadata=st.dictionaries(TEXT, JSON, max_size=3)), max_size=4))
def test_round_trip(tmp_path_factory, docs):
    path = tmp_path_factory.mktemp('d')/'docs.jsonl.gz'
    assert write_documents(path, docs) == len(docs)
    assert list(read_documents(path)) == docs

@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=60).filter(lambda b: b'\n' not in b), max_size=5))
def test_any_bytes_are_read_or_reported(tmp_path_factory, lines):
    path, bad = tmp_path_factory.mktemp('b')/'x.jsonl', []
    path.write_bytes(b'\n'.join(lines))
    docs = list(read_documents(path, bad.append))
    assert len(docs) + len(bad) == sum(bool(l.strip()) for l in lines)

def test_broken_lines_are_named_and_skipped():
    bad = []
    docs = list(read_documents(samples('corpus/broken/lines.jsonl'), bad.append))
    assert [d.id for d in docs] == ['b1']
    assert [b.line for b in bad] == [2, 3, 4, 5, 6]
    assert 'found list' in bad[1].why and "'text' must be a string" in bad[2].why and 'surrogates' in bad[4].why
    with pytest.raises(UserError, match=r'lines\.jsonl:2: not JSON'): list(read_documents(samples('corpus/broken/lines.jsonl')))

def test_broken_gzip_gives_what_came_before(tmp_path):
    path = tmp_path/'x.jsonl.gz'
    rows = [json.dumps({'text': f'{i} ' + 'abcdefgh'[i % 8:] * i}) for i in range(3000)]
    path.write_bytes(gzip.compress('\n'.join(rows).encode()))
    path.write_bytes(path.read_bytes()[:-200])
    bad = []
    docs = list(read_documents(path, bad.append))
    assert 0 < len(docs) < 3000 and docs[0].text.startswith('0') and len(bad) == 1 and 'breaks off' in bad[0].why

def test_deep_json_is_a_broken_line(tmp_path):
    (tmp_path/'x.jsonl').write_text('{"text": ' + '[' * 200_000 + '\n{"text": "fine"}\n')
    bad = []
    assert [d.text for d in read_documents(tmp_path/'x.jsonl', bad.append)] == ['fine'] and bad[0].line == 1

@pytest.mark.parametrize('name, reason', [('empty.md', 'empty'), ('program.txt', 'binary'), ('latin1.txt', 'not valid utf-8')])
def test_unreadable_samples(name, reason): assert why(samples(f'corpus/broken/{name}')) == reason

def test_missing_file(tmp_path):
    with pytest.raises(Unreadable, match='cannot be opened'): read_file(SourceFile(tmp_path/'gone.txt', 'gone.txt', 'text', 3))

@pytest.mark.parametrize('raw, kind, text', [
    ('é'.encode('utf-8-sig'), 'text', 'é'), ('é'.encode('utf-16'), 'text', 'é'), ('é'.encode('utf-32'), 'text', 'é'), (b'a\r\nb\rc', 'text', 'a\nb\nc'),
    (b'# -*- coding: latin-1 -*-\nx = "\xe9"', 'python', '# -*- coding: latin-1 -*-\nx = "é"'), ('<meta charset="gbk">茶'.encode('gbk'), 'html', '<meta charset="gbk">茶')])
def test_decode(raw, kind, text): assert decode(raw, kind) == text

def test_declared_encoding_that_does_not_exist():
    with pytest.raises(Unreadable, match='unknown encoding'): decode(b'# coding: klingon\n', 'python')

@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(['text', 'python', 'html']))
def test_decode_never_fails_otherwise(raw, kind):
    try: assert isinstance(decode(raw, kind), str)
    except Unreadable: pass

@settings(max_examples=100, deadline=None)
@given(TEXT, st.sampled_from([from_markdown, from_rst, from_docstrings, from_metadata, tidy, from_html]))
def test_extractors_take_any_text(text, extract):
    try: assert isinstance(extract(text), str)
    except Unreadable: pass

def test_html_article_only():
    text = read_file(source(samples('corpus/tides.html'))).text
    assert 'second bulge' in text and 'cookies' not in text and 'Log in' not in text and 'newsletter' not in text

def test_rst_reads_no_other_files(tmp_path):
    (tmp_path/'secret').write_text('password')
    assert 'password' not in from_rst(f'Title\n=====\n\n.. include:: {tmp_path}/secret\n\n.. raw:: html\n   :file: {tmp_path}/secret\n\nbody\n')

def test_python_keeps_its_indentation():
    path = samples('corpus/temperature.py')
    assert read_file(source(path)).text == path.read_text()
    assert 'def ' not in read_file(source(path, 'docstrings')).text and 'to_kelvin(celsius)' in read_file(source(path, 'docstrings')).text

def test_find_files_says_what_is_missing(tmp_path):
    for spec in (str(tmp_path/'none*.txt'), str(tmp_path), 'env:no-such-package-here'):
        with pytest.raises(UserError, match='no package|no such file'): find_files([spec])

def test_environment_is_named_alike_everywhere():
    files = environment_files(['numpy'])
    assert len(files) > 100 and all(f.path.is_file() and not f.name.startswith('/') and f.name in f.path.as_posix() for f in files)
    assert not [f for f in files if 'tests' in f.name.split('/')]

def test_selection_keeps_its_limits(tmp_path):
    files = [SourceFile(tmp_path/f'{i}.py', f'{i}.py', 'python', 1000 * (i + 1)) for i in range(50)]
    sel = select_files(files, max_files=30, max_mb=.2, max_file_kb=40)
    assert len(sel.files) <= 30 and sum(f.bytes for f in sel.files) <= 200_000 and max(f.bytes for f in sel.files) <= 40_000
    assert sel.too_large == 10 and len(sel.files) + sel.too_large + sel.over_budget == 50
    assert sel == select_files(files[::-1], max_files=30, max_mb=.2, max_file_kb=40), 'the order that files were found in must not matter'
    assert manifest(sel.files) == manifest(sel.files[::-1]) and manifest(sel.files)['sha256'] != manifest(sel.files[1:])['sha256']
