"""Decoding with a model on two GPUs against the same model on one: the same tokens, and how fast.

    python benchmarks/serve_parallel_gpu.py [--out benchmarks/results/serve_parallel_gpu.json] [--sizes 1 16] [--ranks 2]

A model of Llama-2-7B's shape with random weights. First in float32, eight of its layers: the tokens of both must be equal. Then in bfloat16 and with 4-bit weights, all layers, through the
engine's kernels and recorded graphs: the median of a greedy decode step as the engine sees it, the message to the other rank included, and a prompt of 2,048 tokens. `--cpu` tries the script itself on a tiny model.
NCCL_NVLS_ENABLE=0 is set: NVLink multicast stays off on shared hosts."""
import argparse, datetime, gc, json, os, subprocess, sys, time, zlib
from pathlib import Path
import torch, torch.distributed as dist
from labkit.inference.tensor_parallel import Leader, Ranks, Share, connect, cut, follow, greedy, local_config, make_runner, quantize_part
from labkit.model.config import preset
from labkit.model.transformer import Transformer, from_tensors

CLAIM = 'a model on two GPUs decodes faster than on one, and the same tokens'

def random_part(cfg, ranks, device, dtype, scheme='auto'):
    "A rank's part of a model whose weights follow from their names"
    with torch.device('meta'): whole = {n: p.shape for n, p in Transformer(cfg).named_parameters()}
    share = Share(cfg, ranks.rank, ranks.ranks, whole_vocab=True)
    def numbers(name, shape):
        if name.endswith('norm.weight'): return torch.ones(shape, device=device)
        g = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
        return torch.randn(shape, device=device, generator=g)*(cfg.dim**-.5 if 'embed' not in name else 1.)
    model = from_tensors(local_config(share), ((n, cut(share, n, numbers(n, s))) for n, s in whole.items()), 'random', device, dtype).requires_grad_(False)
    return connect(model if scheme == 'auto' else quantize_part(model, share, scheme), share, ranks)

