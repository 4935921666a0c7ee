"""labkit's kernels on one GPU, side by side with plain torch, torch.compile and Liger, each forward and backward.

Memory-bound kernels: the limit is the bandwidth of a copy, measured in the same run, and the bytes are those that must move (each input read once, each output written once). Matrix kernels: TFLOP/s. Timings are of CUDA graphs (the kernels, without the Python that starts them), alternating, a median of rounds. `--only NAMES` runs a part, `--tune` tries launch options. The last line is one JSON object.
"""
import argparse, json, math, statistics, sys, time
from pathlib import Path
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from labkit.model import cross_entropy as ce, flash, kernels
from labkit.model.fp8 import to_fp8
from labkit.model.transformer import apply_rope

PART = None # (i, n): only start every n-th of the jobs, untimed, so that several processes fill the compilers' caches
ROUNDS, MS, DTYPE = 5, 6., torch.bfloat16
BAR = .85 # share of the bandwidth of a copy

def captured(f):
    "A CUDA graph of as many calls as take a few milliseconds"
    graph = torch.cuda.CUDAGraph()
    for _ in range(3): f()
    a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    a.record(); f(); b.record(); torch.cuda.synchronize()
    calls = max(1, min(50, int(MS/max(a.elapsed_time(b), .01))))
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(calls): f()
    return graph, calls

def milliseconds(graph, calls):
    "Time of one call, by the GPU's own clock"
    a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    a.record(); graph.replay(); b.record(); torch.cuda.synchronize()
    return a.elapsed_time(b)/calls

def alternate(jobs):
    "Medians of jobs that take turns: name -> ms, min, max; what fails says why and is left out"
    graphs, times = {}, {}
    for name, job in jobs.items():
        try:
            if PART: job(); continue
            graphs[name] = captured(job)
        except Exception as e: print(f'  {name}: {type(e).__name__}: {str(e).splitlines()[0][:200]}', flush=True); torch.cuda.synchronize()
    for _ in range(ROUNDS):
        for name, g in graphs.items(): times.setdefault(name, []).append(milliseconds(*g))
    return {name: dict(ms=statistics.median(t), min=min(t), max=max(t)) for name, t in times.items()}

def copy_bandwidth():
    "Bytes a second of the fastest copy, read and written: torch's own and an elementwise kernel, at sizes that no cache holds"
    found = []
    for n in (2**26, 2**27, 2**28): # bfloat16 numbers
        x = rows(n, grad=False); y = torch.empty_like(x)
        found += [2*x.nbytes/t['ms']*1e3 for t in alternate({'copy': lambda: y.copy_(x), 'negative': lambda: torch.neg(x, out=y)}).values()]
    return max(found)

def rows(*shape, grad=True): return torch.randn(*shape, device='cuda', dtype=DTYPE, requires_grad=grad)

def passes(ways, make, wrt):
    "Forward, and backward alone, of each way: `make()` gives fresh inputs, `wrt` picks those that want gradients"
    jobs, keep = {}, []
    for name, f in ways.items():
        xs = make()
        with torch.no_grad(): jobs[name, 'forward'] = lambda f=f, xs=[x.detach() for x in xs]: f(*xs)
        try:
            ys = f(*xs); ys = tuple(y for y in (ys if isinstance(ys, tuple) else (ys,)))
            gs = tuple(torch.randn_like(y) for y in ys)
            jobs[name, 'backward'] = lambda ys=ys, xs=xs, gs=gs: torch.autograd.grad(ys, [xs[i] for i in wrt], gs, retain_graph=True)
        except Exception as e: print(f'  {name}: {type(e).__name__}: {str(e).splitlines()[0][:200]}', flush=True)
    return alternate(jobs)

def table(times, units, kind):
    "Rows for the report; `units` forward and backward are bytes or operations"
    return [dict(way=way, **{'pass': p}, **t, **{kind: units[p]/t['ms']/1e6 if kind == 'GB_per_s' else units[p]/t['ms']/1e9}) for (way, p), t in times.items()]

def liger(name, attribute):
    import importlib
    return getattr(importlib.import_module(f'liger_kernel.ops.{name}'), attribute)

def compiled(f): return torch.compile(f, dynamic=False)

