"""The engine's Triton kernels against plain torch. Run as `python engine_kernel_checks.py DEVICE`: a process of its own, because Triton reads TRITON_INTERPRET when it is imported."""
import sys, torch, traceback
import torch.nn.functional as F

def near(name, got, want, most):
    "Relative error of a whole tensor"
    err = ((got.float() - want.float()).norm()/want.float().norm()).item()
    assert err <= most, (name, err) # NaN fails too

def dtypes(device): return ((torch.float32, 2e-6), (torch.bfloat16, 1e-2)) if device == 'cuda' else ((torch.float32, 2e-6),)

def small(device):
    "Norms, SwiGLU, rounding"
    from labkit.inference.kernels import add_norm, quantize_rows, silu_mul
    for dtype, most in dtypes(device):
        for S, B, D in ((0, 1, 8), (1, 3, 100), (3, 2, 64)):
            parts, residual, w, bias = torch.randn(S, B, D, device=device), torch.randn(B, D, device=device), torch.rand(D, device=device).to(dtype) + 1, torch.randn(D, device=device).to(dtype)
            want = residual + parts.sum(0) + (bias.float() if S else 0)
            y, _ = add_norm(parts if S else None, residual, w, 1e-5, dtype, bias if S else None)
            near('residual', residual, want, 1e-6)
            near('add_norm', y, F.rms_norm(want, (D,), w.float(), 1e-5), most)
        for S, B, width in ((1, 3, 5), (2, 1, 1100)):
            parts = torch.randn(S, B, 2*width, device=device)
            g, u = parts.sum(0).chunk(2, 1)
            near('silu_mul', silu_mul(parts, dtype)[0], F.silu(g)*u, most)
    x = torch.randn(3, 70, device=device)
    for dtype, most in ((torch.int8, 8e-3), (torch.float8_e4m3fn, 4e-2))[:2 if device == 'cuda' else 1]: # the interpreter cuts float8 off
        q, scale = quantize_rows(x, dtype)
        assert q.dtype == dtype
        near('quantize_rows', q.float()*scale[:, None], x, most)

