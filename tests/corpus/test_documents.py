"Records: round trips through every format, broken lines, ranges, long lines, damaged files."
import gzip, hashlib, json, os, subprocess, sys
import pytest
from hypothesis import given, settings, strategies as st
from labkit.core.files import samples
from labkit.core.settings import UserError
from labkit.corpus.documents import BadRecord, Document, as_document, format_of, from_columns, read_documents, text_id, write_documents

TEXT = st.text(st.characters(exclude_categories=['Cs']))
JSON = st.recursive(st.none() | st.booleans() | st.integers(-2**53, 2**53) | TEXT, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x, max_size=3), max_leaves=5)
DOCS = st.lists(st.builds(Document, text=TEXT, id=TEXT, source=TEXT, language=st.sampled_from(['', 'en', 'zh']), metadata=st.dictionaries(TEXT, JSON, max_size=3)), max_size=4)
MANY = [Document(f'{i} 茶 ' + ' '.join(hashlib.sha256(f'{i} {j}'.encode()).hexdigest() for j in range(i % 12)), f'd{i}', 'made up', 'en', dict(n=i)) for i in range(500)]

@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz', 'a.jsonl.zst', 'a.parquet'])
def test_round_trip(tmp_path, name):
    @settings(max_examples=25, deadline=None)
    @given(DOCS)
    def check(docs):
        assert write_documents(tmp_path/name, docs) == len(docs)
        assert list(read_documents(tmp_path/name)) == docs
    check()

@pytest.mark.parametrize('name', ['a.warc', 'a.warc.gz'])
def test_warc_keeps_text_source_and_id(tmp_path, name):
    assert write_documents(tmp_path/name, MANY) == 500
    assert [(d.text, d.id, d.source) for d in read_documents(tmp_path/name)] == [(d.text, d.id, d.source) for d in MANY]

@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=60).filter(lambda b: b'\n' not in b), max_size=5))
def test_any_bytes_are_read_or_reported(tmp_path_factory, lines):
    path, bad = tmp_path_factory.mktemp('b')/'x.jsonl', []
    path.write_bytes(b'\n'.join(lines))
    docs = list(read_documents(path, bad.append))
    assert len(docs) + len(bad) == sum(bool(l.strip()) for l in lines)

@settings(max_examples=50, deadline=None)
@given(st.dictionaries(TEXT, JSON, max_size=4) | st.fixed_dictionaries({'text': JSON, 'metadata': JSON}))
def test_any_row_is_a_document_or_a_value_error(row):
    for f in (as_document, lambda r: as_document(from_columns(r))):
        try: assert isinstance(f(row).text, str)
        except ValueError: pass

@settings(max_examples=50, deadline=None)
@given(st.text(), st.text())
def test_ids(a, b): assert (text_id(a) == text_id(b)) == (a == b) and len(text_id(a)) == 16

@settings(max_examples=50, deadline=None)
@given(TEXT)
def test_format_of_any_name(name): assert format_of(name) in (None, 'jsonl', 'parquet', 'warc', 'text')

def test_broken_lines_are_named_and_skipped():
    bad = []
    docs = list(read_documents(samples('corpus/broken/lines.jsonl'), bad.append))
    assert [d.id for d in docs] == ['b1']
    assert [b.line for b in bad] == [2, 3, 4, 5, 6]
    assert 'found list' in bad[1].why and "'text' must be a string" in bad[2].why and 'surrogates' in bad[4].why
    with pytest.raises(UserError, match=r'lines\.jsonl:2: not JSON'): list(read_documents(samples('corpus/broken/lines.jsonl')))

def test_invalid_utf8_is_told_by_its_byte(tmp_path):
    (tmp_path/'x.jsonl').write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n'); (tmp_path/'x.txt').write_bytes(b'caf\xe9 au lait')
    bad = []
    assert [d.text for d in read_documents(tmp_path/'x.jsonl', bad.append)] == ['fine']
    assert bad == [BadRecord(str(tmp_path/'x.jsonl'), 2, 'invalid UTF-8 at byte 13 of the line', 17)]
    assert not list(read_documents(tmp_path/'x.txt', bad.append)) and bad[1].offset == 3
    assert str(bad[1]).endswith('x.txt, at 3: invalid UTF-8')

