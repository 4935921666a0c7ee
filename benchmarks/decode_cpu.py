"""SmolLM2-135M-Instruct on the CPU, one request: reading a prompt of 512 tokens, and 128 greedy tokens after a prompt of 8 and after that of 512, labkit against transformers and llama.cpp.

All read the same GGUF file and run in this process, alternating, with the same number of threads. labkit and llama.cpp (from
llama-cpp-python, left out where it isn't installed) compute with the file's packed blocks and activations rounded to 8 bits,
transformers in float32 with the dequantized weights. Prints tokens/s, ratios with their spread, the share of what reading the
weights allows, and how many greedy tokens of eight short prompts equal transformers'; the last line is JSON. With `--start` it only
starts new processes, one after the other, and prints the seconds from the process's beginning to the imports, the open engine, the first token.
"""
import argparse, datetime, json, os, platform, statistics, subprocess, sys, tempfile, time
from pathlib import Path
import torch
from labkit.core.device import set_threads
from labkit.core.files import replacing
from labkit.core.lm import Sampling
from labkit.core.settings import RunSettings
from labkit.inference.engine import Engine, EngineSettings
from labkit.model.checkpoint import embedded_file, save_model

PROMPTS = ['The capital of France is', 'Water boils at', 'The sum of two and three is', 'A short story about a fox:',
           'Once upon a time there was', 'The largest planet is', 'To make tea, first', 'My favourite colour is']
BARS = {'prefill': 900, 'decode': 210} # tokens/s of labkit on two threads

class Labkit:
    name = 'labkit'
    def __init__(self, threads): self.engine = Engine.open(run=RunSettings(device='cpu', threads=threads), settings=EngineSettings(prefix=False))
    def run(self, ids, n):
        "Greedy tokens, seconds to the first of them, seconds for the others"
        times = [time.perf_counter()]
        out = []
        for d in self.engine.stream(ids, Sampling(max_tokens=n, ignore_eos=True)):
            out.append(d.token); times.append(time.perf_counter())
        return out, times[1] - times[0], times[n] - times[1]

class Transformers:
    name = 'transformers'
    def __init__(self, ours):
        from transformers import AutoModelForCausalLM
        with tempfile.TemporaryDirectory() as d:
            save_model(ours.engine.model, d + '/m', ours.engine.tokenizer)
            self.model = AutoModelForCausalLM.from_pretrained(d + '/m', dtype=torch.float32).eval()
    @torch.inference_mode()
    def run(self, ids, n):
        t0, out, past = time.perf_counter(), [], None
        for i in range(n):
            got = self.model(torch.tensor([ids if i == 0 else out[-1:]]), past_key_values=past, use_cache=True, logits_to_keep=1)
            past = got.past_key_values
            out.append(int(got.logits[0, -1].argmax()))
            if i == 0: t1 = time.perf_counter()
        return out, t1 - t0, time.perf_counter() - t1

