"Quality scores: deterministic, in range, separating what they were taught to separate"
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.classifier import auc
from labkit.corpus.ngram import NgramModel
from labkit.corpus.quality import DAMAGE, DIMENSIONS, Passage, QualityModel, SIGNALS, examples, fit_logistic, log_odds, padded, signals_of, train_quality

@pytest.fixture(scope='module')
def passages(): return examples()
@pytest.fixture(scope='module')
def model(passages): return train_quality(passages)

def test_the_same_model_twice(passages, model):
    assert examples() == passages
    again, texts = train_quality(passages), [p.text for p in passages[::100]]
    assert all((again.scores(texts)[k] == v).all() for k, v in model.scores(texts).items())

def test_damage_scores_lower(passages, model):
    rng = np.random.default_rng(3)
    good = [p.text for p in passages if p.label in ('reference', 'book')][::6]
    for f, k in [(f, 'text_quality') for f in DAMAGE] + [(padded, 'information_density')]:
        a, b = model.scores(good)[k], model.scores([f(t, rng) for t in good])[k]
        assert auc(np.r_[a, b], np.r_[np.ones(len(a)), np.zeros(len(b))]) > .8, f.__name__ # what the model learns from differs with the packages that are installed

TEXTS = st.text(max_size=200) | st.lists(st.sampled_from(['a', '茶', '.', '\n', '12', '|']), max_size=80).map(' '.join)

@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS, max_size=4))
def test_every_text_has_three_scores(model, texts):
    s = model.scores(texts)
    assert tuple(s) == DIMENSIONS
    assert all(v.shape == (len(texts),) and v.dtype == np.float32 and ((v >= 0) & (v <= 1)).all() for v in s.values())

@settings(max_examples=50, deadline=None)
@given(TEXTS)
def test_signals_are_finite(text):
    x = signals_of(text, NgramModel.train(['a rose is a rose is a rose']))
    assert x.shape == (len(SIGNALS),) and np.isfinite(x).all()

@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=200), st.integers(0, 9))
def test_damage_never_fails(text, seed):
    for f in (*DAMAGE, padded): assert isinstance(f(text, np.random.default_rng(seed)), str)

def test_logistic_regression_finds_the_line():
    rng = np.random.default_rng(0); x = rng.normal(size=(2000, 2))
    y = (rng.random(2000) < 1 / (1 + np.exp(-(2 * x[:, 0] - x[:, 1] + .5)))).astype(float)
    w = fit_logistic(x, y)
    assert w[:2, 2] / w[:2, 1] == pytest.approx([2, -1], abs=.3) and log_odds(np.zeros((1, 2)), w)[0] == pytest.approx(.5, abs=.2)

def test_save_and_load(model, tmp_path):
    model.save(tmp_path/'q')
    assert all((QualityModel.load(tmp_path/'q').scores(['tea'])[k] == v).all() for k, v in model.scores(['tea']).items())
    (tmp_path/'q'/'signals.json').write_text('{}')
    with pytest.raises(UserError, match='no quality model'): QualityModel.load(tmp_path/'q')

def test_labels_are_asked_for():
    with pytest.raises(UserError, match='no passages labelled explained, licence'): train_quality([Passage('x', l, l) for l in ('reference', 'book', 'readme', 'review', 'listing')])
