"Files that are damaged at random: whatever was before the damage is read, the rest is reported, nothing hangs and nothing else is raised."
import gzip, random, signal
import pytest
from labkit.core.files import samples
from labkit.corpus.documents import Document, read_documents, write_documents
from labkit.corpus.extract import Child, Unreadable
from test_extract import pdf, words

RND = random.Random(7)
DOCS = [Document(' '.join(f'{RND.choice(("tea", "water", "茶", "tide", "é"))}{RND.randint(0, 999)}' for _ in range(RND.randint(3, 120))), f'd{i}', f'http://tea.example/{i}', 'en', {'n': i}) for i in range(80)]

class Hung(BaseException): pass

@pytest.fixture(autouse=True)
def alarm():
    def ring(*_): raise Hung
    old = signal.signal(signal.SIGALRM, ring); signal.alarm(120)
    yield
    signal.alarm(0); signal.signal(signal.SIGALRM, old)

def damage(raw: bytes, rnd: random.Random) -> tuple[bytes, int, str]:
    "The bytes with one kind of damage, where it begins, and which kind"
    raw, at, kind = bytearray(raw), rnd.randrange(len(raw)), rnd.choice(('cut', 'flip', 'flips', 'delete', 'insert', 'twice', 'zeros'))
    end = min(len(raw), at + rnd.choice((1, 3, 20, 500)))
    if kind == 'cut': del raw[at:]
    if kind == 'flip': raw[at] ^= 1 << rnd.randrange(8)
    if kind == 'flips':
        for i in [at] + [rnd.randrange(at, len(raw)) for _ in range(20)]: raw[i] ^= 1 << rnd.randrange(8)
    if kind == 'delete': del raw[at:end]
    if kind == 'insert': raw[at:at] = rnd.randbytes(end - at)
    if kind == 'twice': raw[at:at] = raw[at:end]
    if kind == 'zeros': raw[at:end] = bytes(end - at)
    return bytes(raw), at, kind

def texts(path, raw: bytes) -> tuple[list[str], list]:
    path.write_bytes(raw); bad = []
    return [d.text for d in read_documents(path, bad.append)], bad

@pytest.mark.parametrize('name', ['x.jsonl', 'x.jsonl.gz', 'x.jsonl.zst', 'x.parquet', 'x.warc', 'x.warc.gz', 'x.warc.zst', 'x.txt.gz'])
def test_damaged_files(tmp_path, name):
    path, rnd = tmp_path/name, random.Random(name)
    if name == 'x.txt.gz': path.write_bytes(gzip.compress('\n'.join(d.text for d in DOCS).encode()))
    elif name == 'x.warc.zst':
        import zstandard
        write_documents(tmp_path/'x.warc', DOCS); path.write_bytes(zstandard.compress((tmp_path/'x.warc').read_bytes()))
    else: write_documents(path, DOCS)
    whole = path.read_bytes(); want, bad = texts(path, whole)
    assert not bad and (len(want) == len(DOCS) or name == 'x.txt.gz')
    for _ in range(60):
        raw, at, kind = damage(whole, rnd)
        got, bad = texts(path, raw)
        assert all(b.path == str(path) and b.why for b in bad)
        if name in ('x.jsonl', 'x.jsonl.gz', 'x.jsonl.zst', 'x.warc.gz'): # what can be read of the bytes in front of the damage, but for the record it falls into
            before = texts(path, whole[:at])[0][:-1]
            assert got[:len(before)] == before, (kind, at)
        if name in ('x.jsonl.gz', 'x.jsonl.zst', 'x.txt.gz', 'x.parquet') and raw != whole and got != want: assert bad, f'{kind} at {at} went unnoticed'
        if name == 'x.warc.gz' and kind == 'flip': assert len(got) >= len(DOCS) - 1, 'a broken record costs itself'

@pytest.mark.parametrize('kind, how', [('html', 'trafilatura'), ('html', 'resiliparse'), ('pdf', '')])
def test_damaged_pages(kind, how):
    rnd = random.Random(kind + how)
    whole = samples('corpus/tides.html').read_bytes() if kind == 'html' else pdf([words('Dear reader,', 'tea is best.'), words('Yours')])
    with Child(seconds=5, mb=1000) as child:
        for _ in range(60):
            raw = whole
            for _ in range(rnd.choice((1, 1, 5))): raw = damage(raw, rnd)[0] or b'x'
            try: assert isinstance(child(kind, raw.decode('utf-8', 'replace').encode() if kind == 'html' else raw, how), str)
            except Unreadable as e: assert str(e) and 'crashes' not in str(e)
