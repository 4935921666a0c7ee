"Enrichment, completion and mixing weights against their definitions"
import math
import numpy as np, pytest
from collections import Counter
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.domains import Bm25, DomainModel, complete, counts, draw, importance, mixing_weights, resample, shares_of, tempered

WORDS = st.lists(st.sampled_from(['tea', 'milk', '茶', 'cup', 'rain']), max_size=12).map(' '.join)

@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=8), WORDS)
def test_bm25_is_its_formula(texts, query):
    docs, q = [t.split() for t in texts], set(query.split())
    mean = sum(map(len, docs)) / len(docs) or 1
    def score(d):
        f, total = Counter(d), 0.
        for w in q & set(d):
            n = sum(w in x for x in docs)
            total += math.log(1 + (len(docs) - n + .5) / (n + .5)) * f[w] * 2.2 / (f[w] + 1.2 * (.25 + .75 * len(d) / mean))
        return total
    assert Bm25.build(texts).scores(query) == pytest.approx([score(d) for d in docs], rel=1e-5)

@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
def test_any_text_can_be_counted(texts):
    c = counts(texts, 100)
    assert c.shape == (len(texts), 100) and np.isfinite(importance(c, c[:1])).all()
    Bm25.build(texts).like(texts[:1], 2)

def test_importance_prefers_the_like():
    c = counts(['tea with milk', 'rain and wind', 'a cup of tea with milk'])
    w = importance(c, counts(['tea with milk please']))
    assert w.argmin() == 1 and w.argmax() == 0

def test_resample_draws_by_weight():
    first = Counter(int(resample(np.log([.7, .2, .1]), 1, s)[0]) for s in range(2000))
    assert [first[i] / 2000 for i in range(3)] == pytest.approx([.7, .2, .1], abs=.04)
    assert sorted(resample(np.zeros(5), 5).tolist()) == list(range(5))
    with pytest.raises(UserError, match='6 documents wanted of 5'): resample(np.zeros(5), 6)

def test_domains_are_told_apart():
    m = DomainModel.train(['tea milk cup', 'tea cup', 'rain wind', 'wind rain storm'], ['kitchen', 'kitchen', 'weather', 'weather'])
    p = m(['a cup of tea', 'rain', ''])
    assert p.sum(1) == pytest.approx([1, 1, 1]) and p[0, 0] > .8 and p[1, 1] > .8
    with pytest.raises(UserError, match='two domains'): DomainModel.train(['a'], ['x'])

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from('abc'), st.integers(1, 9), st.integers(0, 9)), max_size=30), st.integers(0, 60))
def test_completion_keeps_to_its_budget(items, budget):
    labels, sizes, worth = ([i[k] for i in items] for k in range(3))
    taken = complete({'a': 5}, {'a': .5, 'b': .5}, labels, sizes, worth, budget)
    assert len(set(taken)) == len(taken) and sum(sizes[i] for i in taken) <= budget and all(labels[i] != 'c' for i in taken)
    left = budget - sum(sizes[i] for i in taken)
    assert all(sizes[i] > left for i in range(len(items)) if labels[i] in 'ab' and i not in taken), 'what fits is taken'

def test_completion_fills_the_gap():
    labels, sizes = ['code'] * 50 + ['prose'] * 50, [10] * 100
    taken = complete({'prose': 300}, {'code': .5, 'prose': .5}, labels, sizes, range(100), 500)
    now = Counter({'prose': 300}); [now.update({labels[i]: 10}) for i in taken]
    assert now['code'] == now['prose'] and taken[0] == 49, 'the best of the missing domain comes first'
    with pytest.raises(UserError, match='sum to 0.5'): complete({}, {'code': .5}, labels, sizes, sizes, 1)

def test_weights():
    assert tempered([100, 1], 1) == pytest.approx([100 / 101, 1 / 101]) and tempered([100, 1], 0) == pytest.approx([.5, .5])
    assert shares_of(['a', 'b', 'a'], [1, 2, 1]) == {'a': .5, 'b': .5} and shares_of([], []) == {}

def test_expectation_maximisation_finds_the_mixture():
    rng = np.random.default_rng(0)
    models = rng.dirichlet(np.full(30, .3), 3)                          # (3, 30)
    true = np.array([.6, .3, .1])
    p = np.maximum(models, 1e-9)[:, rng.choice(30, 20_000, p=true @ models)].T
    a = mixing_weights(p, 300)
    assert a == pytest.approx(true, abs=.03)
    assert np.log(p @ a).mean() >= max(np.log(p @ b).mean() for b in rng.dirichlet(np.ones(3), 200)) - 1e-6
    with pytest.raises(UserError, match='probability above 0'): mixing_weights(np.zeros((2, 2)))

def test_draw_has_the_shares():
    sizes = [1.] * 100 + [2.] * 10
    out = draw([range(100), range(100, 110)], sizes, [.25, .75], 200, seed=1)
    assert sum(sizes[i] for i in out if i < 100) == 50 and sum(sizes[i] for i in out if i >= 100) == 150
    assert out == draw([range(100), range(100, 110)], sizes, [.25, .75], 200, seed=1) != draw([range(100), range(100, 110)], sizes, [.25, .75], 200, seed=2)
    with pytest.raises(UserError, match='no documents'): draw([[], [0]], [1.], [.5, .5], 2)
