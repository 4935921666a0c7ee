"From bytes to text: encodings, markup, code, and files that are traps."
import os, signal, stat, zlib
import pytest
from hypothesis import given, settings, strategies as st
from labkit.core.files import samples
from labkit.core.settings import UserError
from labkit.corpus.documents import Document
from labkit.corpus.extract import Child, Unreadable, confined, decode, docutils_text, extract_page, from_docstrings, from_html, from_markdown, from_metadata, from_pdf, from_pdf_mineru, from_rst, guess_encoding, normalize, read_file, repair, tidy
from labkit.corpus.sources import SourceFile, kind_of

TEXT = st.text(st.characters(exclude_categories=['Cs']))
MARKUP = st.lists(TEXT | st.sampled_from(['`', '``', '*', '**', '.. ', '..', '::', '\n', '\n\n', ' ', '    ', '[', ']', '(', ')', '![', '<', '>', '<!--', '-->', '```', '"""', "'''", '"', "'", '\\', '#', 'def f(', '):', 'class A:', '|', '_', '__', '.. note::', '.. _a: b', '---\n', '===\n', ':role:`'])).map(''.join)

def source(path, kind=None): return SourceFile(path, path.name, kind or kind_of(path.name), path.stat().st_size)

def why(path, kind=None):
    with pytest.raises(Unreadable) as e: read_file(source(path, kind))
    return str(e.value)

def pdf(streams, header=''):
    "A PDF with a page for each content stream"
    n = len(streams); kids = ' '.join(f'{3 + 2 * i} 0 R' for i in range(n))
    objs = [b'<< /Type /Catalog /Pages 2 0 R >>', f'<< /Type /Pages /Kids [{kids}] /Count {n} >>'.encode()]
    for i, s in enumerate(streams):
        objs += [f'<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents {4 + 2 * i} 0 R /Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>'.encode(), f'<< /Length {len(s)} {header} >>\nstream\n'.encode() + s + b'\nendstream']
    out, at = b'%PDF-1.4\n', []
    for i, o in enumerate(objs, 1): at.append(len(out)); out += f'{i} 0 obj\n'.encode() + o + b'\nendobj\n'
    return out + f'xref\n0 {len(objs) + 1}\n0000000000 65535 f \n'.encode() + b''.join(b'%010d 00000 n \n' % a for a in at) + f'trailer << /Size {len(objs) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF'.encode()

def words(*lines): return b'BT /F1 12 Tf 50 750 Td 14 TL ' + b' '.join(f'({l}) Tj T*'.encode() for l in lines) + b' ET'

@pytest.mark.parametrize('name, reason', [('empty.md', 'empty'), ('program.txt', 'binary'), ('latin1.txt', 'not valid utf-8')])
def test_unreadable_samples(name, reason): assert why(samples(f'corpus/broken/{name}')) == reason

def test_missing_file_and_files_of_many(tmp_path):
    with pytest.raises(Unreadable, match='cannot be opened'): read_file(SourceFile(tmp_path/'gone.txt', 'gone.txt', 'text', 3))
    with pytest.raises(Unreadable, match='hold many documents'): read_file(SourceFile(tmp_path/'a.parquet', 'a.parquet', 'parquet', 3))
    with open(tmp_path/'big.txt', 'wb') as f: f.truncate(10**9)
    assert why(tmp_path/'big.txt').startswith('larger than')

@pytest.mark.parametrize('raw, kind, text', [
    ('é'.encode('utf-8-sig'), 'text', 'é'), ('é'.encode('utf-16'), 'text', 'é'), ('é'.encode('utf-32'), 'text', 'é'), (b'a\r\nb\rc', 'text', 'a\nb\nc'),
    (b'# -*- coding: latin-1 -*-\nx = "\xe9"', 'python', '# -*- coding: latin-1 -*-\nx = "é"'), ('<meta charset="gbk">茶'.encode('gbk'), 'html', '<meta charset="gbk">茶')])
def test_decode(raw, kind, text): assert decode(raw, kind) == text

@pytest.mark.parametrize('name', ['klingon', 'hex', 'undefined', 'idna', 'punycode', 'zlib_codec', 'raw_unicode_escape'])
def test_declared_encodings_that_do_not_exist_or_are_none(name):
    try: assert isinstance(decode(b'# coding: ' + name.encode() + b'\nx = "\xff\xfe"\n', 'python'), str)
    except Unreadable as e: assert str(e) in ('unknown encoding', f'not valid {name}')

@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(['text', 'python', 'html']), st.booleans())
def test_decode_never_fails_otherwise(raw, kind, guess):
    try: assert isinstance(decode(raw, kind, guess), str)
    except Unreadable: pass

@pytest.mark.parametrize('codec, text', [('gb18030', '绿茶的叶子很嫩，八十度左右的水就能让香味出来。'), ('big5', '綠茶的葉子很嫩，八十度左右的水就能讓香味出來。'), ('shift_jis', 'お茶の葉はとても柔らかいので、お湯は八十度くらいがよい。'),
    ('euc_kr', '차는 팔십 도쯤 되는 물에 우려야 맛이 좋다.'), ('cp1252', 'Le thé est bon à quatre-vingts degrés, naïf café là-bas déjà.'), ('utf-16-le', 'Tea is best at eighty degrees.'), ('utf-16-be', '绿茶的叶子很嫩'), ('utf-8', 'thé 茶')])
