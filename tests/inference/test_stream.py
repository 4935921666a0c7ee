"Sampling, stop texts and characters, without an engine."
import pytest, torch
from hypothesis import given, settings as hyp, strategies as st
from labkit.core.lm import Sampling
from labkit.corpus.tokens import train_tokenizer
from labkit.inference.sampling import BadSampling, NotFinite, adjust, check_sampling, choose, distribution, generator_for
from labkit.inference.stream import Detokenizer, StopText

torch.set_num_threads(1)
TOKENIZER = train_tokenizer(['hello 你好世界 🦊🦊 naïve '] * 3, 300)
LOGITS = torch.tensor([2., 1., 0., -1., -8.])

@given(st.text(max_size=40))
@hyp(max_examples=80, deadline=None)
def test_streamed_text_is_the_text(text):
    ids, d = TOKENIZER.encode(text), Detokenizer(TOKENIZER)
    parts = [d.add(i) for i in ids] + [d.flush()]
    assert ''.join(parts) == TOKENIZER.decode(ids)
    if '\ufffd' not in text: assert not any('\ufffd' in p for p in parts)

def test_half_a_character_at_the_end_becomes_a_replacement():
    d = Detokenizer(TOKENIZER)
    shown = ''.join(d.add(i) for i in TOKENIZER.encode('龘')[:-1])
    assert shown == '' and '\ufffd' in d.flush()

@given(st.lists(st.text('abc', max_size=3), max_size=8), st.lists(st.text('abc', min_size=1, max_size=4), min_size=1, max_size=3))
@hyp(max_examples=200, deadline=None)
def test_stop_text_across_any_pieces(pieces, stops):
    s = StopText(stops)
    shown = ''.join(s.add(p) for p in pieces)
    whole = ''.join(pieces)
    ends = [i + len(t) for t in stops for i in [whole.find(t)] if i >= 0]
    if s.found is None: assert not ends and shown + s.flush() == whole
    else: assert whole.startswith(shown) and not any(t in shown for t in stops) and any(whole.startswith(shown + t) for t in stops)
    assert bool(ends) == (s.found is not None)

def test_nothing_is_shown_that_would_be_taken_back():
    s = StopText(['\nUser:'])
    assert [s.add(t) for t in ('Hi', '\nUs', 'ed', '\nUser', ':', ' more')] == ['Hi', '', '\nUsed', '', '', '']
    assert s.found == '\nUser:'

@pytest.mark.parametrize('params, kept', [(dict(top_k=2), 2), (dict(top_p=.6), 1), (dict(top_p=.9), 3), (dict(min_p=.2), 2), (dict(), 5)])
def test_what_is_left_out(params, kept):
    p = distribution(LOGITS, Sampling(temperature=1., **params))
    assert int((p > 0).sum()) == kept and float(p.sum()) == pytest.approx(1)
    assert (p > 0)[:kept].all()

@pytest.mark.parametrize('params', [dict(), dict(temperature=.5), dict(temperature=1.7, top_k=3), dict(top_p=.9), dict(min_p=.1)])
def test_draws_follow_the_distribution(params):
    "Chi-square with 4 degrees of freedom: 23.5 is the 99.99% quantile; the seed is fixed"
    params = Sampling(**{'temperature': 1., 'seed': 11, **params})
    g, n = generator_for(params, 0), 4000
    seen = torch.bincount(torch.tensor([choose(LOGITS, params, [], g).token for _ in range(n)]), minlength=5).double()
    want = distribution(LOGITS, params).double() * n
    assert seen[want == 0].sum() == 0
    assert ((seen - want) ** 2 / want)[want > 0].sum() < 23.5

def test_seeds_decide():
    def run(seed, default=0):
        p = Sampling(temperature=1., seed=seed); g = generator_for(p, default)
        return [choose(LOGITS, p, [], g).token for _ in range(30)]
    assert run(1) == run(1) == run(1, default=5) and run(1) != run(2) and run(None, 3) == run(None, 3) != run(None, 4)

def test_penalties_and_bias():
    x = adjust(LOGITS, Sampling(presence_penalty=1., frequency_penalty=.5, logit_bias=((4, 20.),)), [0, 0, 1])
    assert x.tolist() == pytest.approx([0., -.5, 0., -1., 12.])
    assert choose(LOGITS, Sampling(logit_bias=((3, 50.),)), [], torch.Generator()).token == 3

def test_nan_is_an_error():
    with pytest.raises(NotFinite): choose(torch.full((4,), float('nan')), Sampling(), [], torch.Generator())

@pytest.mark.parametrize('bad', [dict(top_p=0.), dict(top_p=1.1), dict(temperature=-1.), dict(max_tokens=0), dict(top_k=-1), dict(min_p=2.), dict(stop=('',)), dict(logit_bias=((99, 1.),)), dict(logprobs=-1)])
def test_bad_sampling_parameters_name_the_field(bad):
    with pytest.raises(BadSampling, match=next(iter(bad))): check_sampling(Sampling(**bad), 10)
