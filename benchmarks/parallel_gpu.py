"""Tensor, pipeline and context parallelism on two GPUs: equal to one, and how fast.

    python benchmarks/parallel_gpu.py [--out benchmarks/results/parallel_gpu.json]

Starts one process a GPU. First, loss and gradients of small models against one process; then tokens/s and peak memory of a model of 1.1 billion
parameters in bfloat16 (autocast, float32 weights, fused AdamW, no torch.compile), the same step of 32,768 tokens for each way, and one row of 32,768 tokens."""
import argparse, contextlib, datetime, gc, json, os, subprocess, sys, time
from copy import deepcopy
from functools import partial
from pathlib import Path
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from labkit.model.config import preset
from labkit.model.cross_entropy import cross_entropy_sum
from labkit.model.transformer import Transformer
from labkit.pretrain.context_parallel import attention_of, context_loss
from labkit.pretrain.parallel import process_group
from labkit.pretrain.pipeline import Stage, make_schedule, make_stages, run_schedule, small_model, sync_tied
from labkit.pretrain.tensor_parallel import apply_tensor_parallel, output_weight, settle_gradients, split_loss
from torch.distributed.tensor import DTensor

CLAIM = 'two processes with a part of the model or of the sequence each compute what one computes'

def one_loss(model, x, y, attention=None): return cross_entropy_sum(model.hidden(x, None, attention).flatten(0, 1), output_weight(model), y.flatten())

class One:
    "The whole model on this GPU"
    def __init__(self, model, mesh, micro): self.model, self.micro = model, micro
    def params(self): return list(self.model.parameters())
    def named(self): return dict(self.model.named_parameters())
    def loss(self, x, y): return one_loss(self.model, x, y)
    def step(self, x, y):
        "Forward and backward of all micro-batches; gradients of the mean loss; the summed loss over the tokens"
        total = 0.
        for a, b in zip(x.chunk(self.micro), y.chunk(self.micro)):
            loss = self.loss(a, b) / y.numel()
            loss.backward(); total = total + loss.detach()
        self.finish()
        return total
    def finish(self): pass

class Tensor(One):
    def __init__(self, model, mesh, micro, sequence=True):
        super().__init__(apply_tensor_parallel(model, mesh, sequence), mesh, micro); self.group = mesh.get_group()
    def loss(self, x, y): return split_loss(self.model, self.model.hidden(x), y, self.group)
    def finish(self): settle_gradients(self.model)

class Context(One):
    def __init__(self, model, mesh, micro, kind):
        super().__init__(model, mesh, micro); self.group = mesh.get_group(); self.attention = attention_of(kind, self.group)
    def loss(self, x, y): return context_loss(self.model, x, y, self.group, self.attention)
    def finish(self):
        for p in self.model.parameters(): dist.all_reduce(p.grad, group=self.group)
    def step(self, x, y):
        total = super().step(x, y); dist.all_reduce(total, group=self.group)
        return total

class Pipeline(One):
    def __init__(self, model, mesh, micro, kind):
        self.parts = make_stages(model, kind, mesh.get_local_rank(), mesh.size()); self.group, device = mesh.get_group(), next(model.parameters()).device
        self.schedule = make_schedule(kind, self.parts, micro, self.group, device)
    def params(self): return list({id(p): p for s in self.parts for p in s.parameters()}.values())
    def named(self): return {n: p for s in self.parts for n, p in s.named_parameters()}
    def step(self, x, y):
        loss = run_schedule(self.schedule, self.parts, x, y, y.numel()); sync_tied(self.parts, self.group)
        loss = torch.zeros((), device=x.device) if loss is None else loss
        dist.all_reduce(loss, group=self.group)
        return loss

def ways(pp_micro, micro):
    return {'one GPU': partial(One, micro=micro), 'tp:2': partial(Tensor, micro=micro), 'tp:2, no sequence parallelism': partial(Tensor, micro=micro, sequence=False),
            **{f'cp:2, {k}': partial(Context, micro=micro, kind=k) for k in ('ring', 'ulysses')},
            **{f'pp:2, {k}': partial(Pipeline, micro=pp_micro, kind=k) for k in ('gpipe', '1f1b', 'interleaved', 'zbv', 'zerobubble')}}

def whole(t): return t.full_tensor() if isinstance(t, DTensor) else t

def equality(mesh, device):
    "Loss and gradients of small models: float32, and bfloat16 where the ring needs it, in which one process with another attention kernel is the measure"
    out = {}
    for name, changes in {'Llama, tied': {}, 'Qwen3, untied': dict(qk_norm=True, tie_embeddings=False), 'biases': dict(qkv_bias=True, o_bias=True)}.items():
        model = small_model(head_dim=32, **changes).to(device)
        x, y = torch.randint(0, 512, (2, 4, 64), device=device, generator=torch.Generator(device).manual_seed(1))
        want = deepcopy(model)
        reference = One(want, mesh, 1); loss = reference.step(x, y)
        for way, make in ways(4, 2).items():
            if way == 'one GPU': continue
            if dist.get_rank() == 0: print(f'{name}: {way}', flush=True)
            low = 'ring' in way and device.type == 'cuda'
            with torch.autocast(device.type, torch.bfloat16, enabled=low): runner = make(deepcopy(model), mesh); got = runner.step(x, y)
            grads = [(whole(p.grad), want.get_parameter(n).grad) for n, p in runner.named().items()]
            worst = max(float((g - w).norm() / w.norm()) for g, w in grads)
            row = out.setdefault(way, dict(dtype='bfloat16' if low else 'float32', loss=0., gradient=0.))
            row['loss'], row['gradient'] = max(row['loss'], abs(float(got/loss) - 1)), max(row['gradient'], worst)
            dist.barrier()
    bound = {'float32': 1e-4, 'bfloat16': 5e-2}
    for way, row in out.items():
        worst = torch.tensor([row['loss'], row['gradient']], device=device); dist.all_reduce(worst, dist.ReduceOp.MAX)
        row['loss'], row['gradient'] = worst.tolist(); row['holds'] = max(worst.tolist()) < bound[row['dtype']]
    return out

