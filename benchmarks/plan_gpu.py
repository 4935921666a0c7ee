"""The planner's memory against measured peaks on one GPU: InternLM2-1.8B, micro-batches, lengths, recomputation, eager and compiled.

Each row is a few steps of training; its peak is what torch's allocator counted. The planner sees the same settings and nothing else.
`--check` compares the stored measurements with today's planner and needs no GPU. The last line is one JSON object.
"""
import argparse, gc, json, statistics, sys, time
from functools import partial
from pathlib import Path
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from labkit.model.config import preset
from labkit.model.transformer import Transformer
from labkit.pretrain.optimizer import make_optimizer
try: from labkit.model.cross_entropy import cross_entropy_sum
except ImportError: from labkit.pretrain.optimizer import cross_entropy_sum

DEVICE, OUT, CHUNK, MODEL = 'cuda', Path(__file__).parent/'results'/'plan_gpu.json', 0, 'internlm2-1.8b'
ROWS = [dict(micro=b, seq=t, recompute=r) for t in (2048, 4096) for b in (1, 2, 4) for r in ('none', 'full')] + [dict(micro=2, seq=2048, recompute='none', pieces=2)]
COMPILED = [dict(micro=2, seq=4096, recompute='none'), dict(micro=2, seq=4096, recompute='full'), dict(micro=1, seq=4096, recompute='none')]

def recomputing(block):
    "Keep only the block's input; `forward` runs again in the backward pass"
    inside = block.forward
    block.forward = lambda *a: checkpoint(inside, *a, use_reentrant=False)
    return inside

def step(model, optimizer, x, pieces, marks):
    "One optimizer step; `marks` gets the peak at each border"
    def mark(name):
        marks[name] = torch.cuda.max_memory_allocated(); marks[name + ' now'] = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    head = model.embed_tokens if model.lm_head is None else model.lm_head
    for i in range(pieces):
        with torch.autocast(DEVICE, torch.bfloat16), sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            h = model.hidden(x)
            mark(f'forward {i}')
            loss = cross_entropy_sum(h.flatten(0, 1), head.weight, x.flatten(), chunk=CHUNK) / x.numel()
        del h
        mark(f'loss {i}')
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION]): loss.backward() # a recomputed forward needs the same choice
        mark(f'backward {i}')
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
    optimizer.step(); mark('step')
    optimizer.zero_grad(set_to_none=True)

def measure(model, optimizer, micro, seq, recompute, pieces=1, compiled=False, steps=4):
    "Peak bytes and seconds of a step with these settings, or out of memory"
    gc.collect(); torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats(); torch._dynamo.reset()
    row = dict(micro=micro, seq=seq, recompute=recompute, pieces=pieces, compiled=compiled, fixed=torch.cuda.memory_allocated())
    plain = []
    if compiled:
        for b in model.layers: b.compile()
    if recompute == 'full': plain = [recomputing(b) for b in model.layers]
    x, seconds = torch.randint(0, model.cfg.vocab_size, (micro, seq), device=DEVICE), []
    try:
        for _ in range(steps):
            marks = {}; torch.cuda.synchronize(); t = time.perf_counter()
            step(model, optimizer, x, pieces, marks)
            torch.cuda.synchronize(); seconds.append(time.perf_counter() - t)
        row |= dict(marks=marks, peak=max(v for k, v in marks.items() if 'now' not in k), reserved=torch.cuda.max_memory_reserved(), seconds=statistics.median(seconds[1:]))
    except torch.cuda.OutOfMemoryError: row |= dict(peak=None)
    free, total = torch.cuda.mem_get_info()
    row |= dict(context=total - free - torch.cuda.memory_reserved(), total=total)
    optimizer.zero_grad(set_to_none=True)
    for b, f in zip(model.layers, plain): del b.forward
    for b in model.layers: b._compiled_call_impl = None
    return row

def run_all(limit):
    cfg, begun = preset(MODEL), time.perf_counter()
    with torch.device(DEVICE): model = Transformer(cfg)
    model.init_weights()
    for i, b in enumerate(model.layers): b.self_attn.layer = 0 # one compiled block serves all
    optimizer = make_optimizer(model, 1e-5)
    measure(model, optimizer, 1, 256, 'none', steps=2) # the optimizer's state exists from the first step on
    rows = []
    for kw in [*ROWS, *(dict(c, compiled=True) for c in COMPILED)]:
        if time.perf_counter() - begun > limit: break
        rows.append(measure(model, optimizer, **kw))
        r = rows[-1]
        print(f"{time.perf_counter() - begun:5.1f} s  {kw} peak {(r['peak'] or 0)/1e9:.2f} GB, {r.get('seconds', 0)*1e3:.0f} ms", flush=True)
    return rows

def compare(rows):
    "Relative error of the planner's peak for each row that fitted"
    from labkit.pretrain.plan import Run, plan_memory
    errors = []
    for r in rows:
        p = plan_memory(preset(MODEL), run=Run(micro_batch=r['micro'], seq_len=r['seq'], recompute=r['recompute'], compiled=r['compiled'], pieces=r['pieces'], chunk=CHUNK))
        said = sum(p.values()) - p['context']
        if r['peak'] is None: print(f"{r['micro']} x {r['seq']} {r['recompute']}: did not fit; planned {said/1e9:.1f} GB"); continue
        errors.append(said/r['peak'] - 1)
        print(f"{r['micro']} x {r['seq']}, recompute {r['recompute']:4}, {'compiled' if r['compiled'] else 'eager':8}, pieces {r['pieces']}: measured {r['peak']/1e9:6.2f} GB, planned {said/1e9:6.2f} GB, error {errors[-1]:+.1%}")
    return errors

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--check', action='store_true', help='compare the stored measurements with the planner')
    p.add_argument('--measure-only', action='store_true', help='store the measurements and stop')
    p.add_argument('--limit', type=float, default=80, help='seconds after which no further row begins')
    p.add_argument('--out', type=Path, default=OUT)
    a = p.parse_args()
    if a.check: result = json.loads(a.out.read_text())
    elif not torch.cuda.is_available(): sys.exit('plan_gpu: needs a CUDA device (or --check)')
    else: result = dict(device=torch.cuda.get_device_name(), date=time.strftime('%Y-%m-%d'), versions=dict(torch=torch.__version__), model=MODEL, rows=run_all(a.limit))
    a.out.parent.mkdir(exist_ok=True, parents=True); a.out.write_text(json.dumps(result, indent=1) + '\n')
    if a.measure_only: return
    errors = compare(result['rows']); worst = max(map(abs, errors))
    result = dict(claim='planned against measured peak memory on one GPU, the worst of all settings', value=round(worst, 4), unit='relative error', bar=.05, holds=worst <= .05, spread=[round(min(errors), 4), round(max(errors), 4)],
                  **{k: result[k] for k in ('device', 'date', 'versions', 'model')}, rows=result['rows'])
    a.out.write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps({k: v for k, v in result.items() if k != 'rows'}))

if __name__ == '__main__': main()
