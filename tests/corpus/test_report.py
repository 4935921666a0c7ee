"The report escapes what strangers wrote and loses nobody."
import re
from hypothesis import given, settings, strategies as st
from labkit.corpus.report import fallen_samples, filters, funnel, kept_samples, page, reasons, retention, sample, table

row = lambda step, n_in, n_out, **why: dict(step=step, n_in=n_in, n_out=n_out, bytes_in=n_in * 100, bytes_out=n_out * 100, why=why, cpu_seconds=.5)
REPORT = dict(tokens=dict(train=1000, valid=10, bytes_per_token=3.2, vocab_size=400), languages=dict(en=3, zh=1), lengths={'1024': 3, '2048': 1}, by_rule=dict(words=2),
              manifest=dict(sha256='ab' * 32, kinds=dict(text=dict(files=4, bytes=100))), steps=[row('select', 9, 8), row('extract', 8, 7, binary=1), row('language', 7, 6, other=1), row('dedup', 6, 4, near=2), row('privacy', 4, 4)],
              seconds=dict(clean=1., dedup=.1), peak_mb=200., settings=dict(out='x'))

@given(st.text(max_size=80), st.text(max_size=80), st.text(max_size=80))
@settings(deadline=None, max_examples=6)
def test_whatever_documents_are_called(name, why, text):
    evil = f'<script>{name}</script>'
    html = page(REPORT, {('rules', evil): [dict(id=evil, why=why, text=evil + text)]}, [dict(id=evil, text=evil + text)])
    assert '<script' not in html and html.startswith('<!doctype html>') and 'src=' not in html.replace(evil, '')
    assert '<script' not in table((evil,), [[evil]]) and '<script' not in sample(evil, evil, evil)

def test_filters_and_figures():
    assert [r['step'] for r in filters(REPORT['steps'])] == ['extract', 'language', 'dedup']
    for fig in (funnel(REPORT['steps']), retention(REPORT['steps'])): assert fig.axes
    texts = [t.get_text() for t in funnel(REPORT['steps']).axes[0].texts]
    assert texts == [' 8 (100%)', ' 7 (88%)', ' 6 (75%)', ' 4 (50%)']

def test_reasons_that_are_too_many_are_added_up():
    assert reasons(dict(zip('abcdef', (9, 8, 7, 6, 5, 4)))) == '− a 9, b 8\n   c 7, d 6\n   others 9'

def test_samples():
    rows = [dict(step='rules', why='short', id=str(i)) for i in range(9)] + [dict(step='rules', why='long', id='x')] + [dict(step='dedup', why='near', id='y')]
    got = fallen_samples(rows, each=2)
    assert list(got) == [('rules', 'short'), ('rules', 'long'), ('dedup', 'near')] and [r['id'] for r in got['rules', 'short']] == ['0', '1']
    docs = [dict(id=str(i)) for i in range(500)]
    assert kept_samples(docs, 5) == kept_samples(reversed(docs), 5) and len(kept_samples(docs[:3], 5)) == 3
