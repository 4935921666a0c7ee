"""Pretraining on a GPU beside transformers: tokens/s of the same architecture, the same tokens a step, in one process, alternating.

python benchmarks/train_gpu.py                     1.8B InternLM2 on one GPU: labkit in bf16 and fp8, transformers + torch.compile
python benchmarks/train_gpu.py --model internlm2-7b --gpus 2   FSDP2 on two GPUs
python benchmarks/train_gpu.py --noise             1000 steps of the lab's model in bf16 (two seeds) and fp8: are the losses the same within noise?
MFU counts 6 N + 12 L d s FLOPs a token (PaLM) against the data sheet's dense bf16 peak."""
import argparse, gc, json, math, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path
import torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from labkit.core.device import Device
from labkit.model.config import preset
from labkit.pretrain.parallel import Group, parse_parallel, process_group
from labkit.pretrain.trainer import DATA_SHEETS
from labkit.pretrain.worker import PretrainSettings, Worker

RESULTS = Path(__file__).parent/'results'
PEER = 'transformers + torch.compile'

def stamp() -> dict:
    return dict(device=torch.cuda.get_device_name(), gpus=torch.cuda.device_count(), torch=torch.__version__, date=time.strftime('%Y-%m-%d'))

def mfu(rate: float, model: str, seq: int, gpus: int = 1) -> float:
    peak = next(v for k, v in DATA_SHEETS.items() if k in torch.cuda.get_device_name())
    return rate * preset(model).flops_per_token(seq) / (peak * gpus)

class Ours:
    "labkit's worker, as the trainer uses it"
    def __init__(self, a, group=Group(), **changes):
        ranks = parse_parallel(a.parallel).data_ranks
        s = PretrainSettings(model=a.model, seq_len=a.seq, micro_batch=a.micro, batch_tokens=a.seq*a.micro*a.accumulate*ranks, parallel=a.parallel, zero=a.zero, **changes)
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.w = Worker(s, preset(a.model), Device(name, 'bfloat16', ''), group)
        x = torch.randint(0, 32000, (a.micro*a.accumulate, a.seq + 1), generator=torch.Generator().manual_seed(group.rank))
        self.pieces, self.tokens = [(r[:, :-1], r[:, 1:]) for r in x.split(a.micro)], s.batch_tokens
    def step(self) -> float:
        loss = self.w.gradients(self.pieces); self.w.clip(1.); self.w.step(1e-4)
        return loss

class Theirs:
    "transformers' Llama of the same shape, its layers, head and loss compiled; autocast bf16, fused AdamW"
    def __init__(self, a):
        from transformers import LlamaConfig, LlamaForCausalLM
        c = preset(a.model)
        cfg = LlamaConfig(vocab_size=c.vocab_size, hidden_size=c.dim, intermediate_size=c.ffn_dim, num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads,
                          max_position_embeddings=c.max_seq_len, rope_theta=c.rope_theta, tie_word_embeddings=c.tie_embeddings, attn_implementation='sdpa', use_cache=False)
        with torch.device('cuda'): self.m = LlamaForCausalLM(cfg)
        for layer in self.m.model.layers: layer.compile()
        self.loss = torch.compile(lambda h, w, y: torch.nn.functional.cross_entropy(torch.nn.functional.linear(h, w).float(), y))
        self.opt = torch.optim.AdamW(self.m.parameters(), lr=1e-4, fused=True)
        x = torch.randint(0, 32000, (a.micro*a.accumulate, a.seq + 1), device='cuda')
        self.pieces, self.tokens = [(r[:, :-1], r[:, 1:]) for r in x.split(a.peer_micro)], a.seq*a.micro*a.accumulate
    def step(self) -> float:
        total = 0.
        for x, y in self.pieces:
            with torch.autocast('cuda', torch.bfloat16): loss = self.loss(self.m.model(x).last_hidden_state.flatten(0, 1), self.m.lm_head.weight, y.flatten()) / len(self.pieces)
            loss.backward(); total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.m.parameters(), 1.)
        self.opt.step(); self.opt.zero_grad(set_to_none=True)
        return total.item()

