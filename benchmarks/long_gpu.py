"""Long context on one GPU: a prompt of 204,800 tokens read in chunks, then the time of a token at several lengths, with keys and values in 8, 4 and 16 bits.

python benchmarks/long_gpu.py                                             internlm2-7b's shape in bfloat16; about two minutes on an H100
python benchmarks/long_gpu.py --tokens 1000000 --kv int4 --pretend        tokens written a million positions on, nothing read before: half a minute
python benchmarks/long_gpu.py --shape lab-1m --device cpu --tokens 2000 --chunk 256     the script's logic, without a GPU
Weights are random and made on the device; dynamic NTK scaling carries the positions beyond the trained length. The prompt is really read with the first kind of cache only (not with --pretend);
for the time of a token the cache is filled with random numbers and declared to be the prompt's, since the time does not depend on them. The last line is one JSON object."""
import argparse, gc, json, statistics, sys, time
from pathlib import Path
import torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from labkit.core.lm import Sampling
from labkit.corpus.tokens import train_tokenizer
from labkit.inference.engine import Engine, EngineSettings
from labkit.model.config import preset
from labkit.model.transformer import without_numbers

RESULT = Path(__file__).parent/'results'/'long_gpu.json'
DECODE = 32 # tokens written at each length; the first four are left out

def sync(device) -> None:
    if device == 'cuda': torch.cuda.synchronize()

@torch.no_grad()
def make_model(shape: str, device: str):
    "Random weights of a shape, made where they will be used"
    model = without_numbers(preset(shape)).to(torch.bfloat16 if device == 'cuda' else torch.float32).to_empty(device=device).eval().requires_grad_(False)
    torch.manual_seed(0)
    for p in model.parameters(): p.fill_(1) if p.dim() == 1 else p.normal_(std=.02)
    return model

def engine_for(model, tokenizer, kv: str, a) -> Engine:
    room = a.tokens + 1024
    return Engine(model, tokenizer, EngineSettings(backend=a.backend, kv=kv, block_size=a.block, cache_tokens=room + 4096, max_batch=4, step_tokens=a.chunk, max_context=room, rope_factor=a.rope_factor))

def prefill(engine, ids, a) -> dict:
    "One prompt, chunk by chunk; stops when the time is over"
    engine.add(ids[-64:], Sampling(max_tokens=2, ignore_eos=True))                                   # kernels compiled
    while engine.has_work: engine.step()
    engine.prefix.clear()
    id, done, ends = engine.add(ids, Sampling(max_tokens=1, ignore_eos=True)), 0, []
    before = engine.stats()['prompt_tokens']
    sync(a.device); start = time.perf_counter()
    while engine.has_work and not (over := time.perf_counter() - a.start > a.seconds):
        engine.step(); sync(a.device)
        done = engine.stats()['prompt_tokens'] - before
        if not ends or done > ends[-1][0]: ends.append((done, round(time.perf_counter() - start, 4)))
    if done < len(ids): print(f'{a.seconds} s are over after {done} tokens'); engine.abort(id); engine.step()
    at = {n: next((s for d, s in ends if d >= n), None) for n in marks(a)}
    return dict(tokens=done, seconds=ends[-1][1], tokens_per_s=round(done / ends[-1][1], 1), seconds_at=at, chunks=ends, reach=engine.scheduler.reach(len(ids)))

@torch.no_grad()
def pretend(engine, ids) -> None:
    "Make the engine believe that a prompt is in its cache: speed does not depend on what the numbers are"
    table, reach = [], engine.scheduler.reach(len(ids))
    engine.prefix.clear()
    engine.cache.grow(table, len(ids))
    engine.prefix.insert(ids, table, (None, reach) if reach else None)
    engine.cache.free(table)

def write(engine, ids, a) -> dict:
    "Time of each of DECODE tokens after a prompt"
    pretend(engine, ids)
    for _ in engine.stream(ids, Sampling(max_tokens=6, ignore_eos=True)): pass                       # the rest of the last block read, graph recorded
    stream, took = engine.stream(ids, Sampling(max_tokens=DECODE + 4, ignore_eos=True)), []
    for _ in range(4): next(stream)
    sync(a.device); t = time.perf_counter()
    for _ in stream: now = time.perf_counter(); took.append(now - t); t = now
    return dict(context=len(ids), decode_ms=round(1e3 * statistics.median(took), 3), decode_ms_worst=round(1e3 * max(took), 3), kv_bytes_read=len(ids) * engine.cache.bytes_per_token)

def marks(a) -> list[int]: return sorted({min(n, a.tokens) for n in (1024, 32_768, 131_072, a.tokens)})

