"The index on disk against dictionaries and union–find in memory."
import multiprocessing, os, signal
from concurrent.futures import ProcessPoolExecutor
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.dedup import MinHash, UnionFind, band_keys, buckets, cluster, shingles, signature
from labkit.corpus.index import BandIndex, Joined, bucket_edges, components, labels, large_star, read_partition, scatter, small_star, star_rounds, write_bands

quick = settings(max_examples=40, deadline=None)
KEYS = st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), max_size=25)
EDGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=60)
def wide(rows): return np.array(rows, np.uint64).reshape(-1, 3) * np.uint64(0x9e3779b97f4a7c15) # 0 stays 0

def found(folder, partitions): return {tuple(b.tolist()) for p in range(partitions) for b in buckets(*read_partition(folder, p))}

@quick
@given(KEYS, st.integers(1, 7), st.sampled_from([2, 16, 64]))
def test_spilled_buckets_are_those_in_memory(tmp_path_factory, rows, batch, partitions):
    folder, want = tmp_path_factory.mktemp('ix'), {}
    for doc, row in enumerate(wide(rows).tolist()):
        for k in row:
            if k: want.setdefault(k, []).append(doc)
    for k in range(0, len(rows), batch): write_bands(wide(rows[k:k + batch]), np.arange(k, min(k + batch, len(rows))), folder, f'{k:03}', partitions)
    assert found(folder, partitions) == {tuple(b) for b in want.values() if len(b) > 1}

@quick
@given(EDGES, st.integers(1, 5), st.integers(1, 4))
def test_components_are_those_of_union_find(pairs, partitions, files):
    uf = UnionFind(41)
    for i, j in pairs: uf.union(i, j)
    edges = np.array(pairs, np.int64).reshape(-1, 2)
    got = components(np.array_split(edges, files), partitions)
    assert labels(got, np.arange(41)).tolist() == [uf.find(i) for i in range(41)]
    assert got[:, 0].tolist() == sorted({i for e in pairs if e[0] != e[1] for i in e})
    joined = Joined(got)
    assert [joined.find(i) for i in range(41)] == [uf.find(i) for i in range(41)]

def test_large_numbers_and_long_chains():
    big = np.int64(2**62) + np.arange(5000)
    chain = np.stack([big[1:], big[:-1]], axis=1)
    assert (components([chain[np.random.default_rng(0).permutation(4999)]], 3)[:, 1] == 2**62).all()
    assert sum(1 for _ in star_rounds([chain], 3)) < 30
    assert components([], 3).shape == (0, 2) and labels(components([]), np.arange(3)).tolist() == [0, 1, 2]

def test_components_in_processes():
    rng = np.random.default_rng(0)
    edges = rng.integers(0, 3000, (2000, 2))
    with ProcessPoolExecutor(2, multiprocessing.get_context('fork')) as pool:
        assert (components([edges], 2, pool.map) == components([edges])).all()

def corpus():
    rng, sets = np.random.default_rng(0), []
    for _ in range(40):
        base = rng.integers(0, 2**63, 200).astype(np.uint64)
        for changed in (0, 3, 10, 25): sets.append(np.unique(np.r_[base[changed:], rng.integers(0, 2**63, changed).astype(np.uint64)]))
    return [sets[i] for i in rng.permutation(len(sets))]

S = corpus()
SIGS = np.stack([signature(s) for s in S])
WANT = cluster(SIGS, S.__getitem__).cluster.tolist()

def test_disk_gives_what_memory_gives(tmp_path):
    ix = BandIndex.open(tmp_path, partitions=8)
    for k in range(0, 160, 50): ix.add(SIGS[k:k + 50], np.arange(k, min(k + 50, 160)), f'p{k}')
    assert ix.parts() == ['p0', 'p100', 'p150', 'p50']
    whole = bucket_edges(tmp_path, range(8), S.__getitem__)
    split = [bucket_edges(tmp_path, [p], S.__getitem__).edges for p in (3, 1, 7, 5, 0, 2, 6, 4)]
    assert labels(components([whole.edges]), np.arange(160)).tolist() == labels(components(split, 3), np.arange(160)).tolist() == WANT
    assert len(set(WANT)) < 120 and whole.cut_short == 0

@settings(max_examples=15, deadline=None)
@given(st.integers(0, 160), st.sampled_from([2, 256]))
def test_incremental_is_at_once(tmp_path_factory, n, limit):
    ix = BandIndex.open(tmp_path_factory.mktemp('ix'), partitions=4)
    ix.add(SIGS[:n], np.arange(n), 'old')
    old = bucket_edges(ix.folder, range(4), S.__getitem__, limit=256)
    known = components([old.edges])
    ix.add(SIGS[n:], np.arange(n, 160), 'new')
    new = bucket_edges(ix.folder, range(4), S.__getitem__, since=n, known=known)
    assert labels(components([old.edges, new.edges]), np.arange(160)).tolist() == WANT
    assert all(e.max() >= n for e in new.edges)

