"""Greedy decoding of SmolLM2-135M-Instruct on the CPU: labkit against transformers on the same dequantized float32 weights.

Both run in this process, alternating, with the same number of threads. labkit reads the GGUF file's packed blocks
(the same numbers: a block unpacks to exactly the float32 weight that transformers got) and computes in float32.
Prints the agreement of the greedy tokens, the ratio with its spread, and the bandwidth limit; the last line is JSON.
"""
import argparse, datetime, json, os, platform, statistics, sys, tempfile, time
from pathlib import Path
import torch
from labkit.core.device import set_threads
from labkit.core.files import replacing
from labkit.core.lm import Sampling
from labkit.core.settings import RunSettings
from labkit.inference.engine import Engine, EngineSettings
from labkit.model.checkpoint import save_model

PROMPTS = ['The capital of France is', 'Water boils at', 'The sum of two and three is', 'A short story about a fox:',
           'Once upon a time there was', 'The largest planet is', 'To make tea, first', 'My favourite colour is']
BARS = {1: 1.5, 8: 2.0}

def peer(model, tokenizer):
    "transformers' model with the same weights"
    from transformers import AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as d:
        save_model(model, d + '/m', tokenizer)
        model = AutoModelForCausalLM.from_pretrained(d + '/m', dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None # go on behind the end of a text, as labkit does with ignore_eos
    return model

def run_labkit(engine, prompts, n):
    "Tokens of each prompt and tokens a second"
    t = time.perf_counter()
    out = engine.generate(prompts, Sampling(max_tokens=n, ignore_eos=True))
    return [list(c.tokens) for c in out], sum(len(c.tokens) for c in out) / (time.perf_counter() - t)

@torch.inference_mode()
def run_peer(model, prompts, n):
    "The same by `generate`, prompts padded on the left"
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    t = time.perf_counter()
    out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=n, pad_token_id=0)[:, longest:]
    return out.tolist(), out.numel() / (time.perf_counter() - t)

def bandwidth() -> float:
    "GB/s of reading, with torch's threads; best of five"
    x = torch.ones(64 * 2**20)
    best = 0.0
    for _ in range(5):
        t = time.perf_counter(); x.sum(); best = max(best, x.nbytes / 1e9 / (time.perf_counter() - t))
    return best

def compare(engine, model, prompts, n, repeats):
    "Alternate the two; rates of both, and how many tokens agree before the first difference"
    ours, theirs, same = [], [], 0
    for _ in range(repeats):
        a, r = run_labkit(engine, prompts, n); ours.append(r)
        b, r = run_peer(model, prompts, n); theirs.append(r)
    for x, y in zip(a, b): same += next((i for i in range(n) if x[i] != y[i]), n)
    return dict(labkit=ours, transformers=theirs, ratios=[x / y for x, y in zip(ours, theirs)], agreement=same / (n * len(prompts)))

def report(batch, r, limit):
    m = statistics.median
    print(f"batch {batch}: labkit {m(r['labkit']):.1f} tok/s, transformers {m(r['transformers']):.1f} tok/s, ratio {m(r['ratios']):.2f} "
          f"({min(r['ratios']):.2f}–{max(r['ratios']):.2f}); {r['agreement']:.1%} of the greedy tokens equal up to the first difference; "
          f"{m(r['labkit']) / (limit * batch):.0%} of the limit that reading the weights sets")
    return m(r['ratios'])

def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--threads', type=int, default=0, help='CPU threads (0: one a core)')
    p.add_argument('--tokens', type=int, default=64, help='new tokens a prompt')
    p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'decode_cpu.json')
    a = p.parse_args()
    threads = set_threads(a.threads)
    engine = Engine.open(run=RunSettings(device='cpu', threads=threads))
    model = peer(engine.model, engine.tokenizer)
    ids, gbs = [engine.tokenizer.encode(x) for x in PROMPTS], bandwidth()
    read = sum(m.data.nbytes for m in engine.runner.held) / 1e9
    print(f"{threads} threads, {engine.runner.weights}, read at {gbs:.1f} GB/s: at most {gbs / read:.0f} steps/s; load {os.getloadavg()[0]:.1f}")
    run_peer(model, ids[:1], 4); run_labkit(engine, ids, 4)
    rows = {b: compare(engine, model, ids[:b], a.tokens, a.repeats) for b in BARS}
    ratio = {b: report(b, r, gbs / read) for b, r in rows.items()}
    result = dict(claim='greedy decoding on the CPU, labkit / transformers, same weights: batch 1 (batch 8 in "more")', value=round(ratio[1], 2), unit='x transformers',
        bar=BARS[1], holds=all(ratio[b] >= bar for b, bar in BARS.items()), spread=[round(min(rows[1]['ratios']), 2), round(max(rows[1]['ratios']), 2)],
        more={'batch 8': dict(value=round(ratio[8], 2), bar=BARS[8], spread=[round(min(rows[8]['ratios']), 2), round(max(rows[8]['ratios']), 2)])},
        tokens_per_s={str(b): {k: round(statistics.median(r[k]), 1) for k in ('labkit', 'transformers')} for b, r in rows.items()},
        agreement={str(b): round(r['agreement'], 4) for b, r in rows.items()}, limit_steps_per_s=round(gbs / read, 1), threads=threads,
        machine=f'{platform.machine()}, {os.cpu_count()} cores', versions=dict(torch=torch.__version__, python=platform.python_version()), date=datetime.date.today().isoformat(), load=os.getloadavg()[0])
    with replacing(a.out) as f: f.write(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result))
    return 0

if __name__ == '__main__': sys.exit(main())
