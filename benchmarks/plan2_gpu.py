"""The planner's memory against measured peaks on two GPUs under FSDP2 (ZeRO-1, -2, -3), each row a few steps of training.

It starts its own ranks. `--check` compares the stored measurements with today's planner and needs no GPU. The last line is one JSON object.
"""
import argparse, gc, json, os, statistics, subprocess, sys, time
from pathlib import Path
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from labkit.model.config import preset
from labkit.model.cross_entropy import cross_entropy_sum
from labkit.model.transformer import Transformer
from labkit.pretrain.optimizer import make_optimizer
from labkit.pretrain.parallel import Layout, make_mesh, process_group
from labkit.pretrain.zero import clip, last_micro_batch, shard
from plan_gpu import recomputing

DEVICE, OUT = 'cuda', Path(__file__).parent/'results'/'plan2_gpu.json'
SMALL, LARGE = 'internlm2-1.8b', 'internlm2-7b'
ROWS = [dict(model=SMALL, stage=3, micro=2, seq=4096, recompute='none'), dict(model=SMALL, stage=3, micro=2, seq=4096, recompute='full'),
        dict(model=SMALL, stage=2, micro=2, seq=4096, recompute='none', pieces=2), dict(model=SMALL, stage=1, micro=1, seq=4096, recompute='none', pieces=2),
        dict(model=SMALL, stage=3, micro=2, seq=4096, recompute='none', compiled=True),
        dict(model=LARGE, stage=3, micro=1, seq=4096, recompute='none'), dict(model=LARGE, stage=3, micro=2, seq=4096, recompute='full')]

def step(model, optimizer, x, pieces):
    "One optimizer step; the peak of each half"
    marks = {}
    def mark(name):
        marks[name], marks[name + ' now'] = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    for i in range(pieces):
        last_micro_batch(model, i == pieces - 1)
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            h = model.hidden(x); mark(f'forward {i}')
            loss = cross_entropy_sum(h.flatten(0, 1), model.lm_head.weight, x.flatten()) / x.numel()
            del h; mark(f'loss {i}')
            loss.backward(); mark(f'backward {i}')
    clip(model.parameters(), 1.); optimizer.step(); mark('step')
    optimizer.zero_grad(set_to_none=True)
    return marks

def measure(group, model, stage, micro, seq, recompute, pieces=1, compiled=False, steps=4):
    "A fresh model, sharded; peak bytes and seconds of a step on this rank"
    gc.collect(); torch.cuda.empty_cache(); torch._dynamo.reset(); torch.manual_seed(0)
    cfg = preset(model)
    with torch.device(DEVICE): m = Transformer(cfg)
    for b in m.layers:
        b.self_attn.layer = 0
        if recompute == 'full': recomputing(b)
        if compiled: b.compile()
    shard(m, make_mesh(Layout(fsdp=group.world), DEVICE), stage, torch.bfloat16)
    gc.collect(); torch.cuda.empty_cache()
    optimizer, x, seconds = make_optimizer(m, 1e-5), torch.randint(0, cfg.vocab_size, (micro, seq), device=DEVICE), []
    for _ in range(steps):
        torch.cuda.reset_peak_memory_stats(); torch.cuda.synchronize(); t = time.perf_counter()
        marks = step(m, optimizer, x, pieces)
        torch.cuda.synchronize(); seconds.append(time.perf_counter() - t)
    return dict(model=model, stage=stage, micro=micro, seq=seq, recompute=recompute, pieces=pieces, compiled=compiled, ranks=group.world, marks=marks,
                peak=max(v for k, v in marks.items() if 'now' not in k), reserved=torch.cuda.max_memory_reserved(), seconds=statistics.median(seconds[1:]))

def run_rank(out, limit):
    "What each rank runs: all rows, or those that the time allows"
    begun, rows = time.perf_counter(), []
    with process_group(DEVICE) as group:
        for kw in ROWS:
            if group.sum(time.perf_counter() - begun)[0] > group.world*limit: break
            rows.append(measure(group, **kw))
            if group.rank == 0: print(f"{time.perf_counter() - begun:5.1f} s  {kw} peak {rows[-1]['peak']/1e9:.2f} GB, {rows[-1]['seconds']*1e3:.0f} ms", flush=True)
            if group.rank == 0: out.write_text(json.dumps(dict(device=f'{group.world} x {torch.cuda.get_device_name()}', date=time.strftime('%Y-%m-%d'), versions=dict(torch=torch.__version__), rows=rows), indent=1) + '\n')

def compare(rows):
    "Relative error of the planner's peak for each row"
    from labkit.pretrain.plan import Run, plan_memory
    errors = []
    for r in rows:
        p = plan_memory(preset(r['model']), Layout(fsdp=r['ranks']), Run(r['micro'], r['seq'], r['pieces'], stage=r['stage'], recompute=r['recompute'], compiled=r['compiled']))
        said = sum(p.values()) - p['context']
        errors.append(said/r['peak'] - 1)
        print(f"{r['model']}, ZeRO-{r['stage']}, {r['micro']} x {r['seq']}, recompute {r['recompute']:4}, {'compiled' if r['compiled'] else 'eager':8}, pieces {r['pieces']}: measured {r['peak']/1e9:6.2f} GB, planned {said/1e9:6.2f} GB, error {errors[-1]:+.1%}")
    return errors

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--check', action='store_true', help='compare the stored measurements with the planner')
    p.add_argument('--measure-only', action='store_true', help='store the measurements and stop')
    p.add_argument('--limit', type=float, default=75, help='seconds after which no further row begins')
    p.add_argument('--out', type=Path, default=OUT)
    a = p.parse_args()
    if 'RANK' in os.environ: return run_rank(a.out, a.limit)
    if not a.check:
        if torch.cuda.device_count() < 2: sys.exit('plan2_gpu: needs two CUDA devices (or --check)')
        a.out.parent.mkdir(exist_ok=True, parents=True)
        subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', __file__, '--out', a.out, '--limit', str(a.limit)], check=True)
    if a.measure_only: return
    result = json.loads(a.out.read_text())
    errors = compare(result['rows']); worst = max(map(abs, errors))
    result = dict(claim='planned against measured peak memory on two GPUs under FSDP2, the worst of all settings', value=round(worst, 4), unit='relative error', bar=.05, holds=worst <= .05, spread=[round(min(errors), 4), round(max(errors), 4)],
                  **{k: result[k] for k in ('device', 'date', 'versions')}, rows=result['rows'])
    a.out.write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps({k: v for k, v in result.items() if k != 'rows'}))

if __name__ == '__main__': main()
