"""Mixture-of-experts layers of published shapes: tokens sorted by expert and grouped products against a loop over experts, on one GPU.

The work is arithmetic: 6·D·F·k FLOPs a token forward, three times that with the backward pass. The last line is one JSON object.
"""
import json, statistics, sys, time
from pathlib import Path
import torch
from labkit.model.config import preset
from labkit.model.moe import MoE, expert_loop, route

TOKENS, ROUNDS, NAMES = 8192, 3, ('mixtral-8x7b', 'qwen1.5-moe-a2.7b', 'qwen3-30b-a3b')

def milliseconds(f, n=10):
    for _ in range(3): f()
    torch.cuda.synchronize()
    t = time.perf_counter()
    for _ in range(n): f()
    torch.cuda.synchronize()
    return (time.perf_counter() - t)/n*1e3

def built(cfg):
    layer = MoE(cfg).to('cuda', torch.bfloat16)
    for p in layer.parameters(): p.data.normal_(0, p.shape[-1]**-.5)
    return layer

def ways(layer):
    e = layer.experts
    return {'sorted': layer, 'loop': lambda x: expert_loop(x, *route(layer.gate(x), layer.k, layer.norm), e.gate_proj, e.up_proj, e.down_proj)}

def measure(name):
    torch.manual_seed(0)
    cfg = preset(name)
    layer, x = built(cfg), torch.randn(TOKENS, cfg.dim, device='cuda', dtype=torch.bfloat16)
    def forward(f):
        with torch.no_grad(): return f(x)
    def both(f):
        layer.zero_grad(set_to_none=True); y = f(x); y.backward(torch.ones_like(y))
    a, b = (forward(f) for f in ways(layer).values())
    times = {kind: {k: statistics.median(milliseconds(lambda: job(f)) for _ in range(ROUNDS)) for k, f in ways(layer).items()} for kind, job in (('forward', forward), ('both', both))}
    flops = 6*cfg.dim*cfg.expert_dim*cfg.experts_per_token*TOKENS
    return {'relative error': ((a - b).float().norm()/b.float().norm()).item(), **{f'{kind} ms': t for kind, t in times.items()},
            **{f'{kind} TFLOP/s': {k: flops*(3 if kind == 'both' else 1)/ms/1e9 for k, ms in t.items()} for kind, t in times.items()}}

def main():
    if not torch.cuda.is_available(): sys.exit('moe_gpu: needs a CUDA device')
    results = {name: measure(name) for name in NAMES}
    ratios = [r['both ms']['loop']/r['both ms']['sorted'] for r in results.values()]
    row = {'claim': 'experts sorted and grouped against a loop over experts, forward and backward, the least of three layers', 'value': round(min(ratios), 2), 'unit': 'x loop', 'bar': 1.5, 'holds': min(ratios) >= 1.5,
           'spread': [round(min(ratios), 2), round(max(ratios), 2)], 'device': torch.cuda.get_device_name(), 'date': time.strftime('%Y-%m-%d'), 'versions': {'torch': torch.__version__}, 'tokens': TOKENS, 'results': results}
    (Path(__file__).parent/'results'/'moe_gpu.json').write_text(json.dumps(row, indent=1))
    print(json.dumps({k: v for k, v in row.items() if k != 'results'}))

if __name__ == '__main__': main()
