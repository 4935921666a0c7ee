"Interleaved records: broken lines, broken pictures, copies, captions, films."
import io, json, os
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
Image = pytest.importorskip('PIL.Image')
from labkit.core.files import samples
from labkit.core.settings import UserError
from labkit.corpus.images import (BadImage, Frame, ImageRef, Record, check_caption, check_image, clean_records, dhash, distance, duplicates, film_record, find_image, frames, grey, image_signals, key_frames,
                                  open_image, parts, phash, read_records, shrink, write_records)

TEXT = st.text(st.characters(exclude_categories=['Cs']), max_size=30)
REFS = st.builds(ImageRef, url=TEXT, sha256=TEXT, caption=TEXT, width=st.integers(0, 9999), height=st.integers(0, 9999))

def picture(seed=0, size=(200, 160)):
    small = np.random.default_rng(seed).integers(0, 255, (5, 6, 3)).astype(np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)

@settings(max_examples=60, deadline=None)
@given(st.lists(st.builds(Record, id=TEXT, content=TEXT, img_list=st.lists(REFS, max_size=3).map(tuple)), max_size=4))
def test_round_trip(tmp_path_factory, records):
    path = tmp_path_factory.mktemp('r')/'r.jsonl.gz'
    assert write_records(path, records) == len(records)
    assert list(read_records(path)) == records

def test_width_and_height_are_written_as_strings(tmp_path):
    write_records(tmp_path/'r.jsonl', [Record('a', '', (ImageRef('u', width=3, height=4),))])
    assert json.loads((tmp_path/'r.jsonl').read_text())['img_list'][0] == dict(url='u', sha256='', caption='', width='3', height='4')

def test_broken_lines_are_reported_and_skipped(tmp_path):
    path, bad = tmp_path/'r.jsonl', []
    path.write_bytes(b'{"id": 1, "content": "fine"}\n\n{oops\n[1]\n{"id": 1, "content": 2}\n{"id": 1, "content": "", "img_list": [{"caption": "x"}]}\n{"content": ""}\n{"id": 1, "content": "", "img_list": [{"url": "u", "width": "-3"}]}\n\xff\n{"id": 2, "content": "fine"}\n')
    assert [r.id for r in read_records(path, bad.append)] == ['1', '2']
    assert [b.line for b in bad] == [3, 4, 5, 6, 7, 8, 9]
    with pytest.raises(UserError, match='r.jsonl:3'): list(read_records(path))

@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(['![](a)', '![x](b)', 'text', '\n', '![](c', '![](unknown)', '图']), max_size=12).map(''.join))
def test_parts_keep_pictures_in_order(content):
    r = Record('x', content, (ImageRef('a'), ImageRef('b')))
    import re
    assert [p.url for p in parts(r) if not isinstance(p, str)] == re.findall(r'!\[x?\]\((a|b)\)', content)

def test_files_are_found_by_hash_or_name_and_never_outside(tmp_path):
    import hashlib
    (tmp_path/'in').mkdir(); (tmp_path/'secret.png').write_bytes(b'x'); (tmp_path/'in'/'a.png').write_bytes(b'x')
    hashed = tmp_path/'in'/(hashlib.sha256(b'https://x/b').hexdigest() + '.jpg'); hashed.write_bytes(b'x')
    find = lambda url: find_image(ImageRef(url), tmp_path/'in')
    assert find('https://x/a.png?size=2#top').name == 'a.png' and find('https://x/b') == hashed
    assert [find(u) for u in ('https://x/../secret.png', '..', '', 'x/', 'a\0.png', '..\\secret.png')] == [None] * 6

def test_broken_pictures(tmp_path):
    why = {}
    for name in ('cut.jpg', 'page.jpg', 'empty.png', 'bomb.png', 'gone.png'):
        with pytest.raises(BadImage) as e: open_image(samples('images')/name)
        why[name] = str(e.value)
    assert why == {'cut.jpg': 'broken off', 'page.jpg': 'not a picture', 'empty.png': 'empty', 'bomb.png': 'decompression bomb', 'gone.png': 'missing'}
    with pytest.raises(BadImage): open_image(tmp_path)

@settings(max_examples=60, deadline=None)
@given(st.sampled_from(['PNG', 'JPEG', 'GIF', 'WEBP']), st.integers(0, 10**6), st.binary(max_size=8), st.integers(0, 10**6))
def test_damaged_files_are_read_or_refused(tmp_path_factory, kind, at, junk, cut):
    buf = io.BytesIO(); picture(1, (40, 30)).save(buf, kind); raw = buf.getvalue()
    at %= len(raw); path = tmp_path_factory.mktemp('d')/'x'
    path.write_bytes((raw[:at] + junk + raw[at + len(junk):])[:max(1, cut % (2 * len(raw)))])
    try: assert open_image(path).dtype == np.uint8
    except BadImage as e: assert str(e) in ('broken off', 'not a picture', 'decompression bomb')

