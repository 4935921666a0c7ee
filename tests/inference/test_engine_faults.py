"The engine in trouble: whatever goes wrong for one request is told to that one, the others get the tokens that they would get alone, and every block comes back."
import copy, json, threading
import pytest, torch
from dataclasses import replace
from labkit.core.lm import Sampling
from labkit.core.settings import RunSettings, UserError
from labkit.inference.engine import Engine, EngineSettings, PromptTooLong, RequestFailed, replay
from labkit.inference.speculate import DraftModel, PromptLookup
from labkit.model.checkpoint import save_model
from engine_doubles import BAD, GREEDY, MODEL, PROMPTS, TOKENIZER, Double, Lagging, alone, check_empty, engine, run, tiny, write_adapter

torch.set_num_threads(1)
WANT = [alone(p) for p in PROMPTS]
DRAWN = replace(GREEDY, temperature=.8, top_p=.9, seed=5)
FOX = 'hello 🦊 world'
RUNNERS = {'torch': None, 'lagging': Lagging}
both = pytest.mark.parametrize('kind', RUNNERS)

def test_the_troublemaker_is_in_its_prompt_only():
    assert BAD in TOKENIZER.encode(FOX) and BAD in TOKENIZER.encode(FOX * 4) and not any(BAD in TOKENIZER.encode(p) for p in PROMPTS)

# ------------------------------------------------------------------------------------------------------------------ too little memory
@pytest.mark.parametrize('swap', [0., 1.])
@pytest.mark.parametrize('prefix', [True, False])
@both
def test_out_of_blocks_preempts_and_changes_no_token(kind, prefix, swap):
    e = engine(runner=RUNNERS[kind], cache_tokens=52, prefix=prefix, swap_gb=swap)
    for params in (GREEDY, DRAWN):
        ids = [e.add(p, params) for p in PROMPTS * 2]
        got = run(e)
        assert [got[i][0] for i in ids] == [alone(p, params) for p in PROMPTS] * 2
    assert e.stats()['preemptions'] > 3 and (e.scheduler.n_swapped > 0) == bool(swap)
    check_empty(e)

def test_the_host_runs_out_of_room_for_swapped_blocks_too():
    e = engine(cache_tokens=52, swap_gb=4e-6)                                       # a few blocks
    assert [c.tokens for c in e.generate(PROMPTS * 4, GREEDY)] == WANT * 4
    assert 0 < e.scheduler.n_swapped < e.stats()['preemptions']
    check_empty(e)

def test_a_prompt_that_fills_the_cache_alone_runs_and_a_longer_one_is_refused():
    e = engine(cache_tokens=24)
    ids = list(range(5, 28))
    assert e.generate([ids], GREEDY)[0].finish_reason == 'length'                   # 23 tokens and one more
    with pytest.raises(PromptTooLong, match='24 tokens; context and cache have room for 24'): e.generate([ids + [1]], GREEDY)
    check_empty(e)

# ------------------------------------------------------------------------------------------------------------------ one request is broken
@pytest.mark.parametrize('trouble, words', [('nan', 'NaN'), ('inf', 'NaN'), ('raise', 'fell over')])
@pytest.mark.parametrize('params', [GREEDY, DRAWN, replace(DRAWN, top_k=5, min_p=.1), replace(GREEDY, logprobs=2), replace(GREEDY, repetition_penalty=1.3, presence_penalty=.5)], ids=['greedy', 'drawn', 'filtered', 'logprobs', 'penalties'])
@both
def test_the_others_go_on(kind, params, trouble, words):
    if (kind, trouble) == ('lagging', 'inf') and params.temperature: pytest.skip('the double draws as the host does')
    e = engine(runner=lambda e: (RUNNERS[kind] or Double)(e, trouble))
    with pytest.raises(RequestFailed, match=words): e.generate([PROMPTS[0], FOX], params)
    ids = [e.add(p, params) for p in (PROMPTS[0], FOX, *PROMPTS[1:3])]
    got = run(e)
    assert [got[i][1] for i in ids] == ['length', 'error', 'length', 'length']
    assert [got[i][0] for i in ids] == [alone(PROMPTS[0], params), (), *(alone(p, params) for p in PROMPTS[1:3])]
    assert e.stats()['failed'] == 2
    assert [c.tokens for c in e.generate(PROMPTS, GREEDY)] == WANT                  # nothing of it was kept
    check_empty(e)

