"Functions that processes of the tests run"
import shutil, sys, time
from labkit.inference import tensor_parallel as tp
from labkit.inference.runner import TorchRunner
from labkit.pretrain.parallel import RankError, process_group

def pass_on(numbers):
    "Rank 0 tells, the others hear the same"
    with process_group() as g:
        ranks = tp.Ranks(g.rank, g.world)
        if g.rank == 0: ranks.tell(numbers); ranks.tell([7]); return True
        return ranks.hear() == numbers and ranks.hear() == [7]

def tokens(split):
    cache = split.cache(16)
    leader = split.lead(TorchRunner(split.model, cache), cache)
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