def norm(D, N=16384):
    Liger = liger('rms_norm', 'LigerRMSNormFunction')
    plain = lambda x, w: F.rms_norm(x, w.shape, w, 1e-5)
    written = lambda x, w: w*(x.float()*torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)
    ways = {'labkit': kernels.rms_norm, 'torch': plain, 'torch.compile': compiled(plain), 'Liger': lambda x, w: Liger.apply(x, w, 1e-5, 0., 'llama', False), 'written out': written}
    t = passes(ways, lambda: (rows(N, D), torch.ones(D, device='cuda', dtype=DTYPE, requires_grad=True)), (0, 1))
    return table(t, dict(forward=2*N*D*2, backward=3*N*D*2), 'GB_per_s')

def add_norm(D, N=16384):
    Liger = liger('fused_add_rms_norm', 'LigerFusedAddRMSNormFunction')
    def plain(x, r, w): h = x + r; return F.rms_norm(h, w.shape, w, 1e-5), h
    ways = {'labkit': kernels.add_rms_norm, 'torch': plain, 'torch.compile': compiled(plain), 'Liger': lambda x, r, w: Liger.apply(x, r, w, 1e-5, 0., 'llama', False)}
    t = passes(ways, lambda: (rows(N, D), rows(N, D), torch.ones(D, device='cuda', dtype=DTYPE, requires_grad=True)), (0, 1, 2))
    return table(t, dict(forward=4*N*D*2, backward=4*N*D*2), 'GB_per_s')

def swiglu(D, N=8192):
    Liger = liger('swiglu', 'LigerSiLUMulFunction')
    plain = lambda g, u: F.silu(g)*u
    ways = {'labkit': kernels.swiglu, 'torch': plain, 'torch.compile': compiled(plain), 'Liger': lambda g, u: Liger.apply(g, u)}
    return table(passes(ways, lambda: (rows(N, D), rows(N, D)), (0, 1)), dict(forward=3*N*D*2, backward=5*N*D*2), 'GB_per_s')

def rope(d, B=4, T=4096, H=32, K=8):
    Liger = liger('rope', 'LigerRopeFunction')
    a = torch.arange(T, device='cuda')[None, :, None, None]/1e6**(torch.arange(0, d, 2, device='cuda')/d)
    cos, sin = a.cos(), a.sin()
    wide_cos, wide_sin = (torch.cat((x, x), -1)[:, :, 0].to(DTYPE) for x in (cos, sin))
    plain = lambda q, k: (apply_rope(q, cos, sin), apply_rope(k, cos, sin))
    def own(q, k): return kernels.rope_(q.view_as(q), k.view_as(k), cos, sin)
    def theirs(q, k): return Liger.apply(q.transpose(1, 2), k.transpose(1, 2), wide_cos, wide_sin)
    make = lambda: (rows(B, T, H, d, grad=False), rows(B, T, K, d, grad=False))
    jobs = {}
    for name, f in {'labkit': own, 'torch': plain, 'torch.compile': compiled(plain), 'Liger': theirs}.items():
        q, k = make(); jobs[name, 'forward'] = lambda f=f, q=q, k=k: f(q, k)
        if name == 'labkit': continue # in place: it takes no leaf that wants a gradient
        q, k = (t.requires_grad_() for t in make())
        ys = f(q, k); gs = tuple(torch.randn_like(y) for y in ys)
        jobs[name, 'backward'] = lambda ys=ys, q=q, k=k, gs=gs: torch.autograd.grad(ys, (q, k), gs, retain_graph=True)
    (gq, gk), (dq, dk) = make(), make()
    jobs['labkit', 'backward'] = lambda: (kernels._turn(gq, dq, cos, sin, -1), kernels._turn(gk, dk, cos, sin, -1)) # what its backward does
    size = B*T*(H + K)*d*2
    return table(alternate(jobs), dict(forward=2*size, backward=2*size), 'GB_per_s')

def softmax_gradient(V, N=4096):
    "The kernel inside the cross-entropy: logits read twice, written once"
    z, y = rows(N, V, grad=False), torch.randint(0, V, (N,), device='cuda')
    def plain(): p = torch.log_softmax(z, -1, dtype=torch.float32).exp_(); p[torch.arange(N, device='cuda'), y] -= 1; return p.to(DTYPE)
    jobs = {('labkit', 'forward'): lambda: ce._by_triton(z, y, True), ('torch', 'forward'): plain}
    return table(alternate(jobs), dict(forward=2*z.nbytes), 'GB_per_s')

