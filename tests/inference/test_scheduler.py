"The scheduler: whatever happens around a request, it gets the tokens that it would get alone, everything ends, and no block is lost or used twice."
import random, time
import pytest
from hypothesis import given, settings as hyp, strategies as st
from labkit.core.settings import UserError
from labkit.inference.prefix import PrefixCache
from labkit.inference.scheduler import Preemption, Scheduler, Work
from pretended_model import Engine, alone, begin, cache, check_nothing_left, check_tree, digest, next_token, request

def scheduler(blocks=40, size=4, share_prefixes=True, **changes):
    c = cache(blocks, size)
    return Scheduler(c, **{**dict(max_batch=4, budget=8, prefix=PrefixCache(c) if share_prefixes else None), **changes})

def prompt(rng, longest=30): return [5] * rng.choice([0, 6, 12]) + [rng.randrange(1, 4) for _ in range(rng.randint(1, longest - 12))]

@pytest.mark.parametrize('overlap', [False, True])
@pytest.mark.parametrize('how', ['none', 'recompute', 'swap'])
@given(seed=st.integers(0, 10**6), blocks=st.integers(11, 40), size=st.sampled_from([1, 3, 4, 16]), budget=st.sampled_from([1, 5, 16, 100]),
       max_batch=st.integers(1, 6), share=st.sampled_from([.2, 1.]), wrong=st.sampled_from([None, 0, .5]))
