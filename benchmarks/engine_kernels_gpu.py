"""The inference engine's kernels on one GPU, and the decode step that they make.

Products and attention are bound by memory: GB/s of the bytes that must be read, beside a copy in the same run. Inputs rotate so that they do not stay in the cache; timings are of CUDA graphs.
Steps: greedy decoding of a model of Llama-2-7B's shape with random weights, 190 tokens of context, through `CudaRunner`; prompts: 64 of 128 tokens at once. The last line is one JSON object.
"""
import argparse, json, statistics, time
import torch
import triton
from labkit.core.lm import Sampling
from labkit.inference.attention import paged_attention
from labkit.inference.cache import PagedCache
from labkit.inference.gpu_runner import CudaRunner, Shape
from labkit.inference.kernels import add_norm, quantize_rows, rope_write, silu_mul
from labkit.inference.linear import Dense, Packed4
from labkit.inference.quantize import Float8Linear, linears, put_layer, quantize_model
from labkit.inference.scheduler import Request, Work
from labkit.model.config import ModelConfig
from labkit.model.transformer import Transformer

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
SHAPES = dict(qkv=(12288, 4096), o=(4096, 4096), gate_up=(22016, 4096), down=(4096, 11008))

def ms(f, n=20, rounds=3):
    "Milliseconds of one call, median of rounds"
    out = []
    for _ in range(rounds):
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        f(); a.record()
        for _ in range(n): f()
        b.record(); torch.cuda.synchronize()
        out.append(a.elapsed_time(b)/n)
    return statistics.median(out)

def graphed(f):
    "A function that replays `f`"
    side = torch.cuda.Stream(); side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side): f()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): f()
    return graph.replay

def bandwidth():
    x = torch.randn(2**29, device='cuda'); y = torch.empty_like(x)
    return 2*x.nbytes/ms(lambda: y.copy_(x), 5)/1e6

