"Guesses and their check: nobody can tell from the text that there were any"
import json, pytest, torch
from labkit.core.lm import Sampling
from labkit.corpus.tokens import train_tokenizer
from labkit.inference.cache import PagedCache
from labkit.inference.grammar import compile
from labkit.inference.runner import TorchRunner
from labkit.inference.sampling import NotFinite, choose, generator_for
from labkit.inference.scheduler import Request, Work
from labkit.inference.speculate import Adaptive, DraftModel, PromptLookup, tokens_per_step, verify
from labkit.model.config import preset
from labkit.model.transformer import Transformer
from engine_doubles import MODEL, TOKENIZER, engine

HOT = Sampling(temperature=1.)

@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    m = Transformer(preset('lab-1m')).eval().requires_grad_(False)
    for p in m.parameters():
        if p.ndim > 1: p.normal_(0, .1)
    return m

def table(V, seed): return 2*torch.randn(V + 1, V, generator=torch.Generator().manual_seed(seed)) # scores after each token; the last row: at the start

@pytest.mark.parametrize('params', [HOT, Sampling(temperature=.7, top_k=4), Sampling(temperature=1.5, top_p=.8, min_p=.05), Sampling(temperature=1., presence_penalty=1., repetition_penalty=1.3)])
@pytest.mark.parametrize('k', [1, 3])
def test_same_text_as_without(params, k):
    "Fixed guesses, right and wrong ones: token by token what the same generator gives without them"
    scores, V, n = table(8, 1), 8, 60
    plain, g = [], generator_for(params, 5)
    while len(plain) < n: plain.append(choose(scores[plain[-1] if plain else V], params, plain, g, prompt=[2]).token)
    out, g, steps, pick = [], generator_for(params, 5), 0, torch.Generator().manual_seed(2)
    while len(out) < n:
        guess = [t if torch.rand((), generator=pick) < .7 else int(torch.randint(V, (), generator=pick)) for t in plain[len(out):len(out) + k]]
        at = [out[-1] if out else V, *guess]
        out += [c.token for c in verify(scores[at], guess, params, g, out, prompt=[2])]
        steps += 1
    assert out[:n] == plain and steps < n

def chi2(seen, p, n):
    often = p*n >= 5
    return float(((seen - p*n)[often]**2/(p*n)[often]).sum()), int(often.sum()) - 1

@pytest.mark.parametrize('params', [HOT, Sampling(temperature=.6, top_p=.9)])
def test_drawn_guesses_leave_the_distribution(params):
    "Triples of tokens from rejection sampling against the product of the model's probabilities; and the share accepted is the overlap"
    from labkit.inference.sampling import distribution
    V, n, g = 4, 8000, torch.Generator().manual_seed(4)
    target, draft = table(V, 1), table(V, 9)
    P = torch.stack([distribution(x, params) for x in target]); Q = draft.softmax(-1)
    seen, first = torch.zeros(V, V, V), 0
    for _ in range(n):
        a = int(torch.multinomial(Q[V], 1, generator=g)); b = int(torch.multinomial(Q[a], 1, generator=g))
        got = [c.token for c in verify(target[[V, a, b]], (a, b), params, g, [], proposal=Q[[V, a]])]
        first += len(got) > 1
        while len(got) < 3: got.append(choose(target[got[-1]], params, [], g).token)
        seen[tuple(got)] += 1
    want = P[V][:, None, None]*P[:V][:, :, None]*P[None, :V]
    x, free = chi2(seen, want, n)
    assert x < free + 5*(2*free)**.5 and seen[want == 0].sum() == 0
    assert abs(first/n - float(torch.minimum(P[V], Q[V]).sum())) < .03

def test_greedy_is_identical_with_any_guess(model):
    ids = list(range(20))
    full = lambda more: model(torch.tensor([ids + more]))[0, -1 - len(more):]
    plain = []
    for _ in range(12): plain.append(int(model(torch.tensor([ids + plain]))[0, -1].argmax()))
    g = torch.Generator()
    assert [c.token for c in verify(full(plain[:4]), plain[:4], Sampling(), g, [])] == plain[:5]
    wrong = plain[:2] + [(plain[2] + 1) % 100] + plain[3:4]
    assert [c.token for c in verify(full(wrong), wrong, Sampling(), g, [])] == plain[:3]
    assert [c.token for c in verify(full(plain[:1]), plain[:1], Sampling(logprobs=2), g, [])] == plain[:2]

