"One answer for each document, whatever the documents are."
from dataclasses import dataclass, replace
from collections import Counter
import pickle, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.documents import Document
from labkit.corpus.stages import Fallen, Language, Normalize, Privacy, Rules, Tally, answers, run_stages

texts = st.one_of(st.text(max_size=300), st.sampled_from(['', ' ', '\ud800', 'a' * 5000, '茶' * 400, 'call 13800138000 now. ' * 30, '\0\0', '\n' * 100]))
documents = st.lists(st.builds(Document, texts, st.text(max_size=5), language=st.sampled_from(['', 'en']), metadata=st.sampled_from([{}, dict(kind='python'), dict(kind='html')])), max_size=6)
LINE = (Normalize(), Language(), Rules(), Privacy())

@given(documents)
@settings(deadline=None, max_examples=60)
def test_in_equals_out_plus_fallen(docs):
    kept, fallen, tallies = run_stages(docs, LINE)
    assert len(docs) == len(kept) + len(fallen)
    for t in tallies: assert t.n_in == t.n_out + sum(t.why.values())
    for a, b in zip(tallies, tallies[1:]): assert (a.n_out, a.bytes_out) == (b.n_in, b.bytes_in)

@given(documents)
@settings(deadline=None, max_examples=40)
def test_the_batch_does_not_matter(docs):
    alone = [run_stages([d], LINE)[:2] for d in docs]
    kept, fallen, _ = run_stages(docs, LINE)
    assert kept == [d for k, _ in alone for d in k] and sorted(map(repr, fallen)) == sorted(repr(r) for _, f in alone for r in f)

@dataclass(frozen=True)
class Fragile:
    error: type
    def __call__(self, docs):
        if any('bad' in d.text for d in docs): raise self.error('cannot')
        return [replace(d, text=d.text + '!') for d in docs]

def test_a_document_that_raises_falls_alone_with_its_text():
    kept, fallen, (t,) = run_stages([Document('a', '1'), Document('bad', '2'), Document('c', '3')], [Fragile(ValueError)])
    assert [d.text for d in kept] == ['a!', 'c!'] and t.why == {'error': 1}
    (row,) = fallen
    assert row['id'] == '2' and row['error'] == 'ValueError: cannot' and row['document']['text'] == 'bad'

@pytest.mark.parametrize('error', [OSError, MemoryError, UserError, KeyboardInterrupt])
def test_what_is_no_documents_fault_stops(error):
    with pytest.raises(error): answers(Fragile(error), [Document('bad', '1'), Document('good', '2')])

def test_a_stage_that_loses_documents_is_caught():
    with pytest.raises(AssertionError, match='1 times for 2'): answers(lambda docs: docs[:1], [Document('a', '1'), Document('b', '2')])

def test_stages_are_values():
    for s in LINE: assert pickle.loads(pickle.dumps(s)) == s
    assert Rules('gopher') != Rules('c4')

def test_code_is_not_asked_for_its_language():
    d = Document('x = 1', 'a', metadata=dict(kind='python'))
    assert Language(('zh',))([d]) == [d] and Normalize('NFKC', 'simplified')([d]) == [d]

def test_tallies_add_up():
    a = Tally('rules', 3, 1, 30, 10, 1., {'short': 2}); a.why = Counter(a.why)
    a.add(Tally('rules', 2, 2, 20, 20, .5))
    assert (a.n_in, a.n_out, a.bytes_in, a.bytes_out, a.cpu_seconds, dict(a.why)) == (5, 3, 50, 30, 1.5, dict(short=2))