def weights(scheme, N, M):
    "A product with random weights"
    if scheme == 'w4': return Packed4(torch.randint(0, 16, (N, M), dtype=torch.uint8, device='cuda'), torch.rand(N, M//128, device='cuda').half()*.01, torch.randint(6, 10, (N, M//128), dtype=torch.uint8, device='cuda'), BF16)
    w = torch.randn(N, M, device='cuda', dtype=BF16)*M**-.5
    if scheme == 'bf16': return Dense(w)
    return Dense(*quantize_rows(w, FP8))

def products(copy):
    rows = []
    for scheme in ('bf16', 'fp8', 'w4'):
        for name, (N, M) in SHAPES.items():
            ws = [weights(scheme, N, M)]
            ws += [weights(scheme, N, M) for _ in range(int(150e6/ws[0].nbytes) + 1)]
            for B in (1, 16, 64):
                x = torch.randn(B, M, device='cuda', dtype=BF16)
                xs = quantize_rows(x, ws[0].takes)
                t = ms(graphed(lambda: [w(*xs) for w in ws]), 10)/len(ws)
                plain = ms(graphed(lambda: [x @ w.weight.T for w in ws]), 10)/len(ws) if scheme == 'bf16' else None
                gb = ws[0].nbytes/t/1e6
                rows.append(dict(kernel='product', scheme=scheme, matrix=name, N=N, M=M, B=B, us=round(1e3*t, 2), GB_per_s=round(gb), of_copy=round(gb/copy, 3), cublas_us=plain and round(1e3*plain, 2)))
            del ws; torch.cuda.empty_cache()
    return rows

def cache_of(kind, n, K, d=128, size=16):
    shape = n, K, size
    if kind == 'model': return *(torch.randn(*shape, d, dtype=BF16, device='cuda') for _ in 'kv'), None, None
    return *(torch.randint(0, 256, (*shape, d if kind == 'int8' else d//2), dtype=torch.uint8, device='cuda') for _ in 'kv'), *(torch.rand(*shape, 2, device='cuda').half()*.02 for _ in 'kv')

def attention(copy):
    rows = []
    for B, T, H, K in ((64, 2048, 32, 32), (256, 192, 32, 32), (64, 2048, 32, 8)):
        for kind in ('model', 'int8', 'int4'):
            kv, blocks = cache_of(kind, B*T//16, K), B*T//16
            tables, tiles = torch.randperm(blocks, device='cuda').int().view(B, -1), torch.tensor([[i, i, 1, T - 1] for i in range(B)], dtype=torch.int32, device='cuda')
            q = torch.randn(B, H, 128, device='cuda', dtype=BF16)
            t, size = ms(graphed(lambda: paged_attention(q, kv, tables, tiles, 1)), 10), sum(x.nbytes for x in kv if x is not None)
            rows.append(dict(kernel='attention', B=B, tokens=T, heads=H, key_heads=K, kv=kind, us=round(1e3*t, 1), GB_per_s=round(size/t/1e6), of_copy=round(size/t/1e6/copy, 3)))
            del kv; torch.cuda.empty_cache()
    return rows

def far(copy):
    "One request with a long context: its keys are shared out to enough programs"
    rows, (H, K, T) = [], (32, 8, 204_800)
    for kind in ('model', 'int8', 'int4'):
        kv, q = cache_of(kind, T//16, K), torch.randn(1, H, 128, device='cuda', dtype=BF16)
        tables, tiles, size = torch.randperm(T//16, device='cuda').int().view(1, -1), torch.tensor([[0, 0, 1, T - 1]], dtype=torch.int32, device='cuda'), sum(x.nbytes for x in kv if x is not None)
        for splits in (16, 64):
            t = ms(graphed(lambda: paged_attention(q, kv, tables, tiles, splits)), 10)
            rows.append(dict(kernel='far', B=1, tokens=T, heads=H, key_heads=K, kv=kind, splits=splits, us=round(1e3*t, 1), GB_per_s=round(size/t/1e6), of_copy=round(size/t/1e6/copy, 3)))
        del kv; torch.cuda.empty_cache()
    return rows

def prompts():
    rows = []
    for n, T, K, kind in ((4, 2048, 32, 'model'), (1, 8192, 32, 'model'), (1, 8192, 8, 'int8')):
        kv, q, tall = cache_of(kind, n*T//16, K), torch.randn(n*T, 32, 128, device='cuda', dtype=BF16), 128 if kind == 'model' else 64
        tables, each = torch.randperm(n*T//16, device='cuda').int().view(n, -1), tall*K//32
        tiles = torch.tensor([[i, i*T + j, each, j] for i in range(n) for j in reversed(range(0, T, each))], dtype=torch.int32, device='cuda')
        t = ms(graphed(lambda: paged_attention(q, kv, tables, tiles, 1, each, rows=tall)), 5)
        rows.append(dict(kernel='prompts', sequences=n, tokens=T, key_heads=K, kv=kind, ms=round(t, 3), TFLOP_per_s=round(n*32*T*T*256/t/1e9)))
    return rows

def small(copy):
    "Kernels between the products, at 64 and 8192 rows"
    rows, w = [], torch.ones(4096, device='cuda', dtype=BF16)
    for B in (64, 8192):
        res, parts, wide = torch.randn(B, 4096, device='cuda'), torch.randn(1, B, 4096, device='cuda', dtype=BF16), torch.randn(1, B, 22016, device='cuda', dtype=BF16)
        qkv, kv, cos = torch.randn(1, B, 12288, device='cuda', dtype=BF16), cache_of('int8', B//16, 32), torch.rand(256, 64, device='cuda')
        at = torch.arange(B, device='cuda', dtype=torch.int32)
        jobs = {'add + norm': (lambda: add_norm(parts, res, w, 1e-5, BF16), B*4096*12), 'silu · up': (lambda: silu_mul(wide, BF16), B*11008*6),
                'rope + cache': (lambda: rope_write(qkv, cos, cos, at % 256, at, kv, 32, 128, BF16), B*(12288*2 + 4096*2 + 8192 + 512))}
        for name, (f, size) in jobs.items():
            t = ms(graphed(lambda: [f() for _ in range(10)]))/10
            rows.append(dict(kernel=name, B=B, us=round(1e3*t, 2), GB_per_s=round(size/t/1e6), of_copy=round(size/t/1e6/copy, 3)))
    return rows

def model_of(scheme):
    "Llama-2-7B's shape with random weights"
    with torch.device('meta'): m = Transformer(ModelConfig(vocab_size=32000, dim=4096, n_layers=32, n_heads=32, n_kv_heads=32, ffn_dim=11008, max_seq_len=4096))
    m = m.to(BF16).to_empty(device='cuda').eval().requires_grad_(False)
    for p in m.parameters(): p.fill_(1) if p.ndim == 1 else p.normal_(std=.02)
    if scheme == 'w4': quantize_model(m)
    if scheme == 'fp8':
        for n, l in linears(m): put_layer(m, n, Float8Linear.of(l))
    return m

def requests(B, tokens, blocks):
    out = [Request(i, torch.randint(0, 32000, (tokens,)).tolist(), Sampling(temperature=0), 64) for i in range(B)]
    for i, r in enumerate(out): r.row, r.table = i, list(range(i*blocks, (i + 1)*blocks))
    return out

def steps(plan):
    rows = []
    for scheme, kind, sizes in plan:
        torch.cuda.synchronize(); t = time.perf_counter(); m = model_of(scheme); torch.cuda.synchronize(); made = time.perf_counter() - t
        cache = PagedCache(m.cfg, max(64, *sizes)*13, 16, BF16, 'cuda', kind)
        t = time.perf_counter(); r = CudaRunner(m, cache, max(64, *sizes), 512); torch.cuda.synchronize(); built = time.perf_counter() - t
        work = [Work(q, 0, 128) for q in requests(64, 128, 13)]
        prompt = min(_seconds(lambda: r.launch(work).tokens()) for _ in range(3))
        for B in sizes:
            work = [Work(q, 190, 1) for q in requests(B, 191, 13)]
            r.launch(work).tokens()
            t = time.perf_counter(); r.launch(work).tokens(); recorded = time.perf_counter() - t
            step = ms(r.graphs[Shape(r.bucket(B)), True].graph.replay, 20)
            rows.append(dict(kernel='step', scheme=scheme, kv=kind, B=B, ms=round(step, 3), tokens_per_s=round(B/step*1e3), graph_s=round(recorded, 2), runner_s=round(built, 2), prompt_ms=round(1e3*prompt, 1)))
            print(rows[-1], flush=True)
        del m, r, cache, work; torch.cuda.empty_cache()
    return rows

def mixed():
    "Steps in which prompts stand beside requests that write: kernels started one by one, and from a graph"
    rows, m = [], model_of('fp8')
    cache = PagedCache(m.cfg, 256*13 + 80, 16, BF16, 'cuda', 'int8'); r = CudaRunner(m, cache, 260, 2048)
    writing = [Work(q, 190, 1) for q in requests(256, 191, 13)]
    for B, n in ((0, 64), (0, 256), (0, 1024), (64, 256), (256, 64), (256, 256), (256, 1024)):
        q, = requests(1, n, 80)
        q.row, q.table = 256, list(range(256*13, 256*13 + 80))
        def took(seen):
            if not seen: r.seen.clear()
            return _seconds(lambda: r.launch([*writing[:B], Work(q, 0, n)]).tokens())
        took(False)
        apart = min(took(False) for _ in range(4)); took(True)
        rows.append(dict(kernel='mixed', scheme='fp8', kv='int8', writing=B, prompt=n, ms_one_by_one=round(1e3*apart, 1), ms=round(1e3*min(took(True) for _ in range(4)), 1)))
        print(rows[-1], flush=True)
    return rows

def _seconds(f):
    torch.cuda.synchronize(); t = time.perf_counter(); f(); torch.cuda.synchronize()
    return time.perf_counter() - t

PLAN = [('w4', 'int8', (1, 16, 64, 128)), ('bf16', 'model', (1, 16, 64)), ('fp8', 'int8', (1, 16, 64, 128, 256))]

@torch.inference_mode()
def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--date', default=time.strftime('%Y-%m-%d'))
    p.add_argument('--no-steps', action='store_true')
    a = p.parse_args()
    copy, rows = bandwidth(), []
    for part in (products, attention, far, small): rows += part(copy)
    rows += prompts()
    for r in rows: print(r, flush=True)
    if not a.no_steps: rows += mixed() + steps(PLAN)
    print(json.dumps(dict(device=torch.cuda.get_device_name(), date=a.date, versions=dict(torch=torch.__version__, triton=triton.__version__), copy_GB_per_s=round(copy), results=rows)))

if __name__ == '__main__': main()
