"""How long a checkpoint holds training up, at once and in the background: models of InternLM2-1.8B's width, weights and AdamW's averages in float32, to the local disk.

    python benchmarks/checkpoint_gpu.py [--small] [--out benchmarks/results/checkpoint_gpu.json]

`--small` tries it on a CPU. The floor of a background save is the copy to the host: bytes over the measured speed of a copy into pinned memory."""
import argparse, json, shutil, tempfile, time
from dataclasses import replace
from pathlib import Path
import torch
from labkit.model.config import preset
from labkit.model.transformer import Transformer
from labkit.pretrain.checkpoint import Saver, damage, load_newest
from labkit.pretrain.optimizer import make_optimizer

def sync(): torch.cuda.synchronize() if torch.cuda.is_available() else None

def seconds(fn):
    sync(); t = time.perf_counter(); fn(); sync()
    return time.perf_counter() - t

def trained(cfg, device):
    torch.manual_seed(0)
    with torch.device(device): model = Transformer(cfg)
    optimizer = make_optimizer(model, 1e-4)
    for p in model.parameters(): p.grad = torch.randn_like(p) * 1e-3
    optimizer.step(); optimizer.zero_grad()
    return model, optimizer

def copy_speed(device, n=2**28): # bytes/s into pinned memory
    a, b = torch.empty(n, dtype=torch.uint8, device=device), torch.empty(n, dtype=torch.uint8, pin_memory=device == 'cuda')
    return n / min(seconds(lambda: b.copy_(a, non_blocking=True)) for _ in range(5))

def measure(cfg, device, folder):
    model, optimizer = trained(cfg, device)
    n = sum(p.numel() for p in model.parameters())
    row = dict(params=n, bytes=12*n)
    for kind, asynchronous in (('at_once', False), ('background', True)):
        saver, seen, out = Saver(folder/kind, 1, asynchronous), [], folder/kind
        for step in range(3):
            blocked = seconds(lambda: saver.save(model, optimizer, None, dict(step=step)))
            seen.append((blocked, blocked + seconds(saver.wait)))
        row[kind] = dict(first=seen[0][0], blocked=min(b for b, _ in seen[1:]), whole=min(w for _, w in seen[1:]))
        saver.buffers.clear()
    row['digests'] = seconds(lambda: damage(out/'step-2'))
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad(): [p.zero_() for p in model.parameters()]
    row['load'] = seconds(lambda: load_newest(out, model, optimizer, say=lambda line: None))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters())), 'what was read is not what was written'
    return row

def main():
    p = argparse.ArgumentParser()
    p.add_argument('--small', action='store_true')
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'checkpoint_gpu.json')
    a = p.parse_args()
    device = 'cuda' if torch.cuda.is_available() and not a.small else 'cpu'
    cfgs = [preset('lab-1m', n_layers=n) for n in (2, 4)] if a.small else [replace(preset('internlm2-1.8b'), n_layers=n, vocab_size=32000) for n in (1, 4, 10)]
    copy, rows = copy_speed(device), []
    for cfg in cfgs:
        folder = Path(tempfile.mkdtemp())
        rows.append(measure(cfg, device, folder)); print(json.dumps(rows[-1]), flush=True)
        shutil.rmtree(folder)
    ratios = [r['at_once']['blocked'] / r['background']['blocked'] for r in rows]
    result = dict(claim='a checkpoint in the background holds training up, against one written at once', value=round(ratios[-1], 2), unit='x shorter', bar=5, holds=ratios[-1] >= 5, spread=[round(min(ratios), 2), round(max(ratios), 2)],
                  device=torch.cuda.get_device_name() if device == 'cuda' else 'CPU', date=time.strftime('%Y-%m-%d'), versions=dict(torch=torch.__version__), copy_bytes_per_s=copy,
                  of_copy_floor=round(rows[-1]['bytes']/copy / rows[-1]['background']['blocked'], 3), rows=rows)
    a.out.parent.mkdir(exist_ok=True, parents=True); a.out.write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps({k: v for k, v in result.items() if k != 'rows'}))

if __name__ == '__main__': main()
