"""SmolLM2-135M beyond the 8,192 tokens that it was trained for, on the CPU: how surprised it is by each token of one long text, by way of scaling RoPE.

python benchmarks/long_cpu.py                  five ways, 12,288 tokens of Genesis (World English Bible): ten to thirty minutes on two cores, float32
python benchmarks/long_cpu.py --tokens 4096 --ways none,yarn
Results are written after each way, so a run that is cut short keeps what it has."""
import argparse, json, math, os, sys, time
from dataclasses import replace
from pathlib import Path
import torch
import torch.nn.functional as F
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

RESULT = Path(__file__).parent/'results'/'long_cpu.json'
WINDOW = 512 # tokens of which a mean is kept

def genesis() -> str:
    from labkit.corpus.sources import verses
    first = [d for d in verses('web') if d.metadata['verse'] // 1_000_000 == 1]
    return ' '.join(d.text for d in first)

def ways(length: int) -> dict:
    "Scaling by name, and the length that dynamic scaling is told"
    from labkit.model.config import RopeScaling
    dynamic = RopeScaling('dynamic', 1.)
    return {'none': (None, 0), 'dynamic': (dynamic, length), 'dynamic, next power of two': (dynamic, 8192 * 2**math.ceil(math.log2(max(length, 8192) / 8192))),
            'yarn': (RopeScaling('yarn', 2., original_max_seq_len=8192), 0), 'linear': (RopeScaling('linear', 2.), 0)}

@torch.inference_mode()
def surprise(model, ids: torch.Tensor, scaling, length: int) -> list[float]:
    "Mean nats a token, window by window"
    from labkit.model.transformer import Rope
    rope = Rope(replace(model.cfg, rope_scaling=scaling))
    angles = rope.angles(torch.arange(len(ids))[None], length)
    x = model.embed_tokens(ids[None])
    for layer in model.layers: x = layer(x, *angles, model.attention)
    h, want = model.norm(x)[0, :-1], ids[1:]
    return [float(F.cross_entropy(model.head(a), b)) for a, b in zip(h.split(WINDOW), want.split(WINDOW)) if len(a) > WINDOW // 2]

def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--tokens', type=int, default=12288); p.add_argument('--ways', default=''); p.add_argument('--threads', type=int, default=2); p.add_argument('--out', type=Path, default=RESULT)
    a = p.parse_args()
    from labkit.model.checkpoint import open_model
    torch.set_num_threads(a.threads)
    model, tokenizer = open_model('smollm2-135m-instruct')
    ids = torch.tensor(tokenizer.encode(genesis())[:a.tokens])
    known = ways(len(ids))
    names = a.ways.split(',') if a.ways else list(known)
    row = dict(model='smollm2-135m-instruct', trained=model.cfg.max_seq_len, tokens=len(ids), window=WINDOW, text='Genesis, World English Bible', dtype='float32', device=f'CPU, {os.cpu_count()} cores',
               date=time.strftime('%Y-%m-%d'), torch=torch.__version__, ways={})
    for name in names:
        t = time.time()
        row['ways'][name] = [round(v, 4) for v in surprise(model.eval(), ids, *known[name])]
        print(f'{name}: {row["ways"][name]} in {time.time() - t:.0f} s', flush=True)
        a.out.write_text(json.dumps(row, indent=1))
    edge = model.cfg.max_seq_len // WINDOW
    if {'none', 'dynamic'} <= set(row['ways']) and len(ids) > model.cfg.max_seq_len + WINDOW:
        mean = lambda v: math.exp(sum(v) / len(v))
        inside, lost, kept = mean(row['ways']['none'][edge // 2:edge]), mean(row['ways']['none'][edge + 1:]), mean(row['ways']['dynamic'][edge + 1:])
        row |= dict(claim='perplexity of SmolLM2-135M beyond its training length with dynamic NTK, against the same without scaling', value=round(kept / lost, 4), unit='x', bar=1, holds=kept < lost, spread=[round(kept / lost, 4)] * 2, inside=round(inside, 3), unscaled=round(lost, 3), dynamic=round(kept, 3))
        a.out.write_text(json.dumps(row, indent=1))
    print(json.dumps({k: v for k, v in row.items() if k != 'ways'}))

if __name__ == '__main__': main()