def test_a_broken_prompt_is_not_shared():
    e = engine(runner=lambda e: Double(e, 'nan'))
    for _ in range(2):
        with pytest.raises(RequestFailed): e.generate([FOX * 4], GREEDY)
    assert e.prefix.hits == 0
    check_empty(e)

def test_a_grammar_that_grows_too_large_ends_its_request_alone(monkeypatch):
    class Grown:
        def mask(self, out): raise UserError('the grammar became too complex')
    e = engine()
    monkeypatch.setattr('labkit.inference.request.grammar_state', lambda p, tokenizer: Grown() if p.regex else None)
    ids = [e.add(PROMPTS[0], GREEDY), e.add(PROMPTS[1], replace(GREEDY, regex='a')), e.add(PROMPTS[2], GREEDY)]
    got = run(e)
    assert [got[i] for i in ids] == [(WANT[0], 'length'), ((), 'error'), (WANT[2], 'length')]
    check_empty(e)

def test_a_device_that_is_gone_tells_everybody():
    e = engine(runner=lambda e: Lagging(e, 'lost'))
    for p in PROMPTS: e.add(p, GREEDY)
    assert {reason for _, reason in run(e).values()} == {'error'}
    check_empty(e)

def test_scores_that_are_no_numbers_are_no_scores():
    e = engine(runner=lambda e: Double(e, 'nan'))
    with pytest.raises(UserError, match='NaN'): e.loglikelihood([('hello', ' world'), ('hello 🦊', ' world')])
    assert e.loglikelihood([('hello', ' world')])[0][0] == pytest.approx(engine().loglikelihood([('hello', ' world')])[0][0])
    check_empty(e)

# ------------------------------------------------------------------------------------------------------------------ a device one step ahead
@pytest.mark.parametrize('changes', [{}, dict(max_batch=1), dict(step_tokens=4), dict(prefix=False), dict(cache_tokens=52), dict(cache_tokens=52, swap_gb=1.), dict(block_size=1)])
@pytest.mark.parametrize('params', [GREEDY, DRAWN, replace(DRAWN, frequency_penalty=.7, repetition_penalty=1.2), Sampling(max_tokens=40, min_tokens=3, temperature=1.5, seed=1)], ids=['greedy', 'drawn', 'penalties', 'until the end'])
def test_a_step_ahead_gives_the_same_tokens(changes, params):
    e = engine(runner=Lagging, **changes)
    room = dict(cache_tokens=changes.get('cache_tokens', 512))                      # it bounds the longest
    assert [c.tokens for c in e.generate(PROMPTS, params)] == [alone(p, params, **room) for p in PROMPTS]
    assert e.runner.most == 2                                                      # it was ahead
    check_empty(e)

def test_the_end_of_a_text_is_overshot_by_one_step_and_nobody_sees_it(monkeypatch):
    end, e = WANT[1][6], engine(runner=Lagging)
    monkeypatch.setattr(e, 'tokenizer', copy.copy(TOKENIZER))
    e.tokenizer.eos_ids = (*TOKENIZER.eos_ids, end)
    c = e.generate(PROMPTS, replace(GREEDY, ignore_eos=False))
    assert c[1].tokens == WANT[1][:WANT[1].index(end)] and c[1].finish_reason == 'stop'
    check_empty(e)