def test_guessed_encodings(codec, text):
    raw = text.encode(codec)
    assert raw.decode(guess_encoding(raw)) == text and decode(raw, guess=True) == text

def test_noise_is_not_guessed():
    noise = bytes(range(256)) * 4
    assert guess_encoding(noise) is None
    with pytest.raises(Unreadable): decode(noise, guess=True)

@settings(max_examples=150, deadline=None)
@given(TEXT | MARKUP, st.sampled_from([from_markdown, from_rst, from_docstrings, from_metadata, tidy, repair, docutils_text]))
def test_extractors_take_any_text(text, extract):
    try: assert isinstance(extract(text), str)
    except Unreadable: pass

@settings(max_examples=40, deadline=None)
@given(TEXT | MARKUP, st.sampled_from(['trafilatura', 'resiliparse']))
def test_html_takes_any_text(text, html):
    try: assert isinstance(from_html(text, html), str)
    except Unreadable: pass

@settings(max_examples=60, deadline=None)
@given(TEXT)
def test_tidy_and_normalize_change_a_text_once(text):
    assert tidy(tidy(text)) == tidy(text) and all(l == l.rstrip(' \t') for l in tidy(text).split('\n'))
    for how in (dict(), dict(form='NFC'), dict(form=None, chinese='simplified'), dict(mojibake=True)): assert isinstance(normalize(text, **how), str)
    assert normalize(normalize(text)) == normalize(text)

@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from('abc é茶ü—’')))
def test_repair_undoes_and_leaves_alone(text):
    assert repair(text) == text, 'nothing was wrong with it'

def test_repair_and_normalize():
    for text in ('naïve café', '茶和水都要热的。', 'a — b’s'): assert repair(text.encode().decode('latin-1')) == text
    assert normalize('ＡＢＣ，ﬁ') == 'ABC,fi' and normalize('頭髮', chinese='simplified') == '头发' and normalize('头发', None, 'traditional') == '頭髮'
    with pytest.raises(UserError, match="expected 'simplified'"): normalize('茶', chinese='classical')
    with pytest.raises(UserError, match='trafilatura or resiliparse'): from_html('<p>', 'lynx')

@pytest.mark.parametrize('html', ['trafilatura', 'resiliparse'])
def test_html_article_only(html):
    text = read_file(source(samples('corpus/tides.html')), html).text
    assert 'second bulge' in text and 'cookies' not in text and 'newsletter' not in text
    page = Document(samples('corpus/tides.html').read_text(), 'x', 'http://tides.example', metadata=dict(kind='html'))
    assert 'second bulge' in extract_page(page, html).text and extract_page(page, html).id == 'x'

def test_rst_reads_no_other_files(tmp_path):
    (tmp_path/'secret').write_text('password')
    text = f'Title\n=====\n\n.. include:: {tmp_path}/secret\n\n.. raw:: html\n   :file: {tmp_path}/secret\n\nbody\n'
    assert 'password' not in from_rst(text) and 'password' not in docutils_text(text)

def test_rst_keeps_what_is_seen():
    text = 'Tea\n===\n\nSee ``brew(2)``, :func:`pour <cup.pour>`, `the book <http://x.y>`_ and tea_.\n\n.. note:: Not *too* **hot**.\n   It burns.\n\n.. image:: cup.png\n   :alt: a cup\n\n.. a remark\n   for nobody\n\n.. code-block:: python\n   :linenos:\n\n   x = 1  # keep\n\nHow it is done::\n\n  pour()\n\n.. _tea: http://tea\n'
    got = from_rst(text)
    assert all(x in got for x in ('Tea\n', 'brew(2), pour, the book and tea.', 'Not too hot.', 'It burns.', '   x = 1  # keep', 'How it is done:\n\n  pour()'))
    assert not any(x in got for x in ('===', 'cup.png', 'a cup', 'remark', 'nobody', 'linenos', 'python', 'http://', '``', '::'))

def test_docstrings():
    text = '"""Module: what it is about, at some length, in words."""\nx = "def no(): \'\'\' not this"  # """\nclass A(B, metaclass=C):\n    # remark\n    r"""A class \\d of things that are documented here."""\n    async def f(self, a: dict[str, int] = {"a": 1}, *, b=(1, 2)):\n        \'One line of quotes that is long enough to be kept.\'\n    def g(self): return """This string is not a docstring, it is returned."""\n    def h(self):\n        """Escaped \\"quotes\\" and a\n        second line that is indented."""\n'
    got = from_docstrings(text)
    assert got.split('\n\n')[0] == 'Module: what it is about, at some length, in words.'
    assert 'class A\n\nA class \\d of' in got and 'f(self, a: dict[str, int] = {"a": 1}, *, b=(1, 2))\n\nOne line' in got and 'h(self)\n\nEscaped "quotes" and a\nsecond line' in got
    assert 'not this' not in got and 'returned' not in got
    with pytest.raises(Unreadable, match='no docstrings'): from_docstrings('x = 1\n')

