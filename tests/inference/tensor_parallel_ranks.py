"Functions that processes of the tests run"
import shutil, time, torch
from labkit.inference import tensor_parallel as tp
from labkit.inference.quantize import quantize_model
from labkit.inference.tensor_parallel import Remote, Told
from labkit.pretrain.parallel import RankError, process_group
from labkit.pretrain.pipeline import small_model

def pass_on(numbers):
    "Rank 0 tells, the others hear the same"
    with process_group() as g:
        ranks = tp.Ranks(g.rank, g.world)
        if g.rank == 0: ranks.tell(numbers); ranks.tell([7]); return True
        return ranks.hear() == numbers and ranks.hear() == [7]

def compare_split(models, packed=False, **how):
    "Mixed steps of small models on all ranks against the whole model in the same process: name → largest difference of the scores, relative; on rank 0"
    with process_group() as group:
        torch.set_num_threads(1)
        return {name: compare(small_model(**changes), tp.Ranks(group.rank, group.world), packed, **how) for name, changes in models.items()}

@torch.inference_mode()
def compare(whole, ranks, packed, **how):
    share = tp.Share(whole.cfg, ranks.rank, ranks.ranks, whole_vocab='backend' in how)
    if packed: quantize_model(whole, 32)
    runner, cache = tp.make_runner(tp.connect(tp.cut_model(whole.eval(), share), share, ranks), ranks, 12, 4, **how)
    if ranks.rank: tp.follow(runner, ranks, cache); return None
    step, a, b, ta, tb = tp.Leader(runner, ranks, cache), list(range(7, 20)), list(range(100, 109)), [], []
    cache.grow(ta, 13); cache.grow(tb, 9)
    one, two = Remote(ta, 0, 1), Remote(tb, 1, 2)
    step([Told(one, 0, 5, a[:5], 0)])
    got = [step([Told(one, 5, 4, a[5:9], 0), Told(two, 0, 8, b[:8], 2)])]
    fork = Remote(cache.fork(ta, 9), 2, 3)
    cache.grow(fork.table, 13, 9)                                             # a copy of the block that both would write
    got += [step([Told(fork, 9, 3, a[9:12], 0), Told(two, 8, 1, b[8:], 1)]), step([Told(fork, 12, 1, a[12:], 1)])]
    step.close()
    want = torch.cat([whole(torch.tensor([b]))[0, 6:], whole(torch.tensor([a]))[0, -1:]])
    return float((torch.cat(got) - want).abs().max()/want.abs().max())

def tokens(split):
    leader, cache = split.start(n_blocks=16)
    print('tokens', tp.greedy(leader, cache, [[1, 2, 3]], 4), flush=True)
    return leader, cache

def lead(folder):
    "Work, lose the other process, say so twice, open again, and stay until killed"
    split = tp.open_split(folder, 2, threads=1)
    print(split.others.processes[0].pid, flush=True)
    leader, cache = tokens(split)
    split.others.processes[0].wait()
    try: tp.greedy(leader, cache, [[1, 2, 3]], 4)
    except RankError as e: first = str(e); print(first, flush=True)
    try: tp.greedy(leader, cache, [[1, 2, 3]], 4)
    except RankError as e: print('still:', 'the same' if str(e) == first else e, flush=True)
    split.close()
    split = tp.open_split(folder, 2, threads=1)
    tokens(split)
    print(split.others.processes[0].pid, flush=True)
    time.sleep(600)

def bad_start(folder):
    "The weights vanish between the two processes' looks"
    begin = tp.Followers.__init__
    def gone(self, *args, **call):
        shutil.rmtree(call['name'])
        begin(self, *args, **call)
    tp.Followers.__init__ = gone
    load = tp.load_part
    tp.load_part = lambda *a: (None, None, None)
    try: tp.open_split(folder, 2, threads=1)
    except RankError as e: print(e)
