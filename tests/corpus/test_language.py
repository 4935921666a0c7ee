"Language of a text and of its parts, against py3langid's own walk"
import random
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.files import read_jsonl, samples
from labkit.core.settings import UserError
from labkit.corpus.language import LANGUAGES, Segment, _identifier, _pieces, excerpt, identify, segments

ROWS = list(read_jsonl(samples('language/sentences.jsonl')))
MIXED = st.lists(st.sampled_from([r['text'] for r in ROWS] + [' ', '\n', '123', 'Python', '。', '...', '\u3000']), max_size=8).map(''.join)

def test_every_labelled_sentence(): assert np.mean([identify(r['text'])[0] == r['language'] for r in ROWS]) >= .98

@settings(max_examples=100, deadline=None)
@given(st.one_of(MIXED, st.text(max_size=200)))
def test_the_compiled_walk_agrees_with_py3langid(text):
    code, p = identify(text)
    if code:
        theirs, q = _identifier(LANGUAGES).classify(excerpt(text))
        assert abs(p - q) < 1e-3 and (code == theirs or p < .51)
    else: assert not any(c.isalpha() for c in excerpt(text)) and p == 0

@settings(max_examples=60, deadline=None)
@given(st.one_of(MIXED, st.text(max_size=200)))
def test_segments_are_the_whole_text(text):
    found = segments(text)
    assert ''.join(text[s.start:s.end] for s in found) == text
    assert all(a.end == b.start and a.language != b.language for a, b in zip(found, found[1:]))
    assert all(0 <= s.p <= 1.0001 and (s.language in LANGUAGES or s.language == '') for s in found)

@settings(max_examples=60, deadline=None)
@given(st.text(max_size=500), st.integers(1, 50))
def test_pieces_are_short_and_the_whole_text(text, longest):
    p = _pieces(text, longest)
    assert ''.join(text[a:b] for a, b in p) == text and all(0 < b - a <= longest for a, b in p)

def test_two_languages_are_found_where_they_change():
    rng, hits = random.Random(0), []
    for _ in range(30):
        a, b = rng.sample(LANGUAGES, 2)
        parts = [' '.join(r['text'] for r in ROWS if r['language'] == c)[:200] + '\n' for c in (a, b)]
        text = ''.join(parts)
        hits += [s.language == (a if i < len(parts[0]) else b) for s in segments(text) for i in range(s.start, s.end)]
    assert np.mean(hits) > .97

def test_a_name_in_another_script_is_no_language(): assert [s.language for s in segments('我们用 Transformer 训练了一个 base 模型，效果不错。')] == ['zh']

def test_unknown_code():
    for f in (identify, segments):
        with pytest.raises(UserError, match='ISO 639-1'): f('some text', ('en', 'xx'))

def test_nothing_to_say():
    assert identify('') == identify('12:30, 4 × 5') == ('', 0.)
    assert segments('') == [] and segments('12') == [Segment(0, 2, '', 0.)]
    assert identify('\ud800 a lone surrogate in an English sentence')[0] == 'en'

def test_long_text_costs_what_its_excerpt_does(): assert len(excerpt('a' * 10**7)) < 2000 and identify('tea and bread ' * 10**6)[0] == 'en'