@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'I;16', 'RGB'])
def test_every_mode_becomes_rgb(tmp_path, mode):
    im = picture(2, (20, 10)); im = im.convert('L').convert('I').convert('I;16') if mode == 'I;16' else im.convert(mode)
    path = tmp_path/('x.tiff' if mode == 'CMYK' else 'x.png'); im.save(path)
    assert open_image(path).shape == (10, 20, 3)

def test_signals_and_rules():
    reports = {r.url.rsplit('/')[-1]: [getattr(getattr(p, 'rule', None), 'signal', p) for p in check_image(r, samples('images')).problems] for rec in read_records(samples('images/records.jsonl')) for r in rec.img_list}
    assert reports['bridge.jpg'] == [] and set(reports['icon.png']) == {'short_side', 'contrast'} and reports['blank.png'] == ['contrast'] and set(reports['banner.png']) == {'aspect', 'short_side'} and reports['gone.jpg'] == ['missing']
    assert image_signals(np.zeros((100, 200, 3), np.uint8), ImageRef('u', width=250))['size_error'] == .25

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
def test_shrinking_keeps_the_mean(h, w, a, b):
    g = np.random.default_rng(h * w).random((h, w))
    small = shrink(g, a, b)
    assert small.shape == (a, b) and np.isclose(small.mean(), g.mean())
    assert np.allclose(shrink(g, h, w), g)

def test_hashes_survive_compression_and_scaling():
    for seed in range(12):
        im = picture(seed); buf = io.BytesIO(); im.resize((120, 96)).save(buf, 'JPEG', quality=40)
        a, b = grey(np.asarray(im)), grey(np.asarray(Image.open(buf).convert('RGB')))
        assert distance(dhash(a), dhash(b)) <= 8 and distance(phash(a), phash(b)) <= 8
        assert distance(dhash(a), dhash(grey(np.asarray(picture(seed + 50))))) > 8

@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.lists(st.integers(0, 63), max_size=10).map(lambda bits: sum(1 << b for b in set(bits))), max_size=25), st.integers(0, 12))
def test_duplicates_as_all_pairs(hashes, limit):
    import networkx as nx
    g = nx.Graph([(i, j) for i in range(len(hashes)) for j in range(i) if distance(hashes[i], hashes[j]) <= limit]); g.add_nodes_from(range(len(hashes)))
    want = {i: min(c) for c in nx.connected_components(g) for i in c}
    assert duplicates(hashes, limit).tolist() == [want[i] for i in range(len(hashes))]

@pytest.mark.parametrize('caption,ok', [('A stone bridge over a river', True), ('河上的一座石桥', True), ('', False), ('IMG_2043.JPG', False), ('DSC 0012', False), ('https://x.org/a.png', False), ('tea', False), ('Un pont de pierre au-dessus de la rivière en automne', False), ('word ' * 300, False)])
def test_captions(caption, ok): assert (check_caption(caption) == []) == ok

def test_clean_records():
    records = list(read_records(samples('images/records.jsonl')))
    c = clean_records(records, samples('images'))
    assert [r.id for r in c.records] == ['bridge-en', 'tea-zh', 'chart-en'] and c.records[1] == records[1]
    assert len(c.removed) + sum(len(r.img_list) for r in c.records) == sum(len(r.img_list) for r in records)
    only = clean_records([r for r in records if r.id == 'captions'], samples('images'))
    assert [i.caption for i in only.records[0].img_list] == [''] * 3 and len(only.captions) == 3

def test_a_film(tmp_path):
    film = list(frames(samples('images/film.gif')))
    assert film[0].time == 0 and all(a.time < b.time for a, b in zip(film, film[1:]))
    shots = list(key_frames(film))
    assert [round(f.time, 2) for f in shots] == [0, .96, 1.82] and len(list(key_frames(film, every=.3))) == 6
    r = film_record('f', shots, tmp_path)
    assert r.content.startswith('[00:00.00]\n![](frames/f_00000.png)') and all(np.array_equal(open_image(find_image(i, tmp_path)), f.pixels) for i, f in zip(r.img_list, shots))

def test_a_film_that_stands_still_has_one_frame():
    still = [Frame(k / 10, np.full((8, 8, 3), 9, np.uint8)) for k in range(20)]
    assert len(list(key_frames(still, every=.1))) == 1 and list(key_frames([])) == []

@pytest.mark.parametrize('kind', ['webp', 'png'])
def test_other_containers(tmp_path, kind):
    ims = [picture(k, (40, 30)) for k in range(3)]
    ims[0].save(tmp_path/f'x.{kind}', save_all=True, append_images=ims[1:], duration=100)
    assert len(list(frames(tmp_path/f'x.{kind}'))) == 3

def test_broken_films(tmp_path):
    raw = samples('images/film.gif').read_bytes(); (tmp_path/'cut.gif').write_bytes(raw[:len(raw) // 2]); (tmp_path/'no.gif').write_text('hello')
    seen = []
    with pytest.raises(BadImage): seen.extend(frames(tmp_path/'no.gif'))
    try:
        for f in frames(tmp_path/'cut.gif'): seen.append(f)
    except BadImage as e: assert 'broken off' in str(e)
    assert seen, 'the frames before the end are kept'
    with pytest.raises(BadImage, match='missing'): frames(tmp_path/'gone.mp4')
