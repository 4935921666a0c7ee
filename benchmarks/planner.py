"""The cost model of a cluster against InternEvo's published speeds from 8 to 1024 GPUs: constants fitted on a part, the rest predicted.

Prints every error for several choices of the part; the claim is about `HALF`: both tp=2 curves and one server of tp=1 are fitted, the tp=1
curves are predicted, with the gap between global and local ZeRO-1. Runs anywhere; the last line is one JSON object.
"""
import datetime, json, statistics, sys
from dataclasses import asdict
from pathlib import Path
from labkit.core.files import replacing
from labkit.model.config import preset
from labkit.pretrain.cluster import HALF, INTERNEVO, SOURCE, SPLITS, bytes_sent, fit, simulate, speed, split_errors
from labkit.pretrain.parallel import Layout

def table(chosen):
    "Relative error of each point, fitted ones with a star"
    c = fit([p for p in INTERNEVO if chosen(p)])
    print(' ' * 17 + ''.join(f'{n:>8}' for n in sorted({p.gpus for p in INTERNEVO})))
    for tp, z in dict.fromkeys((p.tp, p.zero) for p in INTERNEVO):
        row = [p for p in INTERNEVO if (p.tp, p.zero) == (tp, z)]
        print(f"tp={tp}, zero1={z or 'all':<5}" + ''.join(f"{speed(p, c)/p.tgs - 1:+7.1%}{'*' if chosen(p) else ' '}" for p in row))
    return c

def gap(c):
    "Speed at 1024 GPUs over that at eight, measured and predicted, for global and local ZeRO-1 with tp=1"
    at = lambda z, n: next(p for p in INTERNEVO if (p.tp, p.zero, p.gpus) == (1, z, n))
    return {name: dict(measured=round(at(z, 1024).tgs/at(z, 8).tgs, 4), predicted=round(speed(at(z, 1024), c)/speed(at(z, 8), c), 4)) for name, z in (('global', 0), ('local', 8))}

def simulated():
    "Bytes that a rank of 1024 sends in a step, counted on a fake process group, and by formula"
    cfg, layout = preset('internlm2-7b', n_layers=4), Layout(ddp=128, fsdp=8)
    return dict(layout=str(layout), counted=simulate(cfg, layout), formula=bytes_sent(cfg, layout))

def main() -> int:
    splits = {}
    for title, chosen in SPLITS.items():
        errors = split_errors(chosen); sizes = list(map(abs, errors.values()))
        splits[title] = dict(fitted=len(INTERNEVO) - len(errors), predicted=len(errors), mean=round(statistics.mean(sizes), 4), worst=round(max(sizes), 4))
        print(f"\nfitted on {title} ({splits[title]['fitted']} points): mean error of the others {splits[title]['mean']:.1%}, worst {splits[title]['worst']:.1%}")
        table(chosen)
    costs = fit([p for p in INTERNEVO if HALF(p)]); sent = simulated(); unseen = list(split_errors(HALF).values())
    print(f"\n{costs}\n1024 over 8 GPUs, tp=1 (not seen by the fit): {gap(costs)}\n1024 ranks, {sent['layout']}: {sent['counted']}")
    worst = max(map(abs, unseen))
    result = dict(claim='InternEvo 7B, 8 to 1024 A100: tokens/s/GPU of the 14 points that the fit has not seen, the worst', value=round(worst, 4), unit='relative error', bar=.05, holds=worst <= .05,
        spread=[round(min(unseen), 4), round(max(unseen), 4)], source=SOURCE, costs=asdict(costs), gap=gap(costs), splits=splits, simulated=sent, date=datetime.date.today().isoformat())
    with replacing(Path(__file__).parent/'results'/'planner.json') as f: f.write(json.dumps(result, indent=1) + '\n')
    print(json.dumps({k: v for k, v in result.items() if k not in ('simulated', 'costs')}))
    return 0

if __name__ == '__main__': sys.exit(main())
