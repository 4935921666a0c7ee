"Signals: the compiled passes against the definitions in plain Python; datatrove's way of counting against numbers counted by hand"
import math, re
from collections import Counter
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.corpus import comparable
from labkit.corpus.signals import LONG_WORD, SIGNALS, class_of, cut, cut_lines, groups, measure, ngrams, reference, repeats, spans, vector

PIECES = ['a', 'bb ', 'the ', 'of ', '。', '，', '中', '文 ', '的', '\n', '\n\n', ' ', '\t', '\r', '.', '...', '…', '"', ')', '!', '- ', '• ', '#', '{', '[1]', 'http://x.y/z', 'www.a ', 'javascript ',
          'terms of use ', 'Use Cookies', 'xterms of use cookies', 'Lorem ipsum', '9', '_', '\ud800', '😀', '𠀀', 'İ', 'ß', '\u2028', '\x00', 'e\u0301', '\ufffd', 'word ' * 5, 'x' * (LONG_WORD + 1), 'かな', '\u3000']
ANY = st.one_of(st.text(max_size=200), st.lists(st.sampled_from(PIECES), max_size=60).map(''.join), st.text(alphabet='ab \n.', max_size=200))
FEW = st.lists(st.sampled_from(['a', 'bb', 'ccc', 'dddd', '.', '\n', '\n\n', '中', '文']), max_size=120).map(' '.join)

@settings(max_examples=150, deadline=None)
@given(ANY)
def test_the_compiled_passes_are_the_definition(text):
    a, b = measure(cut(text)), reference(text)
    assert list(a) == list(SIGNALS)
    assert not {k: (a[k], b[k]) for k in SIGNALS if not math.isclose(a[k], b[k], rel_tol=1e-9, abs_tol=1e-12)}

@pytest.mark.parametrize('text', ['', '\n', '\ud800\udc00', '\x00' * 5, '的' * 300, 'a' * 5000, '"' * 50, '\n' * 500, 'no end'], ids=lambda t: repr(t[:6]))
def test_odd_texts(text):
    a, b = measure(cut(text)), reference(text)
    assert all(math.isfinite(v) and v >= 0 for v in a.values()) and a == pytest.approx(b)

def test_a_huge_line():
    text = 'All work and no play makes Jack a dull boy. ' * 50_000 # 2.2 MB without a newline
    m = measure(cut(text))
    assert m['lines'] == 1 and m['words'] == 500_000 and m['max_line_length'] == len(text) - 1 and m['dup_10gram_chars'] > .7 and m['sentences'] == 50_000

@settings(max_examples=50, deadline=None)
@given(ANY)
def test_words(text):
    w = cut(text)
    assert list(zip(w.start.tolist(), w.end.tolist())) == spans(text)
    assert w.kinds.tolist() == [class_of(c) & 3 for c in text]
    words = [text[s:e] for s, e in spans(text) if text[s:e].isascii()]
    assert len({h for h, (s, e) in zip(w.hash.tolist(), spans(text)) if text[s:e].isascii()}) == len({x.lower() for x in words}), 'equal words have equal hashes and different words different ones'
    ends = np.arange(1, len(text) + 1)
    if len(text): assert len(set(w.hashes(ends - 1, ends).tolist())) == len(set(text))

@settings(max_examples=50, deadline=None)
@given(FEW)
def test_line_repetition(text):
    lines = [l.strip() for l in text.split('\n') if l.strip()]
    assert measure(cut(text))['dup_lines'] == pytest.approx(sum(c - 1 for c in Counter(lines).values()) / max(1, len(lines)))

@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=60))
def test_groups(xs):
    keys = np.array(xs, np.uint64) * np.uint64(0x9e3779b97f4a7c15)
    place, first, count = groups(keys)
    assert sorted(place.tolist()) == list(range(len(xs))) and count.sum() == len(xs)
    for f, c in zip(first, count): assert len({xs[p] for p in place[f:f + c]}) == 1 and (np.diff(place[f:f + c]) > 0).all()
    assert repeats(keys).tolist() == [x in xs[:i] for i, x in enumerate(xs)]

@settings(max_examples=50, deadline=None)
@given(FEW, st.integers(1, 6))
def test_ngrams(text, n):
    w, words = cut(text), [text[s:e] for s, e in spans(text)]
    grams = [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]
    h = ngrams(w.hash, n).tolist()
    assert len(h) == len(grams) and len(set(h)) == len(set(grams))

def test_vector_is_measure():
    w = cut('Tea, and more tea.\nTea, and more tea.')
    assert dict(zip(SIGNALS, vector(w))) == measure(w)