def test_the_end_stops_and_limits_hold():
    scores = table(5, 1)
    best = scores.argmax(-1).tolist()
    a = best[5]
    assert [c.token for c in verify(scores[[5, a]], (a,), Sampling(), torch.Generator(), [], ends=(a,))] == [a], 'nothing comes after the end'
    got = [c.token for c in verify(scores[[5, a]], (a,), Sampling(min_tokens=2), torch.Generator(), [], ends=(a,))]
    assert got[0] != a and len(got) == 1, 'the end was guessed before it may come'
    scores[a] = torch.nan
    with pytest.raises(NotFinite): verify(scores[[5, a]], (a,), Sampling(), torch.Generator(), [])
    with pytest.raises(NotFinite): verify(scores[[5, a]]*torch.nan, (a,), HOT, torch.Generator(), [], proposal=torch.full((1, 5), .2))

def test_with_a_constraint_the_same_text_and_the_constraint_stays_where_it_was():
    tok = train_tokenizer(['{"name": "Ada", "age": 36}']*20, 330)
    grammar = compile('json_schema', json.dumps(dict(type='object', properties=dict(name=dict(type='string', maxLength=6), age=dict(type='integer')), required=['name', 'age'], additionalProperties=False)), tok)
    V, allowed = tok.vocab_size, torch.zeros(tok.vocab_size, dtype=torch.bool)
    scores = torch.randn(600, V, generator=torch.Generator().manual_seed(0)); scores[:, list(tok.eos_ids)] += 3
    def plain():
        state, g, out = grammar.start(), generator_for(HOT, 1), []
        while not out or out[-1] not in tok.eos_ids: out.append(choose(scores[len(out)], HOT, out, g, allowed=state.mask(allowed)).token); state.accept(out[-1])
        return out
    want, state, g, out, pick, steps = plain(), grammar.start(), generator_for(HOT, 1), [], torch.Generator().manual_seed(3), 0
    while not out or out[-1] not in tok.eos_ids:
        guess = [t if torch.rand((), generator=pick) < .8 else int(torch.randint(V, (), generator=pick)) for t in want[len(out):len(out) + 4]]
        before = state.mask(torch.zeros(V, dtype=torch.bool))
        choices = verify(scores[len(out):len(out) + len(guess) + 1], guess, HOT, g, out, state, ends=tok.eos_ids)
        assert torch.equal(state.mask(torch.zeros(V, dtype=torch.bool)), before)
        for c in choices: assert state.accept(c.token)
        out += [c.token for c in choices]; steps += 1
    assert out == want and steps < len(want) and set(json.loads(tok.decode(out))) == {'name', 'age'}

def ask(prompt, tokens=(), known=9): return Request(0, list(prompt), Sampling(), known, tokens=list(tokens))

def test_lookup():
    look = PromptLookup()
    r = ask([5, 6, 7, 8, 9], [5, 6])
    assert look.propose(r, 2) == (7, 8) and look.propose(r, 0) == ()
    r.tokens += [1, 5, 6]
    assert look.propose(r, 3) == (1, 5, 6), 'the last place counts'
    r.tokens += [7, 8]
    assert look.propose(r, 1) == (9,), 'the longer n-gram counts first'
    assert look.propose(ask([1, 2, 1, 2, 1, 2]), 5) == (1, 2, 1, 2, 1)
    assert look.propose(ask([1, 2, 3]), 4) == () and look.propose(ask([]), 4) == () and look.propose(ask([1]), 4) == ()
    for _ in range(50): look.propose(ask(range(30)), 3)
    import gc; gc.collect()
    assert len(look.indexes) <= 1, 'requests that are gone leave nothing behind'

def test_lookup_equals_a_search():
    g = torch.Generator().manual_seed(0)
    for _ in range(40):
        look, ids = PromptLookup(3, 2), torch.randint(4, (40,), generator=g).tolist()
        r = ask(ids[:10])
        for t in ids[10:]:
            r.tokens.append(t); now = r.prompt + r.tokens
            at = next((max(e for e in range(n, len(now)) if now[e - n:e] == now[-n:]) for n in (3, 2) if any(now[e - n:e] == now[-n:] for e in range(n, len(now)))), None)
            want = () if at is None else tuple((now[at:] * 5)[:4])
            assert look.propose(r, 4) == want

def draft_alone(model, ids, k):
    out = []
    for _ in range(k): out.append(int(model(torch.tensor([ids + out]))[0, -1].argmax()))
    return tuple(out)

