"""Pretraining on the CPU: labkit's trainer against transformers' Trainer on the same shapes, the same rows, the same settings.

Both train a Llama of lab-10m's shape from the same weights, with bfloat16 products where the CPU has them in hardware, else in float32
(`--dtype` says which); ours with `compile = yes` (`--set compile=no` without), theirs with torch_compile (`--peer-as-it-comes` without). 8192
tokens a step in pieces of 8 sequences, fused AdamW, one learning rate, clipping. They run in this process, alternating, some steps at a
time, with the same number of threads. Only whole optimizer steps are timed, by the wall clock; the seconds of CPU are noted beside it,
because they change less when the machine has other work. Prints the losses of both, the ratio with its spread, and the part of the
measured matmul peak that each reaches; the last line is JSON.
"""
import argparse, datetime, json, os, platform, statistics, sys, tempfile, time
from pathlib import Path
import numpy as np, torch
from pydoc_data.topics import topics
from labkit.core.files import replacing
from labkit.core.settings import RunSettings
from labkit.corpus.tokens import train_tokenizer, write_shards
from labkit.model.config import to_hf
from labkit.pretrain.data import Batches, as_pairs
from labkit.pretrain.monitor import matmul_peak
from labkit.pretrain.trainer import PretrainSettings, Trainer

SEQ, BATCH, MICRO, LR = 256, 8192, 8, 5e-4

def corpus(folder: Path, vocab_size: int) -> Path:
    "Python's reference manual as token shards"
    texts = [t for _, t in sorted(topics.items())]
    tokenizer = train_tokenizer(texts, vocab_size)
    write_shards(tokenizer.encode_batch(texts), folder/'train', tokenizer)
    tokenizer.save(folder/'tokenizer')
    return folder

def clocks() -> np.ndarray: return np.array([time.perf_counter(), time.process_time()]) # wall and CPU seconds

class Ours:
    "labkit's trainer, a few steps at a time"
    def __init__(self, data: Path, out: Path, threads: int, dtype: str, steps: int, more: dict):
        s = PretrainSettings(data=data, out=out, model='lab-10m', steps=steps, seq_len=SEQ, batch_tokens=BATCH, micro_batch=MICRO, lr=LR, min_lr=LR, warmup=0, tensorboard=False, **{'compile': 'yes'} | more)
        self.trainer = Trainer(s, RunSettings(device='cpu', dtype=dtype, threads=threads), say=lambda line: None)
        self.losses = []
    def run(self, steps: int) -> np.ndarray:
        "Tokens a second of wall clock and of CPU"
        t = clocks()
        for _ in range(steps): self.losses.append(self.trainer.train_step()['parts']['loss'])
        return steps * BATCH / (clocks() - t)

class Rows(torch.utils.data.Dataset):
    "The rows of our run, in its order"
    def __init__(self, batches: Batches, steps: int): self.rows = batches.blend.sequences(np.arange(steps * batches.batch))
    def __len__(self): return len(self.rows)
    def __getitem__(self, i): return dict(input_ids=torch.from_numpy(self.rows[i][:-1]), targets=torch.from_numpy(self.rows[i][1:]))

class Theirs:
    "transformers' Trainer in the same steps; `run` lets its loop, which waits in a thread, go on for some steps"
    def __init__(self, ours: Ours, out: Path, dtype: str, steps: int, compiled: bool):
        from transformers import LlamaConfig, LlamaForCausalLM
        keys = {k: v for k, v in to_hf(ours.trainer.cfg).items() if k not in ('architectures', 'model_type', 'torch_dtype')}
        model = LlamaForCausalLM(LlamaConfig(**keys))
        weights = {f'model.{k}': v for k, v in ours.trainer.model.state_dict().items()}
        missing = model.load_state_dict(weights, strict=False)
        assert not missing.unexpected_keys and set(missing.missing_keys) <= {'lm_head.weight'}, missing
        self.compiled = compiled
        self.model, self.rows, self.dtype, self.out, self.steps = model, Rows(ours.trainer.batches, steps), dtype, out, steps
    def trainer(self, watch):
        "The peer as a user would set it up"
        from transformers import Trainer as HF, TrainingArguments
        args = TrainingArguments(str(self.out), max_steps=self.steps, per_device_train_batch_size=MICRO, gradient_accumulation_steps=BATCH//SEQ//MICRO, learning_rate=LR,
            lr_scheduler_type='constant', weight_decay=.1, adam_beta2=.95, max_grad_norm=1., optim='adamw_torch_fused', bf16=self.dtype == 'bfloat16', use_cpu=True, save_strategy='no',
            logging_strategy='no', report_to='none', disable_tqdm=True, dataloader_num_workers=0, remove_unused_columns=False, torch_compile=self.compiled)
        collate = lambda rows: dict(input_ids=torch.stack([r['input_ids'] for r in rows]), labels=torch.stack([r['input_ids'] for r in rows]), shift_labels=torch.stack([r['targets'] for r in rows]))
        class InOrder(HF): # the same rows in the same steps
            def _get_train_sampler(self, *_): return torch.utils.data.SequentialSampler(self.train_dataset)
        return InOrder(self.model, args, train_dataset=self.rows, data_collator=collate, callbacks=[watch])