def test_stop_texts_end_requests_in_flight():
    e, text = engine(runner=Lagging), TOKENIZER.decode(WANT[1])
    stop = text[len(text) // 2:][:3]
    want, = engine().generate(PROMPTS[1:2], replace(GREEDY, stop=(stop,)))
    got = e.generate(PROMPTS, replace(GREEDY, stop=(stop,)))
    assert got[1] == want and want.finish_reason == 'stop' and want.text == text[:text.index(stop)]
    check_empty(e)

def test_requests_that_need_the_host_stop_the_running_ahead_for_a_while():
    e = engine(runner=Lagging)
    ids = [e.add(PROMPTS[0], GREEDY), e.add(PROMPTS[1], replace(GREEDY, max_tokens=4, logprobs=1)), e.add(PROMPTS[3], DRAWN)]
    got = run(e)
    assert [got[i][0] for i in ids] == [WANT[0], WANT[1][:4], alone(PROMPTS[3], DRAWN)]
    check_empty(e)

# ------------------------------------------------------------------------------------------------------------------ readers that leave
@pytest.mark.parametrize('after', range(8))
@pytest.mark.parametrize('changes', [{}, dict(step_tokens=4), dict(cache_tokens=52), dict(max_batch=1)])
@both
def test_aborts_at_every_stage(kind, changes, after):
    "Waiting, in a chunk of the prompt, writing, in flight, preempted: one leaves after so many steps, the others do not notice"
    e, got = engine(runner=RUNNERS[kind], **changes), {}
    ids = [e.add(p, GREEDY) for p in PROMPTS]
    for _ in range(after):
        for o in e.step(): got[o.id] = (got.get(o.id, ((), None))[0] + o.tokens, o.finish_reason)
    e.abort(ids[3]); e.abort(ids[0]); e.abort(ids[0])
    run(e, got)
    for k, i in enumerate(ids): assert got[i] == (WANT[k], 'length') if k not in (0, 3) else got[i][1] == 'abort' and got[i][0] == WANT[k][:len(got[i][0])]
    assert e.stats()['aborted'] == 2
    check_empty(e)

def test_an_interrupted_generate_leaves_nothing_behind():
    class Interrupted(Double):
        def __call__(self, work):
            if self.calls == 3: self.calls += 1; raise KeyboardInterrupt
            return super().__call__(work)
    e = engine(runner=Interrupted)
    with pytest.raises(KeyboardInterrupt): e.generate(PROMPTS, GREEDY)
    assert e.stats()['aborted'] == 5
    assert [c.tokens for c in e.generate(PROMPTS, GREEDY)] == WANT
    check_empty(e)

@both
def test_eight_threads_generate_stream_and_abort(kind):
    e, wrong, rounds = engine(runner=RUNNERS[kind], cache_tokens=80), [], 4
    def work(t):
        try:
            for i in range(rounds):
                k = (t + i) % len(PROMPTS)
                if t % 4 == 0: assert e.generate([PROMPTS[k], PROMPTS[0]], GREEDY)[0].tokens == WANT[k]
                elif t % 4 == 1: assert tuple(d.token for d in e.stream(PROMPTS[k], GREEDY)) == WANT[k]
                elif t % 4 == 2:
                    for n, d in enumerate(e.stream(PROMPTS[k], GREEDY)):
                        assert d.token == WANT[k][n]
                        if n == i: break
                elif i % 2: assert e.loglikelihood([('hello', ' world')])[0][0] < 0
                else: e.abort(e.add(PROMPTS[k], GREEDY))
        except BaseException as x: wrong.append(x)
    threads = [threading.Thread(target=work, args=(t,)) for t in range(8)]
    for t in threads: t.start()
    for t in threads: t.join(60)
    assert not wrong and not any(t.is_alive() for t in threads)
    run(e); check_empty(e)

# ------------------------------------------------------------------------------------------------------------------ things asked for that are not there
@pytest.fixture(scope='module')
def adapter(tmp_path_factory): return write_adapter(tmp_path_factory.mktemp('adapter'))

def test_unknown_adapters_are_refused_and_unloaded_ones_go_with_their_last_request(adapter):
    e = engine()
    with pytest.raises(UserError, match="no adapter 'x' is loaded; there are: none"): e.add('hello', GREEDY, adapter='x')
    e.load_adapter('x', adapter)
    want = e.generate(PROMPTS[:1], GREEDY, adapter='x')[0].tokens
    assert want != WANT[0]
    a = e.add(PROMPTS[0], GREEDY, adapter='x')
    got = {o.id: (o.tokens, None) for o in e.step()}
    late = e.add(PROMPTS[0], GREEDY, adapter='x')                                   # not taken in yet when the adapter goes
    assert not e.unload_adapter('x')
    with pytest.raises(UserError, match='no adapter'): e.add('hello', GREEDY, adapter='x')
    other, got = e.add(PROMPTS[0], GREEDY), run(e, got)
    assert got[a] == (want, 'length') and got[other] == (WANT[0], 'length') and got[late] == ((), 'error') and not e.adapters.loaded
    check_empty(e)

@pytest.mark.parametrize('more, words', [(dict(json_schema='{'), 'no JSON'), (dict(json_schema='[1]'), 'expected an object'), (dict(json_schema='{"type": "nonsense"}'), 'json_schema'), (dict(regex='(('), 'regex'),
                                         (dict(grammar='start: nowhere'), 'grammar'), (dict(regex='a', grammar='start: "a"'), 'only one|together'), (dict(temperature=float('nan')), 'temperature'), (dict(max_tokens=0), 'max_tokens'),
                                         (dict(logit_bias=((10**6, 1.),)), 'logit_bias'), (dict(stop=('',)), 'stop')])
def test_nonsense_is_refused_before_it_runs(more, words):
    e = engine()
    with pytest.raises(UserError, match=words): e.add('hello', replace(GREEDY, **more))
    assert not e.has_work
    check_empty(e)

def test_a_grammar_ends_its_text_beside_others_that_have_none():
    e = engine()
    ids = [e.add(PROMPTS[0], GREEDY), e.add(PROMPTS[1], replace(GREEDY, ignore_eos=False, max_tokens=60, regex='(cat|mat) [0-9]{2}')), e.add(PROMPTS[2], GREEDY)]
    got = run(e)
    import re
    assert re.fullmatch('(cat|mat) [0-9]{2}', TOKENIZER.decode(got[ids[1]][0])) and got[ids[1]][1] == 'stop'
    assert (got[ids[0]][0], got[ids[2]][0]) == (WANT[0], WANT[2])

@pytest.mark.parametrize('changes, words', [(dict(backend='cuda'), 'backend = cuda: the model is on the CPU'), (dict(backend='numba', kv='int4'), 'int4')])
def test_a_backend_that_cannot_is_an_error(changes, words):
    with pytest.raises(UserError, match=words): engine(**changes)

def test_a_device_that_is_not_there_is_an_error():
    if torch.cuda.is_available(): pytest.skip('it is there')
    with pytest.raises(UserError, match='cuda'): Engine.open(run=RunSettings(device='cuda'))

@pytest.mark.parametrize('harm, words', [('short', 'model.safetensors'), ('header', 'model.safetensors'), ('empty', 'model.safetensors'), ('no weights', 'safetensors'), ('config', 'config.json'),
                                         ('config key', 'config.json'), ('config size', 'shape|fit|×|x '), ('no tokenizer', 'tokenizer'), ('tokenizer', 'tokenizer')])
def test_corrupt_folders_are_named(harm, words, tmp_path):
    save_model(MODEL, tmp_path, TOKENIZER)
    weights, config, tok = (tmp_path/n for n in ('model.safetensors', 'config.json', 'tokenizer.json'))
    if harm == 'short': weights.write_bytes(weights.read_bytes()[:-1000])
    if harm == 'header': weights.write_bytes(b'\xff' * 64)
    if harm == 'empty': weights.write_bytes(b'')
    if harm == 'no weights': weights.unlink()
    if harm == 'config': config.write_text('{ "model_type": ')
    if harm == 'config key': config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != 'hidden_size'}))
    if harm == 'config size': config.write_text(json.dumps(json.loads(config.read_text()) | dict(intermediate_size=128)))
    if harm == 'no tokenizer': tok.unlink()
    if harm == 'tokenizer': tok.write_text('{}')
    with pytest.raises(UserError, match=words): Engine.open(tmp_path, run=RunSettings(device='cpu', threads=1))