def speed(make, cfg, rows, seq, mesh, device, steps=4):
    "Tokens/s in all, GB at the peak on the fuller GPU"
    torch.manual_seed(0)
    with device: model = Transformer(cfg)
    runner = make(model, mesh); del model
    optimizer = torch.optim.AdamW(runner.params(), 1e-4, fused=True)
    x, y = torch.randint(0, cfg.vocab_size, (2, rows, seq), device=device, generator=torch.Generator(device).manual_seed(1))
    cuda, times = device.type == 'cuda', []
    if cuda: torch.cuda.reset_peak_memory_stats()
    for _ in range(steps + 2):
        if cuda: torch.cuda.synchronize()
        dist.barrier(); start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16): loss = runner.step(x, y)
        optimizer.step(); optimizer.zero_grad()
        if cuda: torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    took = sorted(times[2:])[len(times[2:])//2]
    peak = torch.tensor([took, torch.cuda.max_memory_allocated()/1e9 if cuda else 0.], device=device); dist.all_reduce(peak, dist.ReduceOp.MAX)
    return rows*seq/float(peak[0]), float(peak[1]), float(loss)

def main_rank(a):
    kind = 'cuda' if torch.cuda.is_available() else 'cpu'
    with process_group(kind) as group:
        device = torch.device(kind, int(os.environ['LOCAL_RANK'])) if kind == 'cuda' else torch.device('cpu')
        mesh, started, say = init_device_mesh(kind, (group.world,)), time.perf_counter(), print if group.rank == 0 else lambda *_: None
        equal = equality(mesh, device)
        for way, row in equal.items(): say(f'{way:32} {row}', flush=True) if group.rank == 0 else None
        cfg = preset('lab-1m', n_layers=4, dim=64, ffn_dim=160, vocab_size=512, tie_embeddings=False) if a.tiny else preset('llama3.2-1b', vocab_size=32768, tie_embeddings=False, max_seq_len=32768, rope_scaling=None)
        rows, seq = (8, 64) if a.tiny else (8, 4096)
        rate, memory, loss, long_rate, long_memory = {}, {}, {}, {}, {}
        jobs = [(w, f, rows, seq, rate, memory) for w, f in ways(8, 4).items()]
        jobs += [(w, f, 1, rows*seq, long_rate, long_memory) for w, f in ways(1, 1).items() if w in ('one GPU', 'tp:2', 'cp:2, ring', 'cp:2, ulysses')]
        for way, make, n, T, r, m in jobs:
            late = torch.tensor(float(time.perf_counter() - started > a.limit), device=device); dist.all_reduce(late, dist.ReduceOp.MAX)
            if late: say(f'{way}, {T} tokens a row: no time left'); continue
            try: r[way], m[way], loss[way, T] = speed(make, cfg, n, T, mesh, device)
            except torch.OutOfMemoryError: say(f'{way}, {T} tokens a row: out of memory'); raise
            gc.collect(); torch.cuda.empty_cache() if kind == 'cuda' else None
            if group.rank == 0: print(f'{way:32} rows of {T}: {r[way]:,.0f} tokens/s, {m[way]:.1f} GB, loss after {loss[way, T]:.4f}', flush=True)
        if group.rank: return
        out = dict(claim=CLAIM, value=sum(r['holds'] for r in equal.values()), unit='ways equal', bar=len(equal), holds=all(r['holds'] for r in equal.values()), spread=[],
                   device=f'{group.world} × {torch.cuda.get_device_name() if kind == "cuda" else "CPU process"}', date=str(datetime.date.today()), torch=torch.__version__,
                   model=f'{cfg.n_params/1e9:.2f} billion parameters, {rows} rows of {seq} tokens a step, bfloat16, no torch.compile', equality=equal, tokens_per_s=rate, peak_gb=memory,
                   long=dict(row=rows*seq, tokens_per_s=long_rate, peak_gb=long_memory))
        Path(a.out).parent.mkdir(parents=True, exist_ok=True); Path(a.out).write_text(json.dumps(out, indent=1) + '\n')
        print(json.dumps({k: out[k] for k in ('claim', 'value', 'unit', 'bar', 'holds', 'spread')}))

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--out', default='benchmarks/results/parallel_gpu.json'); p.add_argument('--tiny', action='store_true', help='a small model, to try the script on a CPU'); p.add_argument('--limit', type=float, default=80., help='seconds after which no measurement is begun')
    a = p.parse_args()
    if 'RANK' in os.environ: main_rank(a)
    else: sys.exit(subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', *sys.argv]).returncode)
