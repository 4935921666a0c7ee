"What a far context is worth: the arithmetic, and that it tells texts from scraps"
import random
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.longtext import LONG, borderline, delta, glued, is_long, ngram_scores, order_gain, shuffled, statistics, threshold, windows
from labkit.corpus.ngram import NgramModel

@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5000), st.integers(1, 800), st.integers(1, 9))
def test_windows_lie_inside(n, length, most):
    at = windows(n, length, most)
    assert len(at) == min(most, n // length) and all(0 <= a <= n - length for a in at) and at == sorted(set(at))
    assert len(at) < 2 or (at[0], at[-1]) == (0, n - length)

@pytest.mark.parametrize('near', [0, 4])
def test_delta_scores_the_same_words_twice(near):
    seen = []
    def logprobs(ids): seen.append(ids.copy()); return np.full(len(ids) - 1, -.1 if len(ids) == 30 else -.6)
    d = delta(logprobs, np.arange(100), far=20, near=near, scored=10, most=2)
    assert d.gain == pytest.approx(.5) and d.ppl_delta == pytest.approx(np.exp(.6) - np.exp(.1)) and d.windows == 2
    assert all((a[-10:] == b[-10:]).all() and len(b) == 10 + near for a, b in zip(seen[::2], seen[1::2]))

def test_delta_leaves_the_first_word_out():
    "Without a near context the first scored word has nothing before it, so it counts in neither"
    def logprobs(ids): return -ids[1:].astype(float)
    assert delta(logprobs, np.arange(40), far=20, near=0, scored=20).gain == 0

def test_faults_are_named():
    with pytest.raises(UserError, match='5 words: a window has 30'): delta(lambda ids: ids, np.arange(5), 20, 5, 10)
    with pytest.raises(UserError, match='0 <= near < far'): delta(lambda ids: ids, np.arange(50), 5, 5, 10)
    with pytest.raises(UserError, match='both kinds'): threshold([], [1.])

def test_a_text_that_repeats_its_words_gains():
    rng = random.Random(0)
    def topic(k, n): return ' '.join(f'{rng.choice("abcdef")} t{k}x{rng.randrange(25)}' for _ in range(n))
    model = NgramModel.train([topic(k, 200) for k in range(40)])
    one, many = topic(99, 1500), ' '.join(topic(100 + k, 60) for k in range(25))
    gain = [delta(ngram_scores(model), model.ids(t), far=600, near=0, scored=100, most=6).gain for t in (one, many)]
    assert gain[0] > gain[1] + .2

def test_length():
    assert [is_long('a' * LONG), is_long('a' * (LONG + 1)), is_long('茶' * (LONG // 3 + 1)), is_long('茶' * (LONG // 3))] == [False, True, True, False]

@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300))
def test_statistics_of_any_text(text): assert len(statistics(text)) == 5

def test_statistics_name_what_is_broken():
    assert any(v.broken for v in statistics('heartbeat ok\n' * 3000))

@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=6), st.integers(0, 400))
def test_made_texts(pieces, size):
    assert sorted('\n'.join(pieces)) == sorted(shuffled(pieces, random.Random(0)))
    assert len(glued(pieces, size, random.Random(0), 30)) <= size

def test_threshold_and_borderline():
    assert .3 < threshold([.5, .6, .7], [.1, .2, .3]) < .5
    assert borderline([.1, .42, .9, .38], .4, 2) == [1, 3] or borderline([.1, .42, .9, .38], .4, 2) == [3, 1]

def test_order_is_what_another_order_costs():
    "A model that expects the next number: paragraphs in order lose by shuffling, shuffled ones lose nothing on average"
    def logprobs(ids): return np.where(np.diff(ids) == 1, -.1, -2.)
    pieces = [np.arange(5 * i, 5 * i + 5) for i in range(30)]; rng = random.Random(0)
    assert order_gain(logprobs, pieces, rng) > .3
    again = [order_gain(logprobs, rng.sample(pieces, 30), rng) for _ in range(40)]
    assert abs(np.mean(again)) < .01

@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=9), max_size=9), st.integers(0, 99))
def test_order_keeps_the_words(pieces, seed):
    pieces, seen = [np.array(p) for p in pieces], []
    def logprobs(ids): seen.append(ids); return -np.ones(len(ids) - 1)
    if len(pieces) < 4:
        with pytest.raises(UserError, match='at least 4'): order_gain(logprobs, pieces, random.Random(seed))
        return
    assert order_gain(logprobs, pieces, random.Random(seed)) == 0 and len(seen) == 3
    assert (seen[0] == np.concatenate(pieces)).all() and all(sorted(s) == sorted(seen[0]) for s in seen)
    assert all((s[:len(pieces[0])] == pieces[0]).all() and (s[-len(pieces[-1]):] == pieces[-1]).all() for s in seen)
