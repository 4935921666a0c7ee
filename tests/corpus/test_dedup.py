"Near-duplicates against definitions written in plain Python."
import math, random, re
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.dedup import (Judge, MinHash, PairScores, UnionFind, band_keys, bucket_pairs, buckets, candidates, choose, cluster, exact_copies, exact_key,
                                 jaccard, keep_one, pair_scores, shingles, sign, signature, worth)
from labkit.corpus.documents import Document
from labkit.corpus.signals import cut

quick = settings(max_examples=60, deadline=None)
ANY = st.text(max_size=300)
FEW = st.lists(st.sampled_from(['a', 'bb', 'CCC', 'dddd', 'é', '.', '-', '\n', '\n\n', '\u3000', '中', '文']), max_size=120).flatmap(
    lambda xs: st.sampled_from(['', ' ']).map(lambda sep: sep.join(xs)))

def words_of(text): return re.findall(r'[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+', text.lower())
def sets(text, n=5):
    w = words_of(text)
    return {tuple(w[i:i + n]) for i in range(len(w) - n + 1)} or {tuple(w)} - {()}

@quick
@given(FEW, st.integers(1, 7))
def test_shingles_are_the_set_of_word_ngrams(text, n):
    s = shingles(text, n)
    assert len(s) == len(sets(text, n)) and (s[1:] > s[:-1]).all()

@quick
@given(FEW, FEW)
def test_jaccard(a, b):
    a = a + ' ' + b[:len(b) // 2]
    assert jaccard(shingles(a), shingles(b)) == pytest.approx(len(sets(a) & sets(b)) / max(1, len(sets(a) | sets(b))))

@quick
@given(st.text(st.characters(max_codepoint=0xffff, exclude_categories=['Cs']), max_size=300))
def test_words_are_those_of_the_signals(text):
    assert len(shingles(text, 1)) == len(set(cut(text).hash.tolist()))
    assert (shingles(cut(text)) == shingles(text)).all()

@quick
@given(ANY | FEW)
def test_one_pass_gives_what_the_parts_give(text):
    key, sig = sign(text)
    assert key == exact_key(text) and (sig == signature(shingles(text))).all()

def plain(text): return ' '.join(''.join(l if len(l := c.lower()) == 1 else c for c in text).split())

@quick
@given(ANY | FEW, ANY | FEW)
def test_exact_key_ignores_case_and_space_only(a, b):
    assert (exact_key(a) == exact_key(b)) == (plain(a) == plain(b))
    assert exact_key('  ' + a.replace(' ', '\n\t ') + '\u3000') == exact_key(a)

def test_a_long_text_is_walked_in_blocks():
    rng = random.Random(0)
    text = ' '.join(f'w{rng.randrange(10**6)}' for _ in range(150_000))
    assert len(shingles(text)) == len(sets(text)) and (sign(text)[1] == signature(shingles(text))).all()

def test_broken_unicode_and_planes():
    for text in ('\ud800', 'a\udfff b', '\U00020000\U00020001 x', '\U0001f600' * 9, '\x00', 'İ', ''): sign(text)
    assert len(shingles('\U00020000\U00020001', 1)) == 2 and len(shingles('\U0001f600 !', 1)) == 0

@pytest.mark.parametrize('j', [.2, .5, .8])
def test_signatures_agree_as_often_as_the_sets(j):
    "The share of equal numbers has mean j and standard deviation sqrt(j(1-j)/n): 400 numbers must lie within five of them"
    rng = np.random.default_rng(0)
    n, same = 1000, round(2000 * j / (1 + j))
    pool = np.unique(rng.integers(0, 2**63, 4 * n, dtype=np.uint64) * np.uint64(2)); rng.shuffle(pool)
    a, b = np.sort(pool[:n]), np.sort(pool[n - same:2 * n - same])
    true = jaccard(a, b); mh = MinHash(50, 8)
    assert abs((signature(a, mh) == signature(b, mh)).mean() - true) < 5 * math.sqrt(true * (1 - true) / 400)

@pytest.mark.parametrize('j', [.65, .8])
def test_bands_find_what_the_curve_predicts(j):
    rng, mh, tries, met = np.random.default_rng(1), MinHash(), 300, 0
    same = round(400 * j / (1 + j)); true = same / (400 - same)
    for _ in range(tries):
        pool = rng.integers(0, 2**64, 400 - same, dtype=np.uint64)
        a, b = (band_keys(signature(np.sort(x), mh)[None], mh) for x in (pool[:200], pool[200 - same:]))
        met += (a == b).any()
    p = mh.found(true)
    assert abs(met / tries - p) < 5 * math.sqrt(p * (1 - p) / tries)

def edited(words, share, rng): return ' '.join(w if rng.random() > share else f'new{rng.random()}' for w in words)
def corpus(seed=0, n=30):
    rng = random.Random(seed)
    base = [[f'w{rng.randrange(3000)}' for _ in range(300)] for _ in range(n)]
    return [edited(b, share, rng) for b in base for share in (0, .005, .02, .1)]

def all_pairs(S, threshold=.8):
    uf = UnionFind(len(S))
    for i in range(len(S)):
        for j in range(i):
            if jaccard(S[i], S[j]) >= threshold: uf.union(i, j)
    return [uf.find(i) for i in range(len(S))]

def test_clusters_are_those_of_all_pairs():
    S, mh = [shingles(t) for t in corpus()], MinHash(30, 5) # finds a pair of .8 with probability .999997
    got = cluster(np.stack([signature(s, mh) for s in S]), S.__getitem__, .8, mh)
    assert got.cluster.tolist() == all_pairs(S) and got.cut_short == 0
    assert 30 <= len(set(got.cluster.tolist())) < 120

@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_documents_does_not_matter(rng):
    texts = corpus(1, 12); order = list(range(len(texts))); rng.shuffle(order)
    def groups(ids):
        S = [shingles(texts[i]) for i in ids]
        c = cluster(np.stack([signature(s) for s in S]), S.__getitem__).cluster
        return {frozenset(ids[i] for i in np.flatnonzero(c == k)) for k in set(c.tolist())}
    assert groups(order) == groups(range(len(texts)))

@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_buckets_does_not_matter(rng):
    S = [shingles(t) for t in corpus(2, 12)]
    bs = list(candidates(np.stack([signature(s) for s in S]))); rng.shuffle(bs)
    uf = UnionFind(len(S))
    for b in bs:
        for i, j in bucket_pairs(b, Judge(S.__getitem__, .8))[0]: uf.union(i, j)
    assert [uf.find(i) for i in range(len(S))] == cluster(np.stack([signature(s) for s in S]), S.__getitem__).cluster.tolist()

def test_a_giant_bucket_is_bounded():
    rng = np.random.default_rng(0)
    S = [np.unique(rng.integers(0, 2**63, 40).astype(np.uint64)) for _ in range(900)]
    for i in (100, 500, 899): S[i] = S[0]
    same = Judge(S.__getitem__, .8)
    edges, short = bucket_pairs(range(900), same, 20)
    assert same.compared <= 900 * 20 and short > 800
    assert {frozenset(e) for e in edges} and {i for e in edges for i in e} == {0, 100, 500, 899}, 'equal texts stand beside each other in a bucket too large to compare everything'

def test_texts_without_words_are_no_candidates():
    sigs = np.stack([sign(t)[1] for t in ('...', '!', '', 'a b', 'a b')])
    assert [b.tolist() for b in candidates(sigs)] == [[3, 4]] * 14

@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_union_find_is_the_transitive_closure(pairs):
    uf, label = UnionFind(20), list(range(20))
    for i, j in pairs:
        uf.union(i, j); a, b = label[i], label[j]
        label = [min(a, b) if x in (a, b) else x for x in label]
    assert [uf.find(i) for i in range(20)] == label

labelled = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=15)
@quick
@given(labelled)
def test_pair_scores(xs):
    pairs = lambda k: {(i, j) for i in range(len(xs)) for j in range(i) if xs[i][k] == xs[j][k]}
    found, truth = pairs(0), pairs(1)
    p, r = len(found & truth) / len(found) if found else 1., len(found & truth) / len(truth) if truth else 1.
    got = pair_scores(np.array([f for f, _ in xs], int), np.array([t for _, t in xs], int))
    assert (got.precision, got.recall) == (p, r) and got.f1 == pytest.approx(2 * p * r / (p + r) if p + r else 0)