def test_a_giant_bucket_does_not_depend_on_how_the_work_is_split(tmp_path):
    rng = np.random.default_rng(1)
    many = [np.unique(rng.integers(0, 2**63, 30).astype(np.uint64)) for _ in range(120)]
    for i in range(0, 120, 4): many[i] = many[0]
    keys = np.ones((120, 3), np.uint64) * np.array([1, 2**62, 2**63], np.uint64) # everything in one bucket, three times
    write_bands(keys, np.arange(120), tmp_path, 'a', 4)
    whole = bucket_edges(tmp_path, range(4), many.__getitem__, limit=10)
    split = [bucket_edges(tmp_path, [p], many.__getitem__, limit=10).edges for p in range(4)]
    assert whole.cut_short and (components([whole.edges]) == components(split)).all()
    assert len(components(split)) == 30

def test_torn_foreign_and_changed_files(tmp_path):
    path = write_bands(band_keys(SIGS), np.arange(160), tmp_path, 'a', 4); raw = path.read_bytes()
    for wrong, why in ((raw[:20], 'torn'), (raw[:100], 'torn'), (raw[:-1], 'torn'), (raw + b'x', 'torn'), (b'PK' + raw[2:], 'not a part'), (b'', 'not a part'), (raw[:-3] + b'xyz', 'checksum'), (raw[:40] + b'x' + raw[41:], 'torn')):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=why) as e: [read_partition(tmp_path, p) for p in range(4)]
        assert 'a.bands' in str(e.value)
    path.write_bytes(raw)
    write_bands(band_keys(SIGS), np.arange(160, 320), tmp_path, 'b', 8)
    with pytest.raises(UserError, match='b.bands.*other bands or partitions'): read_partition(tmp_path, 0)

@quick
@given(st.binary(max_size=300), st.integers(0, 2**32))
def test_damage_is_always_an_error_that_names_the_file(tmp_path_factory, junk, where):
    folder = tmp_path_factory.mktemp('ix'); path = write_bands(band_keys(SIGS[:5]), np.arange(5), folder, 'a', 2); raw = path.read_bytes()
    at = where % len(raw); changed = raw[:at] + junk + raw[at + len(junk):]
    path.write_bytes(changed)
    try: got = [read_partition(folder, p) for p in range(2)]
    except UserError as e: assert 'a.bands' in str(e) or 'partition' in str(e)
    else: assert changed == raw, 'damage was not noticed'

def test_open(tmp_path):
    BandIndex.open(tmp_path/'a', MinHash(), 16)
    assert BandIndex.open(tmp_path/'a', MinHash(), 16).parts() == []
    for mh, n in ((MinHash(9, 12), 16), (MinHash(seed=2), 16), (MinHash(), 32)):
        with pytest.raises(UserError, match='begun with'): BandIndex.open(tmp_path/'a', mh, n)
    with pytest.raises(UserError, match='power of two'): BandIndex.open(tmp_path/'b', partitions=10)
    (tmp_path/'a'/'index.json').write_text('{"format": ')
    with pytest.raises(UserError, match='not JSON'): BandIndex.open(tmp_path/'a', MinHash(), 16)
    write_bands(band_keys(SIGS), np.arange(160), tmp_path/'c', 'x')
    with pytest.raises(UserError, match='index.json is missing'): BandIndex.open(tmp_path/'c')

def test_bad_arguments(tmp_path):
    with pytest.raises(UserError, match='document numbers'): write_bands(band_keys(SIGS), np.arange(3), tmp_path, 'x')
    with pytest.raises(UserError, match='document numbers'): write_bands(band_keys(SIGS[:2]), np.array([-1, 0]), tmp_path, 'x')
    for name in ('', '../x', 'a b', 'ä'):
        with pytest.raises(UserError, match='letters, digits'): write_bands(band_keys(SIGS), np.arange(160), tmp_path, name)
    write_bands(band_keys(SIGS), np.arange(160), tmp_path, 'x', 4)
    with pytest.raises(UserError, match='partitions 0 to 3'): read_partition(tmp_path, 4)
    assert [len(x) for x in read_partition(tmp_path/'empty', 0)] == [0, 0]

def _write_and_die(folder):
    "A process that is killed when it has written half of a part"
    from labkit.corpus import index
    from labkit.core import files
    files.os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
    index.write_bands(band_keys(SIGS), np.arange(160), folder, 'late', 4)

def test_killed_while_writing(tmp_path):
    write_bands(band_keys(SIGS[:80]), np.arange(80), tmp_path, 'done', 4)
    before = found(tmp_path, 4)
    p = multiprocessing.get_context('fork').Process(target=_write_and_die, args=(tmp_path,)); p.start(); p.join()
    assert p.exitcode == -signal.SIGKILL and any(f.name.startswith('.late') for f in tmp_path.iterdir())
    assert found(tmp_path, 4) == before
    write_bands(band_keys(SIGS[80:]), np.arange(80, 160), tmp_path, 'late', 4)
    assert len(found(tmp_path, 4)) > len(before)

def test_stars_and_scatter():
    assert large_star(np.zeros((0, 2), np.int64)).shape == small_star(np.zeros((0, 2), np.int64)).shape == (0, 2)
    e = np.random.default_rng(0).integers(0, 99, (50, 2))
    split = scatter(e, 4)
    assert sum(map(len, split)) == 50 and not any(set(a[:, 0].tolist()) & set(b[:, 0].tolist()) for i, a in enumerate(split) for b in split[:i])