def cross_entropy(N, D=2048, V=92544):
    "Loss and both gradients; operations: three products"
    Liger = liger('fused_linear_cross_entropy', 'LigerFusedLinearCrossEntropyFunction')
    h, w = rows(N, D), (torch.randn(V, D, device='cuda')/D**.5).requires_grad_()
    y = torch.randint(0, V, (N,), device='cuda')
    low = w.detach().to(DTYPE).requires_grad_()
    def plain(h, w): return F.cross_entropy((h @ w.to(DTYPE).T).float(), y, reduction='sum')
    def own(h, w):
        with torch.autocast('cuda', DTYPE): return ce.cross_entropy_sum(h, w, y)
    def theirs(h, w):
        with torch.autocast('cuda', DTYPE): out = Liger.apply(h, w, y, None, None, -100, 0., 0., 'sum'); return out[0] if isinstance(out, tuple) else out
    ways = {'labkit': own, 'torch': plain, 'torch.compile': compiled(plain), 'Liger': theirs, 'labkit, bf16 weight': own, 'Liger, bf16 weight': theirs}
    flops = 3*2*N*D*V
    times = {name: [] for name in ways}; peak = {}
    for r in range(4):
        for name, f in list(ways.items()):
            try:
                torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats(); before = torch.cuda.memory_allocated()
                a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                leaf = low if 'bf16' in name else w
                a.record(); g = torch.autograd.grad(f(h, leaf), (h, leaf)); b.record(); torch.cuda.synchronize()
                peak[name] = (torch.cuda.max_memory_allocated() - before)/2**30
                if r: times[name].append(a.elapsed_time(b))
                del g
            except Exception as e: print(f'  {name}: {type(e).__name__}: {str(e).splitlines()[0][:200]}', flush=True); ways.pop(name); torch.cuda.empty_cache()
    return [dict(way=n, **{'pass': 'both'}, ms=statistics.median(t), min=min(t), max=max(t), TFLOP_per_s=flops/statistics.median(t)/1e9, peak_GiB=peak[n]) for n, t in times.items() if t]

