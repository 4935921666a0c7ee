"Blocklists against a plain search, and the four scores on texts that they have not seen"
import pickle, random, re
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.files import samples
from labkit.core.settings import UserError
from labkit.corpus import safety
from labkit.corpus.classifier import Classifier, auc
from labkit.corpus.rules import judge
from labkit.corpus.safety import BREAKS, SAFETY, SCORES, Blocklist, Hit, examples, host_of, load, made, profanity, save, train_safety

LETTERS = st.lists(st.sampled_from(['a', 'b', 'ab', 'A', ' ', '\t', '坏', '词', '坏词', '.', '_', '1', '\U0001f600']), max_size=30).map(''.join)

@pytest.fixture(scope='module')
def model(): return train_safety(range(8))

def plain_hits(words, text):
    "The definition: at each place the longest word, not inside a longer run of letters (Han characters stand alone), then behind it"
    inside = lambda c: (c.isalnum() or c == '_') and not '\u3040' <= c <= '\u9fff' and ord(c) < 65536
    low, out, i = ''.join(' ' if c.isspace() else c.lower() if len(c.lower()) == 1 else c for c in text), [], 0
    while i < len(low):
        fits = [w for w in words if low.startswith(w, i) and not (i and inside(low[i]) and inside(low[i - 1])) and not (i + len(w) < len(low) and inside(low[i + len(w)]) and inside(low[i + len(w) - 1]))]
        if fits: n = max(map(len, fits)); out.append((i, i + n)); i += n
        else: i += 1
    return out

@settings(max_examples=80, deadline=None)
@given(st.sets(LETTERS.map(lambda t: ' '.join(t.lower().split())).filter(lambda t: 2 <= len(t) <= 6), max_size=6), LETTERS)
def test_hits_are_those_of_a_plain_search(words, text):
    assert [(h.start, h.end) for h in Blocklist(words).hits(text)] == plain_hits(words, text)

def test_words_that_differ_in_one_bit_of_their_last_letter_are_two():
    for last, other in zip('abcdefghijklmnopqrstuvwxy', 'bcdefghijklmnopqrstuvwxyz'): assert not Blocklist([f'aa{other}']).hits(f'aa{last}') and not Blocklist([f'aa{last}']).hits(f'aa{other}')

@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200))
def test_any_text(text): assert all(text[h.start:h.end] == h.word for h in Blocklist(['the', '的是', 'a b']).hits(text))

def test_a_long_list_finds_all_of_its_words():
    rng = random.Random(0)
    words = {''.join(rng.choice('abcdefghij') for _ in range(rng.randint(3, 9))) for _ in range(20_000)}
    some = rng.sample(sorted(words), 500)
    assert [h.word for h in Blocklist(words).hits(' '.join(some))] == some
    assert len(Blocklist(words).hits('，'.join(some))) == 500

def test_more_hits_than_room_at_first(): assert len(Blocklist(['ab']).hits('ab ' * 5000)) == 5000

@pytest.mark.parametrize('words', [['a'], ['x' * 64], ['词']])
def test_words_that_are_no_entry(words):
    with pytest.raises(UserError, match='fewer than 2 or more than 63'): Blocklist(words)

@pytest.mark.parametrize('url, entry', [('https://a.b.bad.example/x', 'bad.example'), ('BAD.example:8080', 'bad.example'), ('http://notbad.example', ''), ('http://example', ''), ('', ''), ('http://user@bad.example./', 'bad.example'), ('http://good.example/?u=bad.example', ''), ('http://[::1]/', '')])
def test_domains(url, entry): assert Blocklist(domains=['.Bad.example']).domain(url) == entry

@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_any_url_has_a_host_or_none(url): assert isinstance(host_of(url), str) and isinstance(Blocklist(domains=['x.example']).domain(url), str)

def test_blocklist_travels(): assert pickle.loads(pickle.dumps(Blocklist(['bad'], ['x.example']))).hits('so bad') == [Hit(3, 6, 'bad')]
def test_listed_words_are_not_shown(): assert Hit(0, 4, 'word').hidden() == 'w***'

def test_patterns_fill_and_stay_in_their_part():
    for kind in safety.KINDS:
        texts, names = made(kind, 50, (1, 2), random.Random(0))
        assert len(texts) == 50 and not any(re.search(r'\{\w+\}', t) for t in texts)
        assert {safety._fold_of(n) for n in names} <= {1, 2}
    ids = [r['id'] for r in safety._patterns()[0]]
    assert len(ids) == len(set(ids))

def test_the_shipped_patterns_hold_no_listed_word_beyond_the_tame_ones():
    block = Blocklist([w for w in profanity() if w not in ('fool', 'idiot', 'moron', 'sex', 'sexual', 'sexy', 'nude', 'naked', 'porn', 'erotic', 'xxx', 'loser', 'pig', 'horny', 'strip', 'breast', 'amateur', 'fetish', 'gambling', 'damn', 'hell', 'dumb', 'ugly', 'stupid')])
    found = {h.hidden() for h in block.hits(samples('safety/templates.jsonl').read_text(encoding='utf-8'))}
    assert len(found) <= 12, found

@settings(max_examples=50, deadline=None)
@given(st.text(max_size=120), st.sampled_from(BREAKS))
def test_any_text_can_be_broken(text, f): assert isinstance(f(text, random.Random(0)), str)

def test_scores_of_unseen_parts(model):
    for s, least in (('toxic', .8), ('porn', .85), ('fluency', .85), ('not_ad', .9)):
        t, y, _ = examples(s, (8, 9), 150, seed=3)
        p = model.scores(t)[s]
        assert auc(p, y) > least, (s, auc(p, y))

def test_real_text_stands(model):
    real = [t for t, g in safety.real_texts() if safety._fold_of(g) in (8, 9)]
    sc = model.scores(real)
    for r in SAFETY: assert np.mean([judge(r, float(v)).broken for v in sc[r.signal]]) < .04, r.signal

def test_same_everywhere(model):
    texts, y, names = examples('porn', range(8))
    again = Classifier.train(texts, y, [safety._fold_of(n) for n in names], bits=model.models['porn'].bits)
    assert (again.weights == model.models['porn'].weights).all() and again.slope == model.models['porn'].slope
    t = ['tea', '', '茶', '\ud800', 'x' * 100_000]
    p = pickle.loads(pickle.dumps(model)).scores(t)
    assert set(p) == set(SCORES) and all(v.shape == (5,) and ((0 <= v) & (v <= 1)).all() for v in p.values())
    assert all(v.shape == (0,) for v in model.scores([]).values())

def test_one_bad_window_is_not_diluted(model):
    bad = made('toxic', 1, (8, 9), random.Random(1))[0][0]
    page = [t for t, g in safety.real_texts() if len(t) > 200]
    long = ('\n'.join(page[:40]))[:12_000]
    padded = long[:6000] + (bad + ' ') * 20 + long[6000:]
    assert model.scores([padded])['toxic'][0] > model.scores([long])['toxic'][0]

def test_saved_and_loaded(model, tmp_path):
    save(model, tmp_path/'s')
    assert (load(tmp_path/'s').scores(['tea and bread'])['fluency'] == model.scores(['tea and bread'])['fluency']).all()
    (tmp_path/'s'/'porn'/'weights.npz').write_bytes(b'')
    with pytest.raises(UserError, match='weights.npz'): load(tmp_path/'s')
    with pytest.raises(UserError): load(tmp_path/'nothing')