def test_opening_what_is_not_there():
    with pytest.raises(UserError, match='neither a folder'): Engine.open('/nowhere/at/all')

def test_a_whole_folder_opens(tmp_path):
    save_model(MODEL, tmp_path, TOKENIZER)
    make = lambda **more: Engine.open(tmp_path, run=RunSettings(device='cpu', threads=1), settings=EngineSettings(backend='torch', cache_tokens=512), **more)
    e = make(journal=tmp_path/'journal.jsonl')
    assert [c.tokens for c in e.generate(PROMPTS, GREEDY)] == WANT
    e.close()
    assert list(replay(make(), tmp_path/'journal.jsonl').values()) == WANT

# ------------------------------------------------------------------------------------------------------------------ streams that nobody reads
def test_a_stream_that_is_never_read_costs_nothing():
    e = engine(max_batch=1)
    for _ in range(3): e.stream(PROMPTS[1], GREEDY)
    assert not e.has_work and e.stats()['waiting'] == 0
    late = e.stream(PROMPTS[1], GREEDY)
    assert e.generate(PROMPTS[:1], GREEDY)[0].tokens == WANT[0]                      # it is not in the way
    assert tuple(d.token for d in late) == WANT[1] and e.stats()['requests'] == 2
    with pytest.raises(UserError, match='temperature'): e.stream('hello', replace(GREEDY, temperature=-1.)) # but nonsense is refused at once
    check_empty(e)