@hyp(max_examples=120, deadline=None)
def test_random_lives(overlap, how, seed, blocks, size, budget, max_batch, share, wrong):
    rng = random.Random(seed)
    s = scheduler(-(-blocks * 4 // size), size, how != 'none', budget=budget, max_batch=max_batch, share=share, aging=rng.choice([1, 50]),
                  preemption=Preemption('swap', rng.choice([300, 10**6])) if how == 'swap' else Preemption())
    def propose(r, k):
        h, out = digest(r.prompt + r.tokens, begin(r.adapter)), []
        for _ in range(rng.randint(0, min(k, 4))):
            t = next_token(h); h = digest([t], h); out.append(t if rng.random() > wrong else 3)
        return tuple(out)
    e, rs, aborted = Engine(s, overlap, None if wrong is None else propose), [], set()
    for i in range(rng.randint(5, 60)):
        what = rng.choice(['add', 'add', 'step', 'step', 'step', 'abort', 'preempt', 'evict', 'forget'])
        if what == 'add':
            session, new = rng.choice([None, None, 'a', 'b']), prompt(rng)
            if session and s.prefix and not any(r.session == session and not r.finish_reason for r in rs): new = (s.prefix.history(session) + new)[:30]
            else: session = None
            rs.append(request(len(rs), new, rng.randint(1, 12), session=session, priority=rng.choice([0, 0, 1, 3]), adapter=rng.choice([None, None, 'x'])))
            s.add(rs[-1])
        elif what == 'abort' and rs:
            r = rng.choice(rs)
            if not r.finish_reason: aborted.add(r); e.end(r, 'abort', rng.random() < .5)
        elif what == 'preempt' and s.running: s.preempt(rng.choice(s.running))
        elif what == 'evict' and s.prefix: s.prefix.evict(rng.randint(1, 5))
        elif what == 'forget' and rng.random() < .2: s.forget()
        else: e.step()
        assert s.running == sorted(s.running, key=lambda r: r.order) and len(s.running) <= max_batch
        assert len({r.row for r in s.running} | set(s.rows)) == max_batch
        used = {b for r in s.running for b in r.table}
        assert len(used) + s.cache.pool.n_free + s.cache.pool.n_idle == s.cache.n_blocks
        assert all(s.cache.pool.uses[b] == s.cache.pool.kept[b] + sum(b in r.table for r in s.running) for b in used)
        if s.prefix: check_tree(s.prefix)
    e.run()
    assert len(e.done) == len(rs)
    for r in rs:
        want = alone(r.prompt, r.limit, adapter=r.adapter)
        assert r.tokens == want if r not in aborted else r.tokens == want[:len(r.tokens)]
    assert all(sum(n for _, _, n in p) <= s.budget for p in e.plans)
    check_nothing_left(s)

def drive(n=8, overlap=False, **settings):
    "Some requests through a small cache"
    s = scheduler(**settings)
    e = Engine(s, overlap, end_token=None)
    rng = random.Random(3)
    for i in range(n): s.add(request(i, [5] * 8 + [rng.randrange(1, 4) for _ in range(6)], 10))
    e.run()
    return s, e

def test_what_the_random_lives_live_through_does_happen():
    s, e = drive(blocks=9, preemption=Preemption('swap', 10**6))
    assert s.n_swapped > 2 and s.prefix.hits > 0 and sum(r.preemptions for r in e.done) == s.n_preempted
    s, _ = drive(blocks=9)
    assert s.n_preempted > 0 and s.n_swapped == 0

@pytest.mark.parametrize('how, host, want', [('recompute', 10**9, False), ('swap', 10**9, True), ('swap', 10, False)])
def test_preemption_goes_by_setting_and_room(how, host, want):
    s, _ = drive(blocks=14, share_prefixes=False, preemption=Preemption(how, host))
    assert s.n_preempted > 0 and (s.n_swapped > 0) == want

def test_the_same_arrivals_give_the_same_plans():
    plans = [drive(12, overlap=o, blocks=16)[1].plans for o in (False, False, True, True)]
    assert plans[0] == plans[1] and plans[2] == plans[3]

def test_prompts_are_cut_and_never_delay_a_decode():
    s = scheduler(budget=8, share_prefixes=False, blocks=60)
    e = Engine(s, end_token=None)
    s.add(a := request(0, [1, 2], 30)); e.step()
    s.add(request(1, [1] * 50, 2))
    while not a.finish_reason: e.step()
    assert all((0, 2 + i, 1) in p for i, p in enumerate(e.plans[1:len(a.tokens)]))
    assert [n for p in e.plans for i, _, n in p if i == 1][:6] == [7] * 6

def test_the_share_bounds_prompts_only_beside_decodes():
    s = scheduler(budget=20, share=.25, share_prefixes=False, blocks=60)
    e = Engine(s, end_token=None)
    s.add(request(0, [1] * 20, 9)); e.step()
    s.add(request(1, [1] * 30, 2)); e.step(); e.step()
    assert e.plans == [[(0, 0, 20)], [(0, 20, 1), (1, 0, 5)], [(0, 21, 1), (1, 5, 5)]]

def test_guesses_take_only_what_is_left():
    calls = []
    def propose(r, k): calls.append(k); return (1,) * k
    s = scheduler(budget=8, share=.5, blocks=60, share_prefixes=False)
    s.add(request(0, [1], 30)); e = Engine(s, propose=propose, end_token=None); e.step()
    s.add(request(1, [1] * 40, 30)); e.plans.clear(); calls.clear(); e.step()
    assert calls == [3] and e.plans[0][0][2] == 4 and e.plans[0][1][2] == 4

def test_guesses_do_not_preempt():
    s = scheduler(blocks=7, budget=100, share_prefixes=False, max_batch=2)
    for i in range(2): s.add(request(i, [1] * 6, 30))
    for x in s.plan(): x.advance(); x.request.tokens.append(1)
    assert [x.n for x in s.plan(lambda r, k: (1,) * min(k, 8))] == [6, 2] and s.n_preempted == 0, 'one block is left to guess into'
    assert s.cache.pool.n_free == 2

def order_of(s, rs, e=None):
    e = e or Engine(s)
    for r in rs: s.add(r)
    e.run()
    return [r.id for r in e.done]

def test_higher_priority_goes_first_and_waiting_makes_up_for_it():
    rs = [request(i, [1, 2], 1, priority=p) for i, p in enumerate([0, 0, 2, 1])]
    assert order_of(scheduler(max_batch=1), rs) == [2, 3, 0, 1]
    s = scheduler(max_batch=1, aging=3)
    e, low = Engine(s), request(0, [1, 2], 1)
    s.add(low)
    for i in range(1, 20): s.add(request(i, [1, 2], 1, priority=1)); e.step()
    assert low.finish_reason and 2 <= e.done.index(low) <= 4                # after three steps it counts as one of theirs

def test_a_higher_priority_takes_the_place_of_a_lower_one():
    s = scheduler(max_batch=1)
    e = Engine(s, end_token=None)
    s.add(low := request(0, [1, 2, 3], 30)); e.step(); e.step()
    s.add(high := request(1, [3, 3], 3, priority=1)); e.step()
    assert low.preemptions == 1 and s.running == [high]
    e.run()
    assert [r.id for r in e.done] == [1, 0] and low.tokens == alone(low.prompt, 30, None)
    s.add(request(2, [1], 9)); e.step(); s.add(request(3, [1], 9)); e.step()
    assert s.running[0].id == 2, 'equals do not take each other\'s place'

def test_room_is_left_for_those_who_run():
    s = scheduler(blocks=6, max_batch=4, budget=100, share_prefixes=False)
    for i in range(2): s.add(request(i, [1] * 8, 8))                     # two blocks each now, four in the end
    s.add(request(2, [1] * 4, 1))
    s.plan()
    assert len(s.running) == 2, 'three would leave one block for two that grow'

def test_thousands_wait_at_no_cost_and_leave_at_any_time():
    s = scheduler(max_batch=4, budget=16)
    rs = [request(i, [1 + i % 3] * 5, 4, priority=i % 2) for i in range(30_000)]
    for r in rs: s.add(r)
    e = Engine(s)
    t = time.process_time()
    for _ in range(50): e.step()
    slow = time.process_time() - t
    few = scheduler(max_batch=4, budget=16); e2 = Engine(few)
    for r in [request(i, [1 + i % 3] * 5, 4, priority=i % 2) for i in range(60)]: few.add(r)
    t = time.process_time()
    for _ in range(50): e2.step()
    assert slow < 5 * (time.process_time() - t) + .05, 'a plan must not look at everybody who waits'
    for r in random.Random(0).sample(rs, 29_900):
        if not r.finish_reason: e.end(r, 'abort')
    assert len(s.waiting) == sum(r.row < 0 and not r.finish_reason for r in rs) <= 100
    e.run()
    check_nothing_left(s)

def test_requests_that_begin_alike_wait_for_the_first_of_them():
    s = scheduler(blocks=60, max_batch=8, budget=100)
    e = Engine(s)
    for i in range(5): s.add(request(i, [5] * 16 + [1 + i % 3], 3))
    s.add(request(9, [4] * 9, 3))
    e.step()
    assert [p[0] for p in e.plans[0]] == [0, 9]
    e.run()
    assert [r.shared for r in sorted(e.done, key=lambda r: r.id)] == [0, 16, 16, 16, 16, 0]

def test_a_request_that_can_never_fit_is_refused():
    with pytest.raises(UserError, match='needs 5 blocks, the cache has 4'): scheduler(blocks=4).add(request(0, [1] * 17))

def test_a_session_that_fills_the_cache_still_gets_in():
    s = scheduler(blocks=4)
    e = Engine(s)
    s.add(r := request(0, [1] * 5, 1, session='a')); e.run()
    s.add(r := request(1, s.prefix.history('a') + [2] * 8, 2, session='a'))
    assert len(r.prompt) == 14
    e.run()
    assert r.tokens == alone(r.prompt, 2)

def test_an_error_leaves_nothing_behind():
    s = scheduler()
    e = Engine(s)
    s.add(r := request(0, [1] * 12, 5, session='a')); e.step(); e.step()
    e.end(r, 'error', keep=False)
    assert s.cache.pool.n_free == s.cache.n_blocks - len(s.prefix.lru) * 3 and not s.prefix.sessions

def test_a_work_knows_what_it_wants():
    r = request(0, [5, 6, 7], 9)
    assert [Work(r, 0, 2).wants, Work(r, 0, 3).wants, Work(r, 2, 3, (8, 9)).wants, Work(r, 1, 3, (8, 9)).wants] == [0, 1, 3, 0]
    assert Work(r, 2, 3, (8, 9)).ids == [7, 8, 9]
    w = Work(r, 2, 3, (8, 9))
    w.advance(1)
    assert r.computed == 4
    r.computed, r.in_flight = 3, 1
    assert r.length == 4 and r.pending == 1 and Work(r, 3, 1).ids == [-1] and Work(r, 3, 1).wants == 1
    assert w.wants == 3, 'what a part wants is settled when it is planned'

def test_those_who_wait_keep_their_order_whoever_leaves():
    s, rs = scheduler(), [request(i, [1], priority=i * 7 % 3) for i in range(300)]
    for r in rs: s.add(r)
    for r in rs[::2]: s.remove(r)
    s.remove(rs[0])                                                      # gone already: nothing happens
    assert [r.id for r in s.waiting] == [r.id for p in (2, 1, 0) for r in rs[1::2] if r.priority == p]

def test_a_token_that_was_computed_in_vain_costs_the_session_nothing():
    s = scheduler()
    e = Engine(s)
    s.add(r := request(0, [1] * 5, 9, session='a')); e.step()
    r.computed = r.known + 1                                             # the end-of-text token, planned before it was known, and not part of the text
    e.end(r)
    assert s.prefix.sessions['a'].pinned + s.prefix.sessions['a'].tail_n == r.known and s.prefix.match(s.prefix.history('a') + [2], None, 'a')[1] == r.known

def test_nothing_is_guessed_behind_an_unknown_token():
    s = scheduler()
    s.add(r := request(0, [1] * 5, 9))
    w, = s.plan()
    w.advance(); r.in_flight = 1
    assert [(w.start, w.n, w.guess, w.ids) for w in s.plan(lambda r, k: (1,) * k)] == [(5, 1, (), [-1])]

def test_a_publication_waits_for_the_first_token():
    s = scheduler(budget=100)
    s.add(r := request(0, [1] * 9, 9))
    w, = s.plan()
    w.advance(); r.in_flight = 1
    s.plan()
    assert not s.prefix.lru, 'until its first token is there, the prompt may still turn out to be broken'
    r.tokens.append(1); r.in_flight = 0
    s.plan()
    assert len(s.prefix.lru) == 1