@pytest.mark.parametrize('t', [.5, .7, .8, .95])
def test_choose(t):
    mh = choose(t, .9, 128)
    assert mh.size <= 128 and mh.found(t) >= .9 and MinHash(128 // (mh.rows + 1), mh.rows + 1).found(t) < .9

def test_keep_one():
    assert keep_one(np.array([0, 0, 2, 0]), [1, 5, 1, 5]).tolist() == [1, 1, 2, 1]
    assert keep_one(np.zeros(0, np.int64), []).tolist() == []

def test_worth():
    docs = [Document('long text', 'a'), Document('x', 'b', metadata=dict(date='2024-01-02')), Document('xx', 'c', metadata=dict(date='2023'))]
    assert [max(docs, key=lambda d: worth(d, keep, -len(d.id + d.text))).id for keep in ('longest', 'newest', 'best')] == ['a', 'b', 'b']
    with pytest.raises(UserError, match='longest, newest, best'): worth(docs[0], 'latest')
    with pytest.raises(UserError, match='YYYY-MM-DD'): worth(Document('x', 'd', metadata=dict(date='02/01/2024')), 'newest')

def test_bad_input():
    assert cluster(np.zeros((0, 112), np.uint32), None).cluster.tolist() == []
    with pytest.raises(UserError, match='signatures of 112'): band_keys(np.zeros((3, 100), np.uint32))
    with pytest.raises(UserError, match='threshold'): Judge(None, 0)
    assert list(buckets(np.zeros(0, np.uint64), np.zeros(0, np.int64))) == []
    assert exact_copies([]).tolist() == []
