"""The sampling kernel against its plain reference. Run as `python sampling_checks.py DEVICE`: a process of its own, because Triton reads TRITON_INTERPRET when it is imported."""
import sys, torch, traceback
from types import SimpleNamespace
from labkit.core.lm import Sampling
from labkit.inference.gpu_sampling import RowParams
from labkit.inference.sampling import distribution

def uniform(seed, position):
    "Philox4x32-10 (Salmon et al. 2011), key = seed, counter = position: in [0, 1), a multiple of 2⁻²⁴"
    M = 2**32 - 1
    c, k = [position & M, 0, 0, 0], [seed & M, seed >> 32 & M]
    for _ in range(10):
        a, b = 0xD2511F53*c[0], 0xCD9E8D57*c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & M, a >> 32 ^ c[3] ^ k[1], a & M]
        k = [(k[0] + 0x9E3779B9) & M, (k[1] + 0xBB67AE85) & M]
    return (c[0] >> 8)*2.**-24

def adjusted(x, r, s):
    "Scores of a row after penalties and masks"
    n, bits = s.counts[r], s.allowed[r][:, None] >> torch.arange(32, device=x.device) & 1
    x = torch.where(n > 0, torch.where(x > 0, x/s.repetition[r], x*s.repetition[r]), x)
    x = torch.where(n > 1, x - s.presence[r] - s.frequency[r]*(n >> 1), x)
    x = x.masked_fill(bits.flatten()[:len(x)] == 0, -torch.inf)
    return x.index_fill(0, s.ends[s.ends >= 0].long(), -torch.inf) if s.position[r] < s.min_tokens[r] else x

def kept(w, r, s):
    "Weights of a row, zero where top-k, top-p or min-p leave a token out; ties go to the smaller id"
    q, i = w.sort(descending=True, stable=True)
    if 0 < s.top_k[r] < len(q): q[s.top_k[r]:] = 0
    if s.top_p[r] < 1: q = torch.where(q.double().cumsum(0) - q < float(s.top_p[r])*q.double().sum(), q, 0)
    return torch.zeros_like(w).scatter(0, i, torch.where(q >= s.min_p[r], q, 0))

def sample_plain(logits, rows, s):
    "The reference: one row after the other, sorted"
    out = []
    for x, r in zip(logits.float(), rows):
        bad, x = x.isnan().any() or x.max() == torch.inf, adjusted(x, r, s)
        if r < 0 or bad or x.max() == -torch.inf: out.append(0 if r < 0 else -1)
        elif s.temperature[r] <= 0: out.append(int(x.argmax()))
        else:
            w = kept(((x - x.max())/s.temperature[r]).exp(), r, s)
            cdf, u = w.double().cumsum(0), uniform(int(s.seed[r]), int(s.position[r]))
            out.append(min(int(torch.searchsorted(cdf, u*cdf[-1], right=True)), int(w.nonzero()[-1])))
    return out

def some(n, V, g, device):
    "Rows of parameters of all kinds"
    pick = lambda *xs: xs[int(torch.randint(len(xs), (), generator=g))]
    s = RowParams(n, V, device, ends=(1, V - 1))
    for row in range(n):
        p = Sampling(temperature=pick(0., .7, 1., 2.), top_k=pick(0, 1, 5, 40, V), top_p=pick(1., .95, .5, .1), min_p=pick(0., .05, .3), presence_penalty=pick(0., .5), frequency_penalty=pick(0., .3),
                     repetition_penalty=pick(1., 1.3), min_tokens=pick(0, 3))
        s.put(row, p, int(torch.randint(2**62, (), generator=g)), torch.randint(V, (20,), generator=g).tolist(), torch.randint(V, (row % 7,), generator=g).tolist())
    return s

def scores(B, V, dtype, g):
    "Random scores, in 16 bits with many ties; some rows that can't be sampled"
    x = 3*torch.randn(B, V, generator=g)
    x = x if dtype == torch.float32 else (4*x).round()/4
    x[5, 7], x[6, 0], x[8] = torch.nan, torch.inf, -torch.inf
    x[7, 3:] = -torch.inf
    return x.to(dtype)

def same_tokens(device):
    "All filters, penalties and masks, one tile and several, ties, bad rows, padding"
    for V in (100, 4100, 32000, 40000):
        low = torch.float16 if device == 'cpu' else torch.bfloat16
        for dtype in (torch.float32, low) if V < 5000 or device == 'cuda' else (low,) if V < 40000 else (torch.float32,): # the interpreter is slow
            g = torch.Generator().manual_seed(V)
            s, x = some(12, V, g, device), scores(10, V, dtype, g).to(device)
            s.allowed[::3] = torch.randint(-2**31, 2**31 - 1, s.allowed[::3].shape, generator=g).int().to(device)
            rows = torch.randperm(12, generator=g)[:10]; rows[3] = -1
            want, got = sample_plain(x, rows.tolist(), s), s.sample(x, rows.int().to(device))
            assert got.tolist() == want, (V, dtype, got.tolist(), want)
            assert want[3] == 0 and want[5] == want[6] == want[8] == -1 and want[7] != -1 and min(want) == -1, want