@settings(max_examples=50, deadline=None)
@given(ANY)
def test_cut_lines(text):
    left, gone = cut_lines(text)
    again, none = cut_lines(left)
    assert left.count('\n') + sum(gone.values()) <= len(text.splitlines()) + 1
    assert not none or '[' in text, 'what is left is not cut again'
    assert 'javascript' not in left.lower()

def test_cut_lines_by_reason():
    page = 'Home page\nThe tea was good.[3]\nTurn on JavaScript to go on.\nThis site uses cookies for fun.\nNo full stop at the end\n' + 'x' * 1001 + ' a b'
    text, gone = cut_lines(page)
    assert text == 'The tea was good.\nNo full stop at the end' and gone == {'few words': 1, 'javascript': 1, 'policy': 1, 'long word': 1}
    assert cut_lines(page, terminal=True)[0] == 'The tea was good.'

# --- as datatrove counts ---
@pytest.mark.parametrize('text, want', [("Don't stop.", "Do n't stop ."), ('a-b 3-4 5+6', 'a - b 3 - 4 5 + 6'), ('Mr. Wu, e.g. U.S.', 'Mr. Wu , e.g. U.S.'), ('end.Start', 'end . Start'),
    ('f(x):', 'f(x ):'), ('"Yes," he said...', '" Yes , " he said ...'), ('see www.a.org/b?c=1.', 'see www.a.org/b?c=1 .'), ('10km 5% $3 3$', '10 km 5 % $ 3 3 $'), ('cannot gonna', 'can not gon na'),
    ('and/or x/y x=y', 'and/or x / y x = y'), ("it's James's '90s", "it 's James 's ' 90s"), ('a—b c--d', 'a — b c -- d'), ('茶。水', '茶。水'), ('~x |y| @z', '~x |y| @z'), ('', '')])
def test_tokens(text, want): assert ' '.join(comparable.tokens(text)) == want

@settings(max_examples=80, deadline=None)
@given(ANY)
def test_tokens_are_the_text_without_white_space(text):
    assert ''.join(comparable.tokens(text)) == ''.join(text.split())
    m = comparable.measure(text)
    assert all(math.isfinite(v) and v >= 0 for v in m.values())

def test_datatrove_gopher_by_hand():
    m = comparable.measure('\nThe cat sat.\n\n\nThe cat sat.\n- The dog #1 ...\n')
    # lines between runs of newlines: '', three with text, ''; the last '' and the second sentence occurred before
    assert (m['dup_lines'], m['dup_line_chars']) == (pytest.approx(2 / 5), pytest.approx(12 / 46))
    # paragraphs of the stripped text: two, none twice
    assert m['dup_paragraphs'] == 0
    # tokens: The cat sat . The cat sat . - The dog # 1 ... : 14, of these 9 are no punctuation
    assert (m['words'], m['alpha_words'], m['hash_per_word'], m['ellipsis_per_word']) == (9, pytest.approx(8 / 14), pytest.approx(1 / 14), pytest.approx(1 / 14))
    assert m['mean_word_length'] == pytest.approx((8 * 3 + 1) / 9)
    # str.splitlines: '', sentence, '', '', sentence, bullet that ends in an ellipsis
    assert (m['bullet_lines'], m['ellipsis_lines']) == (pytest.approx(1 / 6), pytest.approx(1 / 6))
    # commonest pair 'The cat': seven characters, twice
    assert m['top_2gram_chars'] == pytest.approx(14 / 46)

def test_datatrove_repeated_ngrams_do_not_overlap():
    "a b c d e a b c d e a …: the second round is read in steps of five"
    m = comparable.measure('a b c d e ' * 3)
    assert m['dup_5gram_chars'] == pytest.approx(10 / 30) and m['dup_6gram_chars'] == pytest.approx(6 / 30)

def test_datatrove_c4_and_fineweb_by_hand():
    text = 'One two three. Four five!\nshort line\nEnable javascript { now please.\nIt ends here? "Yes." No\nIt ends here? "Yes." No'
    m = comparable.measure(text)
    assert m['curly_brackets'] == 0, 'the line with the bracket was cut before'
    assert m['sentences'] == 2 + 3 + 3
    assert m['line_punctuation'] == pytest.approx(2 / 5) and m['short_lines'] == pytest.approx(4 / 5)
    assert m['dup_text_line_chars'] == pytest.approx(23 / (len(text) - 4))
    assert comparable.measure('see the { here now')['curly_brackets'] == 1 and comparable.measure('Lorem Ipsum dolor sit')['lorem_ipsum'] == 1
    assert comparable.measure('{ x')['curly_brackets'] == 0, 'a line of two words is cut'
