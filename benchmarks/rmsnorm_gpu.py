"""RMSNorm of labkit (Triton) against torch's own and the written-out one, forward and backward, on one GPU.

The limit is memory: forward reads x and writes y, backward reads dy and x and writes dx. Runs are CUDA graphs and alternate; the last line is one JSON object.
"""
import json, statistics, sys, time
from pathlib import Path
import torch
import torch.nn.functional as F
from labkit.model.kernels import rms_norm

ROWS, DIMS, ROUNDS, CALLS, DTYPE = 16384, (2048, 4096, 6144), 7, 10, torch.bfloat16

def written_out(x, w, eps=1e-5): # as in transformers' LlamaRMSNorm
    h = x.float()
    return w*(h*torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)

WAYS = {'labkit': rms_norm, 'torch F.rms_norm': lambda x, w: F.rms_norm(x, w.shape, w, 1e-5), 'written out': written_out}

def milliseconds(graph, n=10):
    "Time of one call, by the GPU's own clock"
    a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    a.record()
    for _ in range(n): graph.replay()
    b.record(); torch.cuda.synchronize()
    return a.elapsed_time(b)/n/CALLS

def captured(f):
    "A CUDA graph of some calls: the time of the kernels, without that of the Python that starts them"
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        for _ in range(3): f()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=side):
        for _ in range(CALLS): f()
    return graph

def tasks(D):
    x = torch.randn(ROWS, D, device='cuda', dtype=DTYPE, requires_grad=True)
    w, g, y = torch.ones(D, device='cuda', dtype=DTYPE, requires_grad=True), torch.randn_like(x), torch.empty_like(x)
    def both(f): torch.autograd.grad(f(x, w), (x, w), g)
    @torch.no_grad()
    def forward(f): f(x, w)
    jobs = {(name, kind): (lambda f=f, job=job: job(f)) for name, f in WAYS.items() for kind, job in (('forward', forward), ('both', both))}
    return jobs | {('copy', 'forward'): lambda: y.copy_(x.detach())}

def measure(D):
    jobs, times = {key: captured(job) for key, job in tasks(D).items()}, {}
    for _ in range(ROUNDS):
        for key, job in jobs.items(): times.setdefault(key, []).append(milliseconds(job))
    return {f'{name}, {kind}': {'ms': statistics.median(t), 'min': min(t), 'max': max(t), 'GB_per_s': ROWS*D*2*(2 if kind == 'forward' else 5)/statistics.median(t)/1e6} for (name, kind), t in times.items()}

def main():
    if not torch.cuda.is_available(): sys.exit('rmsnorm_gpu: needs a CUDA device')
    import triton
    results = {str(D): measure(D) for D in DIMS}
    ratios = [results[str(D)]['torch F.rms_norm, both']['ms']/results[str(D)]['labkit, both']['ms'] for D in DIMS]
    row = {'claim': 'RMSNorm forward and backward against torch F.rms_norm', 'value': round(statistics.median(ratios), 2), 'unit': 'x torch', 'bar': 1.0, 'holds': statistics.median(ratios) >= 1.0,
           'spread': [round(min(ratios), 2), round(max(ratios), 2)], 'device': torch.cuda.get_device_name(), 'date': time.strftime('%Y-%m-%d'),
           'versions': {'torch': torch.__version__, 'triton': triton.__version__}, 'rows': ROWS, 'dtype': 'bfloat16', 'results': results}
    out = Path(__file__).parent/'results'/'rmsnorm_gpu.json'
    out.parent.mkdir(exist_ok=True); out.write_text(json.dumps(row, indent=1))
    print(json.dumps({k: v for k, v in row.items() if k != 'results'}))

if __name__ == '__main__': main()
