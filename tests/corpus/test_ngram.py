"The n-gram model against dictionaries, and as a distribution"
import math
from collections import Counter
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.ngram import FALLBACK, Cache, NgramModel, count_grams, discounts_of, pieces, pieces_of

DOCS = st.lists(st.lists(st.integers(0, 5), max_size=25), min_size=1, max_size=8)

class Slow:
    "Interpolated modified Kneser–Ney in dictionaries"
    def __init__(self, docs, size, order):
        grams = lambda n: [tuple(d[i:i + n]) for d in docs for i in range(len(d) - n + 1)]
        self.size, self.order, self.c = size, order, {}
        self.total, self.taken, self.D = Counter(), Counter(), {}
        for n in range(1, order + 1):
            c = Counter(grams(n)) if n == order else Counter(g[1:] for g in set(grams(n + 1)))
            k = Counter(c.values()); self.D[n] = discounts_of([k[j] for j in (1, 2, 3, 4)])
            for g, v in c.items(): self.c[g] = v; self.total[g[:-1]] += v; self.taken[g[:-1]] += self.D[n][min(v, 3) - 1]
    def __call__(self, w, h):
        p = 1 / self.size
        for n in range(1, min(self.order, len(h) + 1) + 1):
            v = tuple(h[len(h) - n + 1:])
            if not self.total[v]: break
            k = self.c.get((*v, w), 0)
            p = (k - (self.D[n][min(k, 3) - 1] if k else 0) + self.taken[v] * p) / self.total[v]
        return p

@settings(max_examples=80, deadline=None)
@given(DOCS, st.integers(1, 4), st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_equals_dictionaries(docs, order, text):
    fast, slow = NgramModel.train_ids(map(np.array, docs), 7, order), Slow(docs, 7, order)
    q = fast.probabilities(np.array(text))
    assert q == pytest.approx([slow(text[i], text[:i]) for i in range(len(text))], rel=1e-5)

@settings(max_examples=50, deadline=None)
@given(DOCS, st.integers(1, 4), st.lists(st.integers(0, 6), max_size=8), st.booleans())
def test_sums_to_one(docs, order, context, cached):
    model = NgramModel.train_ids(map(np.array, docs), 7, order)
    cache = Cache(.5, 2., 3.) if cached else None
    assert sum(math.exp(model.logprob(np.array([*context, w]), cache=cache)[-1]) for w in range(7)) == pytest.approx(1, abs=1e-5)

@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=10), st.lists(st.integers(0, 6), min_size=1, max_size=10))
def test_history_is_what_stands_before(h, ids):
    model = NgramModel.train_ids([np.array([1, 2, 3, 1, 2, 4, 5, 1, 2, 3])], 7, 3)
    for cache in (None, Cache()):
        whole = model.logprob(np.array(h + ids), cache=cache)
        assert model.logprob(np.array(ids), np.array(h, np.int64), cache) == pytest.approx(whole[len(h):])

@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=12), st.integers(1, 60))
def test_many_texts_at_once(texts, block):
    together = pieces_of(texts, block)
    assert len(together) == len(texts) and all((a == pieces(t)).all() and len(a) == len(pieces(t)) for a, t in zip(together, texts))

@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_a_finite_perplexity(text):
    model = NgramModel.train(['a rose is a rose is a rose', '茶叶可以泡好几次，茶'])
    p = model.perplexity(text, Cache())
    assert math.isnan(p) if not len(pieces(text)) else math.isfinite(p) and p >= 1

def test_blocks_do_not_matter():
    rng = np.random.default_rng(0)
    docs = [rng.integers(0, 50, n) for n in (300_000, 10, 0, 5000, 300_000)]
    _, counts, context, orders = count_grams(docs, 2)
    want = Counter(tuple(p) for d in docs for p in zip(d[:-1].tolist(), d[1:].tolist()))
    assert sorted(counts[orders == 2].tolist()) == sorted(want.values())
    assert (orders[context[1:]] == orders[1:] - 1).all()

def test_unknown_words_share_one_probability():
    model = NgramModel.train(['one two two three three three four'], order=1)
    assert model.size == 3 and model.hidden == 2
    total = sum(math.exp(model.logprob(np.array([w]))[0]) for w in (1, 2)) + model.hidden * math.exp(model.logprob(model.ids('five'))[0])
    assert total == pytest.approx(1)
    ids = model.ids('five two six five')
    assert ids[0] == ids[3] != ids[2] and ids[[0, 2]].min() >= 3

def test_longer_contexts_and_order_of_words_help():
    text = ['the cat sat on the mat and the dog sat on the rug'] * 5 + ['the rug lay on the mat'] * 5
    one, three = NgramModel.train(text, 1), NgramModel.train(text, 3)
    held = 'the dog sat on the mat'
    assert three.perplexity(held) < one.perplexity(held) and three.perplexity(held) < three.perplexity('mat the on sat dog the')

def test_discounts():
    assert discounts_of([100, 40, 20, 10]) == pytest.approx((1 - 2 * (100 / 180) * .4, 2 - 3 * (100 / 180) * .5, 3 - 4 * (100 / 180) * .5))
    assert discounts_of([10, 0, 1, 1]) == FALLBACK and discounts_of([10, 5, 100, 1]) == FALLBACK

def test_save_and_load(tmp_path):
    model, path = NgramModel.train(['tea and more tea and more'], 3), tmp_path/'m.npz'
    model.save(path)
    assert NgramModel.load(path).perplexity('more tea and') == model.perplexity('more tea and')
    raw = path.read_bytes()
    for bad in (b'', b'hello', raw[:len(raw) // 2], raw[:-40]):
        path.write_bytes(bad)
        with pytest.raises(UserError, match='not an n-gram model, or damaged'): NgramModel.load(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(UserError, match='format'): NgramModel.load(path)
    with pytest.raises(UserError, match='no such file'): NgramModel.load(tmp_path/'none.npz')

def test_faults_are_named():
    with pytest.raises(UserError, match='no words'): NgramModel.train(['', ' '])
    with pytest.raises(UserError, match='order = 9'): NgramModel.train(['a'], 9)
    with pytest.raises(UserError, match='document 1: ids from 0 to 7, expected 0 to 6'): NgramModel.train_ids([np.array([1]), np.array([0, 7])], 7)
    with pytest.raises(UserError, match='encode the text'): NgramModel.train_ids([np.array([1])], 7).ids('a')
    with pytest.raises(UserError, match='knows 0 to 6'): NgramModel.train_ids([np.array([1])], 7).logprob(np.array([7]))