def test_python_keeps_its_indentation():
    path = samples('corpus/temperature.py')
    assert read_file(source(path)).text == path.read_text()
    assert 'def ' not in read_file(source(path, 'docstrings')).text and 'to_kelvin(celsius)' in read_file(source(path, 'docstrings')).text

class Slow(Exception): pass

@pytest.fixture
def alarm():
    "A pattern that walks a million characters a million times would take hours; a minute is enough for everything else"
    def ring(*_): raise Slow
    old = signal.signal(signal.SIGALRM, ring); signal.alarm(60)
    yield
    signal.alarm(0); signal.signal(signal.SIGALRM, old)

N = 200_000
@pytest.mark.parametrize('text', [' ' * N + 'x', '[' * N, '![' * N, '`' * N, '``x ' * N, '*a ' * N, '.. ' * N, '..\n' * N, '.. a::\n' * N, '<!--' * N, '"""' * N + '"', '"' * N, "'''\\" * N, 'def f(' * N, '#' * N, '= ' * N, '-' * N + ' ' * N + 'x', '|a' * N, '\n' * N + 'x', '(' * N, ':a:`' * N, '---\n' + 'x\n' * N, 'a_' * N, 'class A:\n' * N, '\\' * N, '\t' * N + 'x'], ids=range(26))
def test_no_pattern_walks_in_circles(alarm, text):
    for extract in (from_markdown, from_rst, from_docstrings, tidy, repair, normalize):
        try: extract(text)
        except Unreadable: pass

def test_pdf(tmp_path):
    raw = pdf([words('Dear reader,', 'tea is best at eighty degrees.'), words('Yours, labkit')])
    (tmp_path/'a.pdf').write_bytes(raw)
    assert from_pdf(raw) == 'Dear reader,\ntea is best at eighty degrees.\n\nYours, labkit'
    assert read_file(source(tmp_path/'a.pdf')).text == from_pdf(raw) + '\n'
    with pytest.raises(Unreadable, match='more than 1 pages'): from_pdf(raw, pages=1)
    with pytest.raises(Unreadable, match='OCR'): from_pdf(pdf([b'']))
    for broken in (b'', b'%PDF-1.7', raw[:100], b'\0' * 500):
        with pytest.raises(Unreadable, match='not a PDF'): from_pdf(broken)

def test_traps_end_with_a_reason():
    z = zlib.compressobj(9); bomb = b''.join(z.compress(b' ' * (1 << 20)) for _ in range(450)) + z.flush()
    with Child(seconds=1, mb=400) as child:
        with pytest.raises(Unreadable, match='memory|long|crashes'): child('pdf', pdf([bomb], '/Filter /FlateDecode'))
        with pytest.raises(Unreadable, match='long'): child('html', b'<html><body>' + b'<div>' * 60_000 + b'text', 'resiliparse')
        assert 'eighty' in child('pdf', pdf([words('eighty')])), 'the next file is read by a new child'

@pytest.mark.parametrize('tail', [b'<!--' + b'x' * 10**6, b'<script>' + b'x' * 10**6, b'<a href="' + b'x' * 10**6, b'<b><i>' * 20_000, b'<div>' * 20_000, b'<ul><li>a' * 10_000], ids=range(6))
def test_html_that_never_closes_keeps_what_came_before(tail):
    text = b'The moon pulls on the ocean, and it pulls harder on the water that is nearer to it. ' * 3
    try: assert 'pulls harder' in confined('html', b'<html><body><article><p>' + text + b'</p></article>' + tail, 'trafilatura')
    except Unreadable as e: assert str(e) in ('no article in the page', 'takes too long')

def test_the_child_keeps_its_place():
    with Child(seconds=5) as child:
        first = child('html', samples('corpus/tides.html').read_bytes(), 'trafilatura'); pid = child.process.pid
        with pytest.raises(Unreadable, match='no article'): child('html', b'<html></html>', 'trafilatura')
        assert child('html', samples('corpus/tides.html').read_bytes(), 'trafilatura') == first and child.process.pid == pid
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Unreadable, match='crashes'): child('html', b'<p>tea', 'trafilatura')
        assert child('html', samples('corpus/tides.html').read_bytes(), 'trafilatura') == first
    assert child.process is None

def test_mineru_is_called_as_documented(tmp_path, monkeypatch):
    with pytest.raises(UserError, match='not installed'): from_pdf_mineru('a.pdf')
    fake = tmp_path/'mineru'
    fake.write_text('#!/bin/sh\n[ "$1 $3 $5 $6" = "-p -o -b pipeline" ] || exit 3\n[ "$2" = bad.pdf ] && exit 1\nmkdir -p "$4/a/auto"\nprintf "# Title\\n\\n![](images/1.jpg)\\n\\nText of $2\\n" > "$4/a/auto/a.md"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR); monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    assert from_pdf_mineru('a.pdf') == '# Title\n\n\n\nText of a.pdf\n'
    with pytest.raises(Unreadable, match='exit 1'): from_pdf_mineru('bad.pdf')
