"Shared prefixes: what is found was computed from the same tokens, what is used stays, the longest unused goes first, and a session pays for its new turn."
import random
from hypothesis import given, settings as hyp, strategies as st
from labkit.inference.prefix import PrefixCache
from labkit.inference.scheduler import Scheduler
from pretended_model import Engine, cache, check_nothing_left, check_tree, request

def put(p, ids, space=None):
    "Blocks with these tokens, known to the tree and used by nobody"
    table = []
    p.cache.grow(table, len(ids))
    p.insert(ids, table, space)
    blocks = list(table)
    p.cache.free(table)
    return blocks

def make(blocks=20): return PrefixCache(cache(blocks))

def test_whole_blocks_are_found_and_used():
    p = make()
    blocks = put(p, list(range(14)))
    assert p.match(list(range(14))) == (blocks[:3], 12) and p.match(list(range(10))) == (blocks[:2], 8)
    assert p.match([9] * 8) == ([], 0) and p.match([0, 1]) == ([], 0)
    assert [p.pool.uses[b] for b in blocks[:3]] == [3, 3, 2] and (p.queries, p.hits) == (34, 20)
    check_tree(p)

def test_a_match_may_end_inside_a_node_and_be_cancelled():
    p = make()
    a = put(p, [1] * 4 + [2] * 8)
    b = put(p, [1] * 4 + [3] * 8)
    assert p.match([1] * 4 + [3] * 4 + [9] * 8) == ([a[0], b[1]], 8)
    p.cancel([1] * 4 + [3] * 4 + [9] * 8, [a[0], b[1]], 8)
    assert p.pool.n_idle == 5 and (p.queries, p.hits) == (0, 0) and p.pool.n_free == 15
    check_tree(p)

def test_adapters_share_nothing():
    p = make()
    put(p, [1] * 8, 'x')
    assert p.match([1] * 8) == ([], 0) and p.match([1] * 8, 'x')[1] == 8

def test_the_longest_unused_goes_first_from_the_end():
    p = make()
    a, b = put(p, [1] * 12), put(p, [2] * 8)
    p.cache.free(p.match([1] * 12)[0])
    assert p.evict(3) == 3 and p.match([2] * 8) == ([], 0)
    assert p.match([1] * 12) == (a[:2], 8), 'the last block of what was used before'
    check_tree(p)

def test_what_is_used_stays():
    p = make()
    a = put(p, [1] * 12)
    table, _ = p.match([1] * 8)
    assert p.evict(9) == 1 and p.pool.n_free == 18
    assert p.match([1] * 12) == (a[:2], 8)
    check_tree(p)

def test_a_beginning_stays_while_somebody_uses_what_follows():
    p = make()
    put(p, [1] * 4)
    table = []; p.cache.grow(table, 8)                                # computed beside the first, with a copy of its own
    p.insert([1] * 8, table)
    assert p.evict(9) == 0, 'the second block hangs on the first, which nobody uses'
    check_tree(p)
    p.cache.free(table)
    assert p.evict(9) == 2 and p.pool.n_free == 20

def test_pinned_beginnings_stay():
    p = make()
    a = put(p, [1] * 12)
    assert p.pin([1] * 8) == 8 and p.evict(9) == 1 and p.evict(9) == 0
    p.unpin([1] * 8)
    assert p.evict(9) == 2 and not p.lru
    check_tree(p)

