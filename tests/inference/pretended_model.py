"A pretended model: the next token follows from all before it, and the cache keeps, instead of keys and values, a number that stands for them."
from types import SimpleNamespace
import torch
from labkit.core.lm import Sampling
from labkit.inference.cache import PagedCache
from labkit.inference.scheduler import Request

CFG = SimpleNamespace(n_layers=1, n_kv_heads=1, head_dim=1, sliding_window=None, window=lambda layer: None)
END = 0

def cache(blocks, size=4): return PagedCache(CFG, blocks, size, torch.int64)
def mix(h, token): return (h * 1_000_003 + token + 1) % (2**61 - 1)
def begin(adapter=None): return 7 if adapter is None else 8       # an adapter changes keys and values
def digest(ids, h=7):
    for t in ids: h = mix(h, t)
    return h
def next_token(h): return h // 7 % 6                          # six tokens, so that beginnings meet

def alone(prompt, limit, end=END, adapter=None):
    "What a request gets without a scheduler"
    h, out = digest(prompt, begin(adapter)), []
    while len(out) < limit:
        out.append(next_token(h)); h = mix(h, out[-1])
        if out[-1] == end: break
    return out

class Model:
    "Computes a step on a paged cache, and checks that it finds there what it needs"
    def __init__(self, cache, rows=64): self.cache, self.last = cache, {}
    def _slot(self, r, i): return r.table[i // self.cache.block_size], 0, i % self.cache.block_size, 0
    def __call__(self, work):
        "For each part that wants it: the next token at each wanted position. A token that is on its way is read from the row's buffer"
        out, k = [], self.cache.k[0]
        for w in work:
            r = w.request
            assert w.start + w.n < len(r.prompt) + r.limit, f'request {r.id} computes what nobody will ask for'
            h = int(k[self._slot(r, w.start - 1)]) if w.start else begin(r.adapter)
            known = r.ids(0, w.start)
            assert h == digest(known[:-1] + [self.last[r.row]] if known and known[-1] == -1 else known, begin(r.adapter)), f'request {r.id} finds something else at token {w.start - 1}'
            hs = []
            for i, t in enumerate(w.ids):
                h = mix(h, self.last[r.row] if t == -1 else t)
                for block in [self._slot(r, w.start + i)[0]]: assert self.cache.pool.uses[block] == 1, f'request {r.id} writes into a block that others use'
                k[self._slot(r, w.start + i)] = h
                hs.append(next_token(h))
            assert self._whole(r, w.start)
            if w.wants: self.last[r.row] = hs[-1]; out.append(hs[-w.wants:])
        return out
    def _whole(self, r, n):
        "Do all blocks of `r` hold what its tokens ask for?"
        h = begin(r.adapter)
        for i, t in enumerate(r.ids(0, n)):
            h = mix(h, t)
            if t == -1: return True
            if int(self.cache.k[0][self._slot(r, i)]) != h: return False
        return True

class Engine:
    "The smallest engine: steps one after the other, or with one always in flight"
    def __init__(self, scheduler, overlap=False, propose=None, end_token=END):
        self.end_token, self.s, self.model, self.overlap, self.propose, self.flying, self.done, self.plans = end_token, scheduler, Model(scheduler.cache), overlap, propose, None, [], []
    def step(self):
        work = self.s.plan(None if self.overlap else self.propose)
        self.plans.append([(w.request.id, w.start, w.n) for w in work])
        tokens = iter(self.model(work))
        flying = [(w, next(tokens)) for w in work if w.wants]
        if not self.overlap:
            for w in work:
                if not w.wants: w.advance()
            return self.read(flying)
        for w in work: w.advance()
        for w, _ in flying: w.request.in_flight += 1
        self.flying, before = flying, self.flying
        self.read(before or [])
    def read(self, flying):
        for w, best in flying:
            r = w.request
            if r.finish_reason: continue
            accepted = next((i for i, g in enumerate(w.guess) if g != best[i]), len(w.guess))
            if self.overlap: r.in_flight -= 1
            else: w.advance(accepted)
            for t in best[:accepted + 1]:
                r.tokens.append(t)
                if t == self.end_token or len(r.tokens) == r.limit: self.end(r); break
    def end(self, r, why='stop', keep=True):
        r.finish_reason = why
        r.in_flight = 0
        self.s.remove(r, keep)
        self.done.append(r)
    def run(self, most=10_000):
        while self.s.has_work:
            self.step()
            assert (most := most - 1), 'it does not end'
        while self.flying: self.flying, f = None, self.flying; self.read(f)

def request(id, prompt, limit=8, **more): return Request(id, list(prompt), Sampling(), limit, **more)

def check_tree(prefix):
    "Every node lies where it should, and blocks are counted right"
    pool, held, nodes = prefix.pool, 0, []
    for space, root in prefix.roots.items():
        todo = [(n, root) for n in root.children.values()]
        while todo:
            n, parent = todo.pop(); nodes.append(n)
            assert n.parent is parent and len(n.keys) == len(n.blocks) > 0 and parent.children[n.keys[0]] is n
            assert (n in prefix.lru) == (n.pins == 0) and n.pins >= max((c.pins for c in n.children.values()), default=0)
            assert all(pool.kept[b] for b in n.blocks)
            held += len(n.blocks)
            todo += [(c, n) for c in n.children.values()]
    tails = [s.tail for s in prefix.sessions.values() if s.tail is not None]
    assert sum(pool.kept) == held + len(tails) and set(prefix.lru) <= set(nodes)
    at = {n: i for i, n in enumerate(prefix.lru)}
    assert all(at[n] < at[n.parent] for n in at if n.parent in at), 'a child was used later than its parent'
    assert pool.n_idle == sum(0 < u == k for u, k in zip(pool.uses, pool.kept))
    assert pool.n_free == sum(u == 0 for u in pool.uses)

def check_nothing_left(s):
    "Everything ended: no rows, no blocks, no memory of the host in use"
    assert not s.running and not len(s.waiting) and sorted(s.rows) == list(range(s.max_batch)) and s.host_bytes == 0
    if s.prefix: check_tree(s.prefix); s.prefix.clear(); check_tree(s.prefix)
    assert s.cache.pool.n_free == s.cache.n_blocks and not any(s.cache.pool.uses) and not any(s.cache.pool.kept)
