"Signals and near-duplicates against definitions written in plain Python."
import math, re, random
from collections import Counter
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.dedup import MinHash, UnionFind, cluster, exact_key, jaccard, keep_one, shingles, signature
from labkit.corpus.language import identify
from labkit.corpus.rules import FINEWEB, GOPHER, PROFILES, Rule, broken, explain, judge, rules_for
from labkit.corpus.signals import cut, groups, measure, ngrams, repeats

ANY = st.text(max_size=300)
FEW = st.lists(st.sampled_from(['a', 'bb', 'ccc', 'dddd', '.', '\n', '\n\n', '中', '文']), max_size=120).map(' '.join)

def words_of(text): return [m for m in re.findall(r'[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[a-z0-9_]+', text.lower())]

@settings(max_examples=200, deadline=None)
@given(FEW)
def test_words(text):
    w = cut(text)
    found = [text[s:e] for s, e in zip(w.start, w.end)]
    assert found == words_of(text)
    assert len(set(w.hash.tolist())) == len(set(found)), 'equal words have equal hashes and different words different ones'

@settings(max_examples=200, deadline=None)
@given(ANY)
def test_every_text_has_finite_signals(text):
    m = measure(cut(text))
    assert all(math.isfinite(v) and v >= 0 for v in m.values())
    assert all(m[k] <= 1 for k in m if k.endswith(('_chars', '_lines', '_paragraphs')) or k in ('alpha_words', 'alphanumeric', 'han'))
    explain(m, [r for p in PROFILES.values() for r in p])

@settings(max_examples=200, deadline=None)
@given(FEW)
def test_line_repetition(text):
    lines = [l for l in text.split('\n') if l.strip()]
    again = sum(c - 1 for c in Counter(lines).values())
    assert measure(cut(text))['dup_lines'] == pytest.approx(again / max(1, len(lines)))

@settings(max_examples=150, deadline=None)
@given(FEW, st.integers(5, 10))
def test_ngram_repetition(text, n):
    w = cut(text)
    words, seen, marked = words_of(text), set(), set()
    for i in range(len(words) - n + 1):
        gram = tuple(words[i:i + n])
        if gram in seen: marked |= set(range(i, i + n))
        seen.add(gram)
    assert measure(w)[f'dup_{n}gram_chars'] == pytest.approx(sum(len(words[i]) for i in marked) / max(1, len(text)))

@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=60))
def test_groups(xs):
    keys = np.array(xs, np.uint64) * np.uint64(0x9e3779b97f4a7c15)
    place, first, count = groups(keys)
    assert sorted(place.tolist()) == list(range(len(xs))) and count.sum() == len(xs)
    for f, c in zip(first, count): assert len({xs[p] for p in place[f:f + c]}) == 1 and (np.diff(place[f:f + c]) > 0).all()
    assert repeats(keys).tolist() == [x in xs[:i] for i, x in enumerate(xs)]

@settings(max_examples=100, deadline=None)
@given(FEW, FEW)
def test_jaccard(a, b):
    sets = [{tuple(w[i:i + 5]) for i in range(len(w) - 4)} or {tuple(w)} - {()} for w in (words_of(a), words_of(b))]
    want = len(sets[0] & sets[1]) / max(1, len(sets[0] | sets[1]))
    assert jaccard(shingles(cut(a)), shingles(cut(b))) == pytest.approx(want)

@pytest.mark.parametrize('j', [.2, .5, .8])
def test_signatures_agree_as_often_as_the_sets(j):
    "The share of equal numbers has mean j and standard deviation sqrt(j(1-j)/n): 400 numbers must lie within five of them"
    rng = np.random.default_rng(0)
    n, same = 1000, round(2000 * j / (1 + j))
    pool = np.unique(rng.integers(0, 2**63, 4 * n, dtype=np.uint64)); rng.shuffle(pool)
    a, b = np.sort(pool[:n]), np.sort(pool[n - same:2 * n - same])
    true = jaccard(a, b); mh = MinHash(50, 8)
    assert abs((signature(a, mh) == signature(b, mh)).mean() - true) < 5 * math.sqrt(true * (1 - true) / 400)

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5000), st.integers(1, 3000))
def test_signature_does_not_depend_on_blocks(n, block):
    s = np.arange(n, dtype=np.uint64) * np.uint64(0x9e3779b97f4a7c15)
    assert (signature(s, block=block) == signature(s, block=100_000)).all()

def _edited(words, share, rng): return ' '.join(w if rng.random() > share else f'new{rng.random()}' for w in words)

def test_clusters_are_those_of_all_pairs():
    rng = random.Random(0)
    base = [[f'w{rng.randrange(3000)}' for _ in range(300)] for _ in range(30)]
    texts = [_edited(b, share, rng) for b in base for share in (0, .005, .02, .1)]
    S = [shingles(cut(t)) for t in texts]
    mh = MinHash(30, 5) # finds a pair of .8 with probability .999997
    got = cluster(np.stack([signature(s, mh) for s in S]), S.__getitem__, .8, mh)
    uf = UnionFind(len(S))
    for i in range(len(S)):
        for j in range(i):
            if jaccard(S[i], S[j]) >= .8: uf.union(i, j)
    assert got.cluster.tolist() == [uf.find(i) for i in range(len(S))]
    assert 30 <= len(set(got.cluster.tolist())) < 120

@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_union_find_is_the_transitive_closure(pairs):
    uf, label = UnionFind(20), list(range(20))
    for i, j in pairs:
        uf.union(i, j); a, b = label[i], label[j]
        label = [min(a, b) if x in (a, b) else x for x in label]
    assert [uf.find(i) for i in range(20)] == label

def test_keep_one():
    assert keep_one(np.array([0, 0, 2, 0]), [1, 5, 1, 5]).tolist() == [1, 1, 2, 1]
    assert keep_one(np.zeros(0, np.int64), []).tolist() == []

def test_no_documents():
    assert cluster(np.zeros((0, 112), np.uint32), None).cluster.tolist() == []

def test_exact_key_ignores_case_and_space_only():
    assert exact_key('A  b\n') == exact_key('a b') != exact_key('a c')

def test_rules_name_every_fault():
    m = measure(cut('# # # #\n' * 50))
    names = {v.rule.signal for v in broken(m, GOPHER)}
    assert {'words', 'dup_lines', 'dup_line_chars', 'stop_words'} <= names
    worst = explain(m, GOPHER)
    assert [v.margin for v in worst] == sorted(v.margin for v in worst)

@given(st.floats(-5, 5), st.floats(0, 2), st.floats(2, 4))
def test_margin_is_negative_outside_only(value, low, high):
    assert judge(Rule('x', low, high), value).broken == (not low <= value <= high)

def test_chinese_is_not_asked_for_english_words():
    m = measure(cut('水往低处流。' * 3 + '茶叶可以泡好几次，第一泡时间短一些。'))
    assert m['han'] == 1 and not {'stop_words', 'mean_word_length'} & {r.signal for r in rules_for('html', m)}
    with pytest.raises(UserError, match='technical, gopher'): rules_for('html', m, 'gofer')

@pytest.mark.parametrize('text, code', [('The cat sat on the mat and looked at the moon.', 'en'), ('今天的天气很好，我们去公园散步吧。', 'zh'), ('Der Hund schläft unter dem Tisch.', 'de'), ('123 456 ...', '')])
def test_language(text, code): assert identify(text)[0] == code

def test_unknown_language_code():
    with pytest.raises(UserError, match='ISO 639-1'): identify('some text', ('en', 'xx'))