# ------------------------------------------------------------------------------------------------------------------ sessions, weights, guesses
def check_pins(p):
    "Each node is pinned as often as sessions hold it, and the blocks that are kept are those of the tree and the tails"
    pins, nodes, todo = {}, [], list(p.roots.values())
    while todo: nodes += (new := list(todo.pop().children.values())); todo += new
    for s in p.sessions.values():
        path, n = p._walk(p._keys(s.ids[:s.pinned]), s.space)
        assert n * p.size == s.pinned
        for node in path: pins[node] = pins.get(node, 0) + 1
    assert {n: n.pins for n in nodes if n.pins} == pins
    assert set(p.lru) == {n for n in nodes if not n.pins}

@pytest.mark.parametrize('order', ['together', 'the second leaves', 'the first leaves', 'overtaken'])
@pytest.mark.parametrize('room', [512, 52])
@both
def test_two_requests_of_one_session_at_once(kind, room, order):
    "A reader who asks again before the answer is there: both are answered, the later end is the session's, nothing leaks"
    e, said = engine(runner=RUNNERS[kind], cache_tokens=room), TOKENIZER.encode('the cat sat on')
    first = e.add(said, replace(GREEDY, max_tokens=5), session='s')
    run(e); check_pins(e.prefix)
    more = [said + TOKENIZER.encode(t) for t in (' the mat', ' the world')]
    params = [replace(GREEDY, max_tokens=n) for n in ((12, 4) if order == 'overtaken' else (8, 8))]
    ids, got = [e.add(m, p, session='s') for m, p in zip(more, params)], {}
    for _ in range(4):
        for o in e.step(): got[o.id] = (got.get(o.id, ((), None))[0] + o.tokens, o.finish_reason)
        check_pins(e.prefix)
    if 'leaves' in order: e.abort(ids[order == 'the second leaves'])
    run(e, got); check_pins(e.prefix)
    for k, i in enumerate(ids):
        want = alone(more[k], params[k], cache_tokens=room)
        assert got[i] == (want, 'length') if got[i][1] != 'abort' else got[i][0] == want[:len(got[i][0])]
    last = {'together': 1, 'the first leaves': 1, 'the second leaves': 0, 'overtaken': 0}[order]
    if room == 512: assert e.prefix.history('s') == more[last] + list(got[ids[last]][0])
    again = e.prefix.history('s') + TOKENIZER.encode(' hello')
    hits = e.prefix.hits
    assert e.generate([again], GREEDY, session='s')[0].tokens == alone(again, GREEDY, cache_tokens=room)
    assert room == 52 or e.prefix.hits - hits >= len(again) - 6                        # all but the new words was there
    check_pins(e.prefix); check_empty(e)

@both
def test_a_session_that_was_evicted_falls_back_to_ids(kind):
    e, said = engine(runner=RUNNERS[kind], cache_tokens=80, max_context=80), TOKENIZER.encode('the cat')
    for turn in range(4):
        said = said + TOKENIZER.encode(' sat')
        want = alone(said)[:6]
        i = e.add(said, replace(GREEDY, max_tokens=6), session='s')
        got = run(e)[i][0]
        assert got == want
        hits = e.prefix.hits
        said = said + list(got)
        if turn == 1: e.generate([[7 * k % 200 for k in range(j, j + 70)] for j in (50, 90)], GREEDY); assert e.prefix.sessions['s'].pinned == 0 # somebody needed all the blocks
        if turn in (1, 3): assert hits > 0
    check_empty(e)

