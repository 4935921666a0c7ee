"""One model on two GPUs against the same model on one: the same tokens, how fast, and what happens when a process dies.

    python benchmarks/serve_parallel_gpu.py [--seconds 195] [--sizes 1 16 64] [--out benchmarks/results/serve_parallel_gpu.json]
    python benchmarks/serve_parallel_gpu.py --tiny          the same script on CPUs and gloo with a tiny model, no result written

Four parts, each in processes of its own with a time limit, so that one that fails or hangs leaves the others their results; the file is written anew after each:
- exact:  eight layers of Llama-2-7B's shape in float32 through torch: greedy tokens of both must be equal.
- bf16:   all layers, random weights, through the engine's kernels and recorded graphs: the median of a greedy decode step as the engine sees it, the message to the other rank included; a prompt of
          2,048 tokens; the scores of its last token on both; a sum over the ranks alone, recorded in a graph.
- w4:     the same with 4-bit weights, groups of 128.
- engine: `Engine.open` with tensor_parallel = 2 on a small checkpoint writes what one process writes; then a process is killed, and everybody who waits is told.
NCCL_NVLS_ENABLE=0 is set for all of them: NVLink multicast stays off on shared hosts."""
import argparse, datetime, gc, json, os, signal, subprocess, sys, tempfile, time, zlib
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CLAIM = 'a model on two GPUs decodes faster than on one, and the same tokens'
LIMITS = dict(exact=60, bf16=80, w4=80, engine=60) # seconds at most

def say(*x): print(f'{time.strftime("%H:%M:%S")} rank {os.environ.get("RANK", "-")}:', *x, file=sys.stderr, flush=True)

# ---- a rank of exact, bf16, w4

def random_part(cfg, ranks, device, dtype, scheme):
    "A rank's part of a model whose weights follow from their names"
    import torch
    from labkit.inference.tensor_parallel import Share, connect, cut, local_config, quantize_part
    from labkit.model.transformer import Transformer, from_tensors
    with torch.device('meta'): whole = {n: p.shape for n, p in Transformer(cfg).named_parameters()}
    share = Share(cfg, ranks.rank, ranks.ranks, whole_vocab=True)
    def numbers(name, shape):
        if name.endswith('norm.weight'): return torch.ones(shape, device=device)
        g = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
        return torch.randn(shape, device=device, generator=g)*(cfg.dim**-.5 if 'embed' not in name else 1.)
    model = from_tensors(local_config(share), ((n, cut(share, n, numbers(n, s))) for n, s in whole.items()), 'random', device, dtype).requires_grad_(False)
    return connect(model if scheme == 'auto' else quantize_part(model, share, scheme), share, ranks)

class Kept:
    "A leader that keeps the scores of the last step"
    def __init__(self, lead): self.lead, self.last = lead, None
    def __call__(self, work): self.last = self.lead(work); return self.last