@torch.no_grad()
def random_cache(cache) -> None:
    for t in cache.stores: t.random_(0, 255) if t.dtype == torch.uint8 else t.normal_(std=.02 if t.dtype == torch.float16 else 1.) if t.dtype != torch.float8_e4m3fn else None

def scheme(model, tokenizer, kv: str, read: bool, a) -> dict:
    "One cache kind: a long prompt read, if `read`; tokens written at several lengths"
    start, engine = time.perf_counter(), engine_for(model, tokenizer, kv, a)
    ids = torch.randint(0, model.cfg.vocab_size, (a.tokens,), generator=torch.Generator().manual_seed(1)).tolist()
    s = engine.stats()
    out = dict(kv=s['kv'], backend=s['backend'], backend_reason=s['backend_reason'], weights=s['weights'], cache_bytes=s['cache_bytes'], bytes_per_token=engine.cache.bytes_per_token)
    if read: out['prefill'] = prefill(engine, ids, a); print(f"{kv}: {({k: v for k, v in out['prefill'].items() if k != 'chunks'})}", flush=True)
    random_cache(engine.cache)
    out['rows'] = []
    for n in marks(a):
        out['rows'].append(write(engine, ids[:n - 64], a)); print(f"{kv}: {out['rows'][-1]}", flush=True)  # prompt and answer within n
    out |= dict(preemptions=engine.stats()['preemptions'], peak_bytes=torch.cuda.max_memory_allocated() if a.device == 'cuda' else None, seconds=round(time.perf_counter() - start, 1))
    del engine; gc.collect()
    if a.device == 'cuda': torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
    return out

def finish(row: dict, out: Path | None) -> None:
    if out: out.write_text(json.dumps(row, indent=1) + '\n')
    print(json.dumps({k: v for k, v in row.items() if k != 'schemes'}))

def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--shape', default='internlm2-7b'); p.add_argument('--device', default='cuda'); p.add_argument('--backend', default='auto'); p.add_argument('--tokens', type=int, default=204_800)
    p.add_argument('--kv', default='int8,int4,auto'); p.add_argument('--chunk', type=int, default=8192); p.add_argument('--block', type=int, default=64); p.add_argument('--rope-factor', type=float, default=0.)
    p.add_argument('--pretend', action='store_true', help='read no prompt, only write at several lengths')
    p.add_argument('--seconds', type=float, default=140., help='reading ends and no new kind of cache is begun after so many seconds'); p.add_argument('--out', type=Path, default=None)
    a = p.parse_args()
    a.start, cfg = time.perf_counter(), preset(a.shape)
    if not cfg.rope_scaling and not a.rope_factor: a.rope_factor = 1.
    model, tokenizer = make_model(a.shape, a.device), train_tokenizer(['the cat sat on the mat ' * 9] * 9, 300)
    row = dict(shape=a.shape, trained=cfg.max_seq_len, rope=cfg.rope_scaling.kind if cfg.rope_scaling else f'dynamic {a.rope_factor:g}', weight_bytes=sum(p.nbytes for p in model.parameters()),
               device=torch.cuda.get_device_name() if a.device == 'cuda' else 'CPU', device_bytes=torch.cuda.get_device_properties(0).total_memory if a.device == 'cuda' else None,
               torch=torch.__version__, date=time.strftime('%Y-%m-%d'), chunk=a.chunk, block=a.block, schemes={})
    out = a.out or (RESULT if a.device == 'cuda' and not a.pretend else None)
    for kv in a.kv.split(','):
        if time.perf_counter() - a.start > a.seconds: print(f'{a.seconds} s are over: KV {kv} is left out'); continue
        try: row['schemes'][kv] = scheme(model, tokenizer, kv, kv == a.kv.split(',')[0] and not a.pretend, a)
        except Exception as e: row['schemes'][kv] = dict(error=f'{type(e).__name__}: {str(e)[:300]}', rows=[]); print(row['schemes'][kv])
        if out: out.write_text(json.dumps(row, indent=1))
    first = row['schemes'].get(a.kv.split(',')[0], {})
    last = {k: s['rows'][-1]['decode_ms'] for k, s in row['schemes'].items() if s['rows']}
    if a.pretend: return finish(row | dict(claim=f'ms of a token of {a.shape} after {a.tokens:,} positions on one GPU, by kind of cache', value=last, unit='ms'), out)
    n = first.get('prefill', {}).get('tokens', 0)
    row |= dict(claim=f"tokens of one prompt that {a.shape} has read on one GPU, KV {first.get('kv')}", value=n, unit='tokens', bar=200_000, holds=n >= 200_000, spread=[n, n], prefill_s=first.get('prefill', {}).get('seconds'),
                decode_ms=last)
    finish(row, out)

if __name__ == '__main__': main()