@both
def test_new_weights_while_requests_run(kind):
    model, other = tiny(0), tiny(5)
    e, got = engine(model, runner=RUNNERS[kind]), {}
    ids = [e.add(p, GREEDY) for p in PROMPTS]
    for _ in range(6):
        for o in e.step(): got[o.id] = (got.get(o.id, ((), None))[0] + o.tokens, o.finish_reason)
    with pytest.raises(UserError, match='do not fit'): e.load_weights({k: v for k, v in other.state_dict().items() if 'norm' not in k})
    assert torch.equal(model.embed_tokens.weight, tiny(0).embed_tokens.weight)     # a refused set changes nothing
    e.load_weights(other.state_dict())
    before = {i: len(e._jobs[i].request.tokens) if i in e._jobs else len(got[i][0]) for i in ids}
    run(e, got)
    for k, i in enumerate(ids):
        n = before[i]
        assert got[i][0][:n] == WANT[k][:n]
        assert got[i][0][n:] == alone(TOKENIZER.encode(PROMPTS[k]) + list(got[i][0][:n]), GREEDY, tiny(5))[:14 - n]
    check_empty(e)

@pytest.mark.parametrize('guesser', [PromptLookup, lambda: DraftModel(MODEL, 4), lambda: DraftModel(tiny(3), 4)], ids=['lookup', 'the model itself', 'a stranger'])
@pytest.mark.parametrize('changes', [{}, dict(cache_tokens=52), dict(block_size=1), dict(step_tokens=5)])
def test_guesses_change_nothing_and_wrong_ones_are_not_shared(guesser, changes):
    e = engine(guesser=guesser(), **changes)
    for _ in range(2):                                                             # the second time on the first one's blocks
        for params in (GREEDY, DRAWN): assert [c.tokens for c in e.generate(PROMPTS + ['the cat the cat the cat'], params)] == [alone(p, params) for p in PROMPTS + ['the cat the cat the cat']]
    more = [TOKENIZER.encode(p) + list(w) for p, w in zip(PROMPTS, WANT)]           # what was written is a beginning now
    assert [c.tokens for c in e.generate(more, GREEDY)] == [alone(p, cache_tokens=e.capacity) for p in more]
    assert e.stats()['guessed'] > 0
    check_empty(e)

# ------------------------------------------------------------------------------------------------------------------ again, the same
def planned(e, plans):
    inner = e.scheduler.plan
    def plan(*a):
        work = inner(*a)
        plans.append([(w.start, w.n, len(w.guess), tuple(w.request.prompt)) for w in work])
        return work
    e.scheduler.plan = plan
    return e

@pytest.mark.parametrize('guesser', [None, PromptLookup])
@both
def test_a_journal_replays_the_same_plans_and_tokens(kind, guesser, tmp_path):
    make = lambda **more: engine(runner=RUNNERS[kind], guesser=guesser and guesser(), cache_tokens=60, **more)
    first, got, random = [], {}, torch.Generator().manual_seed(4)
    e = planned(make(journal=tmp_path/'journal.jsonl'), first)
    def steps(n):
        for _ in range(n):
            for o in e.step(): got[o.id] = got.get(o.id, ()) + o.tokens
    params = [GREEDY, replace(DRAWN, seed=None), replace(DRAWN, seed=None, stop=('a', 'z'), logit_bias=((9, 1.5),)), replace(GREEDY, regex='(cat|mat) [0-9]{2}', ignore_eos=False)]
    for i in range(14):
        got[a := e.add(PROMPTS[i % 5], params[i % 4], priority=i % 3, session='s' if i % 5 == 0 else None)] = ()
        steps(int(torch.randint(0, 4, (), generator=random)))
        if i % 4 == 2: e.abort(a - i % 2)
        if i == 7:
            for d in e.stream(PROMPTS[1], GREEDY): break                            # aborted between two steps
    while e.has_work: steps(1)
    e.close()
    second = []
    again = replay(planned(make(), second), tmp_path/'journal.jsonl')
    assert second == first and {i: again[i] for i in got} == got and len(again) == len(got) + 1