@pytest.mark.parametrize('name', ['x.jsonl.gz', 'x.jsonl.zst', 'x.warc.gz'])
def test_what_was_cut_off_gives_what_came_before(tmp_path, name):
    write_documents(tmp_path/name, MANY); raw = (tmp_path/name).read_bytes()
    for cut in (len(raw) - 1, len(raw) - 200, len(raw) // 2, 40, 1):
        (tmp_path/name).write_bytes(raw[:cut]); bad = []
        docs = list(read_documents(tmp_path/name, bad.append))
        assert [d.text for d in docs] == [d.text for d in MANY[:len(docs)]] and len(docs) >= (250 if cut > len(raw) * .9 else 0)
        assert bad and bad[-1].why and bad[-1].path.endswith(name)

def test_the_byte_before_the_damage_is_kept(tmp_path):
    rows = [json.dumps({'text': f'{i} ' + os.urandom(20).hex()}) for i in range(2000)]
    raw = bytearray(gzip.compress('\n'.join(rows).encode())); at = len(raw) * 3 // 4
    (tmp_path/'half.jsonl.gz').write_bytes(raw[:at]); whole = list(read_documents(tmp_path/'half.jsonl.gz', [].append))
    raw[at:at + 40] = os.urandom(40); (tmp_path/'hit.jsonl.gz').write_bytes(raw); bad = []
    docs = list(read_documents(tmp_path/'hit.jsonl.gz', bad.append))
    assert len(whole) > 1400 and [d.text for d in docs[:len(whole) - 1]] == [d.text for d in whole[:-1]] and bad

def test_one_broken_page_costs_itself(tmp_path):
    write_documents(tmp_path/'x.warc.gz', MANY); raw = bytearray((tmp_path/'x.warc.gz').read_bytes())
    raw[len(raw) // 2:len(raw) // 2 + 9] = bytes(9); (tmp_path/'x.warc.gz').write_bytes(raw); bad = []
    docs = list(read_documents(tmp_path/'x.warc.gz', bad.append))
    assert len(docs) >= 498 and bad and {d.text for d in docs} <= {d.text for d in MANY}

def test_one_broken_row_group_costs_itself(tmp_path):
    write_documents(tmp_path/'x.parquet', [Document(os.urandom(300).hex(), f'{i}') for i in range(3500)]); raw = bytearray((tmp_path/'x.parquet').read_bytes())
    raw[len(raw) // 2] ^= 255; (tmp_path/'x.parquet').write_bytes(raw); bad = []
    assert len(list(read_documents(tmp_path/'x.parquet', bad.append))) in range(2500, 3000) and 'row group' in bad[0].why

def test_deep_json_is_a_broken_line(tmp_path):
    (tmp_path/'x.jsonl').write_text('{"text": ' + '[' * 200_000 + '\n{"text": "fine"}\n')
    bad = []
    assert [d.text for d in read_documents(tmp_path/'x.jsonl', bad.append)] == ['fine'] and bad[0].line == 1

@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40_000), st.integers(0, 40_000))
def test_workers_share_a_file(tmp_path_factory, a, b):
    path = tmp_path_factory.getbasetemp()/'shared.jsonl'
    if not path.exists(): write_documents(path, MANY)
    cuts = sorted({0, min(a, path.stat().st_size), min(b, path.stat().st_size), path.stat().st_size})
    assert [d.id for x, y in zip(cuts, cuts[1:]) for d in read_documents(path, start=x, end=y)] == [d.id for d in MANY]

def test_what_has_no_ranges_says_so(tmp_path):
    write_documents(tmp_path/'x.jsonl.gz', MANY[:2]); write_documents(tmp_path/'x.parquet', MANY[:2])
    for name in ('x.jsonl.gz', 'x.parquet'):
        with pytest.raises(UserError, match='byte ranges'): list(read_documents(tmp_path/name, start=5))
    with pytest.raises(UserError, match='expected one of .jsonl'): list(read_documents(tmp_path/'x.docx'))
    with pytest.raises(UserError, match='No such file'): list(read_documents(tmp_path/'gone.jsonl'))
    with pytest.raises(UserError, match='are written as'): write_documents(tmp_path/'x.txt', [])

PEAK = """
import resource, sys
from labkit.corpus.documents import read_documents
before, bad = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
texts = [d.text for d in read_documents(sys.argv[1], bad.append)]
print(texts, [b.why for b in bad], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""

def test_a_line_of_a_gigabyte(tmp_path):
    with open(tmp_path/'x.jsonl', 'wb') as f: f.write(b'{"text": "'); f.seek(10**9, 1); f.write(b'"}\n{"text": "still here"}\n') # a hole: no disk is used
    out = subprocess.run([sys.executable, '-c', PEAK, tmp_path/'x.jsonl'], capture_output=True, text=True, check=True).stdout
    assert "['still here'] ['a line of 1,000,000,012 bytes; the limit is 64,000,000']" in out and int(out.split()[-1]) < 200, out

def test_a_gigabyte_packed_into_a_megabyte(tmp_path):
    import zstandard
    with open(tmp_path/'x.jsonl.zst', 'wb') as raw, zstandard.ZstdCompressor(level=1).stream_writer(raw, closefd=False) as f:
        f.write(b'{"text": "fine"}\n')
        for _ in range(500): f.write(bytes(2 * 10**6))
    out = subprocess.run([sys.executable, '-c', PEAK, tmp_path/'x.jsonl.zst'], capture_output=True, text=True, check=True).stdout
    assert "['fine'] ['a line of 1,000,000,000 bytes" in out and int(out.split()[-1]) < 200, out

def test_wrong_columns_are_named(tmp_path):
    import pyarrow as pa, pyarrow.parquet as pq
    pq.write_table(pa.table({'body': ['tea'], 'stars': [5]}), tmp_path/'x.parquet'); bad = []
    assert not list(read_documents(tmp_path/'x.parquet', bad.append)) and 'the columns are body, stars' in bad[0].why
    pq.write_table(pa.table({'text': ['tea', None], 'stars': [5, 4]}), tmp_path/'x.parquet'); bad = []
    assert [d.metadata for d in read_documents(tmp_path/'x.parquet', bad.append)] == [{'stars': 5}] and bad[0].offset == 1

def test_responses_of_servers(tmp_path):
    from fastwarc.warc import WarcRecord, WarcRecordType
    pages = [(b'Content-Type: text/html; charset=gbk', '<p>茶'.encode('gbk')), (b'Content-Type: text/html', '<meta charset="big5">茶'.encode('big5')), (b'Content-Type: text/plain\r\nContent-Encoding: gzip', gzip.compress(b'tea')),
             (b'Content-Type: image/png', b'\x89PNG'), (b'Content-Type: text/html', b'\xff\xfe\xfd'), (b'Content-Type: text/html; charset=klingon', b'x')]
    with open(tmp_path/'x.warc', 'wb') as f:
        for i, (head, body) in enumerate(pages):
            r = WarcRecord(); r.init_headers(WarcRecordType.response); r.headers['WARC-Target-URI'] = f'http://tea.example/{i}'; r.headers['Content-Type'] = 'application/http; msgtype=response'
            r.set_bytes_content(b'HTTP/1.1 200 OK\r\n' + head + b'\r\n\r\n' + body); r.write(f)
    bad = []
    docs = list(read_documents(tmp_path/'x.warc', bad.append))
    assert [(d.text, d.metadata['kind']) for d in docs] == [('<p>茶', 'html'), ('<meta charset="big5">茶', 'html'), ('tea', 'text')] and docs[0].source == 'http://tea.example/0'
    assert [b.why for b in bad] == ['no text: image/png', 'not valid utf-8 at byte 0 of the page', 'unknown encoding klingon'] and bad[0].offset > 0

def test_a_failed_write_leaves_nothing(tmp_path):
    def docs(): yield MANY[0]; raise OSError(28, 'No space left on device')
    for name in ('x.jsonl', 'x.jsonl.gz', 'x.jsonl.zst', 'x.parquet', 'x.warc.gz'):
        with pytest.raises(OSError, match='No space'): write_documents(tmp_path/name, docs())
    assert not list(tmp_path.iterdir())