def run(cfg, ranks, device, dtype, prompts, tokens, scheme, backend):
    "Tokens, seconds of each step, and bytes of weights on this rank"
    model = random_part(cfg, ranks, device, dtype, scheme)
    longest = max(map(len, prompts)) + tokens + 16
    more = dict(max_batch=len(prompts), max_len=longest) if backend == 'cuda' else {}
    runner, cache = make_runner(model, ranks, n_blocks=len(prompts)*(longest//16 + 1), backend=backend, **more)
    held = sum({t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}.values())
    if ranks.rank: follow(runner, ranks, cache); return None, None, held
    lead = Leader(runner, ranks, cache)
    greedy(lead, cache, prompts, 4)                                          # compile, record
    out = greedy(lead, cache, prompts, tokens, times := [])
    lead.close()
    return out, times, held

def clean(device):
    gc.collect()
    if device.startswith('cuda'): torch.cuda.synchronize(); torch.cuda.empty_cache()

def meet(device):
    "All ranks are here"
    dist.all_reduce(t := torch.ones(1, device=device)); t.item()

def both(name, world, device, **how):
    "The same on one rank, then on all: results of rank 0"
    found = {}
    for label, ranks in (('one', Ranks(0, 1)), ('two', Ranks(dist.get_rank(), world))):
        if label == 'two' or dist.get_rank() == 0:
            t0 = time.time()
            tokens, times, held = run(ranks=ranks, device=device, **how)
            if times: found[label] = dict(tokens=tokens, ms=1e3*sorted(times[1:])[len(times[1:])//2], prompt_ms=1e3*times[0], weights=held); print(f"{name}, {label}: {found[label]['ms']:.2f} ms a step, prompts {times[0]*1e3:.0f} ms, {held/1e9:.2f} GB on a rank ({time.time() - t0:.0f} s)", flush=True)
        clean(device)
        meet(device)
    return found

def rank_main(a):
    rank, cuda = int(os.environ['RANK']), not a.cpu
    device = f'cuda:{rank}' if cuda else 'cpu'
    if cuda: torch.cuda.set_device(rank)
    dist.init_process_group('cpu:gloo,cuda:nccl' if cuda else 'gloo', timeout=datetime.timedelta(seconds=300))
    cfg = preset('llama2-7b') if cuda else preset('lab-1m', n_layers=2)
    small = preset('llama2-7b', n_layers=8) if cuda else cfg
    low, backend = (torch.bfloat16, 'cuda') if cuda else (torch.float32, 'torch')
    g = torch.Generator().manual_seed(0)
    prompt = lambda n: torch.randint(3, cfg.vocab_size, (n,), generator=g).tolist()
    base = dict(world=dist.get_world_size(), device=device)
    exact = both('float32, 8 layers', **base, cfg=small, dtype=torch.float32, prompts=[prompt(n) for n in (17, 40, 5, 64)], tokens=32, scheme='auto', backend='torch')
    results = {}
    for scheme in ('auto', 'w4'):
        for B in a.sizes if scheme == 'auto' else a.sizes[:1]:
            name = f"{'bf16' if scheme == 'auto' else scheme} {B}"
            results[name] = both(name, **base, cfg=cfg, dtype=low, prompts=[prompt(128 if cuda else 8) for _ in range(B)], tokens=48, scheme=scheme, backend=backend)
    long = both('prompt of 2048', **base, cfg=cfg, dtype=low, prompts=[prompt(2048 if cuda else 64)], tokens=3, scheme='auto', backend=backend)
    if rank == 0: report(a, cfg, device, exact, results, long)
    meet(device)
    os._exit(0)                                                              # no clean-up that would wait for a peer

def report(a, cfg, device, exact, results, long):
    same = exact['one']['tokens'] == exact['two']['tokens']
    ms = {k: {n: round(r[k]['ms'], 3) for n, r in results.items()} for k in ('one', 'two')}
    speedups = {n: round(ms['one'][n]/ms['two'][n], 2) for n in ms['one']}
    first = next(iter(speedups))
    agree = {n: sum(x == y for s, t in zip(r['one']['tokens'], r['two']['tokens']) for x, y in zip(s, t))/sum(map(len, r['one']['tokens'])) for n, r in results.items()}
    out = dict(claim=CLAIM, value=speedups[first], unit='x one GPU', bar=1.3, holds=bool(same and speedups[first] >= 1.3), spread=[min(speedups.values()), max(speedups.values())],
               device=f"{os.environ['WORLD_SIZE']} × {torch.cuda.get_device_name()}" if device.startswith('cuda') else 'cpu', date=str(datetime.date.today()), model='Llama-2-7B shape, random weights' if device.startswith('cuda') else 'tiny',
               tokens_equal_float32=same, ms=ms, speedups=speedups, same_tokens_share={n: round(v, 3) for n, v in agree.items()},
               prompt_2048_ms={k: round(long[k]['prompt_ms'], 1) for k in long}, weights_gb={n: {k: round(r[k]['weights']/1e9, 2) for k in r} for n, r in results.items()}, torch=torch.__version__)
    if a.out: Path(a.out).parent.mkdir(parents=True, exist_ok=True); Path(a.out).write_text(json.dumps(out, indent=1) + '\n')
    print(json.dumps(out), flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--out', default='benchmarks/results/serve_parallel_gpu.json'); p.add_argument('--sizes', type=int, nargs='+', default=[1, 16]); p.add_argument('--ranks', type=int, default=2)
    p.add_argument('--cpu', action='store_true', help='a tiny model on gloo, to try the script')
    a = p.parse_args()
    if 'RANK' in os.environ: return rank_main(a)
    env = {**os.environ, 'NCCL_NVLS_ENABLE': '0', 'PYTHONPATH': f'{Path(__file__).parents[1]}:{os.environ.get("PYTHONPATH", "")}'}
    if a.cpu: a.out = ''
    sys.exit(subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={a.ranks}', __file__, '--out', a.out, '--sizes', *map(str, a.sizes), *(['--cpu'] if a.cpu else [])], env=env).returncode)

if __name__ == '__main__': main()
