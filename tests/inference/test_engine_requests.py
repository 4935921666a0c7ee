"The engine: whatever happens around a request, it gets the tokens that it would get alone, and its blocks come back."
import threading
import pytest, torch
from hypothesis import given, settings as hyp, strategies as st
from labkit.core.lm import LM, Sampling
from labkit.core.settings import UserError
from labkit.inference.engine import PromptTooLong, RequestFailed
from engine_doubles import GREEDY, MODEL, PROMPTS, TOKENIZER, engine, tiny

torch.set_num_threads(1)
def naive(model, text, n=14):
    ids = TOKENIZER.encode(text)
    start = len(ids)
    for _ in range(n): ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return tuple(ids[start:])

WANT = [naive(MODEL, p) for p in PROMPTS]

@pytest.mark.parametrize('changes', [{}, dict(max_batch=1), dict(step_tokens=4), dict(block_size=1), dict(block_size=32), dict(cache_tokens=52)])
def test_batch_chunks_blocks_and_preemption_change_no_token(changes):
    e = engine(**changes)
    assert [c.tokens for c in e.generate(PROMPTS, GREEDY)] == WANT
    assert e.stats()['cache_blocks_used'] == 0
    if changes.get('cache_tokens') == 52: assert e.stats()['preemptions'] > 0

@pytest.mark.parametrize('changes', [dict(qk_norm=True, family='qwen3'), dict(qkv_bias=True, family='qwen2'), dict(sliding_window=5, family='mistral'), dict(n_kv_heads=4), dict(tie_embeddings=True)])
@pytest.mark.parametrize('backend', ['torch', 'numba'])
def test_every_architecture_on_both_backends(changes, backend):
    model = tiny(1, **changes)
    e = engine(model, backend=backend)
    assert e.stats()['backend'] == backend
    assert [c.tokens for c in e.generate(PROMPTS, GREEDY)] == [naive(model, p) for p in PROMPTS]

@pytest.mark.parametrize('changes, why', [(dict(sliding_window=5, window_layers=(1,), qkv_bias=True, family='qwen2'), 'only some of its layers have a sliding window'),
                                          (dict(n_experts=4, experts_per_token=2, family='mixtral'), 'mixture of experts'), (dict(n_experts=4, experts_per_token=2, expert_dim=32, shared_expert_dim=24, family='qwen2_moe', qkv_bias=True), 'mixture')])
def test_architectures_that_only_torch_runs(changes, why):
    model = tiny(1, **changes)
    e = engine(model, backend='torch')
    assert [c.tokens for c in e.generate(PROMPTS, GREEDY)] == [naive(model, p) for p in PROMPTS]
    with pytest.raises(UserError, match=why): engine(model, backend='numba')

def test_eight_bit_cache_is_close_and_small():
    a, b = engine(), engine(kv='int8')
    assert b.cache.bytes_per_token < a.cache.bytes_per_token / 2
    assert b.stats()['backend'] == 'torch' and b.stats()['kv'] == 'int8'
    assert b.generate(['hello'], Sampling(max_tokens=1))[0].tokens == a.generate(['hello'], Sampling(max_tokens=1))[0].tokens

@given(st.data())
@hyp(max_examples=25, deadline=None)
def test_random_schedules_leak_no_block_and_change_no_token(data):
    e, alive, got, aborted = engine(cache_tokens=data.draw(st.sampled_from([52, 80, 200])), step_tokens=data.draw(st.sampled_from([5, 16]))), {}, {}, set()
    for _ in range(data.draw(st.integers(5, 25))):
        what = data.draw(st.sampled_from(['add', 'step', 'step', 'step', 'abort']))
        if what == 'add':
            k = data.draw(st.integers(0, len(PROMPTS) - 1)); i = e.add(PROMPTS[k], GREEDY); alive[i], got[i] = k, ()
        elif what == 'abort' and alive: aborted.add(i := data.draw(st.sampled_from(sorted(alive)))); e.abort(i)
        else:
            for o in e.step(): got[o.id] += o.tokens
        assert len({b for r in e.scheduler.running for b in r.table}) == e.stats()['cache_blocks_used']
    while e.has_work:
        for o in e.step(): got[o.id] += o.tokens
    assert e.stats()['cache_blocks_used'] == 0 and not e._jobs
    for i, k in alive.items(): assert got[i] == WANT[k] if i not in aborted else got[i] == WANT[k][:len(got[i])]

def test_abort_ends_waiting_and_running_requests():
    e = engine(max_batch=1)
    a, b = e.add('hello', GREEDY), e.add('world', GREEDY)
    e.step(); e.abort(b); e.abort(a); e.abort(999)
    assert {o.id: o.finish_reason for o in e.step()} == {a: 'abort', b: 'abort'}
    assert not e.has_work and e.cache.pool.n_free == e.cache.n_blocks

def test_leaving_a_stream_frees_its_blocks():
    e = engine()
    for delta in e.stream('hello', GREEDY): break
    assert e.stats()['cache_blocks_used'] == 0 and e.stats()['aborted'] == 1

def test_stream_and_generate_agree():
    e = engine()
    c, = e.generate(['the cat'], GREEDY)
    deltas = list(e.stream('the cat', GREEDY))
    assert ''.join(d.text for d in deltas) == c.text == TOKENIZER.decode(c.tokens)
    assert tuple(d.token for d in deltas if d.token is not None) == c.tokens and deltas[-1].finish_reason == 'length'

