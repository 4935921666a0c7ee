"Requests longer than training: with dynamic scaling of RoPE each has frequencies for its own length, whoever else is in the batch"
import subprocess, sys
from dataclasses import replace
from pathlib import Path
import pytest, torch
from labkit.core.files import samples
from labkit.core.lm import Sampling
from labkit.core.settings import UserError
from labkit.corpus.tokens import train_tokenizer
from labkit.inference.engine import Engine, EngineSettings
from labkit.inference.runner import longest, reach, reaches
from labkit.model.config import ModelConfig, RopeScaling
from labkit.model.transformer import Transformer

@pytest.fixture(scope='module')
def tok(): return train_tokenizer([(samples().parent/'LICENSE').read_text()], 500)

DYNAMIC = RopeScaling('dynamic', 2.)

def model(tok, scaling=DYNAMIC, trained=16):
    torch.manual_seed(0)
    m = Transformer(ModelConfig(tok.n_vocab if hasattr(tok, 'n_vocab') else 512, 32, 2, 4, 2, 64, max_seq_len=trained, rope_theta=100., rope_scaling=scaling, head_dim=16)).eval()
    for n, p in m.named_parameters():
        if 'q_proj' in n or 'k_proj' in n: p.data *= 6                 # attention that looks at places, so that angles matter
    return m

def settings(**kw): return EngineSettings(**dict(dict(block_size=4, cache_tokens=1024, step_tokens=16, max_context=200, backend='torch'), **kw))

def prompt(n, seed=0): return torch.randint(0, 400, (n,), generator=torch.Generator().manual_seed(seed)).tolist()

@torch.inference_mode()
def scores(m, ids, length):
    "Logits of the model with the frequencies of `length`, all tokens at once"
    angles, x = m.rope.angles(torch.arange(len(ids))[None], length), m.embed_tokens(torch.tensor([ids]))
    for layer in m.layers: x = layer(x, *angles, m.attention)
    return m.head(m.norm(x))[0]

def alone(m, ids, n, limit=200):
    "Greedy tokens, each from the whole text anew"
    ids = list(ids)
    for _ in range(n): ids.append(int(scores(m, ids, reach(m.rope.cfg, len(ids), limit))[-1].argmax()))
    return tuple(ids[-n:])

GREEDY = dict(ignore_eos=True)

def test_reach_doubles_and_ends_at_the_limit():
    cfg = ModelConfig(64, 32, 1, 2, 2, 64, max_seq_len=16, rope_scaling=DYNAMIC)
    assert [reach(cfg, n) for n in (1, 16, 17, 32, 33, 64, 65)] == [0, 0, 32, 32, 64, 64, 128]
    assert reach(cfg, 70, 100) == 100 and reaches(cfg, 100) == [0, 32, 64, 100] and reaches(cfg, 16) == [0] and reaches(cfg, 64) == [0, 32, 64]
    assert reach(replace(cfg, rope_scaling=None), 10**6) == 0 and reaches(replace(cfg, rope_scaling=None), 10**6) == [0]
    far = lambda s: longest(replace(cfg, rope_scaling=s))
    assert (far(None), far(DYNAMIC), far(RopeScaling('linear', 3.)), far(RopeScaling('yarn', 4., original_max_seq_len=16)), far(RopeScaling('llama3', 8., original_max_seq_len=16))) == (16, None, 48, 64, 128)

def test_scaling_changes_what_the_model_writes(tok):
    m = model(tok)
    assert len({tuple(scores(m, prompt(60), n).argmax(-1).tolist()) for n in (0, 64, 128)}) == 3    # else the tests below could not fail

@pytest.mark.parametrize('more', [{}, dict(prefix=False), dict(kv='auto', step_tokens=7), dict(max_batch=2)])
def test_every_request_has_its_own_frequencies(tok, more):
    m, e = model(tok), Engine(model(tok), tok, settings(**more))
    lengths = (5, 40, 12, 90, 15, 30)                                  # 12, 15 and 30 grow beyond their reach
    ids = [e.add(prompt(n, n), Sampling(max_tokens=20, **GREEDY)) for n in lengths]
    got = {i: () for i in ids}
    while e.has_work:
        for o in e.step(): got[o.id] += o.tokens
    for i, n in zip(ids, lengths): assert got[i] == alone(m, prompt(n, n), 20), f'prompt of {n} tokens'
    assert e.cache.pool.n_free + e.cache.pool.n_idle == e.cache.n_blocks