def no_options(device):
    "A model without tokens that end a text"
    g = torch.Generator().manual_seed(3)
    s, x = RowParams(3, 777, device), scores(9, 777, torch.float32, g)[:3].to(device)
    for row, p in enumerate((Sampling(min_tokens=5), Sampling(temperature=1., min_tokens=5), Sampling(temperature=1., top_k=3))): s.put(row, p, row)
    out = torch.empty(3, dtype=torch.int32, device=device)
    assert s.sample(x, torch.arange(3, device=device).int(), out).tolist() == sample_plain(x, range(3), s)

def alone_or_together(device):
    "A request gets the same token in any row of any batch, from the same seed and position; another one from another position"
    g = torch.Generator().manual_seed(5)
    s, x = RowParams(16, 5000, device), 3*torch.randn(16, 5000, generator=g).to(device)
    for r in range(16): s.put(r, Sampling(temperature=1., top_p=.99), seed=r)
    together = s.sample(x, torch.arange(16, device=device).int()).tolist()
    assert together == [int(s.sample(x[r:r + 1], torch.tensor([r], device=device).int())) for r in range(16)]
    order = torch.randperm(16, generator=g).to(device)
    assert s.sample(x[order], order.int()).tolist() == [together[i] for i in order.tolist()]
    s.position += 1
    assert s.sample(x, torch.arange(16, device=device).int()).tolist() != together

def all_seeds(device):
    "Every whole number of 64 bits is a seed; −1 and 2⁶⁴ − 1 are the same bits"
    s, x = RowParams(4, 5000, device), torch.zeros(4, 5000, device=device)
    for r, seed in enumerate((-2**63, 2**63 - 1, 2**64 - 1, -1)): s.put(r, Sampling(temperature=1., seed=seed), seed=0)
    tokens = s.sample(x, torch.arange(4, device=device).int()).tolist()
    assert tokens == sample_plain(x, range(4), s) and len(set(tokens)) == 3 and tokens[2] == tokens[3]

def counts_on(device):
    "`advance` moves position and counts and keeps the last token; bad rows and padding stay as they are"
    s = RowParams(3, 50, device, ends=(4,))
    for r in range(3): s.put(r, Sampling(presence_penalty=1., min_tokens=2), seed=r, prompt=[1, 2], written=[2])
    x = torch.zeros(3, 50, device=device); x[0, 9], x[1, 0], x[0, 4] = 5., torch.nan, 9.
    before = s.counts.clone()
    assert s.sample(x, torch.tensor([0, 1, -1], device=device).int(), advance=True).tolist() == [9, -1, 0]
    assert s.position.tolist() == [2, 1, 1] and s.last.tolist() == [9, 0, 0]
    before[0, 9] += 2
    assert torch.equal(s.counts, before) and before[0, :3].tolist() == [0, 1, 3]
    assert s.sample(x, torch.tensor([0, 0, 0], device=device).int()).tolist()[0] == 4, 'after min_tokens the end may come'

def right_distribution(device):
    "1,000 draws each with different filters: chi-square against `distribution`; of the kernel where it is compiled, else of the reference, which gives the same tokens"
    g, V, n = torch.Generator().manual_seed(11), 40, 1000
    x = 2*torch.randn(V, generator=g)
    wishes = [Sampling(temperature=1.), Sampling(temperature=.5), Sampling(temperature=2., top_k=6), Sampling(temperature=1., top_p=.8), Sampling(temperature=1., min_p=.1), Sampling(temperature=1.5, top_k=12, top_p=.7, min_p=.02)]
    s = RowParams(n, V, device)
    for w in wishes:
        for r in range(n): s.put(r, w, seed=1000 + r)
        rows = x.to(device).expand(n, V)
        drawn = s.sample(rows, torch.arange(n, device=device).int()).cpu() if device == 'cuda' else torch.tensor(sample_plain(rows, range(n), s))
        seen = torch.bincount(drawn, minlength=V)
        p = distribution(x, w); often = p*n >= 5
        assert seen[p == 0].sum() == 0
        chi2 = float(((seen - p*n)[often]**2/(p*n)[often]).sum())
        free = int(often.sum()) - 1
        assert chi2 < free + 5*(2*max(free, 1))**.5 + 5, (w, chi2, free)

def known_numbers(device):
    "Philox's published test vector: counter 0 and key 0 give 0x6627e8d5 first"
    assert uniform(0, 0) == (0x6627e8d5 >> 8)*2.**-24
    us = [uniform(s, p) for s in range(40) for p in range(50)]
    assert abs(sum(us)/2000 - .5) < .03 and len(set(us)) > 1990

CHECKS = dict(same_tokens=same_tokens, no_options=no_options, alone_or_together=alone_or_together, all_seeds=all_seeds, counts_on=counts_on, right_distribution=right_distribution, known_numbers=known_numbers)

if __name__ == '__main__':
    for name, check in CHECKS.items():
        try: check(sys.argv[1]); print(name, 'holds', flush=True)
        except Exception: print(f'{name} fails:\n{traceback.format_exc()}', flush=True) # and on to the next one
