"""The kernels of adapters against plain torch, in a process of its own: Triton reads TRITON_INTERPRET when it is imported. `python adapter_kernels.py DEVICE`"""
import sys, torch
from labkit.inference.adapters import Adapter, Pool, Step, add_delta

def check(device, dtype, tol, N, wide, tall, ranks, parts, seed=0):
    g = torch.Generator().manual_seed(seed)
    rnd = lambda *s: torch.randn(*s, generator=g).to(device, dtype)
    pool, used = Pool(wide, tall, dtype, device), []
    for i, r in enumerate(ranks):
        used.append(Adapter(str(i), sum(ranks[:i]), r))
        pool.put(used[i].start, rnd(r, wide)/wide**.5, rnd(r, tall), str(i))
    x, index = rnd(N, wide), torch.randint(-1, len(ranks), (N,), generator=g)
    index[0] = -1
    want = torch.zeros(N, tall, device=device)
    for row, i in enumerate(index.tolist()):
        own = slice(used[i].start, used[i].start + used[i].rank)
        if i >= 0: want[row] = x[row].float() @ pool.A[own].float().T @ pool.B[own].float()
    table = torch.tensor([(a.start, a.rank) for a in used], dtype=torch.int32).T.contiguous()
    step = Step(used, index.int().to(device), table.to(device), [])
    got = torch.zeros(N, tall, device=device)
    add_delta(x, pool, step, got, parts)
    assert (got - want).abs().max() <= tol*want.abs().max(), (got - want).abs().max()
    assert not got[index < 0].any()
    wider = torch.ones(N, tall + 32, device=device)                          # a slice of columns of something wider, as in q, k and v together
    add_delta(x, pool, step, wider[:, 16:16 + tall], parts)
    assert (wider[:, 16:16 + tall] - 1 - want).abs().max() <= tol*want.abs().max() and (wider[:, :16] == 1).all() and (wider[:, 16 + tall:] == 1).all()

def main(device):
    for shape in ((5, 96, 160, [4, 1, 16], 4), (1, 64, 64, [8], 1), (9, 130, 300, [33, 2], 3), (3, 576, 1536, [16, 64, 3], 4)):
        check(device, torch.float32, 1e-5, *shape)
        check(device, torch.float16, 1e-3, *shape)
    if device == 'cuda': check(device, torch.bfloat16, 1e-2, 64, 4096, 11008, [16]*64, 4)
    print('adapters equal')

main(sys.argv[1])
