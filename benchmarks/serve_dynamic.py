"""Requests that come when they like: Poisson arrivals, lengths like those of real chats, one GPU.

python benchmarks/serve_dynamic.py                        labkit, fp8 weights and 8-bit cache: all at once, then at 40%, 70% and 90% of what that gave
python benchmarks/serve_dynamic.py --engine labkit,vllm   both in one run, where vllm can be imported
Prompts and answers have log-normal lengths with the mean and spread of ShareGPT as vLLM's benchmark samples it (prompt mean about 220 tokens, answer about 200; both cut at 1024).
The first token is timed from the moment of arrival, so that waiting counts."""
import argparse, importlib.util, json, sys, time
from pathlib import Path
import numpy as np, torch
sys.path.insert(0, str(Path(__file__).resolve().parent)); sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from serve_offline import ENGINES, RESULTS, stamp, write_model

def lengths(n: int, mean: float, spread: float, top: int, rng) -> np.ndarray:
    "Log-normal whole numbers with this mean; `spread` is the standard deviation of the logarithm"
    return np.clip(rng.lognormal(np.log(mean) - spread**2/2, spread, n), 4, top).astype(int)

def requests(n: int, vocab: int, seed: int = 0) -> list[tuple[list[int], int]]:
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, vocab, p).tolist(), int(o)) for p, o in zip(lengths(n, 220, 1.1, 1024, rng), lengths(n, 200, .9, 1024, rng))]

def run_labkit(engine, work, gaps) -> list[dict]:
    "Drive the engine's own `add` and `step` by the clock of arrivals"
    from labkit.core.lm import Sampling
    at, done, seen, t0, i = np.cumsum(gaps), [], {}, time.perf_counter(), 0
    while len(done) < len(work):
        now = time.perf_counter() - t0
        while i < len(work) and at[i] <= now:
            ids, n = work[i]
            seen[engine.add(ids, Sampling(max_tokens=n, ignore_eos=True))] = dict(arrived=at[i], out=n, got=0); i += 1
        if not engine.has_work: time.sleep(max(0., at[i] - (time.perf_counter() - t0))); continue
        for o in engine.step():
            r, now = seen[o.id], time.perf_counter() - t0
            if o.tokens and 'first' not in r: r['first'] = now
            r['got'] += len(o.tokens)
            if o.finish_reason: r['end'] = now; done.append(r)
    assert all(r['got'] == r['out'] for r in done)
    return done

def run_vllm(engine, work, gaps) -> list[dict]:
    "The same loop over vLLM's own engine"
    from vllm import SamplingParams
    core, at, done, seen, t0, i = engine.llm.llm_engine, np.cumsum(gaps), [], {}, time.perf_counter(), 0
    while len(done) < len(work):
        now = time.perf_counter() - t0
        while i < len(work) and at[i] <= now:
            ids, n = work[i]
            core.add_request(str(i), dict(prompt_token_ids=ids), SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False))
            seen[str(i)] = dict(arrived=at[i], out=n); i += 1
        if not core.has_unfinished_requests(): time.sleep(max(0., at[i] - (time.perf_counter() - t0))); continue
        for o in core.step():
            r, now = seen[o.request_id], time.perf_counter() - t0
            if o.outputs[0].token_ids and 'first' not in r: r['first'] = now
            if o.finished: r['end'] = now; done.append(r)
    return done

def figures(done: list[dict], rate: float) -> dict:
    "The field's names, milliseconds"
    took = max(r['end'] for r in done) - min(r['arrived'] for r in done)
    ttft = np.array([r['first'] - r['arrived'] for r in done])*1e3
    tpot = np.array([(r['end'] - r['first'])/max(1, r['out'] - 1) for r in done])*1e3
    row = dict(rate=None if np.isinf(rate) else round(rate, 2), requests=len(done), request_throughput=len(done)/took, output_throughput=sum(r['out'] for r in done)/took)
    for name, x in (('ttft', ttft), ('tpot', tpot)): row |= {f'mean_{name}_ms': x.mean(), f'median_{name}_ms': float(np.median(x)), f'p99_{name}_ms': float(np.percentile(x, 99))}
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}

def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--engine', default='labkit'); p.add_argument('--scheme', default='fp8+kv8'); p.add_argument('--requests', type=int, default=600); p.add_argument('--shape', default='llama2-7b')
    p.add_argument('--folder', type=Path, default=Path('/dev/shm/labkit-offline')); p.add_argument('--out', type=Path, default=RESULTS/'serve_dynamic.json'); a = p.parse_args()
    a.folder, runs = write_model(a.folder/a.shape, a.shape), {}
    for name in a.engine.split(','):
        if not importlib.util.find_spec(name): print(f'{name} is not installed: left out'); continue
        engine = ENGINES[name](a.folder, a.scheme, a)
        run, work = dict(labkit=lambda *w: run_labkit(engine.engine, *w), vllm=lambda *w: run_vllm(engine, *w))[name], requests(a.requests, engine.vocab)
        run(requests(300, engine.vocab, 1), np.zeros(300))                           # kernels compiled, graphs recorded
        rows = [figures(run(work, np.zeros(len(work))), np.inf)]
        for share in (.4, .7, .9):
            rate = rows[0]['request_throughput']*share
            rows.append(figures(run(work[:max(60, int(rate*12))], np.random.default_rng(2).exponential(1/rate, len(work))), rate))
        runs[name] = rows
        for r in rows: print(name, r, flush=True)
        del engine; torch.cuda.empty_cache()
    claims = []
    if len(runs) == 2:
        x = runs['labkit'][0]['request_throughput']/runs['vllm'][0]['request_throughput']
        claims = [dict(claim='requests a second, all at once, against vLLM', value=round(x, 2), unit='x vllm', bar=1.36, holds=x >= 1.36)]
    elif 'labkit' in runs: claims = [dict(claim=f'requests a second, all at once, {a.scheme}; no peer in this run', value=runs['labkit'][0]['request_throughput'], unit='requests/s')]
    a.out.write_text(json.dumps(dict(**stamp(), scheme=a.scheme, shape=a.shape, runs=runs, claims=claims), indent=1))
    for c in claims: print(json.dumps(c))

if __name__ == '__main__': main()