def alternate(ours: Ours, theirs: Theirs, rounds: int, each: int) -> tuple[np.ndarray, np.ndarray]: # (rounds, 2) each
    "Rates of both: our steps run inside the peer's callback, between two of its steps, so that they take turns in one process"
    from transformers import TrainerCallback
    a, b = [], []
    class Watch(TrainerCallback):
        begun = None
        def on_step_begin(self, args, state, control, **_):
            if state.global_step % each: return
            if state.global_step: b.append(each * BATCH / (clocks() - self.begun))
            a.append(ours.run(each)); self.begun = clocks()
        def on_train_end(self, args, state, control, **_): b.append(each * BATCH / (clocks() - self.begun))
    theirs.trainer(Watch()).train()
    return np.array(a[1:]), np.array(b[1:]) # the first round warms up

@torch.no_grad()
def final_loss(model, rows: Rows, n: int = 32) -> float:
    "Loss of a Hugging Face model on the first rows of the run"
    x, y = (torch.stack([rows[i][k] for i in range(n)]) for k in ('input_ids', 'targets'))
    return torch.nn.functional.cross_entropy(model(input_ids=x).logits.flatten(0, 1).float(), y.flatten()).item()

def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--rounds', type=int, default=5, help='turns of each, after one that warms up')
    p.add_argument('--each', type=int, default=2, help='optimizer steps a turn')
    p.add_argument('--dtype', default='bfloat16' if torch.cpu._is_avx512_bf16_supported() else 'float32', choices=['float32', 'bfloat16'])
    p.add_argument('--peer-as-it-comes', action='store_true', help="transformers' Trainer without torch_compile")
    p.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='further fields of PretrainSettings')
    p.add_argument('--out', type=Path, default=None)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    steps = (a.rounds + 1) * a.each
    with tempfile.TemporaryDirectory() as d:
        ours = Ours(corpus(Path(d)/'corpus', 8192), Path(d)/'ours', a.threads, a.dtype, steps, dict(x.split('=', 1) for x in a.set))
        theirs = Theirs(ours, Path(d)/'theirs', a.dtype, steps, not a.peer_as_it_comes)
        both = alternate(ours, theirs, a.rounds, a.each)
        (x, xc), (y, yc) = (r.T.tolist() for r in both)
        torch.set_num_threads(a.threads)
        peak, cost = matmul_peak('cpu', getattr(torch, a.dtype), 1.), ours.trainer.cfg.flops_per_token(SEQ)
        rows = theirs.rows
        with torch.no_grad():
            i, t = as_pairs(rows.rows[:32])
            mine = torch.nn.functional.cross_entropy(ours.trainer.model(i).flatten(0, 1), t.flatten()).item()
        losses = dict(labkit=mine, transformers=final_loss(theirs.model, rows))
    ratios, cpu, m = [i/j for i, j in zip(x, y)], [i/j for i, j in zip(xc, yc)], statistics.median
    print(f"{a.dtype}, {a.threads} threads, {platform.processor() or platform.machine()}: labkit {m(x):,.0f} tokens/s ({m(x)*cost/peak:.0%} of the matmul peak of {peak/1e9:.0f} GFLOP/s by 6N + 12LDs), "
          f"transformers' Trainer {m(y):,.0f} ({m(y)*cost/peak:.0%}); ratio {m(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}), in CPU seconds {m(cpu):.2f} ({min(cpu):.2f}–{max(cpu):.2f}); loss on the first rows after {steps} steps: {losses['labkit']:.4f} and {losses['transformers']:.4f}")
    assert abs(losses['labkit'] - losses['transformers']) < .02, losses
    result = dict(claim=f"pretraining lab-10m's shape on the CPU, {a.dtype}", value=round(m(ratios), 3), compile=ours.trainer.s.compile, peer_compiled=not a.peer_as_it_comes, unit="x transformers' Trainer (tokens/s)", bar=1.3, holds=m(ratios) >= 1.3,
                  spread=[round(min(ratios), 3), round(max(ratios), 3)], labkit=[round(v, 1) for v in x], transformers=[round(v, 1) for v in y], cpu_ratios=[round(v, 3) for v in cpu], peak_gflops=round(peak/1e9, 1), losses=losses,
                  threads=a.threads, machine=platform.machine(), cpus=os.cpu_count(), date=datetime.date.today().isoformat(), torch=torch.__version__)
    out = a.out or Path(__file__).parent/'results'/f"train_cpu_{a.dtype}{'_peer_as_it_comes' if a.peer_as_it_comes else ''}.json"
    with replacing(out) as f: f.write(json.dumps(result, indent=1))
    print(json.dumps(result))

if __name__ == '__main__': main()