def test_draft_model_is_greedy_and_forgets_what_was_refused(model):
    draft = DraftModel(model, max_batch=2, tokens=256)
    r, other = ask(range(10)), ask([7, 3, 7])
    for tokens in ([], [4], [4, 5, 6], [4, 5, 6, *draft_alone(model, [*range(10), 4, 5, 6], 2)]):
        r.tokens = list(tokens)
        assert draft.propose(r, 3) == draft_alone(model, r.prompt + r.tokens, 3)
        assert draft.propose(other, 2) == draft_alone(model, other.prompt, 2)
    r.tokens = [9]                                              # preempted and begun anew: other tokens than before
    assert draft.propose(r, 2) == draft_alone(model, [*range(10), 9], 2)

def test_draft_model_finds_room(model):
    draft = DraftModel(model, max_batch=1, tokens=64)
    some = [ask([i + 1]*20) for i in range(6)]
    for r in some + some: assert draft.propose(r, 2) == draft_alone(model, r.prompt, 2)
    assert draft.propose(ask(range(100)), 2) == (), 'a request that never fits gets no guesses'
    for r in some: r.finish_reason = 'stop'
    draft.propose(ask([1, 2]), 1)
    assert len(draft.requests) <= 1 or all(r.finish_reason is None for r in draft.requests)
    for r in list(draft.requests): draft.forget(r)
    assert draft.cache.pool.n_free == draft.cache.n_blocks

class Fixed:
    def __init__(self, tokens): self.tokens, self.asked = tokens, []
    def propose(self, r, k): self.asked.append(k); return tuple(self.tokens[:k])

def test_adaptive_guesses_more_when_they_hold_and_fewer_when_they_do_not():
    for right, check in ((True, lambda n: n[-1] == 6), (False, lambda n: n[-1] <= 1 and len(n) < 40)):
        inner = Fixed([1]*8)
        smart, r = Adaptive(inner, cost=.1), ask([0, 0], known=999)
        for _ in range(60):
            guess = smart.propose(r, 6)
            r.tokens += [*guess, 1] if right else [2]
        assert check(inner.asked), inner.asked

def test_expected_tokens():
    g = torch.Generator().manual_seed(0)
    for a, k in ((.8, 4), (.3, 2), (0., 3), (1., 3)):
        drawn = (torch.rand(20000, k, generator=g) < a).float().cumprod(1).sum(1).mean() + 1
        assert abs(float(drawn) - tokens_per_step(a, k)) < .05

def test_whole_loop_on_a_paged_cache(model):
    "Greedy with guesses, refused ones written over: the same tokens as the model gives without a cache"
    cache = PagedCache(model.cfg, 40)
    runner, look, r = TorchRunner(model, cache), PromptLookup(2, 1), ask([1, 2, 3, 4, 1, 2, 3, 4, 1, 2])
    steps = 0
    while len(r.tokens) < 30:
        guess = look.propose(r, 4)
        cache.grow(r.table, r.length + len(guess))
        r.tokens += [c.token for c in verify(runner([Work(r, r.computed, r.length - r.computed + len(guess), guess)]), guess, Sampling(), torch.Generator(), r.tokens)]
        r.computed = r.length - 1; steps += 1
    plain = []
    while len(plain) < 30: plain.append(int(model(torch.tensor([r.prompt + plain]))[0, -1].argmax()))
    assert r.tokens[:30] == plain and steps <= 30

@pytest.mark.parametrize('guesser', [lambda: Adaptive(PromptLookup()), lambda: DraftModel(MODEL, 4)], ids=['lookup', 'draft'])
def test_constrained_and_free_requests_of_one_batch_with_guesses(guesser):
    "The same tokens as without guesses, greedy and drawn; what is constrained keeps to its grammar"
    schema = '{"type": "array", "items": {"enum": ["cat", "mat"]}, "minItems": 3, "maxItems": 3}'
    asked = [(p, Sampling(max_tokens=40, **how)) for p in ('the cat sat on the mat the cat sat', 'a dog') for how in (dict(regex='(ab){6}c'), dict(json_schema=schema, temperature=1., seed=4), {}, dict(temperature=.8, seed=5))]
    def run(e):
        ids, got = [e.add(p, s) for p, s in asked], {}
        while e.has_work:
            for o in e.step(): assert o.finish_reason != 'error', o.error; got.setdefault(o.id, []).extend(o.tokens)
        return [got[i] for i in ids]
    plain, fast = engine(), engine(guesser=guesser())
    want = run(plain)
    assert run(fast) == want
    for (_, s), tokens in zip(asked, want):
        text = TOKENIZER.decode(tokens)
        if s.regex: assert text == 'ab'*6 + 'c'
        if s.json_schema: assert len(json.loads(text)) == 3 and set(json.loads(text)) <= {'cat', 'mat'}
    c = fast.stats()
    assert c['guessed'] > 0 and c['accepted'] > 0 and c['steps'] < plain.stats()['steps']
