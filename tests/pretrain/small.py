"A corpus and settings small enough for a run of a second, shared by the tests of this folder"
import sys
from pathlib import Path
import torch
from labkit.core.files import read_jsonl
from labkit.core.settings import RunSettings, as_ini
from labkit.corpus.tokens import train_tokenizer, write_shards
from labkit.pretrain.checkpoint import Stored
from labkit.pretrain.parallel import launch
from labkit.pretrain.trainer import PretrainSettings

ROOT = Path(__file__).parents[2]
RUN = RunSettings(device='cpu', dtype='float32', threads=1)
quiet = lambda line: None

def in_one_start(ranks: int, *calls: dict) -> list[tuple]:
    "Several functions on the same ranks, in one start of them: for each call what the ranks returned"
    return list(zip(*launch('labkit.pretrain.parallel:each', ranks, 1, quiet, calls=calls)))

def write_corpus(folder: Path, vocab_size: int = 300) -> Path:
    text = (ROOT/'LICENSE').read_text()
    docs = [text[i:i + 700] for i in range(0, len(text), 700)]
    tok = train_tokenizer(docs, vocab_size)
    write_shards([tok.encode(d) for d in docs[2:]], folder/'train', tok)
    write_shards([tok.encode(d) for d in docs[:2]], folder/'valid', tok)
    tok.save(folder/'tokenizer')
    return folder

def tiny(corpus, out, **changes):
    return PretrainSettings(**{**dict(data=corpus, out=out, model='lab-1m', layers=2, dim=16, heads=2, kv_heads=1, ffn_dim=32, steps=10, seq_len=16, batch_tokens=64,
                            micro_batch=2, lr=1e-2, warmup=2, save_every=4, keep_last=3, log_every=1, eval_every=5, tensorboard=False), **changes})

def as_file(s, file):
    "Settings as ranks read them"
    file.write_text(as_ini('run', RUN) + '\n' + as_ini('pretrain', s))
    return str(file)

def losses(log): return [r['loss'] for r in read_jsonl(log) if 'loss' in r]

def weights(out, step): return tuple(dict(Stored(Path(out)/f'step-{step}', part)) for part in ('model', 'optimizer'))

def assert_same_bits(a, b):
    (ma, oa), (mb, ob) = a, b
    assert ma.keys() == mb.keys() and all(torch.equal(ma[k], mb[k]) for k in ma)
    assert oa.keys() == ob.keys() and all(torch.equal(oa[k], ob[k]) for k in oa)

def command(*args): return [sys.executable, '-c', 'import sys; from labkit.pretrain.trainer import main; sys.exit(main())', *map(str, args)]
