"""The ladder of inference on a CPU: the same requests, and one idea more on each rung.

Eight requests of SmolLM2-135M-Instruct: 64 tokens that all share, 64 of their own, and answers of 8 to 56 tokens (32 on average), greedy;
four run together where requests are batched. Each rung reports output tokens a second, the time to each request's first token, the longest
wait between two tokens, and bytes of weights and of keys and values at their most. `no cache` is measured on less work (its tokens a second
fall with the length anyway). Seconds are the best of `--repeats`; CPU seconds, which a busy machine changes less, stand beside them.
`python benchmarks/ladder_cpu.py`; the last line is JSON.
"""
import argparse, datetime, gc, json, os, platform, statistics, sys, time
from dataclasses import dataclass
from pathlib import Path
import torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from labkit.core.device import set_threads
from labkit.core.files import replacing
from labkit.core.lm import Sampling
from labkit.core.settings import RunSettings
from labkit.inference.cache import KVCache
from labkit.inference.engine import Engine, EngineSettings
from labkit.inference.speculate import PromptLookup

SLOTS, SLAB = 4, 256                                # requests together; tokens that a slab without blocks must reserve for each
SYSTEM = 'You are a careful assistant. Answer in full sentences, name your sources where you have them, and say so where you are not sure. Keep to what was asked; lists are welcome where they help the reader. ' * 3
TOPICS = ['the moon', 'green tea', 'the river Nile', 'chess openings', 'steam engines', 'honey bees', 'the piano', 'sea salt']

@dataclass
class Task:
    "Prompts of one length, and how many tokens each answer shall have"
    prompts: list[list[int]]
    wants: list[int]

def task(tokenizer, n: int = 8, own: int = 64, answers=(8, 56, 16, 48, 24, 40, 12, 52)) -> Task:
    "n requests that begin with the same 64 tokens"
    system = tokenizer.encode(SYSTEM)[:64]
    texts = [tokenizer.encode(f' Question {i}: write about {t}. Write about {t} as you would for a child, then for an expert on {t}. ' * 4)[:own] for i, t in enumerate(TOPICS[:n])]
    return Task([system + t for t in texts], list(answers[:n]))

class Clock:
    "When each request's tokens came"
    def __init__(self, n: int): self.start, self.cpu, self.times = time.perf_counter(), time.process_time(), [[] for _ in range(n)]
    def tick(self, i: int, k: int = 1): self.times[i] += [time.perf_counter() - self.start] * k
    def row(self, kv: int) -> dict:
        gaps = [b - a for t in self.times for a, b in zip(t, t[1:])]
        n, s = sum(map(len, self.times)), max(t[-1] for t in self.times)
        return dict(tokens=n, seconds=s, cpu_s=time.process_time() - self.cpu, tokens_per_s=n / s, first_token_s=statistics.median(t[0] for t in self.times),
                    gap_s=statistics.median(gaps) if gaps else None, worst_gap_s=max(gaps) if gaps else None, kv_mb=kv / 1e6)

@torch.inference_mode()
def no_cache(model, t: Task) -> dict:
    "Every token reads the whole text again"
    clock = Clock(len(t.prompts))
    for i, (ids, want) in enumerate(zip(t.prompts, t.wants)):
        for _ in range(want): ids = ids + [int(model(torch.tensor([ids]))[0, -1].argmax())]; clock.tick(i)
    return clock.row(0)

@torch.inference_mode()
def slabs(model, t: Task, together: int) -> dict:
    "Keys and values are kept, in a slab for each sequence; a group starts together and ends with its longest"
    clock = Clock(len(t.prompts))
    for a in range(0, len(t.prompts), together):
        group, wants = t.prompts[a:a + together], t.wants[a:a + together]
        cache, ids, at = KVCache(model.cfg, len(group), SLAB), torch.tensor(group), 0
        for step in range(max(wants)):
            pos = torch.arange(at, at + ids.shape[1])[None].expand(len(group), -1)
            h, at = model.hidden(ids, pos, cache), at + ids.shape[1]
            ids = model.head(h[:, -1]).argmax(-1)[:, None]
            for i, want in enumerate(wants):
                if step < want: clock.tick(a + i)
    return clock.row(cache.nbytes)

def served(engine: Engine, t: Task, group: int = 0) -> dict:
    "Through the engine, all at once or in groups that wait for each other"
    clock, peak, size = Clock(len(t.prompts)), 0, engine.cache.block_size * engine.cache.bytes_per_token
    for a in range(0, len(t.prompts), group or len(t.prompts)):
        ids = {engine.add(p, Sampling(max_tokens=w, ignore_eos=True)): a + i for i, (p, w) in enumerate(zip(t.prompts[a:a + (group or len(t.prompts))], t.wants[a:a + (group or len(t.prompts))]))}
        while engine.has_work:
            for o in engine.step(): clock.tick(ids[o.id], len(o.tokens))
            peak = max(peak, len({b for r in engine.scheduler.running for b in r.table}))
    return clock.row(peak * size)