def measure(cfg, ranks, device, dtype, scheme, backend, batches, tokens):
    "By batch: tokens, ms a step, ms of the prompts; scores of the last step; bytes on this rank. None on the others, which follow"
    import torch
    from labkit.inference.ranks import Leader, follow, greedy, make_runner
    t0, room = time.time(), max(len(ps)*(max(map(len, ps)) + tokens + 32) for ps in batches.values())
    model = random_part(cfg, ranks, device, dtype, scheme)
    more = dict(max_batch=max(map(len, batches.values())), max_len=max(len(p) for ps in batches.values() for p in ps) + tokens + 16) if backend == 'cuda' else {}
    runner, cache = make_runner(model, ranks, n_blocks=room//16 + 1, backend=backend, **more)
    held = sum({t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}.values())
    say(f'{scheme}, {ranks.ranks} rank(s): ready after {time.time() - t0:.1f} s, {held/1e9:.2f} GB of weights')
    if ranks.rank: return follow(runner, ranks, cache)
    found, lead = {}, Leader(runner, ranks, cache)
    for name, prompts in batches.items():
        kept, t0 = Kept(lead), time.time()
        greedy(lead, cache, prompts, 3)                                      # compile, record
        out = greedy(kept, cache, prompts, tokens, times := [])
        later = sorted(times[1:])
        greedy(kept, cache, prompts, 1)                                      # scores behind the prompts
        found[name] = dict(tokens=out, ms=round(1e3*later[len(later)//2], 3), ms_10=round(1e3*later[len(later)//10], 3), ms_90=round(1e3*later[len(later)*9//10], 3), prompt_ms=round(1e3*times[0], 2), scores=kept.last[0].float().cpu(), weights=held)
        say(f"{scheme}, {name}, {ranks.ranks} rank(s): {found[name]['ms']} ms a step, prompts {found[name]['prompt_ms']} ms ({time.time() - t0:.1f} s)")
    lead.close()
    return found

def sum_us(device, width, rows):
    "Microseconds of a sum over the ranks, 65 of them recorded in a graph"
    import torch, torch.distributed as dist
    t = torch.zeros(rows, width, device=device, dtype=torch.bfloat16)
    for _ in range(3): dist.all_reduce(t)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(65): dist.all_reduce(t)
    for _ in range(3): graph.replay()
    torch.cuda.synchronize(); t0 = time.perf_counter()
    for _ in range(10): graph.replay()
    torch.cuda.synchronize()
    return round(1e6*(time.perf_counter() - t0)/650, 2)

def compare(one, two):
    "Both results of each batch, without what cannot be written"
    out = {}
    for n in one:
        a, b = one[n], two[n]
        same = [x == y for s, t in zip(a['tokens'], b['tokens']) for x, y in zip(s, t)]
        keep = lambda r: {k: v for k, v in r.items() if k not in ('tokens', 'scores')}
        out[n] = dict(one=keep(a), two=keep(b), speedup=round(a['ms']/b['ms'], 3), prompt_speedup=round(a['prompt_ms']/b['prompt_ms'], 3), same_tokens=round(sum(same)/len(same), 4),
                      scores_apart=float((a['scores'] - b['scores']).norm()/a['scores'].norm()))
    return out

def rank_main(a):
    import torch, torch.distributed as dist
    from labkit.inference.tensor_parallel import Ranks
    from labkit.model.config import preset
    rank, world = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
    device = 'cpu' if a.tiny else f'cuda:{rank}'
    if not a.tiny: torch.cuda.set_device(rank)
    dist.init_process_group('gloo' if a.tiny else 'cpu:gloo,cuda:nccl', timeout=datetime.timedelta(seconds=LIMITS[a.part]))
    shape = (lambda **more: preset('lab-1m', n_layers=2, **more)) if a.tiny else (lambda **more: preset('llama2-7b', **more))
    g = torch.Generator().manual_seed(0)
    prompts = lambda B, n: torch.randint(3, shape().vocab_size, (B, n), generator=g).tolist()
    if a.part == 'exact': how = dict(cfg=shape() if a.tiny else shape(n_layers=8), dtype=torch.float32, scheme='auto', backend='torch', tokens=32, batches={'mixed': [p for n in (17, 40, 5, 64) for p in prompts(1, n)]})
    else:
        n, long = (8, 40) if a.tiny else (128, 2048)
        how = dict(cfg=shape(), dtype=torch.float32 if a.tiny else torch.bfloat16, scheme={'bf16': 'auto'}.get(a.part, a.part), backend='torch' if a.tiny else 'cuda', tokens=48, batches={**{f'B={B}': prompts(B, n) for B in a.sizes}, f'prompt {long}': prompts(1, long)})
    def meet(): dist.all_reduce(t := torch.ones(1, device=device)); t.item()
    def clean():
        gc.collect()
        if not a.tiny: torch.cuda.synchronize(); torch.cuda.empty_cache()
    one = measure(ranks=Ranks(0, 1), device=device, **how) if rank == 0 else None
    clean(); meet()
    two = measure(ranks=Ranks(rank, world), device=device, **how)
    clean(); meet()
    sums = {rows: sum_us(device, shape().dim, rows) for rows in a.sizes} if a.part == 'bf16' and not a.tiny else None
    if rank == 0: print(json.dumps(dict(batches=compare(one, two), sum_us=sums, scheme=f"{a.part} on both sides" if a.part != 'exact' else 'float32 on both sides', device='cpu' if a.tiny else f'{world} × {torch.cuda.get_device_name()}', torch=torch.__version__)), flush=True)
    meet()
    os._exit(0)                                                              # no clean-up that would wait for a peer

# ---- the engine

def engine_part(a):
    import torch
    from labkit.core.lm import Sampling
    from labkit.core.settings import RunSettings, UserError
    from labkit.corpus.tokens import train_tokenizer
    from labkit.inference.engine import Engine, EngineSettings
    from labkit.model.checkpoint import save_model
    from labkit.model.config import preset
    from labkit.model.transformer import Transformer
    torch.manual_seed(0)
    cfg, params = preset('lab-1m', n_layers=2) if a.tiny else preset('smollm2-135m', n_layers=8), Sampling(max_tokens=24, ignore_eos=True)
    prompts = torch.randint(3, cfg.vocab_size, (4, 20), generator=torch.Generator().manual_seed(1)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        model = Transformer(cfg)
        for p in model.parameters(): p.data += .05*torch.randn_like(p)
        save_model(model, folder); train_tokenizer(['some text to train a tokenizer on, 1 2 3'], 290).save(folder)
        def open_engine(n): return Engine.open(folder, run=RunSettings(device='cpu' if a.tiny else 'cuda', dtype='float32' if a.tiny else 'bfloat16', threads=1), settings=EngineSettings(tensor_parallel=n, cache_tokens=4096, max_batch=8, backend='torch' if a.tiny else 'auto'))
        texts, ready = [], []
        for n in (1, a.ranks):
            t0 = time.time(); eng = open_engine(n); ready.append(round(time.time() - t0, 2))
            texts.append([c.tokens for c in eng.generate(prompts, params)])
            say(f"engine, {n} process(es): {eng.stats()['backend']}, ready after {ready[-1]} s, {sum(map(len, texts[-1]))} tokens")
            if n == 1: eng.close()
        same = [x == y for s, t in zip(*texts) for x, y in zip(s, t)]
        ids = [eng.add(p, Sampling(max_tokens=500, ignore_eos=True)) for p in prompts]
        for _ in range(5): eng.step()
        t0 = time.time(); os.kill(eng._split.processes[0].pid, signal.SIGKILL)
        ended = {}
        while eng.has_work: ended |= {o.id: o for o in eng.step() if o.finish_reason}
        told = time.time() - t0
        try: eng.generate(prompts[:1], params); again = 'nothing'
        except UserError as e: again = str(e)
        out = dict(same_tokens=sum(same)/len(same), ready_s=ready, killed=dict(told_after_s=round(told, 3), all_told=sorted(ended) == ids and all('killed by signal 9' in (o.error or '') for o in ended.values()), said=again))
        say(f'killed: all told after {told:.2f} s: {again}')
        print(json.dumps(out), flush=True)                                   # before `close`, which could wait for a GPU
        t0 = time.time(); eng.close(); say(f'closed after {time.time() - t0:.1f} s')
    os._exit(0)

# ---- the parent

def run_part(part, a, left):
    "A part's result, or why there is none"
    mine = [__file__, '--part', part, '--ranks', str(a.ranks), '--sizes', *map(str, a.sizes), *(['--tiny'] if a.tiny else [])]
    start = [sys.executable] if part == 'engine' else [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--local-addr', '127.0.0.1', f'--nproc-per-node={a.ranks}']
    env = {**os.environ, 'NCCL_NVLS_ENABLE': '0', 'TORCH_NCCL_ASYNC_ERROR_HANDLING': '0', 'PYTHONUNBUFFERED': '1', 'OMP_NUM_THREADS': '4', 'PYTHONPATH': f'{Path(__file__).resolve().parents[1]}:{os.environ.get("PYTHONPATH", "")}'}
    if Path('/sys/class/net/lo').exists(): env.setdefault('GLOO_SOCKET_IFNAME', 'lo')
    t0 = time.time()
    p = subprocess.Popen([*start, *mine], stdout=subprocess.PIPE, text=True, env=env, start_new_session=True)
    try: out = p.communicate(timeout=min(LIMITS[part], left))[0]; why = f'ended with {p.returncode}'
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
        out, why = p.communicate()[0], f'stopped after {time.time() - t0:.0f} s'
    found = [json.loads(line) for line in (out or '').splitlines() if line.startswith('{')]
    say(f'part {part}: {time.time() - t0:.1f} s, {"done" if found else why}')
    return found[0] if found else dict(failed=why)

def result(a, parts):
    decode = {f'{s} {n}': r for s in ('bf16', 'w4') for n, r in parts.get(s, {}).get('batches', {}).items()}
    steps = {n: r for n, r in decode.items() if 'B=' in n}
    equal = parts.get('exact', {}).get('batches', {}).get('mixed', {}).get('same_tokens')
    speedups, first = {n: r['speedup'] for n, r in steps.items()}, f'bf16 B={a.sizes[0]}'
    return dict(claim=CLAIM, value=speedups.get(first), unit='x one GPU', bar=1.3, holds=bool(equal == 1 and speedups.get(first, 0) >= 1.3), spread=[min(speedups.values()), max(speedups.values())] if speedups else None,
                device=next((p['device'] for p in parts.values() if 'device' in p), None), date=str(datetime.date.today()), model='tiny' if a.tiny else 'Llama-2-7B shape, random weights; the same scheme on one and on two',
                tokens_equal_float32=equal, ms={k: {n: r[k]['ms'] for n, r in steps.items()} for k in ('one', 'two')}, speedups=speedups,
                prompt_ms={n: {k: r[k]['prompt_ms'] for k in ('one', 'two')} for n, r in decode.items()}, same_tokens_share={n: r['same_tokens'] for n, r in decode.items()},
                scores_apart={n: r['scores_apart'] for n, r in decode.items()}, weights_gb={n: {k: round(r[k]['weights']/1e9, 2) for k in ('one', 'two')} for n, r in decode.items()}, parts=parts)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--out', default='benchmarks/results/serve_parallel_gpu.json'); p.add_argument('--sizes', type=int, nargs='+', default=[1, 16, 64]); p.add_argument('--ranks', type=int, default=2)
    p.add_argument('--seconds', type=float, default=195., help='for all parts together'); p.add_argument('--parts', nargs='+', default=list(LIMITS), choices=list(LIMITS))
    p.add_argument('--tiny', action='store_true', help='a tiny model on gloo, to try the script'); p.add_argument('--part', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.part: return engine_part(a) if a.part == 'engine' else rank_main(a)
    end, parts = time.time() + a.seconds, {}
    for part in a.parts:
        left = end - time.time()
        parts[part] = run_part(part, a, left) if left > 15 else dict(failed='no time left')
        out = result(a, parts)
        if not a.tiny: Path(a.out).parent.mkdir(parents=True, exist_ok=True); Path(a.out).write_text(json.dumps(out, indent=1, ensure_ascii=False) + '\n')
    print(json.dumps(out, ensure_ascii=False), flush=True)
    sys.exit(any('failed' in p for p in parts.values()))

if __name__ == '__main__': main()
