"Decontamination against definitions in plain Python: every planted item is found, nothing is invented."
import json, pickle, random
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.files import samples
from labkit.corpus.contamination import Contamination, Hit, Item, by_item, decontaminate, frequent, read_items
from labkit.corpus.signals import cut

WORDS = st.lists(st.sampled_from(['a', 'b', 'cc', '茶', '水', '.', '\n', 'ß', '\ud800', '😀']), max_size=60).map(' '.join)
ITEM = ' '.join(f'word{i}' for i in range(30))

def words_of(text):
    w = cut(text)
    return [text[s:e].lower() for s, e in zip(w.start, w.end)]

def runs(words, n): return {tuple(words[i:i + n]) for i in range(len(words) - n + 1)}

@settings(max_examples=100, deadline=None)
@given(st.lists(WORDS, max_size=4), WORDS, st.integers(2, 6))
def test_as_the_definition_says(items, text, n):
    short, line = max(1, n - 1), 1
    d, doc = Contamination(items, n=n, short=short, line=line), words_of(text)
    lines = [words_of(l) for l in text.split('\n')]
    want = set()
    for i, item in enumerate(items):
        w = words_of(item)
        size = min(n, len(w))
        if len(w) >= short and runs(w, size) & runs(doc, size): want.add(str(i))
        if line <= len(w) < short and w in lines: want.add(str(i))
    hits = d.hits(text)
    assert {h.item for h in hits} == want
    for h in hits:
        assert 0 <= h.start < h.end <= len(text) and 0 < h.share <= 1
        assert h.kind != 'exact' or ' '.join(words_of(items[int(h.item)])) in ' '.join(words_of(text[h.start:h.end]))

@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300))
def test_any_text(text):
    d = Contamination([text, ITEM])
    assert all(h.item == '0' for h in d.hits(text))
    if len(cut(text).hash) >= 8: assert any(h.kind == 'exact' and h.share == 1 for h in d.hits(f'word\n{text}\nword'))
    assert decontaminate(text, []) == [text]

@pytest.mark.parametrize('change', [str, str.upper, lambda s: s.replace(' ', ' , '), lambda s: s.replace(' ', '\n\n'), lambda s: f'"{s}!"'])
def test_planted_exam_is_found(change):
    exam = [i for f in sorted(samples('eval').glob('*.jsonl')) for i in read_items(f)]
    d = Contamination(exam)
    for item in exam:
        for k, p in enumerate(item.parts):
            n = len(cut(p).hash)
            if n < 5 or n < 8 and '\n' in change('a b'): continue # a short part must stay on its line
            assert any((h.item, h.part, h.share) == (item.id, k, 1) for h in d.hits(f'Before.\n{change(p)}\nAfter.')), (item.id, p)

def test_the_exam_is_not_in_ordinary_text():
    d = Contamination(i for f in sorted(samples('eval').glob('*.jsonl')) for i in read_items(f))
    assert not any(d.hits(samples(f'corpus/{n}').read_text()) for n in ('library.txt', 'bridge_zh.md', 'weather.rst', 'temperature.py'))

def test_share_and_span():
    half = ' '.join(ITEM.split()[:20])
    text = f'Lead in. {half} and then something else'
    (h,) = Contamination([Item('x', ('', ITEM))]).hits(text)
    assert (h.item, h.part, h.kind, text[h.start:h.end]) == ('x', 1, 'overlap', half)
    assert h.share == (20 - 12) / (30 - 12)

def test_a_gram_of_two_items_belongs_to_both():
    a, b = ITEM + ' ends here', ITEM + ' ends there'
    assert [h.item for h in Contamination([a, b]).hits(ITEM)] == ['0', '1']

def test_a_short_part_counts_on_a_line_of_its_own_only():
    d = Contamination(['the dogs bark at night'])
    assert [h.kind for h in d.hits('x\n The dogs bark, at night. \ny')] == ['line']
    assert not d.hits('He says the dogs bark at night') and not d.hits('the dogs bark\nat night')

def test_unchecked_items_are_named():
    assert Contamination([Item('tiny', ('yes', '42')), Item('fine', ('yes', ITEM))]).unchecked == ['tiny']

def test_frequent_grams_are_ignored():
    boiler = ' '.join(f'licence{i}' for i in range(15))
    d = Contamination([Item('x', (f'{boiler} {ITEM}',))])
    corpus = [f'{boiler} file {k}' for k in range(12)]
    strict = Contamination([Item('x', (f'{boiler} {ITEM}',))], ignore=frequent(d, corpus))
    assert all(d.hits(t) for t in corpus) and not any(strict.hits(t) for t in corpus)
    assert strict.hits(ITEM)[0].share == pytest.approx(18 / (45 - 12 - 3), abs=.1)
    assert len(frequent(d, corpus[:10])) == 0

def test_cutting():
    text = 'x' * 500 + ' ' + ITEM + ' ' + 'y' * 500
    hits = Contamination([ITEM]).hits(text)
    assert [len(p) for p in decontaminate(text, hits)] == [301, 301]
    assert decontaminate(text, hits, least=400) == []
    many = [Hit('x', 0, 'exact', k * 1000 + 500, k * 1000 + 510, 1.) for k in range(11)]
    assert decontaminate('z' * 12000, many) == [] and len(decontaminate('z' * 12000, many[:9])) == 10

@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(1, 99)), max_size=8))
def test_cut_pieces_are_clean(spans):
    text = ''.join(chr(0x4e00 + i) for i in range(1000))
    hits = [Hit('x', 0, 'overlap', a, a + n, 1.) for a, n in spans]
    for p in decontaminate(text, hits, window=20, least=1, most=99):
        at = text.index(p)
        assert not hits or all(at >= h.end + 20 or at + len(p) <= h.start - 20 for h in hits)

def test_by_item_lists_every_item_once():
    d = Contamination([Item('a', (ITEM,)), Item('b', (ITEM[::-1],))])
    rows = by_item([(n, d.hits(t)) for n, t in (('d1', ITEM), ('d2', ' '.join(ITEM.split()[:14])), ('d3', 'nothing'))], d)
    assert [(r.item, r.share, r.exact, r.documents) for r in rows] == [('a', 1., True, ('d1', 'd2')), ('b', 0., False, ())]

def test_pickles():
    d = Contamination([ITEM]); again = pickle.loads(pickle.dumps(d))
    assert again.hits(ITEM) == d.hits(ITEM) != []

def test_broken_item_file(tmp_path):
    path = tmp_path/'set.jsonl'; path.write_text('{"question": "what is it", "answer": 4}\n{oops\n')
    assert next(read_items(path)) == Item('set:1', ('what is it',))
    with pytest.raises(ValueError, match='set.jsonl:2'): list(read_items(path))
    assert Contamination([]).hits(ITEM) == []