def rungs(engine: Engine, t: Task, few: Task | None = None) -> dict:
    "What to run for each rung, by name: functions without arguments, and the bytes of weights that they read; `few` is the work of the first"
    model, packed = engine.model, engine.packed
    plain = sum(p.numel() * p.element_size() for p in model.parameters())
    def make(packed=None, guesser=None, **more):
        s = EngineSettings(**{**dict(backend='torch', cache_tokens=4096, max_batch=SLOTS, step_tokens=512, prefix=False), **more})
        return Engine(model, engine.tokenizer, s, packed=packed, guesser=guesser)
    def fresh(**more): return lambda: served(make(**more), t)
    chunk, fast = dict(prefix=True, step_tokens=SLOTS + 20), dict(prefix=True, step_tokens=SLOTS + 20, backend='numba')
    small = sum(a.nbytes for a in engine.runner.held)
    return {'no cache': (lambda: no_cache(model, few or Task(t.prompts[:1], [6])), plain), 'KV cache': (lambda: slabs(model, t, 1), plain), 'batched': (lambda: slabs(model, t, SLOTS), plain),
            'paged': (lambda: served(make(), t, SLOTS), plain), 'continuous': (fresh(), plain), 'prefix sharing': (fresh(prefix=True), plain), 'chunked prefill': (fresh(**chunk), plain),
            'compiled step': (fresh(**fast), plain), 'quantized weights': (fresh(packed=packed, **fast), small), 'quantized KV': (fresh(packed=packed, kv='int8', **fast), small),
            'speculation': (lambda: served(make(packed=packed, kv='int8', guesser=PromptLookup(), **fast), t), small)}

def split_in_two(t: Task) -> dict:
    "Two processes with a thread each, half of the heads and of the feed-forward network in each"
    from labkit.inference.prefix import PrefixCache
    from labkit.inference.ranks import open_split
    split = open_split('smollm2-135m-instruct', 2, threads=1)
    try:
        runner, cache = split.start(n_blocks=256)
        e = Engine(split.model, split.tokenizer, EngineSettings(backend='torch', cache_tokens=4096, max_batch=SLOTS, step_tokens=SLOTS + 20))
        e.runner, e.cache, e.scheduler.cache = runner, cache, cache
        e.prefix = e.scheduler.prefix = PrefixCache(cache)
        return served(e, t)
    finally: split.close()

def climb(engine, t: Task, names=None, repeats: int = 1, few: Task | None = None) -> dict:
    "Every rung, `repeats` times in turn; the fastest run of each"
    out, steps = {}, rungs(engine, t, few)
    for _ in range(repeats):
        for name, (go, weights) in steps.items():
            if names and name not in names: continue
            gc.collect()
            row = dict(go(), weights_mb=weights / 1e6)
            if name not in out or row['seconds'] < out[name]['seconds']: out[name] = row
            print(f"{name:18} {row['tokens_per_s']:7.1f} tok/s   first token {row['first_token_s']:6.2f} s   worst gap {row['worst_gap_s'] or 0:5.2f} s   weights {row['weights_mb']:4.0f} MB   kv {row['kv_mb']:5.1f} MB   CPU {row['cpu_s']:5.1f} s", flush=True)
    return out

def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--only', nargs='*', help='rungs to measure')
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'ladder_cpu.json')
    a = p.parse_args()
    threads = set_threads(a.threads)
    engine = Engine.open(run=RunSettings(device='cpu', threads=threads), settings=EngineSettings(cache_tokens=256))
    t = task(engine.tokenizer)
    served(engine, Task(t.prompts[:1], [4]))
    rows = climb(engine, t, a.only, a.repeats)
    if not a.only or 'tensor parallel' in a.only:
        row = dict(split_in_two(t), weights_mb=sum(q.numel() * 4 for q in engine.model.parameters()) / 2e6)
        rows['tensor parallel'] = row; print(f"tensor parallel    {row['tokens_per_s']:7.1f} tok/s (2 processes, torch)")
    if a.only and a.out.exists(): rows = json.loads(a.out.read_text())['rows'] | rows
    gain = rows['quantized KV']['tokens_per_s'] / rows['KV cache']['tokens_per_s']
    result = dict(claim='the ladder on a CPU: quantized KV (all rungs below it included) over one slab a request, output tokens a second', value=round(gain, 1), unit='x a plain KV cache', bar=3, holds=gain >= 3,
        rows=rows, work=dict(requests=len(t.prompts), prompt=len(t.prompts[0]), shared=64, answers=t.wants, slots=SLOTS), threads=threads, machine=f'{platform.machine()}, {os.cpu_count()} cores',
        versions=dict(torch=torch.__version__, python=platform.python_version()), date=datetime.date.today().isoformat(), load=os.getloadavg()[0])
    with replacing(a.out) as f: f.write(json.dumps(result, indent=1) + '\n')
    print(json.dumps({k: v for k, v in result.items() if k != 'rows'}))
    return 0

if __name__ == '__main__': sys.exit(main())
