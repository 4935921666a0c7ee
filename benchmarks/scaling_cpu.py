"""A scaling law on the CPU: five sizes are trained and fitted, the loss of the next is predicted and written down, then it is trained.

Real text (King James Version, one pass); takes some minutes on two cores. The last line is one JSON object.
"""
import argparse, datetime, json, os, platform, sys, time
from dataclasses import asdict
from pathlib import Path
import torch
from labkit.core.files import replacing
from labkit.model.config import matmul_params
from labkit.pretrain.scaling import bible_text, fit_law, lab_config, train_size

SIZES, NEXT = [(16, 2), (24, 2), (32, 2), (48, 2), (64, 2)], (96, 2) # width, layers: one depth, so that size is the only thing that changes

def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--tokens', type=int, default=2**18, help='tokens of each run')
    p.add_argument('--threads', type=int, default=1, help='CPU threads')
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'scaling_cpu.json')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    text, points, begun = bible_text(), [], time.perf_counter()
    for dim, layers in SIZES:
        points += train_size(dim, layers, text, a.tokens)
        print(f'{time.perf_counter() - begun:6.0f} s  width {dim}: {points[-1].params:,} parameters, loss {points[-1].loss:.3f}', flush=True)
    start = a.tokens//5
    law = fit_law([q for q in points if q.tokens >= start])
    params = matmul_params(lab_config(*NEXT, text))
    predicted = law.loss(params, a.tokens)
    print(f'{law}\nwidth {NEXT[0]}: {params:,} parameters: PREDICTED {predicted:.3f}', flush=True)
    curve = train_size(*NEXT, text, a.tokens)
    error, gain = predicted/curve[-1].loss - 1, points[-1].loss/curve[-1].loss - 1
    print(f'{time.perf_counter() - begun:6.0f} s  measured {curve[-1].loss:.3f}, error {error:+.2%}; the size before was {gain:+.2%} away')
    result = dict(claim='scaling law: loss of the next size, predicted before it was trained, against measured; the bar is half of what the new size gained', value=round(abs(error), 4), unit='relative error', bar=round(gain/2, 4), holds=abs(error) <= gain/2,
        spread=[round(error, 4)]*2, predicted=predicted, law=asdict(law), from_tokens=start, points=[asdict(q) for q in points], next=asdict(curve[-1]), next_curve=[asdict(q) for q in curve],
        machine=f'{platform.machine()}, {os.cpu_count()} cores', versions=dict(torch=torch.__version__), date=datetime.date.today().isoformat(), seconds=round(time.perf_counter() - begun))
    with replacing(a.out) as f: f.write(json.dumps(result, indent=1) + '\n')
    print(json.dumps({k: v for k, v in result.items() if k not in ('points', 'next_curve', 'next')}))
    return 0

if __name__ == '__main__': sys.exit(main())
