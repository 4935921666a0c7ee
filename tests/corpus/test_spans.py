"Repeated pieces and spans against definitions written in plain Python."
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.signals import cut
from labkit.corpus.spans import (cut_spans, drop_copies, fingerprints, k_means, later_copies, occur_twice, pieces, repeated_spans, repeated_words, runs, semantic_clusters,
                                 stood_before, unit, word_spans, word_vectors, _winnow)

quick = settings(max_examples=60, deadline=None)
DOCS = st.lists(st.lists(st.integers(0, 3), max_size=40), max_size=5)
LINES = st.lists(st.sampled_from(['a line of text', 'A  LINE of text ', 'another one here', 'x', '', 'zh 中文 一行 文字']), max_size=12)

def hashed(doc): return np.array(doc, np.uint64) * np.uint64(0x9e3779b97f4a7c15) + np.uint64(77)

def marks_of(docs, n):
    first, place, out = {}, 0, []
    for d in docs:
        m = [False] * len(d)
        for i in range(len(d) - n + 1):
            if first.setdefault(tuple(d[i:i + n]), place + i) + n <= place + i: m[i:i + n] = [True] * n
        out.append(m); place += len(d) + n
    return out

@quick
@given(DOCS, st.integers(2, 9))
def test_repeated_words_are_those_of_all_runs(docs, n):
    assert [m.tolist() for m in repeated_words([hashed(d) for d in docs], n)] == marks_of(docs, n)

@quick
@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 9))
def test_runs_and_winnowing(h, w):
    k, x = runs(hashed(h), w), np.array(h, np.uint64)
    assert len(k) == max(0, len(h) - w + 1)
    assert len(set(k.tolist())) == len({tuple(h[i:i + w]) for i in range(len(k))})
    assert _winnow(x, w).tolist() == [max(j for j in range(i, i + w) if h[j] == min(h[i:i + w])) for i in range(len(k))]

@quick
@given(DOCS, st.integers(2, 9))
def test_equal_runs_choose_equal_fingerprints(docs, n):
    chosen = {}
    for d in docs:
        c, keys, places = fingerprints(hashed(d), n)
        assert len(c) == max(0, len(d) - n + 1)
        for i, f in enumerate(c): assert chosen.setdefault(tuple(d[i:i + n]), keys[f]) == keys[f]

@quick
@given(LINES, LINES, st.sampled_from(['\n', '\n\n']), st.integers(1, 2))
def test_pieces_stay_where_they_occur_first(a, b, sep, times):
    texts, seen, want = [sep.join(a), sep.join(b)], {}, []
    for t in texts:
        kept = []
        for p in t.split(sep):
            key = ' '.join(p.lower().split())
            seen[key] = seen.get(key, 0) + 1
            if len(p.strip()) < 5 or seen[key] <= times: kept.append(p)
        want.append(kept)
    got = drop_copies(texts, sep, 5, times)
    assert [[p for p in t.split(sep) if p.strip()] for t in got] == [[p for p in k if p.strip()] for k in want]
    if times == 1: assert drop_copies(got, sep, 5) == got

@quick
@given(st.text(max_size=120), st.sampled_from(['\n', '\n\n', ' ']))
def test_pieces_cover_the_text(text, sep):
    span, keys = pieces(text, sep, 1)
    assert sep.join(text[a:b] for a, b in span.tolist()) == text and len(keys) == len(span)
    assert drop_copies([text], sep, 10**6) == [text]

@quick
@given(st.text(max_size=150))
def test_cutting_all_words_or_none(text):
    w = cut(text)
    assert cut_spans(text, word_spans(np.zeros(len(w.hash), bool), w)) == text
    everything = word_spans(np.ones(len(w.hash), bool), w)
    assert len(everything) == min(1, len(w.hash)) and not len(cut(cut_spans(text, everything)).hash)

def test_spans_are_text():
    long = ' '.join(f'word{i}' for i in range(60))
    texts = [f'One. {long}. End.', f'Two! {long}? Other.', 'Nothing of it.']
    found = repeated_spans(texts, 50)
    assert [len(s) for s in found] == [0, 1, 0]
    assert texts[1][slice(*found[1][0])] == long and cut_spans(texts[1], found[1]) == 'Two! ? Other.'
    assert repeated_spans([long.replace(' ', '\n'), long.upper()], 50)[1].tolist() == [[0, len(long)]]

def test_a_run_does_not_eat_its_own_beginning():
    assert repeated_words([hashed([1] * 20)], 5)[0].tolist() == [False] * 5 + [True] * 15

def test_empty_corpora():
    assert repeated_spans([]) == [] and [len(s) for s in repeated_spans(['', 'a b'])] == [0, 0]
    assert drop_copies([]) == [] and drop_copies(['']) == ['']
    assert semantic_clusters([]).tolist() == [] and occur_twice([]).tolist() == [] and later_copies(np.zeros(0, np.uint64)).tolist() == []
    assert stood_before(np.zeros(0, np.uint64), np.zeros(0, np.int64), 3).tolist() == []

@quick
@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 3))
def test_later_copies(keys, times):
    assert later_copies(np.array(keys, np.uint64), times).tolist() == [k > 0 and keys[:i].count(k) >= times for i, k in enumerate(keys)]

def test_semantic_clusters():
    rng = np.random.default_rng(0)
    centre = unit(rng.standard_normal((20, 32)))
    x = np.concatenate([centre, centre + .01 * rng.standard_normal((20, 32)), unit(rng.standard_normal((30, 32)))])
    g = semantic_clusters(['t'] * 70, lambda _: x, .95, k=6)
    assert (g[20:40] == np.arange(20)).all() and (g[40:] == np.arange(40, 70)).all()
    order = rng.permutation(70)
    again = semantic_clusters(['t'] * 70, lambda _: x[order], .95, k=1)
    assert len(set(again.tolist())) == len(set(g.tolist())) == 50
    with pytest.raises(UserError, match='3 vectors for 70'): semantic_clusters(['t'] * 70, lambda _: x[:3])
    assert set(k_means(unit(x), 6).tolist()) <= set(range(6))

def test_word_vectors():
    v = word_vectors(['the cat sat', 'the cat sat', 'a dog ran away', ''], 8)
    assert v.shape[0] == 4 and np.isfinite(v).all() and (v[0] @ v[1]) > .999 > v[0] @ v[2] and not v[3].any()

def test_bad_arguments():
    with pytest.raises(UserError, match='1 or more'): runs(hashed([1, 2]), 0)
    with pytest.raises(UserError, match='2 or more'): repeated_words([hashed([1, 2])], 1)