class LlamaCpp:
    name = 'llama.cpp'
    def __init__(self, threads):
        from llama_cpp import Llama
        self.model = Llama(str(embedded_file()), n_ctx=2048, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    def run(self, ids, n):
        m, t0, out = self.model, time.perf_counter(), []
        m.reset()
        m.eval(ids)
        for i in range(n):
            out.append(int(m.sample(temp=0.0)))
            if i == 0: t1 = time.perf_counter()
            if i < n - 1: m.eval(out[-1:])
        return out, t1 - t0, time.perf_counter() - t1

def peers(ours, threads):
    out = [Transformers(ours)]
    try: out.append(LlamaCpp(threads))
    except ImportError: print('llama-cpp-python is not installed: no figures of llama.cpp')
    return out

def bandwidth() -> float:
    "GB/s of reading, with torch's threads; best of five"
    x, best = torch.ones(64 * 2**20), 0.0
    for _ in range(5):
        t = time.perf_counter(); x.sum(); best = max(best, x.nbytes / 1e9 / (time.perf_counter() - t))
    return best

def measure(engines, n_prompt, n, repeats):
    "Alternate; tokens/s of each engine in each round"
    ids = [7 + 13 * i % 40000 for i in range(n_prompt)]
    rates = {e.name: {'prefill': [], 'decode': [], f'decode after {n_prompt}': []} for e in engines}
    for _ in range(repeats):
        for e in engines:
            _, first, others = e.run(ids, n)
            rates[e.name]['prefill'].append(n_prompt / first)
            rates[e.name][f'decode after {n_prompt}'].append((n - 1) / others)
            rates[e.name]['decode'].append((n - 1) / e.run(ids[:8], n)[2])
    return rates

def agreement(a, b, tokenizer, n=32):
    "Share of greedy tokens equal up to the first difference"
    same = 0
    for p in PROMPTS:
        x, y = (e.run(tokenizer.encode(p), n)[0] for e in (a, b))
        same += next((i for i in range(n) if x[i] != y[i]), n)
    return same / (n * len(PROMPTS))

def spread(ours, theirs):
    r = [a / b for a, b in zip(ours, theirs)]
    return dict(ratio=round(statistics.median(r), 2), spread=[round(min(r), 2), round(max(r), 2)])

def first_token(threads):
    "In a process of its own: seconds from its start to the imports, the open engine, the first token"
    begun = float(os.environ['LABKIT_BEGIN'])
    out = [time.time() - begun]
    ours = Labkit(threads); out.append(time.time() - begun)
    next(iter(ours.engine.stream(ours.engine.tokenizer.encode('The capital of France is'), Sampling(max_tokens=4)))); out.append(time.time() - begun)
    print(json.dumps(out), flush=True)

def start(threads, repeats):
    "Start new processes; median seconds to each point. The first fills the caches of files and of numba, and isn't counted"
    times = []
    for _ in range(repeats + 1):
        done = subprocess.run([sys.executable, __file__, '--threads', str(threads), '--first-token'], env=dict(os.environ, LABKIT_BEGIN=str(time.time())), capture_output=True, text=True, check=True)
        times.append(json.loads(done.stdout.splitlines()[-1]))
    imports, opened, first = (statistics.median(t) for t in zip(*times[1:]))
    print(f'from the start of the process: imported {imports:.2f} s, engine open {opened:.2f} s, first token {first:.2f} s; load {os.getloadavg()[0]:.1f}')
    print(json.dumps(dict(claim=f'SmolLM2-135M on the CPU, {threads} threads: seconds from the start of the process to the first token', value=round(first, 2), unit='s', bar=2, holds=first <= 2, spread=[round(min(t[2] for t in times[1:]), 2), round(max(t[2] for t in times[1:]), 2)], imported=round(imports, 2), opened=round(opened, 2))))

def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--threads', type=int, default=0, help='CPU threads (0: one a core)')
    p.add_argument('--prompt', type=int, default=512, help='tokens of the prompt')
    p.add_argument('--tokens', type=int, default=128, help='new tokens')
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--start', action='store_true', help='only the time from the start of a process to its first token')
    p.add_argument('--first-token', action='store_true', help=argparse.SUPPRESS)
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'decode_cpu.json')
    a = p.parse_args()
    threads = set_threads(a.threads)
    if a.first_token or a.start: return first_token(threads) if a.first_token else start(threads, a.repeats)
    ours = Labkit(threads)
    engines = [ours, *peers(ours, threads)]
    gbs, read = bandwidth(), sum(d.nbytes for d in ours.engine.runner.held) / 1e9
    print(f"{threads} threads, {ours.engine.runner.weights}, read at {gbs:.1f} GB/s: at most {gbs / read:.0f} tokens/s; load {os.getloadavg()[0]:.1f}")
    for e in engines: e.run([1, 2, 3], 3)
    rates = measure(engines, a.prompt, a.tokens, a.repeats)
    median = {name: {k: round(statistics.median(v), 1) for k, v in r.items()} for name, r in rates.items()}
    best = {name: {k: round(max(v), 1) for k, v in r.items()} for name, r in rates.items()}
    against = {f'{k}, {name}': spread(rates['labkit'][k], r[k]) for name, r in rates.items() if name != 'labkit' for k in r}
    same = {e.name: round(agreement(e, engines[1], ours.engine.tokenizer), 3) for e in engines if e is not engines[1]}
    for name, r in median.items(): print(f"{name}: prefill {r['prefill']} tok/s (best {best[name]['prefill']}), decode {r['decode']} tok/s (best {best[name]['decode']}), after {a.prompt} tokens {r[f'decode after {a.prompt}']} (best {best[name][f'decode after {a.prompt}']})")
    print(f"labkit / others: {against}; greedy tokens equal to transformers' {same}; decode at {median['labkit']['decode'] / (gbs / read):.0%} of the limit of reading")
    value = median['labkit']['decode']
    result = dict(claim=f'decoding SmolLM2-135M (Q4_1) on the CPU after a prompt of 8 tokens, {threads} threads; prefill of {a.prompt} tokens in "more"', value=value, unit='tokens/s', bar=BARS['decode'], holds=all(median['labkit'][k] >= b for k, b in BARS.items()),
        spread=[round(min(rates['labkit']['decode']), 1), round(max(rates['labkit']['decode']), 1)],
        more={'prefill': dict(value=median['labkit']['prefill'], bar=BARS['prefill'], spread=[round(min(rates['labkit']['prefill']), 1), round(max(rates['labkit']['prefill']), 1)])},
        tokens_per_s=median, best=best, ratios=against, agreement=same, limit_tokens_per_s=round(gbs / read, 1), share_of_limit=round(value / (gbs / read), 2), threads=threads,
        machine=f'{platform.machine()}, {os.cpu_count()} cores', versions=dict(torch=torch.__version__, python=platform.python_version()), date=datetime.date.today().isoformat(), load=os.getloadavg()[0])
    with replacing(a.out) as f: f.write(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result))
    return 0

if __name__ == '__main__': sys.exit(main())