def test_a_request_that_outgrows_its_reach_is_computed_again(tok):
    e = Engine(model(tok), tok, settings())
    c, = e.generate([prompt(14)], Sampling(max_tokens=60, **GREEDY))
    assert e.stats()['preemptions'] == 3 and c.tokens == alone(model(tok), prompt(14), 60)           # at 17, 33 and 65 tokens

def test_beginnings_are_shared_within_a_reach_only(tok):
    e, m = Engine(model(tok), tok, settings()), model(tok)
    begin = prompt(12)
    for n in (2, 30, 40, 3, 31):
        ids = begin + prompt(n, n)
        c, = e.generate([ids], Sampling(max_tokens=1, **GREEDY))
        assert c.tokens == alone(m, ids, 1), f'{len(ids)} tokens'
    assert e.stats()['prefix_hits'] == 36                              # the 12 tokens are found by the third, fourth and fifth, each among those of its own reach

def test_a_session_grows_through_its_reaches(tok):
    e, m, ids = Engine(model(tok), tok, settings()), model(tok), []
    for turn in range(5):
        ids = ids + prompt(11, turn)
        said = tuple(d.token for d in e.stream(ids, Sampling(max_tokens=6, **GREEDY), session='a') if d.token is not None)
        assert said == alone(m, ids, 6), f'turn {turn}'
        ids += said

def test_guesses_stay_within_the_reach(tok):
    class Right:
        def __init__(self, m): self.m = m
        def propose(self, r, k): return alone(self.m, r.ids(0, r.length), k) if k > 0 else ()
    m = model(tok)
    e = Engine(model(tok), tok, settings(guesses=4), guesser=Right(m))
    c, = e.generate([prompt(13)], Sampling(max_tokens=30, **GREEDY))
    assert c.tokens == alone(m, prompt(13), 30) and e.stats()['accepted'] > 10

def test_scores_are_those_of_the_reach(tok):
    e, m = Engine(model(tok), tok, settings()), model(tok)
    for n in (10, 40):
        ids = prompt(n, n)
        want = torch.log_softmax(scores(m, ids, reach(m.rope.cfg, n, 200)), -1)[torch.arange(n - 1), torch.tensor(ids[1:])]
        assert torch.allclose(torch.tensor([lp for lp, _, _ in e.token_scores(ids)]), want, atol=1e-4)

def test_a_context_beyond_training_needs_scaling(tok):
    with pytest.raises(UserError, match='max_context = 200: the model was trained for 16 tokens and its RoPE goes as far as 16.*rope_factor'): Engine(model(tok, None), tok, settings())
    with pytest.raises(UserError, match='as far as 48'): Engine(model(tok, RopeScaling('linear', 3.)), tok, settings())
    e = Engine(model(tok, None), tok, settings(rope_factor=2.))
    assert e.generate([prompt(50)], Sampling(max_tokens=8, **GREEDY))[0].tokens == alone(model(tok), prompt(50), 8)
    e = Engine(model(tok, RopeScaling('linear', 13.)), tok, settings())
    assert e.generate([prompt(50)], Sampling(max_tokens=8, **GREEDY))[0].tokens == alone(model(tok, RopeScaling('linear', 13.)), prompt(50), 8)

def test_the_compiled_step_runs_dynamic_models_within_training(tok):
    m, kw = model(tok, trained=64), dict(max_context=0)
    e = Engine(model(tok, trained=64), tok, settings(backend='auto', **kw))
    assert e.stats()['backend'] == 'numba' and e.generate([prompt(40)], Sampling(max_tokens=8, **GREEDY))[0].tokens == Engine(m, tok, settings(**kw)).generate([prompt(40)], Sampling(max_tokens=8, **GREEDY))[0].tokens
    e = Engine(model(tok, trained=64), tok, settings(backend='auto'))
    assert e.stats()['backend'] == 'torch' and 'rotary' in e.stats()['backend_reason']

@pytest.mark.slow
def test_the_gpu_runner_has_angles_for_every_reach():
    out = subprocess.run([sys.executable, Path(__file__).parent/'long_kernels.py'], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0 and 'equal' in out.stdout, out.stdout + out.stderr
