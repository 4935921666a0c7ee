"An engine that writes what it is told to, one token a step: for tests of the protocol, where the words don't matter but their timing does."
import functools, itertools, time
from dataclasses import dataclass, field
from labkit.core.lm import Sampling
from labkit.corpus.tokens import train_tokenizer
from labkit.inference.engine import Output, PromptTooLong
from labkit.inference.sampling import check_sampling
from labkit.inference.stream import Detokenizer, StopText


@functools.cache
def tokenizer(): return train_tokenizer(['The capital of France is Paris. word word word 你好 🌍 one two three'] * 3, 400)


@dataclass
class Running:
    params: Sampling
    ids: list[int]
    n_prompt: int
    text: Detokenizer
    stop: StopText
    written: int = 0


class ScriptedEngine:
    "Has the face of `labkit.inference.engine.Engine` and no model"
    model_name = 'scripted'
    def __init__(self, script='The capital of France is Paris.', delay=0., capacity=2000, room=1000):
        self.tokenizer, self.script, self.delay, self.capacity, self.room = tokenizer(), script, delay, capacity, room
        self.ids, self.waiting, self.jobs, self.prompts, self.aborted, self.steps, self.last_params, self.fail = itertools.count(), {}, {}, [], 0, 0, None, None

    def add(self, prompt, params=Sampling()):
        check_sampling(params, self.tokenizer.vocab_size)
        if len(prompt) >= self.capacity: raise PromptTooLong('too long')
        self.prompts.append(self.tokenizer.decode(prompt, skip_special=False)); self.last_params = params
        self.waiting[id := next(self.ids)] = Running(params, self.tokenizer.encode(self.script), len(prompt), Detokenizer(self.tokenizer), StopText(params.stop))
        return id

    def abort(self, id): self.aborted += (self.waiting.pop(id, None) or self.jobs.pop(id, None)) is not None
    @property
    def has_work(self): return bool(self.waiting or self.jobs)
    @property
    def running(self): return len(self.jobs)

    def step(self):
        while self.waiting and len(self.jobs) < self.room: self.jobs.update([self.waiting.popitem()])
        self.steps += 1
        time.sleep(self.delay)
        if self.fail: raise self.fail
        return [self._one(id, r) for id, r in list(self.jobs.items())]

    def _one(self, id, r):
        if r.written >= len(r.ids): return self._end(id, r, 'stop', (), '')
        t = r.ids[r.written]; r.written += 1
        text = r.stop.add(r.text.add(t))
        if r.stop.found is not None: return self._end(id, r, 'stop', (t,), text)
        if r.written >= min(r.params.max_tokens, self.capacity - r.n_prompt): return self._end(id, r, 'length', (t,), text)
        return self._out(id, r, (t,), text, None)

    def _end(self, id, r, why, tokens, text):
        del self.jobs[id]
        if r.stop.found is None: text += r.stop.add(r.text.flush()) + r.stop.flush()
        return self._out(id, r, tokens, text, why)

    def _out(self, id, r, tokens, text, why):
        n = r.params.logprobs
        return Output(id, tokens, text, why, *((None, None) if n is None else ((-.5,) * len(tokens), tuple({t: -.5, t + 1: -1.5} if n else {} for t in tokens))))

    def stats(self): return dict(running=len(self.jobs), waiting=len(self.waiting), cache_use=len(self.jobs) / self.room, preemptions=0)