@given(st.lists(st.tuples(st.sampled_from('imeptu'), st.lists(st.integers(1, 2), min_size=0, max_size=11)), max_size=60))
@hyp(max_examples=150, deadline=None)
def test_a_tree_finds_what_a_list_of_rows_would(ops):
    p, tables, pins = PrefixCache(cache(30, 2)), [], []
    held = lambda: [tuple(t for key in r for t in key) for r in rows()]
    def rows(node=None, before=()):
        "Every beginning that the tree knows"
        for root in ([node] if node else p.roots.values()):
            for c in root.children.values():
                for i in range(len(c.keys)): yield before + tuple(c.keys[:i + 1])
                yield from rows(c, before + tuple(c.keys))
    for op, ids in ops:
        known = {(): 0} | {r: len(r) for r in held()}
        want = max((n for r, n in known.items() if tuple(ids[:n]) == r), default=0)
        if op == 'i' and p.pool.n_free >= 6:
            table = []; p.cache.grow(table, len(ids)); assert p.insert(ids, table) == (len(ids) // 2) - want // 2; p.cache.free(table)
        elif op == 'm':
            blocks, n = p.match(ids); assert n == want and len(blocks) == n // 2; tables.append(blocks)
        elif op == 'e':
            free = p.pool.n_free; k = p.evict(len(ids)); assert p.pool.n_free == free + k <= free + len(ids)
            assert k == len(ids) or pins or p.pool.n_idle == 0, 'something idle was kept back'
        elif op == 'p': n = p.pin(ids); assert n == want; pins.append(ids[:n])
        elif op == 't' and tables: p.cache.free(tables.pop(len(ids) % len(tables)))
        elif op == 'u' and pins: p.unpin(pins.pop(len(ids) % len(pins)))
        check_tree(p)
    for t in tables: p.cache.free(t)
    for i in pins: p.unpin(i)
    assert p.evict(99) + p.pool.n_free >= 30 and p.pool.n_free == 30 and not p.lru

def talk(s, e, session, new, limit=5):
    r = request(len(e.done), s.prefix.history(session) + new, limit, session=session)
    s.add(r); e.run()
    return r

def test_a_session_pays_for_its_new_turn_only():
    for overlap in (False, True):
        c = cache(60)
        s = Scheduler(c, 4, 100, PrefixCache(c))
        e, rng = Engine(s, overlap), random.Random(1)
        for turn in range(10):
            before = len(s.prefix.history('a'))
            r = talk(s, e, 'a', [rng.randrange(1, 5) for _ in range(rng.randint(1, 9))])
            assert before - 1 <= r.shared <= before, 'the whole history but the last token, though blocks hold four'
            assert s.prefix.history('a') == r.prompt + r.tokens
            check_tree(s.prefix)
        s.prefix.end('a'); s.prefix.end('nobody')
        assert not s.prefix.sessions and all(not n.pins for n in s.prefix.lru)
        check_nothing_left(s)

def test_a_session_that_was_evicted_is_computed_again():
    c = cache(12)
    s = Scheduler(c, 4, 100, PrefixCache(c))
    e = Engine(s)
    first = talk(s, e, 'a', [1, 2, 3] * 4)
    s.add(request(99, [4] * 40, 3)); e.run()
    assert s.prefix.sessions['a'].pinned < 12 and s.prefix.history('a') == first.prompt + first.tokens
    r = talk(s, e, 'a', [2, 2])
    assert r.shared < 12 and r.prompt[:-2] == first.prompt + first.tokens

def test_sessions_are_evicted_after_everything_else_and_the_oldest_first():
    p = make(12)
    for name in 'ab':
        table = []; p.cache.grow(table, 10)
        p.hold(name, [ord(name)] * 11, table, 10)
        p.cache.free(table)
    put(p, [1] * 8)
    assert p.evict(2) == 2 and p.sessions['a'].pinned == 8, 'first what no session holds'
    assert p.evict(1) == 1 and p.sessions['a'].tail is None and p.sessions['b'].tail is not None
    check_tree(p)
    assert p.evict(9) == 5 and p.pool.n_free == 12 - 0 and p.history('b') == [ord('b')] * 11

def test_a_tail_is_used_only_where_it_follows():
    p = make()
    table = []; p.cache.grow(table, 6)
    p.hold('a', [1] * 20, table, 6)                                   # stopped early: 6 of its 20 tokens are computed
    p.cache.free(table)
    assert p.match([1] * 12, None, 'a')[1] == 6 and p.match([1] * 5, None, 'a')[1] == 4 and p.match([1] * 12)[1] == 4
    assert p.match([1] * 4 + [2] * 5, None, 'a')[1] == 4 and p.match([1] * 12, 'x', 'a')[1] == 0
    put(p, [1] * 8)
    assert p.match([1] * 12, None, 'a')[1] == 8, 'somebody else has gone further'
    table = []; p.cache.grow(table, 3)
    p.hold('b', [2] * 4, table, 3)
    assert p.match([2] * 5, None, 'b')[1] == 3 and p.match([2] * 5, 'x', 'b')[1] == 0, 'another adapter has other keys and values'

def test_the_oldest_sessions_are_forgotten():
    p = PrefixCache(cache(20), max_sessions=2)
    for i in range(4): p.hold(str(i), [i] * 3)
    assert list(p.sessions) == ['2', '3']

def test_new_weights_clear_the_tree_but_not_what_was_said():
    p = make()
    table = []; p.cache.grow(table, 6)
    p.hold('a', [1] * 7, table, 6); p.cache.free(table); put(p, [2] * 8)
    p.clear()
    assert p.pool.n_free == 20 and p.history('a') == [1] * 7 and p.match([1] * 7, None, 'a') == ([], 0)
