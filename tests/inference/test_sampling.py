"Choosing tokens: penalties and limits of one request, and the kernel for a batch"
import math
import pytest, torch
from pathlib import Path
from interpreted import assert_said, on_gpu
from labkit.core.lm import Sampling
from labkit.inference.sampling import BadSampling, adjust, check_sampling, choose, generator_for

CHECKS, NAMES = Path(__file__).with_name('sampling_checks.py'), ('same_tokens', 'no_options', 'alone_or_together', 'all_seeds', 'counts_on', 'right_distribution', 'known_numbers')

@pytest.mark.parametrize('name', NAMES)
def test_kernel_interpreted(name): assert_said(f'{name} holds', CHECKS, 'cpu')

@on_gpu
@pytest.mark.parametrize('name', NAMES)
def test_kernel_compiled(name): assert_said(f'{name} holds', CHECKS, 'cuda')

def test_repetition_penalty_is_transformers():
    transformers = pytest.importorskip('transformers')
    g = torch.Generator().manual_seed(0)
    x, prompt, written = torch.randn(50, generator=g), [3, 3, 7, 9], [9, 11]
    want = transformers.RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + written]), x[None].clone())[0]
    assert torch.equal(adjust(x, Sampling(repetition_penalty=1.7), written, prompt), want)

def test_min_tokens_keeps_the_end_away():
    x, p, g = torch.tensor([0., 9., 1.]), Sampling(min_tokens=2), generator_for(Sampling(), 0)
    assert [choose(x, p, [5]*n, g, ends=(1,)).token for n in range(4)] == [2, 2, 1, 1]
    drawn = {choose(x, Sampling(min_tokens=1, temperature=1.), [], g, ends=(1,)).token for _ in range(50)}
    assert drawn == {0, 2}

def test_a_constraint_leaves_out():
    x, ok, g = torch.tensor([5., 4., 3.]), torch.tensor([False, False, True]), generator_for(Sampling(), 0)
    assert choose(x, Sampling(), [], g, greedy=0, allowed=ok).token == 2
    assert {choose(x, Sampling(temperature=9.), [], g, allowed=ok).token for _ in range(20)} == {2}

def test_a_constraint_that_must_end_beats_min_tokens():
    x, only_end, g = torch.tensor([5., 4., 3.]), torch.tensor([False, True, False]), generator_for(Sampling(), 0)
    for t in (0., 1.): assert choose(x, Sampling(min_tokens=5, temperature=t), [], g, ends=(1,), allowed=only_end).token == 1

def test_nothing_left_to_choose_is_an_error():
    x, ok, g = torch.tensor([5., 4., 3.]), torch.tensor([False, False, True]), generator_for(Sampling(), 0)
    for t in (0., 1.):
        with pytest.raises(BadSampling, match='no token'): choose(x, Sampling(logit_bias=((2, -math.inf),), temperature=t), [], g, allowed=ok)

def test_almost_no_temperature_is_greedy():
    g = generator_for(Sampling(), 0)
    assert [choose(torch.tensor([1., 50., 49.]), Sampling(temperature=t), [], g).token for t in (1e-40, 1e-12)] == [1, 1]

@pytest.mark.parametrize('bad', [dict(top_k=2.5), dict(logprobs=True), dict(logit_bias=((5, 'a'),)), dict(logit_bias=((5.5, 1),)), dict(logit_bias=(5,)), dict(logit_bias=((5, math.nan),)), dict(presence_penalty='a'), dict(temperature=math.nan),
                                 dict(temperature=math.inf), dict(temperature='hot'), dict(max_tokens=None), dict(max_tokens=2.), dict(stop='abc'), dict(stop=(3,)), dict(seed=1.5), dict(seed=2**65), dict(json_schema={}), dict(min_p=None), dict(frequency_penalty=math.inf)])
def test_what_is_no_number_or_text_names_its_field(bad):
    with pytest.raises(BadSampling, match=next(iter(bad))): check_sampling(Sampling(**bad), 100)

def test_lists_and_numpy_numbers_are_welcome():
    np = pytest.importorskip('numpy')
    check_sampling(Sampling(stop=['a'], logit_bias=[[3, -math.inf]], top_k=np.int64(3), temperature=np.float32(.5), seed=2**63), 100)

@pytest.mark.parametrize('p, name', [(Sampling(repetition_penalty=0.), 'repetition_penalty'), (Sampling(min_tokens=-1), 'min_tokens'), (Sampling(max_tokens=3, min_tokens=4), 'min_tokens'), (Sampling(top_k=-1), 'top_k'),
                                     (Sampling(json_schema='{}', regex='a'), 'json_schema')])
def test_what_cannot_be_asked(p, name):
    with pytest.raises(BadSampling, match=name): check_sampling(p, 100)