def attention(T, B=2, H=16, K=8, d=128, window=None, documents=None):
    "Operations of the causal half: 2·B·H·T²·d forward, 2.5 times that backward"
    wide = lambda f: lambda q, k, v: f(*(x.transpose(1, 2) for x in (q, k, v)))
    def sdpa(backend):
        def f(q, k, v):
            with sdpa_kernel(backend): return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return wide(f)
    docs = None if documents is None else (torch.arange(T, device='cuda')//documents).expand(B, T)
    if window is None and docs is None: ways = {'labkit': flash.flash_attention, 'cuDNN (SDPA)': sdpa(SDPBackend.CUDNN_ATTENTION), 'FlashAttention-2 (SDPA)': sdpa(SDPBackend.FLASH_ATTENTION)}
    else:
        low, high = flash.visible(T, window, docs, 'cuda')
        t = torch.arange(T, device='cuda')
        mask = ((t <= t[:, None])[None] & (t >= low[..., None]))[:, None]
        def masked(q, k, v):
            with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION], set_priority=True): return F.scaled_dot_product_attention(q, *(x.repeat_interleave(H//K, 1) for x in (k, v)), attn_mask=mask.expand(B, H, T, T))
        ways = {'labkit': lambda q, k, v: flash.attention_with_lse(q, k, v, low, high)[0], 'SDPA with a mask': wide(masked)}
        if window is None: ways |= {'varlen (FlashAttention-2)': varlen(B, T, documents, H, K)}
    pairs = H*(B*T*(T + 1)/2 if window is None and docs is None else float((t + 1 - low).sum())*B/len(low))
    return table(passes(ways, lambda: (rows(B, T, H, d), rows(B, T, K, d), rows(B, T, K, d)), (0, 1, 2)), dict(forward=4*pairs*d, backward=10*pairs*d), 'TFLOP_per_s')

def varlen(B, T, size, H, K):
    from torch.nn.attention.varlen import varlen_attn
    cuts = torch.cat([torch.arange(0, T, size) + b*T for b in range(B)] + [torch.tensor([B*T])]).int().cuda()
    def f(q, k, v):
        k, v = (x.repeat_interleave(H//K, 2) for x in (k, v))
        extra = dict(is_causal=True) if 'is_causal' in __import__('inspect').signature(varlen_attn).parameters else dict(window_size=(-1, 0))
        return varlen_attn(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), cuts, cuts, size, size, **extra)
    return f

def linear(shape, N=8192):
    "A linear layer in fp8 against bf16, casts included; operations: 2·N·D·F forward, twice that backward"
    D, out = shape
    make = lambda: (rows(N, D),)
    layers = {name: torch.nn.Linear(D, out, bias=False, device='cuda', dtype=DTYPE) for name in ('bf16', 'fp8', 'fp8, compiled')}
    for name in ('fp8', 'fp8, compiled'): to_fp8(layers[name], skip=())
    ways = {name: (torch.compile(m) if 'compiled' in name else m) for name, m in layers.items()}
    jobs = {}
    for name, f in ways.items():
        x, = make(); w = layers[name].weight
        jobs[name, 'forward'] = lambda f=f, x=x.detach(): f(x)
        y = f(x); g = torch.randn_like(y)
        jobs[name, 'backward'] = lambda y=y, x=x, w=w, g=g: torch.autograd.grad(y, (x, w), g, retain_graph=True)
        def both(f=f, x=x, w=w, g=g): torch.autograd.grad(f(x), (x, w), g)
        jobs[name, 'both'] = both
    flops = 2*N*D*out
    return table(alternate(jobs), dict(forward=flops, backward=2*flops, both=3*flops), 'TFLOP_per_s')

WORK = {
    'RMSNorm': (norm, [2048, 4096, 6144]), 'residual + RMSNorm': (add_norm, [2048, 4096]), 'SwiGLU': (swiglu, [8192, 14336]), 'RoPE': (rope, [128]),
    'softmax gradient': (softmax_gradient, [92544]), 'cross-entropy': (cross_entropy, [8192, 16384]),
    'attention': (attention, [4096]), 'attention, documents of 512': (lambda T: attention(T, documents=512), [4096]), 'attention, window of 1024': (lambda T: attention(T, window=1024), [8192]),
    'fp8 linear': (linear, [(2048, 8192), (8192, 2048), (4096, 14336), (14336, 4096)])}

def best(name, runs, show=6):
    "Time launches by their options"
    found = {}
    for i, (options, run) in enumerate(runs.items()):
        if PART and i % PART[1] != PART[0]: continue
        try:
            if PART: run(); torch.cuda.synchronize(); continue
            got = alternate({f'{name} {options}': run})
            if got: found[options] = next(iter(got.values()))['ms']
        except Exception as e: print(f'  {name} {options}: {type(e).__name__}: {str(e).splitlines()[0][:120]}', flush=True)
    if not PART: print(name, [(k, round(v*1e3, 1)) for k, v in sorted(found.items(), key=lambda kv: kv[1])[:show]], 'µs', flush=True)

def tune():
    "Launch options of the kernels: what is fastest here"
    N, block = 16384, kernels.triton.next_power_of_2
    for D in (2048, 4096):
        x, g, w = rows(N, D, grad=False), rows(N, D, grad=False), torch.ones(D, device='cuda', dtype=DTYPE)
        y, dx, rstd = torch.empty_like(x), torch.empty_like(x), kernels._norm(x, None, w, 1e-5)[2]
        def forward(r, warps): return lambda: kernels._forward[(N//r,)](x, x, w, y, x, rstd, N, D, 1e-5, ADD=False, R=r, BLOCK=block(D), num_warps=warps)
        def backward(programs, r, warps):
            def run():
                each = N//(programs*132)//r*r + r; n = -(-N//each)
                dw = torch.empty(n, D, device='cuda'); kernels._backward[(n,)](g, None, x, w, rstd, dx, dw, N, D, each, ADD=False, R=r, BLOCK=block(D), num_warps=warps); return dw.sum(0).to(DTYPE)
            return run
        best(f'norm forward, D={D} (rows, warps)', {(r, w_): forward(r, w_) for r in (1, 2, 4) for w_ in (2, 4, 8) if r*D <= 8192})
        best(f'norm backward, D={D} (programs a processor, rows, warps)', {(p, r, w_): backward(p, r, w_) for p in (1, 2, 4, 8) for r in (1, 2, 4) for w_ in (4, 8, 16) if r*D <= 8192})
    V, N = 92544, 4096
    z, t, l = rows(N, V, grad=False), torch.randint(0, V, (N,), device='cuda'), torch.empty(N, device='cuda')
    def softmax(block, warps): return lambda: ce._softmax_gradient[(N,)](z, t, l, V, V, GRADIENT=True, BLOCK=block, num_warps=warps)
    best('softmax gradient (block, warps)', {(b, w_): softmax(b, w_) for b in (2048, 4096, 8192, 16384, 32768) for w_ in (4, 8, 16, 32) if 128 <= b//w_ <= 2048})
    del z
    tune_flash()

def tune_flash(B=2, T=4096, H=16, K=8, d=128):
    q, k, v, do = rows(B, T, H, d, grad=False), rows(B, T, K, d, grad=False), rows(B, T, K, d, grad=False), rows(B, T, H, d, grad=False)
    o, lse = flash.flash_forward(q, k, v, None, None)
    dl, delta, dq, dk, dv = torch.zeros_like(lse), torch.zeros_like(lse), torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    scale, cdiv = math.log2(math.e)/d**.5, flash.triton.cdiv
    calls = dict(forward=lambda c: flash._forward[(cdiv(T, c['BM']), B*H)](q, k, v, o, lse, None, T, scale, H, K, d, False, **c),
                 q=lambda c: flash._backward_q[(cdiv(T, c['BM']), B*H)](q, k, v, o, do, lse, dl, delta, dq, None, T, scale, H, K, d, False, **c),
                 kv=lambda c: flash._backward_kv[(cdiv(T, c['BN']), B*K)](q, k, v, do, lse, delta, dk, dv, None, T, scale, H, K, d, False, **c))
    for kind, blocks in dict(forward=((128, 64), (128, 128), (64, 64)), q=((128, 64), (64, 64), (128, 32)), kv=((64, 128), (64, 64), (32, 128), (128, 64))).items():
        run = lambda *c: lambda: calls[kind](dict(zip(('BM', 'BN', 'num_warps', 'num_stages'), c)))
        best(f'flash {kind} (BM, BN, warps, stages)', {(m, n, w, s): run(m, n, w, s) for m, n in blocks for w in (4, 8) for s in (2, 3)})

def under_compile():
    "Do the kernels stand in a compiled graph without breaking it, with the same numbers?"
    D = 256
    w, gate = torch.rand(D, device='cuda') + .5, rows(8, D)
    a = torch.arange(16, device='cuda')[None, :, None, None]/1e4**(torch.arange(0, 64, 2, device='cuda')/64)
    emb, y = torch.randn(512, D, device='cuda', dtype=DTYPE, requires_grad=True), torch.randint(0, 512, (8,), device='cuda')
    cases = {'rms_norm': lambda x: kernels.rms_norm(x*2, w.to(x.dtype)), 'add_rms_norm': lambda x: sum(kernels.add_rms_norm(x*2, x, w.to(x.dtype))), 'swiglu': lambda x: kernels.swiglu(x*2, x),
             'rope_': lambda x: sum(t.sum() for t in kernels.rope_((x*2).view(1, 8, 4, 64), (x*3).view(1, 8, 4, 64), a.cos()[:, :8], a.sin()[:, :8])), 'cross_entropy_sum': lambda x: ce.cross_entropy_sum(x*2, emb, y),
             'flash_attention': lambda x: flash.flash_attention(*((x*i).view(1, 8, 4, 64) for i in (1, 2, 3))), 'pick_attention': lambda x: flash.pick_attention('cuda')[0](*((x*i).view(1, 8, 4, 64) for i in (1, 2, 3)))}
    out = {}
    for name, f in cases.items():
        x = rows(8, D)
        try:
            g = torch.compile(f, fullgraph=True)
            want, got = f(x), g(x)
            dw, dg = (torch.autograd.grad(o.float().sum(), x)[0] for o in (want, got))
            out[name] = 'same' if torch.allclose(want.float(), got.float(), rtol=3e-2, atol=3e-2) and torch.allclose(dw.float(), dg.float(), rtol=5e-2, atol=5e-2) else f'differs {(want.float() - got.float()).abs().max().item():.3g} {(dw.float() - dg.float()).abs().max().item():.3g}'
        except Exception as e: out[name] = f'{type(e).__name__}: {str(e).splitlines()[0][:150]}'
        print(f'  compiled {name}: {out[name]}', flush=True)
    return out

def fill(args):
    "Compile a part of all that will be timed"
    global PART
    PART = tuple(map(int, args.fill.split('/')))
    for i, (f, size) in enumerate((f, size) for name, (f, sizes) in WORK.items() if chosen(name, args) for size in sizes):
        if i % PART[1] == PART[0]: torch.compiler.reset(); f(size)
    if PART[0] == 0: under_compile()
    if args.tune: tune()

def chosen(name, args): return not args.only or any(o in name for o in args.only.split(','))

def show(name, size, found, bandwidth):
    for r in found:
        if 'GB_per_s' in r: r['of_copy'] = r['GB_per_s']*1e9/bandwidth
        rate = f"{r['GB_per_s']:7.0f} GB/s {r['of_copy']:5.2f} of a copy" if 'GB_per_s' in r else f"{r['TFLOP_per_s']:7.0f} TFLOP/s" + (f", peak {r['peak_GiB']:.2f} GiB" if 'peak_GiB' in r else '')
        print(f"{name:28} {str(size):14} {r['way']:26} {r['pass']:8} {r['ms']:8.4f} ms {rate}", flush=True)

def main(argv=None):
    p = argparse.ArgumentParser(); p.add_argument('--only', default=''); p.add_argument('--tune', action='store_true'); p.add_argument('--out', default=''); p.add_argument('--seconds', type=float, default=600.); p.add_argument('--quick', action='store_true', help='one size of each'); p.add_argument('--fill', default='', help='i/n: only compile the i-th of n parts')
    args = p.parse_args(argv)
    if not torch.cuda.is_available(): sys.exit('kernels_gpu: needs a CUDA device')
    import triton, torch._functorch.config as functorch
    functorch.donated_buffer = False # backward is timed again and again on one graph
    torch.cuda.set_stream(torch.cuda.Stream()) # graphs are not captured on the default stream
    if args.fill: return fill(args)
    begin, bandwidth, results, late = time.time(), copy_bandwidth(), {}, []
    print(f'{torch.cuda.get_device_name()}: a copy moves {bandwidth/1e12:.2f} TB/s', flush=True)
    for name, (f, sizes) in WORK.items():
        if not chosen(name, args): continue
        for size in sizes[:1] if args.quick else sizes:
            if time.time() - begin > args.seconds: late.append(f'{name} {size}'); continue
            torch.manual_seed(0); torch.compiler.reset()
            try: found = f(size)
            except Exception as e: print(f'{name} {size}: {type(e).__name__}: {str(e).splitlines()[0][:300]}', flush=True); late.append(f'{name} {size}: {e}'); continue
            show(name, size, found, bandwidth); results.setdefault(name, {})[str(size)] = found
    compiled_graph = under_compile()
    if args.tune: tune()
    report(results, bandwidth, compiled_graph, late, args, dict(torch=torch.__version__, triton=triton.__version__))

def report(results, bandwidth, compiled_graph, late, args, versions):
    shares = [r['of_copy'] for sizes in results.values() for found in sizes.values() for r in found if r['way'] == 'labkit' and 'of_copy' in r]
    row = {'claim': 'memory-bound kernels, least share of the bandwidth of a copy', 'value': round(min(shares), 3) if shares else None, 'unit': 'x copy', 'bar': BAR, 'holds': bool(shares) and min(shares) >= BAR and not late,
           'spread': [round(min(shares), 3), round(max(shares), 3)] if shares else None, 'device': torch.cuda.get_device_name(), 'date': time.strftime('%Y-%m-%d'), 'versions': versions, 'dtype': 'bfloat16', 'copy_TB_per_s': round(bandwidth/1e12, 3),
           'fullgraph': compiled_graph, 'left_out': late, 'results': results}
    out = Path(args.out or Path(__file__).parent/'results'/'kernels_gpu.json')
    out.parent.mkdir(exist_ok=True); out.write_text(json.dumps(row, indent=1))
    print(json.dumps({k: v for k, v in row.items() if k != 'results'}))

if __name__ == '__main__': main()
