"Functions that processes of the tests run"
import shutil, time, torch
from labkit.core.lm import Sampling
from labkit.inference import ranks as rk
from labkit.inference.quantize import quantize_model
from labkit.inference.ranks import Leader, Told, follow, greedy, make_runner, open_split
from labkit.inference.scheduler import Request
from labkit.inference.tensor_parallel import Ranks, Share, connect, cut_model, load_part
from labkit.corpus.tokens import train_tokenizer
from labkit.model.checkpoint import save_model
from labkit.model.config import preset
from labkit.model.transformer import Transformer
from labkit.pretrain.parallel import RankError, process_group
from labkit.pretrain.pipeline import small_model

def asked(table, row=-1, id=-1, preemptions=0, reach=0): return Request(id, [], Sampling(), 0, table=table, row=row, preemptions=preemptions, reach=reach)

def save_small(path) -> str:
    "A checkpoint of a small model with its tokenizer"
    torch.manual_seed(0)
    model = Transformer(preset('lab-1m', vocab_size=300, n_layers=3, max_seq_len=64, qkv_bias=True, family='qwen2'))
    for p in model.parameters(): p.data += .05*torch.randn_like(p)
    save_model(model, path)
    train_tokenizer(['some text to train a tokenizer on, 1 2 3'], 290).save(path)
    return str(path)

def pass_on(n):
    "Rank 0 tells, the others hear the same"
    with process_group() as g:
        ranks, messages = Ranks(g.rank, g.world), [bytes(i % 251 for i in range(k)) for k in (0, 1, 4092, 4093, n)]
        if g.rank == 0: return [ranks.tell(m) for m in messages] == [None]*5
        return [ranks.hear() for _ in messages] == messages

def compare_split(models, packed=False, **how):
    "Mixed steps of small models on all ranks against the whole model in the same process: name → largest difference of the scores, relative; on rank 0"
    with process_group() as group:
        torch.set_num_threads(1)
        return {name: compare(small_model(**changes), Ranks(group.rank, group.world), packed, **how) for name, changes in models.items()}

@torch.inference_mode()
def compare(whole, ranks, packed, **how):
    share = Share(whole.cfg, ranks.rank, ranks.ranks, whole_vocab='backend' in how)
    if packed: quantize_model(whole, 32)
    runner, cache = make_runner(connect(cut_model(whole.eval(), share), share, ranks), ranks, 12, 4, **how)
    if ranks.rank: follow(runner, ranks, cache); return None
    step, a, b, ta, tb = Leader(runner, ranks, cache), list(range(7, 20)), list(range(100, 109)), [], []
    cache.grow(ta, 13); cache.grow(tb, 9)
    one, two = asked(ta, 0, 1), asked(tb, 1, 2)
    step([Told(one, 0, 5, a[:5], 0)])
    got = [step([Told(one, 5, 4, a[5:9], 0), Told(two, 0, 8, b[:8], 2)])]
    fork = asked(cache.fork(ta, 9), 2, 3)
    cache.grow(fork.table, 13, 9)                                             # a copy of the block that both would write
    got += [step([Told(fork, 9, 3, a[9:12], 0), Told(two, 8, 1, b[8:], 1)]), step([Told(fork, 12, 1, a[12:], 1)])]
    step.close()
    want = torch.cat([whole(torch.tensor([b]))[0, 6:], whole(torch.tensor([a]))[0, -1:]])
    return float((torch.cat(got) - want).abs().max()/want.abs().max())

def generate(name, prompts, tokens, blocks):
    "A rank that generates greedily with its part of a model: tokens (rank 0), bytes sent, bytes of weights and cache"
    with process_group() as group:
        ranks, out = Ranks(group.rank, group.world), None
        part, share, _ = load_part(name, group.rank, group.world)
        runner, cache = make_runner(connect(part, share, ranks), ranks, blocks)
        if group.rank: follow(runner, ranks, cache)
        else: out = greedy(lead := Leader(runner, ranks, cache), cache, prompts, tokens); lead.close()
        held = {p.data_ptr(): p.nbytes for p in part.parameters()}
        return dict(tokens=out, sent=dict(ranks.sent), weights=sum(held.values()), cache=cache.nbytes)

def tokens(split):
    leader, cache = split.start(n_blocks=16)
    print('tokens', greedy(leader, cache, [[1, 2, 3]], 4), flush=True)
    return leader, cache

def lead(folder):
    "Work, lose the other process, say so twice, open again, and stay until killed"
    split = open_split(folder, 2, threads=1)
    print(split.processes[0].pid, flush=True)
    leader, cache = tokens(split)
    split.processes[0].wait()
    try: greedy(leader, cache, [[1, 2, 3]], 4)
    except RankError as e: first = str(e); print(first, flush=True)
    try: greedy(leader, cache, [[1, 2, 3]], 4)
    except RankError as e: print('still:', 'the same' if str(e) == first else e, flush=True)
    split.close()
    split = open_split(folder, 2, threads=1)
    tokens(split)
    print(split.processes[0].pid, flush=True)
    time.sleep(600)

def bad_start(folder):
    "The weights vanish between the two processes' looks"
    def gone(**call): shutil.rmtree(call['name']); return None, None, None
    rk.load_part = gone
    try: open_split(folder, 2, threads=1)
    except RankError as e: print(e)
