"The engine for a long time: requests come, leave, talk in sessions, use adapters, grammars and guesses; nothing leaks, all ends, and each has the tokens that it would have alone."
import gc, os, random, time
from dataclasses import replace
import pytest, torch
from labkit.core.lm import Sampling
from labkit.core.settings import UserError
from labkit.inference.speculate import Adaptive, DraftModel, PromptLookup
from engine_doubles import BAD, MODEL, TOKENIZER, Double, Lagging, alone, check_empty, engine, tiny, write_adapter

torch.set_num_threads(1)

def resident() -> float:
    "MB of this process in memory"
    return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6

@pytest.fixture(scope='module')
def adapter(tmp_path_factory): return write_adapter(tmp_path_factory.mktemp('adapter'))

class Life:
    "Random visitors of one engine"
    def __init__(self, e, seed, adapters=True): self.e, self.rng, self.adapters, self.asked, self.alive, self.got, self.sessions, self.n = e, random.Random(seed), adapters, {}, [], {}, {}, 0
    def params(self):
        pick = self.rng.random
        p = Sampling(max_tokens=self.rng.randint(1, 24), ignore_eos=pick() < .7)
        if pick() < .4: p = replace(p, temperature=.9, seed=self.rng.randrange(99), top_p=self.rng.choice([1., .9]), top_k=self.rng.choice([0, 7]))
        if pick() < .1: p = replace(p, regex='(cat|mat|hello)( [0-9]{2}){1,3}', ignore_eos=False)
        if pick() < .1: p = replace(p, logprobs=1)
        if pick() < .1: p = replace(p, repetition_penalty=1.3, presence_penalty=.4)
        if pick() < .1: p = replace(p, stop=('the', 'a'))
        if pick() < .1 and not p.regex: p = replace(p, min_tokens=min(3, p.max_tokens))
        return p
    def come(self):
        start = self.rng.choice(['', 'the cat sat on the mat. ', 'hello world, ' * 2])
        ids = TOKENIZER.encode(start + ''.join(self.rng.choices('abc xyz 你', k=self.rng.randint(1, 12)))) + [BAD] * (self.rng.random() < .05)
        session = self.rng.choice([None, None, 's', 't'])
        if session and session not in self.sessions: ids = (self.e.prefix.history(session) + ids)[:60]
        elif session: session = None
        how = dict(adapter='x' if self.adapters and self.rng.random() < .15 else None)
        p = self.params()
        i = self.e.add(ids, p, session=session, priority=self.rng.choice([0, 0, 0, 2]), **how)
        if session: self.sessions[session] = i
        self.alive.append(i); self.got[i] = (); self.n += 1
        if self.rng.random() < .05 and BAD not in ids: self.asked[i] = (ids, p, how)
    def step(self):
        for o in self.e.step():
            self.got[o.id] += o.tokens
            if o.finish_reason: self.leave(o)
    def leave(self, o):
        self.alive.remove(o.id)
        self.sessions = {k: v for k, v in self.sessions.items() if v != o.id}
        if o.id in self.asked: self.asked[o.id] += (self.got[o.id], o.finish_reason)
        del self.got[o.id]
    def live(self, seconds):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            what = self.rng.random()
            if what < .25 and len(self.alive) < 30: self.come()
            elif what < .28 and self.alive: self.e.abort(self.rng.choice(self.alive))
            elif what < .282: self.e.loglikelihood([('the cat', ' sat'), ('the cat', ' hello')])
            else: self.step()
        while self.e.has_work: self.step()
        assert not self.alive and not self.got

def check_sample(life, adapter):
    "Some of those who came, alone"
    solo = engine(max_batch=1, prefix=False, cache_tokens=96)
    if life.adapters: solo.load_adapter('x', adapter)
    for ids, p, how, tokens, reason in list(life.asked.values())[:40]:
        want, = solo.generate([ids], p, **how)
        assert tokens == (want.tokens if reason != 'abort' else want.tokens[:len(tokens)])
    assert len(life.asked) >= 3

def soak(kind, adapter, seconds, seed=0):
    e = engine(runner=lambda e: (Lagging if kind == 'lagging' else Double)(e, 'nan'), cache_tokens=112, swap_gb=2e-5 if kind == 'swap' else 0.,
               guesser=dict(lookup=PromptLookup, draft=lambda: Adaptive(DraftModel(MODEL, 4))).get(kind, lambda: None)())
    e.load_adapter('x', adapter)
    life, sizes = Life(e, seed), []
    for part in range(4):
        life.live(seconds / 4)
        gc.collect(); sizes.append(resident())
        assert not e._jobs and not e.scheduler.running and not any(r.finish_reason is None for r in e.scheduler.coming.values())
    s = e.stats()
    assert s['requests'] == life.n == s['finished'] + s['aborted'] + s['failed'] and min(s['preemptions'], s['prefix_hits'], s['aborted'], s['finished']) > 0
    assert sizes[-1] - sizes[0] < 12, f'MB of memory after each quarter: {sizes}'   # the first quarter fills what is kept on purpose
    check_sample(life, adapter)
    check_empty(e)
    return s

@pytest.mark.parametrize('kind', ['plain', 'lagging', 'swap', 'lookup', 'draft'])
def test_a_short_life(kind, adapter): soak(kind, adapter, 4)

@pytest.mark.slow
@pytest.mark.parametrize('kind', ['plain', 'lagging', 'swap', 'lookup', 'draft'])
def test_a_long_life(kind, adapter):
    "LABKIT_SOAK_S seconds each, 60 unless told"
    s = soak(kind, adapter, float(os.environ.get('LABKIT_SOAK_S', 60)), seed=1)
    print(f"{kind}: {s['requests']} requests, {s['generated_tokens']} tokens, {s['preemptions']} preemptions, {s['aborted']} aborted, {s['failed']} failed")
