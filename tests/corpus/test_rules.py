"Rules: the table of profiles, judging one by one and all at once, explaining"
import dataclasses
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.comparable import COMPARABLE
from labkit.corpus.rules import CODE, DATATROVE, GOPHER, PROFILES, Rule, borderline, broken, explain, judge, kept, margins, matrix, plot_margins, plot_sweep, profile_signals, rules_for, sweep
from labkit.corpus.signals import SIGNALS, cut, measure

TEXT = 'The ferry to the island takes forty minutes, and with a good wind it is faster. ' * 3
FEW = st.lists(st.sampled_from(['the ', 'of ', 'word ', '12 ', '# ', '{', '.\n', '\n\n', '茶', '的', '。', '- ', '...']), max_size=80).map(''.join)

@pytest.mark.parametrize('name', PROFILES)
def test_profiles_are_sound(name):
    rules, known = PROFILES[name], set(COMPARABLE if name == 'datatrove' else SIGNALS)
    for r in rules:
        assert r.signal in known and r.source and (r.low is not None or r.high is not None), r
        assert r.low is None or r.high is None or r.low < r.high, r
    assert len({(r.signal, r.han) for r in rules}) == len(rules) or name.startswith('fineweb'), 'no signal is asked twice'

def test_published_numbers():
    "As the papers print them"
    limit = {p: {r.signal: (r.low, r.high) for r in PROFILES[p]} for p in PROFILES}
    assert limit['gopher']['words'] == (50, 100_000) and limit['gopher']['mean_word_length'] == (3, 10) and limit['gopher']['alpha_words'] == (.8, None) and limit['gopher']['stop_words'] == (2, None)
    assert [limit['gopher'][f'dup_{n}gram_chars'][1] for n in range(5, 11)] == [.15, .14, .13, .12, .11, .10] and [limit['gopher'][f'top_{n}gram_chars'][1] for n in (2, 3, 4)] == [.2, .18, .16]
    assert limit['c4']['sentences_c4'] == (5, None) and limit['c4']['curly_brackets'] == (None, 0)
    lines = {p: [r.high for r in PROFILES[p] if r.signal == 'dup_line_chars'] for p in ('fineweb-paper', 'fineweb-code')}
    assert lines == {'fineweb-paper': [.2, .1], 'fineweb-code': [.2, .01]}
    assert 'newlines_per_word' in limit['fineweb-code'] and 'newlines_per_word' not in limit['fineweb-paper']
    assert limit['nemo']['digits'] == (None, .15) and limit['nemo']['white_space'] == (None, .25) and limit['nemo']['parentheses'] == (None, .1)
    assert len(PROFILES['datatrove']) == 13 + 8 + 3 + 4 and not PROFILES['none']

def test_own_numbers_say_so():
    for name in ('internlm', 'wanjuan'):
        for r in PROFILES[name]: assert r in GOPHER or 'labkit' in r.source or any(s in r.source for s in ('C4', 'FineWeb')), r

def test_rules_name_every_fault():
    m = measure(cut('# # # #\n' * 50))
    assert {'words', 'dup_lines', 'dup_line_chars', 'stop_words'} <= {v.rule.signal for v in broken(m, GOPHER)}
    worst = explain(m, GOPHER)
    assert [v.margin for v in worst] == sorted(v.margin for v in worst)
    assert broken(m, GOPHER) == [v for v in worst if v.broken]

@given(st.floats(-5, 5), st.floats(0, 2), st.floats(2, 4))
def test_margin_is_negative_outside_only(value, low, high):
    assert judge(Rule('x', low, high), value).broken == (not low <= value <= high)

@settings(max_examples=50, deadline=None)
@given(st.lists(FEW, max_size=5), st.sampled_from([p for p in PROFILES if p != 'datatrove']))
def test_many_at_once_is_one_by_one(texts, profile):
    rules, table = PROFILES[profile], [measure(cut(t)) for t in texts]
    values = matrix(table, rules)
    want = [[judge(r, m[r.signal]).margin for r in rules] for m in table]
    assert np.allclose(margins(values, rules), np.array(want).reshape(values.shape))
    assert kept(values, rules).tolist() == [not broken(m, rules) for m in table]

def test_chinese_is_not_asked_for_english_words():
    m = measure(cut('水往低处流。' * 3 + '茶叶可以泡好几次，第一泡时间短一些。'))
    assert m['han'] == 1 and not {'stop_words', 'mean_word_length'} & {r.signal for r in rules_for('html', m)}
    asked = {r.signal for r in rules_for('html', m, 'internlm')}
    assert 'han_stop_words' in asked and 'han_stop_words' not in {r.signal for r in rules_for('html', measure(cut(TEXT)), 'internlm')}

def test_code_has_its_own_rules_but_not_for_the_peer():
    m = measure(cut(TEXT))
    assert rules_for('python', m) == CODE and rules_for('python', m, 'none') == () and rules_for('python', m, 'datatrove') == PROFILES['datatrove']

def test_unknown_profile():
    for ask in (lambda: rules_for('html', {'han': 0}, 'gofer'), lambda: profile_signals('gofer')):
        with pytest.raises(UserError, match='technical, gopher'): ask()

def test_profile_signals_have_what_the_rules_ask():
    for name, rules in PROFILES.items():
        m = profile_signals(name)(TEXT)
        assert {r.signal for r in rules} <= set(m)
        explain(m, rules_for('text', m, name))

def test_datatrove_decides_by_hand():
    prose = '\n'.join(f'In the year {1900 + i} the harbour of town number {i} was built with stones that people have carried to it.' for i in range(8))
    decisions = {name: [v.rule.signal for v in broken(profile_signals('datatrove')(prose), rules)] for name, rules in DATATROVE.items()}
    assert decisions['gopher quality'] == [] and decisions['c4'] == [] and decisions['fineweb'] == []
    assert 'short_lines' in {v.rule.signal for v in broken(profile_signals('datatrove')('a b.\n' * 9), DATATROVE['fineweb'])}
    assert [v.rule.signal for v in broken(profile_signals('datatrove')(prose + '\nA { here, too.'), DATATROVE['c4'])] == ['curly_brackets']

@given(st.lists(st.floats(0, 1), max_size=30), st.booleans())
def test_sweep_counts(values, low):
    ts = np.linspace(0, 1, 11)
    want = [sum(v < t if low else v > t for v in values) / max(1, len(values)) for t in ts]
    assert sweep(np.array(values), ts, low).tolist() == pytest.approx(want)

def test_borderline_is_near_and_takes_turns():
    rules = (Rule('a', .5, source='x'), Rule('b', high=.5, source='x'))
    table = [dict(a=.49, b=.1)] * 8 + [dict(a=.9, b=.51), dict(a=.1, b=.1), dict(a=.9, b=.1)]
    got = borderline(table, rules, 4)
    assert {v.rule.signal for _, v in got[:2]} == {'a', 'b'} and all(abs(v.margin) <= .1 for _, v in got) and {i for i, _ in got} <= set(range(9))
    assert borderline(table, rules, 4) == got and borderline([], rules) == []

def test_plots_draw():
    import matplotlib; matplotlib.use('Agg')
    m = measure(cut(TEXT))
    assert len(plot_margins(m, GOPHER).patches) == len(GOPHER)
    assert plot_sweep([m, m], GOPHER[0]).get_xlabel() == 'threshold of words'

def test_a_rule_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError): GOPHER[0].low = 1
