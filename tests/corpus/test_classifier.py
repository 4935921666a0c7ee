"The hashed n-gram classifier: against definitions written in plain Python, on texts of any kind, and on damaged files"
import json, math, pickle
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.classifier import Classifier, auc, auc_interval, calibration_error, columns, load, reliability, save

TOPICS = (('river', 'bridge', 'water', 'boat', '船', '水'), ('bread', 'oven', 'flour', 'salt', '面', '盐'))
def made(n, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < .5
    return [' '.join(rng.choice(TOPICS[int(l)], 6)) + f' and {rng.integers(100)}' for l in y], y
TEXTS, Y = made(400)

@pytest.fixture(scope='module')
def clf(): return Classifier.train(TEXTS, Y, bits=14)

@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200), st.integers(4, 20))
def test_columns_of_any_text(text, bits):
    c = columns(text, bits)
    assert (0 <= c).all() and (c < 1 << bits).all() and c.tolist() == columns(text, bits).tolist()

@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(['tea', 'Tea', 'x', '12', '茶', ' ', '  ', '\n', '.']), max_size=20).map(''.join))
def test_letter_case_digits_and_white_space_do_not_matter(text):
    assert columns(text).tolist() == columns(text.upper().replace('12', '90')).tolist() == columns(text.replace(' ', '\t')).tolist()

def test_number_of_grams():
    "Words, pairs (the first has nobody before it) and three runs for each character"
    assert len(columns('not bad')) == 2 * 2 + 3 * 7
    assert len(columns('茶水')) == 2 * 2 + 3 * 2

def test_it_learns(clf):
    texts, y = made(300, 1)
    assert auc(clf(texts), y) > .99 and calibration_error(clf(texts), y) < .05
    p = clf(texts)
    assert p.dtype == np.float32 and p.shape == (300,) and clf([]).shape == (0,)

def test_same_seed_same_model(clf):
    again = Classifier.train(TEXTS, Y, bits=14)
    assert (again.weights == clf.weights).all() and (again.slope, again.offset) == (clf.slope, clf.offset)
    assert not (Classifier.train(TEXTS, Y, bits=14, seed=1).weights == clf.weights).all()

@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=100), max_size=5))
def test_any_text_has_a_probability(clf, texts): assert ((0 <= (p := clf(texts))) & (p <= 1)).all() and len(p) == len(texts)
def test_surrogates_and_nothing(clf): assert np.isfinite(clf(['\ud800', '', '\x00'])).all()

def test_it_travels_to_a_process(clf): assert (pickle.loads(pickle.dumps(clf))(TEXTS[:5]) == clf(TEXTS[:5])).all()

def test_balance():
    rare = [i for i in range(400) if not Y[i] or i % 12 == 0]
    texts, y = [TEXTS[i] for i in rare], Y[rare]
    assert auc(Classifier.train(texts, y, bits=14, balance=True)(TEXTS), Y) > .95

@pytest.mark.parametrize('texts, labels, why', [(['a'], [1, 0], 'a label for each'), (['a', 'b'], [1, 2], 'true or false'), (['a', 'b'], [0, 0], 'some of both'), ([], [], 'some of both')])
def test_labels_that_cannot_be_learned(texts, labels, why):
    with pytest.raises(UserError, match=why): Classifier.train(texts, labels)

def test_groups_are_not_torn_apart():
    from labkit.corpus.classifier import _held_out
    g = [i // 10 for i in range(500)]
    back = _held_out(g, .3, 0)
    assert all(len(set(back[i:i + 10].tolist())) == 1 for i in range(0, 500, 10)) and .1 < back.mean() < .5

@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_in_order(rows):
    p, y = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    pairs = [(a > b) + (a == b) / 2 for a in p[y] for b in p[~y]]
    assert math.isnan(auc(p, y)) if not pairs else auc(p, y) == pytest.approx(np.mean(pairs))

def test_interval_and_reliability():
    rng = np.random.default_rng(0)
    p = rng.random(2000); y = rng.random(2000) < p
    lo, hi = auc_interval(p, y)
    assert lo < auc(p, y) < hi and hi - lo < .06 and calibration_error(p, y) < .04
    assert sum(n for _, _, n in reliability(p, y)) == 2000
    g = np.arange(2000) // 100
    assert np.subtract(*auc_interval(p, y, g)[::-1]) > 0

def test_saved_and_loaded(clf, tmp_path):
    save(clf, tmp_path/'m')
    assert (load(tmp_path/'m')(TEXTS[:20]) == clf(TEXTS[:20])).all()
    save(clf, tmp_path/'m') # over an old one

@pytest.mark.parametrize('harm', ['nothing', 'foreign', 'torn', 'other', 'format', 'array'])
def test_a_folder_that_is_no_classifier(clf, tmp_path, harm):
    path = tmp_path/'m'
    if harm != 'nothing': save(clf, path)
    if harm == 'foreign': (path/'model.json').write_text('[1, 2]')
    if harm == 'torn': (path/'weights.npz').write_bytes((path/'weights.npz').read_bytes()[:500])
    if harm == 'other': (path/'weights.npz').write_bytes(b'not a zip')
    if harm == 'format': (path/'model.json').write_text(json.dumps(dict(format='other', bits=3)))
    if harm == 'array': (path/'model.json').write_text((path/'model.json').read_text()[:40])
    with pytest.raises(UserError, match='model.json and weights.npz'): load(path)
