"""What each way to hold weights and keys costs: perplexity of SmolLM2-135M-Instruct on real text by scheme, size, and seconds to make.

Texts to measure on: a late part of Python's reference manual (en) and late chapters of 三国演义 (zh), of which early parts calibrate; and two that
no calibration text resembles: this project's LICENSE and Chinese reviews. Calibrated schemes see 60 windows of 256 tokens: early parts of the manual
and of the novel, and the descriptions of installed packages, in equal shares.
Groups are 64 weights unless the name says otherwise; g128 means 128 where rows allow it (1,536 columns) and 64 elsewhere (576).
The embedded model's own file has 4-bit blocks of 32, so every scheme here rounds weights a second time.
`--only NAME …` measures some schemes and keeps the file's other rows. Seconds are CPU time of the process. The last line is JSON.
"""
import argparse, copy, datetime, json, os, platform, sys, time
from pathlib import Path
import torch
from labkit.core.device import set_threads
from labkit.core.files import replacing
from labkit.corpus.sources import reviews
from labkit.inference.calibration import Recipe, calibrate, calibration_tokens
from labkit.inference.formats import texts_at_hand
from labkit.inference.quality import layer_errors
from labkit.inference.quantize import kv_attention, model_bytes, perplexity, quantize_model
from labkit.model.checkpoint import open_model

BEST, BAR = 'awq+gptq, repaired', .05
RECIPES = {BEST: Recipe('awq+gptq', 64), f'{BEST}, g128': Recipe('awq+gptq', 128), 'awq': Recipe('awq', 64, refit=False, repair=0.), 'awq, repaired': Recipe('awq', 64),
           'gptq': Recipe('gptq', 64, refit=False, repair=0.), 'awq+gptq': Recipe('awq+gptq', 64, refit=False, repair=0.), f'{BEST}, g32': Recipe('awq+gptq', 32)}
ROUNDED = {'rtn': ('w4', 64), 'rtn, g128': ('w4', 128), 'rtn, g32': ('w4', 32), 'int8': ('int8', 0), 'fp8': ('fp8', 0)}
KV = {'kv int8': 'int8', 'kv fp8': 'fp8', 'kv int4': 'int4'}

def texts(tokenizer) -> tuple[dict[str, str], list[str]]:
    "Texts to measure on, by name; texts to calibrate on"
    manual, about, story = texts_at_hand().values()
    manual, story = tokenizer.encode(manual), tokenizer.encode(story)
    held = dict(en=tokenizer.decode(manual[60_000:64_096]), zh=tokenizer.decode(story[60_000:64_096]), licence=(Path(__file__).parents[1]/'LICENSE').read_text(),
                reviews='\n'.join(sorted({d.text for d in reviews()})[5000:5200]))
    return held, [tokenizer.decode(manual[:55_000]), about, tokenizer.decode(story[:40_000])]

def made(name: str, model, tokens):
    "The model in a scheme; it gives up its weights"
    if name in ROUNDED: return quantize_model(model, ROUNDED[name][1], ROUNDED[name][0])
    if name in RECIPES: calibrate(model, tokens, RECIPES[name])
    return model

def measure(name: str, plain, tokenizer, held: dict, tokens) -> dict:
    c = time.process_time()
    model = made(name, copy.deepcopy(plain), tokens)
    cpu = time.process_time() - c
    attention = kv_attention(model.attention, KV[name]) if name in KV else None
    row = dict(scheme=name, perplexity={k: perplexity(model, tokenizer, x, attention=attention) for k, x in held.items()}, weight_mb=model_bytes(model) / 1e6,
               cpu_s=round(cpu, 1), errors=layer_errors(plain, model, torch.tensor(tokenizer.encode(held['en'])[:512]).view(2, 256)))
    print(f"{name:24} {({k: round(v, 3) for k, v in row['perplexity'].items()})} {row['weight_mb']:.0f} MB, {cpu:.0f} s of CPU", flush=True)
    return row

def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--threads', type=int, default=0, help='CPU threads (0: one a core)')
    p.add_argument('--only', nargs='*', help='schemes to measure (default: all)')
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'quantize_cpu.json')
    a = p.parse_args()
    threads = set_threads(a.threads)
    plain, tokenizer = open_model('smollm2-135m-instruct')
    plain.eval().requires_grad_(False)
    held, calibration = texts(tokenizer)
    tokens = calibration_tokens(tokenizer, calibration, 60)
    names = ['float32', *ROUNDED, *KV, *RECIPES]
    for name in a.only or names:
        row = measure(name, plain, tokenizer, held, tokens)
        rows = {r['scheme']: r for r in json.loads(a.out.read_text())['rows']} if a.out.exists() else {}
        result = summary([r for n in names if (r := (rows | {name: row}).get(n))], threads, tokens.numel())
        with replacing(a.out) as f: f.write(json.dumps(result, indent=1) + '\n')
    print(json.dumps({k: v for k, v in result.items() if k != 'rows'}))
    return 0

def summary(rows: list[dict], threads: int, n_tokens: int) -> dict:
    "The bar: 4 bits of weights cost at most 5% on English and Chinese, and at most half of what plain rounding costs; 8-bit keys at most 0.5%"
    by = {r['scheme']: r['perplexity'] for r in rows}
    rise = {s: {k: v / by['float32'][k] - 1 for k, v in p.items()} for s, p in by.items()} if 'float32' in by else {}
    complete = {'float32', 'rtn', BEST, 'kv int8'} <= set(rise)
    value = max(rise[BEST][k] for k in ('en', 'zh')) if complete else None
    holds = complete and value <= BAR and all(rise[BEST][k] <= rise['rtn'][k] / 2 for k in ('en', 'zh')) and max(abs(rise['kv int8'][k]) for k in ('en', 'zh')) <= .005
    return dict(claim=f'rise of perplexity with 4-bit weights (AWQ scales and GPTQ rounding, scales refitted, earlier layers repaired; groups of 64), the worse of English and Chinese held-out text; at most half of plain rounding; 8-bit keys and values at most 0.5%',
        value=value and round(value, 4), unit='of the perplexity in float32', bar=BAR, holds=bool(holds), spread=[], rise={s: {k: round(v, 4) for k, v in r.items()} for s, r in rise.items()},
        rows=rows, calibration_tokens=n_tokens, threads=threads, machine=f'{platform.machine()}, {os.cpu_count()} cores', versions=dict(torch=torch.__version__, python=platform.python_version()), date=datetime.date.today().isoformat())

if __name__ == '__main__': sys.exit(main())