def test_several_threads_get_their_own_answers():
    e, out = engine(), {}
    def ask(k): out[k] = e.generate([PROMPTS[k]], GREEDY)[0].tokens
    ids = [e.add(p, GREEDY) for p in PROMPTS[:2]]
    threads = [threading.Thread(target=ask, args=(k,)) for k in range(len(PROMPTS))]
    for t in threads: t.start()
    for t in threads: t.join()
    got = {i: () for i in ids}
    while e.has_work:
        for o in e.step(): got[o.id] += o.tokens
    assert [out[k] for k in range(len(PROMPTS))] == WANT and list(got.values()) == WANT[:2]

@pytest.mark.parametrize('prompt, error, words', [
    ([1] * 96, PromptTooLong, '96 tokens'), ([10**6], UserError, 'not in the vocabulary'), ('hello', UserError, 'temperature')])
def test_bad_requests_are_refused_before_they_run(prompt, error, words):
    e = engine()
    with pytest.raises(error, match=words): e.add(prompt, Sampling(temperature=-1) if prompt == 'hello' else GREEDY)
    assert not e.has_work

def test_a_cache_smaller_than_the_context_limits_prompts():
    with pytest.raises(PromptTooLong, match='room for 8'): engine(cache_tokens=8).add('a b c d e f g h i', GREEDY)

def test_a_completion_ends_where_the_context_ends():
    c, = engine(max_context=20).generate(['hello world'], Sampling(max_tokens=500, ignore_eos=True))
    assert c.finish_reason == 'length' and c.prompt_tokens + len(c.tokens) == 20

def test_nan_scores_end_the_request_with_an_error_and_not_the_engine():
    model = tiny(2)
    e = engine(model)
    good = {n: p.clone() for n, p in model.state_dict().items()}
    e.load_weights({n: torch.full_like(p, float('nan')) for n, p in good.items()})
    with pytest.raises(RequestFailed, match='NaN'): e.generate(['hello'], GREEDY)
    e.load_weights(good)
    assert e.generate(['hello world'], GREEDY)[0].tokens == naive(model, 'hello world')
    assert e.stats()['cache_blocks_used'] == 0

def test_new_weights_take_effect_and_wrong_ones_are_refused():
    model, other = tiny(0), tiny(5)
    e = engine(model, backend='numba')
    assert e.generate(['hello world'], GREEDY)[0].tokens == WANT[0]
    e.load_weights(other.state_dict())
    assert e.generate(['hello world'], GREEDY)[0].tokens == naive(other, 'hello world')
    with pytest.raises(UserError, match='do not fit'): e.load_weights({'x': torch.zeros(1)})

def test_loglikelihood_is_the_models_own():
    e, pairs = engine(), [('hello', ' world'), ('the cat', ' sat on the mat'), ('', 'hello')]
    for (a, b), (score, greedy) in zip(pairs, e.loglikelihood(pairs)):
        ctx = TOKENIZER.encode(a) or [TOKENIZER.eos_id]
        ids = (TOKENIZER.encode(a + b) if a else ctx + TOKENIZER.encode(b))
        lp = MODEL(torch.tensor([ids]))[0].log_softmax(-1)
        at = range(len(ctx), len(ids))
        assert score == pytest.approx(sum(float(lp[i - 1, ids[i]]) for i in at), abs=1e-3)
        assert greedy == all(int(lp[i - 1].argmax()) == ids[i] for i in at)
    with pytest.raises(UserError, match='is empty'): e.loglikelihood([('hello', '')])

def test_logprobs_are_the_models_own():
    c, = engine().generate(['hello world'], Sampling(max_tokens=4, logprobs=3, ignore_eos=True))
    ids = TOKENIZER.encode('hello world')
    for token, lp, top in zip(c.tokens, c.logprobs, c.top_logprobs):
        row = MODEL(torch.tensor([ids]))[0, -1].log_softmax(-1)
        assert lp == pytest.approx(float(row[token]), abs=1e-4) and len(top) == 3 and max(top, key=top.get) == token
        ids.append(token)

def test_the_engine_is_an_lm_and_says_why_it_chose_its_backend():
    e = engine(tiny(0, dim=48), backend='auto')
    assert isinstance(e, LM)
    assert e.stats()['backend'] == 'torch' and 'multiple of 32' in e.stats()['backend_reason']
    with pytest.raises(UserError, match='backend = numba'): engine(tiny(0, dim=48), backend='numba')

def test_batch_of_the_compiled_step_is_bitwise_the_same():
    e = engine(backend='numba', max_batch=16)
    P = Sampling(max_tokens=6, logprobs=1, ignore_eos=True)
    alone = [e.generate([p], P)[0].logprobs for p in PROMPTS[:3]]
    crowd = [c.logprobs for c in e.generate(PROMPTS[:3] + ['hello'] * 8, P)[:3]]
    assert alone == crowd

def test_a_model_in_bfloat16_answers():
    e = engine(tiny().to(torch.bfloat16))
    assert len(e.generate(['hello world'], GREEDY)[0].tokens) == 14 and e.stats()['kv'] == 'bfloat16'