def timed(make, steps: int, seconds: float = 12.) -> dict:
    "Warm up, then time single steps; the model is gone afterwards"
    torch.cuda.reset_peak_memory_stats()
    t = time.perf_counter(); run = make()
    for _ in range(2): run.step()
    ready, rates = time.perf_counter() - t, []
    end = time.perf_counter() + seconds
    while len(rates) < steps and (time.perf_counter() < end or len(rates) < 2):
        torch.cuda.synchronize(); t = time.perf_counter(); loss = run.step(); torch.cuda.synchronize()
        rates.append(run.tokens / (time.perf_counter() - t))
    peak = torch.cuda.max_memory_allocated() / 2**30
    del run; gc.collect(); torch.cuda.empty_cache(); torch._dynamo.reset()
    return dict(tokens_per_s=statistics.median(rates), spread=[min(rates), max(rates)], peak_gib=round(peak, 1), seconds_to_start=round(ready, 1), loss=round(loss, 3))

def one_gpu(a) -> dict:
    kinds = {'labkit bf16': lambda: Ours(a), PEER: lambda: Theirs(a), 'labkit fp8': lambda: Ours(a, fp8=True)}
    rows = {k: [] for k in kinds}
    for i in range(a.rounds):
        for k, make in kinds.items():
            if i and k == 'labkit fp8': continue
            try: r = timed(make, a.steps)
            except torch.OutOfMemoryError as e: print(f'{k}: {str(e)[:120]}'); continue
            rows[k].append(r); print(f"{k}: {r['tokens_per_s']:,.0f} tokens/s, MFU {mfu(r['tokens_per_s'], a.model, a.seq):.1%}, {r}", flush=True)
    best = {k: statistics.median(r['tokens_per_s'] for r in v) for k, v in rows.items() if v}
    ratios = [x['tokens_per_s'] / y['tokens_per_s'] for x in rows['labkit bf16'] for y in rows[PEER]]
    fp8 = best.get('labkit fp8', math.nan) / best['labkit bf16']
    return dict(model=a.model, seq=a.seq, tokens_a_step=a.seq*a.micro*a.accumulate, micro_batch=a.micro, peer_micro_batch=a.peer_micro, rows=rows, mfu={k: mfu(v, a.model, a.seq) for k, v in best.items()},
                claims=[dict(claim=f'{a.model} pretraining, s{a.seq}, bf16, one GPU', value=best['labkit bf16'], unit='tokens/s', bar=39200., holds=best['labkit bf16'] >= 39200),
                        dict(claim='labkit against transformers + torch.compile', value=statistics.median(ratios), unit=f'x {PEER}', bar=1.25, holds=statistics.median(ratios) >= 1.25, spread=[min(ratios), max(ratios)]),
                        dict(claim='fp8 against bf16', value=fp8, unit='x labkit bf16', bar=1.15, holds=fp8 >= 1.15)])

def rank(a) -> dict | None:
    with process_group('cuda') as group:
        r = timed(lambda: Ours(a, group), a.steps)
        return r if group.rank == 0 else None

def several(a) -> dict:
    "The same model on 1 … N GPUs, each in processes of its own"
    rows = {}
    for n in ([1] if a.efficiency else []) + [a.gpus]:
        with tempfile.NamedTemporaryFile('r') as f:
            args = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(n), __file__, '--rank', f.name, '--parallel', f'{a.share}:{n}',
                    *(x for k in ('model', 'seq', 'micro', 'accumulate', 'steps', 'zero') for x in (f'--{k}', str(getattr(a, k))))]
            subprocess.run(args, check=True)
            r = json.load(f)
        rows[n] = {**r, 'per_gpu': r['tokens_per_s'] / n}
        print(f"{a.model}, {a.share}:{n}: {rows[n]['per_gpu']:,.0f} tokens/s/GPU, MFU {mfu(r['tokens_per_s'], a.model, a.seq, n):.1%}, {r}", flush=True)
    last = rows[a.gpus]['per_gpu']
    out = dict(model=a.model, seq=a.seq, micro_batch=a.micro, accumulate=a.accumulate, share=a.share, zero=a.zero, rows=rows, mfu=mfu(last*a.gpus, a.model, a.seq, a.gpus), claims=[])
    if a.model == 'internlm2-7b': out['claims'].append(dict(claim=f'7B, s{a.seq}, bf16, {a.gpus} GPUs, FSDP2', value=last, unit='tokens/s/GPU', bar=10070., holds=last >= 10070))
    if a.efficiency: out['claims'].append(dict(claim=f'{a.model}: efficiency on {a.gpus} GPUs', value=last / rows[1]['per_gpu'], unit='x one GPU', bar=.97, holds=last / rows[1]['per_gpu'] >= .97))
    return out