def products(device):
    "Few rows by few rows, with odd sizes"
    from labkit.inference.linear import Dense, Packed4, fragment_order, natural_order
    from labkit.inference.kernels import quantize_rows
    for dtype, most in dtypes(device):
        for B, N, M in ((1, 100, 96), (5, 70, 208)) + (((60, 4096, 11008),) if device == 'cuda' else ()):
            x, w = torch.randn(B, M, device=device).to(dtype), torch.randn(N, M, device=device).to(dtype)
            near('dense', Dense(w)(x, x).sum(0), x.float() @ w.float().T, 1e-4)
    x, w = torch.randn(5, 96, device=device), torch.randn(40, 96, device=device)
    for kind, most in ((torch.int8, 2e-2), (torch.float8_e4m3fn, 6e-2))[:2 if device == 'cuda' else 1]:
        (q, s), xs = quantize_rows(w, kind), quantize_rows(x, kind)
        near(kind, Dense(q, s)(*xs).sum(0), x @ w.T, most)
        near(kind, Dense(q, s)(*xs).sum(0), (xs[0].float()*xs[1][:, None]) @ (q.float()*s[:, None]).T, 1e-3)
    for dtype, most in dtypes(device):
        for B, N, M, group in ((1, 128, 256, 128), (5, 200, 128, 64), (40, 72, 96, 32)):
            q, s, z = torch.randint(0, 16, (N, M), dtype=torch.uint8, device=device), (torch.rand(N, M//group, device=device) + .1).half(), torch.randint(0, 16, (N, M//group), dtype=torch.uint8, device=device)
            w = (q.float() - z.float().repeat_interleave(group, 1))*s.float().repeat_interleave(group, 1)
            assert torch.equal(natural_order(fragment_order(q, group), N), q)
            p, x = Packed4(q, s, z, dtype), torch.randn(B, M, device=device).to(dtype)
            near('w4', p(x, x).sum(0), x.float() @ w.T, most)
            near('w4 unpacked', p.dequantize(), w, most)
            if B < 40: assert torch.equal(p(x, x, invariant=True).sum(0)[:1], p(x[:1], x[:1], invariant=True).sum(0)), 'a row depends on its neighbours'

def kept(x, kind):
    "Keys or values as the cache keeps them: numbers, scale and minimum, what they stand for"
    from labkit.inference.cache import dequantize_kv, quantize_kv
    if kind == 'model': return x, None, x.float()
    if kind == 'fp8': return x.to(torch.float8_e4m3fn), None, x.to(torch.float8_e4m3fn).float()
    q, meta = quantize_kv(x, 8 if kind == 'int8' else 4)
    return q, meta, dequantize_kv(q, meta, bits=8 if kind == 'int8' else 4)

def attend(q, k, v, window):
    "One sequence: the last tokens (n, H, d) look at (T, K, d)"
    n, T = len(q), len(k)
    t, at = torch.arange(T, device=q.device), torch.arange(T - n, T, device=q.device)[:, None]
    mask = (t <= at) & (t > at - window if window else True)
    return F.scaled_dot_product_attention(*(x.float().transpose(0, 1)[None] for x in (q, k, v)), attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)

def attention(device):
    "Single tokens and chunks, in one and in several parts, of every kind of cache"
    from labkit.inference.attention import paged_attention
    cases = [(4, 2, 16, 'model', 0), (2, 2, 16, 'int8', 0), (2, 2, 16, 'int4', 5), (6, 2, 24, 'int8', 9), (4, 4, 32, 'int4', 0)] + ([(8, 2, 128, 'fp8', 0), (4, 4, 128, 'fp8', 0), (32, 32, 128, 'int8', 0), (28, 4, 128, 'int4', 0)] if device == 'cuda' else [])
    for dtype, most in dtypes(device):
        for H, K, d, kind, window in cases:
            size, lengths, counts = 4, (1, 13, 22), (1, 1, 5)
            tables = torch.randperm(20)[:18].view(3, 6).int().to(device)
            (k, km, kf), (v, vm, vf) = (kept(torch.randn(20, K, size, d, device=device).to(dtype), kind) for _ in 'kv')
            q, rows = torch.randn(7, H, d, device=device).to(dtype), 16
            want = torch.cat([attend(q[at:at + c], *(x[tables[i].long()].transpose(1, 2).flatten(0, 1)[:l] for x in (kf, vf)), window) for i, (l, c, at) in enumerate(zip(lengths, counts, (0, 1, 2)))])
            tile = lambda *t: torch.tensor(t, dtype=torch.int32, device=device)
            each = rows//(H//K)
            for splits in (1, 2):
                y = torch.full_like(q, float('nan'))
                paged_attention(q, (k, v, km, vm), tables, tile((0, 0, 1, 0), (1, 1, 1, 12), (0, 0, 0, 0)), splits, keys=16, y=y, rows=rows, window=window)
                paged_attention(q, (k, v, km, vm), tables, tile(*((2, 2 + j, min(each, 5 - j), 17 + j) for j in range(0, 5, each))), splits, tokens=each, keys=16, y=y, rows=rows, window=window)
                near(f'attention {H} {K} {d} {kind} {window} {splits}', y, want, max(most, 1e-5))

def runner(device):
    "A whole step: prompts in chunks, beside single tokens, guesses; tokens and logits of the plain runner"
    from labkit.core.lm import Sampling
    from labkit.inference.cache import PagedCache
    from labkit.inference.gpu_runner import CudaRunner, unsupported
    from labkit.inference.runner import TorchRunner
    from labkit.inference.scheduler import Request, Work
    from labkit.model.config import ModelConfig
    from labkit.model.transformer import Transformer
    for change, kind, most in ((dict(qkv_bias=True, o_bias=True, qk_norm=True, sliding_window=6), 'model', 1e-5), (dict(n_kv_heads=4, tie_embeddings=True), 'int8', 1e-3)):
        torch.manual_seed(0)
        model = Transformer(ModelConfig(**dict(vocab_size=150, dim=64, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=48, head_dim=8) | change)).to(device).eval().requires_grad_(False)
        for p in model.parameters(): p.add_(torch.randn_like(p)*.2)
        if device == 'cpu': assert unsupported(model) is None
        results = []
        for make in (TorchRunner, lambda m, c: CudaRunner(m, c, 3, 32)):
            cache = PagedCache(model.cfg, 48, 4, torch.float32, device, kind); r = make(model, cache)
            results += [conversation(r, cache, Request, Work, Sampling) for _ in range(3 if device == 'cuda' else 1)] # the second time graphs are recorded, the third time replayed
        tokens, logits = results[0]
        for ours, got in results[1:]:
            assert ours == tokens, (change, ours, tokens)
            near('guesses', got, logits, most)
        if device == 'cuda': assert len(r.graphs) > 3, r.graphs.keys()

def conversation(r, cache, Request, Work, Sampling):
    "Two requests, the second in two chunks; their tokens, and the logits of two guesses"
    a, b = (Request(i, torch.randint(0, 150, (n,), generator=torch.Generator().manual_seed(i)).tolist(), Sampling(temperature=0), 9, row=i) for i, n in enumerate((3, 9)))
    if hasattr(r, 'admit'): r.admit(a, 1); r.admit(b, 1)
    for plan in (lambda: [Work(a, 0, 3)], lambda: [Work(a, 3, 1), Work(b, 0, 5)], lambda: [Work(a, 4, 1), Work(b, 5, 4)], *[lambda: [Work(x, x.computed, 1) for x in (a, b)]]*2):
        work = plan()
        for w in work: cache.grow(w.request.table, w.start + w.n)
        tokens = iter(r.launch(work).tokens() if hasattr(r, 'launch') else r(work).argmax(-1).tolist())
        for w in work:
            w.advance()
            if w.wants: w.request.tokens.append(next(tokens))
    cache.grow(b.table, b.computed + 3)
    return (a.tokens, b.tokens), r([Work(b, b.computed, 3, (5, 6))])

if __name__ == '__main__':
    for check in (small, products, attention, runner):
        torch.manual_seed(0)
        try: check(sys.argv[1]); print(check.__name__, 'equal', flush=True)
        except Exception: traceback.print_exc(); sys.stderr.flush()