def noise(a) -> dict:
    "Does fp8 learn as bf16 does? Python's own library is the text"
    import sysconfig
    from labkit.core.settings import RunSettings
    from labkit.corpus.tokens import train_tokenizer, write_shards
    from labkit.core.files import read_jsonl
    from labkit.pretrain.trainer import train
    folder = Path(tempfile.mkdtemp())
    texts = [p.read_text(errors='ignore') for p in sorted(Path(sysconfig.get_path('stdlib')).glob('*.py'))]
    tok = train_tokenizer(texts[::4], 4096); ids = tok.encode_batch(texts)
    write_shards(ids[::20], folder/'valid', tok); write_shards([d for i, d in enumerate(ids) if i % 20], folder/'train', tok); tok.save(folder/'tokenizer')
    runs = {}
    for name, seed, fp8 in (('bf16', 0, False), ('bf16, another seed', 1, False), ('fp8', 0, True)):
        s = PretrainSettings(data=folder, out=folder/name.replace(' ', ''), model=a.noise_model, steps=a.noise_steps, seq_len=512, batch_tokens=16384, micro_batch=32, lr=2e-3, warmup=50, log_every=10, eval_every=100, save_every=10**6, fp8=fp8, tensorboard=False)
        r = train(s, RunSettings(seed=seed), say=lambda line: None)
        runs[name] = dict(loss=[x['loss'] for x in read_jsonl(r.log) if 'loss' in x], valid=[x['valid_loss'] for x in read_jsonl(r.log) if 'valid_loss' in x], seconds=r.seconds)
        print(name, f'held-out loss {r.valid_loss:.4f}, {r.seconds:.0f} s', flush=True)
    return dict(model=a.noise_model, steps=a.noise_steps, runs=runs, claims=noise_claims(runs, a.noise_steps))

def noise_claims(runs: dict, steps: int) -> list[dict]:
    "Distance of the losses, step by step, and of the held-out loss at its best and at the end; the noise is what another seed does"
    apart = lambda k, f: f([abs(x - y) for x, y in zip(runs[k]['loss'], runs['bf16']['loss'])])
    rows = [(f'fp8 over {steps} steps: mean distance of the training loss from bf16', *(apart(k, statistics.mean) for k in ('fp8', 'bf16, another seed')))]
    for name, pick in (('lowest held-out loss', min), ('held-out loss at the end, where all runs have learnt the text by heart', lambda v: v[-1])):
        rows.append((f'fp8 over {steps} steps: {name}, distance from bf16', *(abs(pick(runs[k]['valid']) - pick(runs['bf16']['valid'])) for k in ('fp8', 'bf16, another seed'))))
    return [dict(claim=name, value=round(gap, 4), unit='nats', bar=round(seeds, 4), holds=gap <= seeds) for name, gap, seeds in rows]

def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', default='internlm2-1.8b'); p.add_argument('--seq', type=int, default=4096); p.add_argument('--micro', type=int, default=4); p.add_argument('--peer-micro', type=int, default=2)
    p.add_argument('--accumulate', type=int, default=4); p.add_argument('--steps', type=int, default=6); p.add_argument('--rounds', type=int, default=2); p.add_argument('--gpus', type=int, default=1)
    p.add_argument('--parallel', default=''); p.add_argument('--share', default='fsdp'); p.add_argument('--zero', type=int, default=3); p.add_argument('--efficiency', action='store_true')
    p.add_argument('--noise', action='store_true'); p.add_argument('--noise-model', default='lab-10m'); p.add_argument('--noise-steps', type=int, default=1000); p.add_argument('--rank', help=argparse.SUPPRESS); p.add_argument('--out', default='')
    a = p.parse_args()
    if a.rank:
        if (r := rank(a)): Path(a.rank).write_text(json.dumps(r))
        os._exit(0)
    kind, r = ('noise', noise(a)) if a.noise else ('several', several(a)) if a.gpus > 1 else ('one', one_gpu(a))
    out = Path(a.out or RESULTS/'train_gpu.json')
    old = json.loads(out.read_text()) if out.exists() else {}
    key = kind if kind != 'several' else f'{a.model}, {a.gpus} GPUs'
    out.write_text(json.dumps({**old, key: dict(**stamp(), **r)}, indent=1))
    for c in r['claims']: print(json.dumps(c))

if __name__ == '__main__': main()
