"""The whole rule chain against datatrove's four filters for FineWeb, on the same documents, on one core.

labkit cuts, measures all its signals and judges with the rules of `fineweb-code`; datatrove's GopherRepetition, GopherQuality,
C4Quality (without terminal punctuation) and FineWebQuality filters run in that order and stop at the first that drops the document,
as its pipeline does. Both run in this process, alternating. Then every filter decides over every document, and so does labkit's
profile `datatrove`: agreement per filter, and why the rest differs. The last line is JSON.
"""
import argparse, datetime, json, os, platform, random, statistics, sys, time
from collections import Counter
from pathlib import Path
import datatrove, spacy
from datatrove.data import Document as PeerDocument
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.word_tokenizers import load_word_tokenizer
from labkit.core.files import replacing
from labkit.corpus import comparable
from labkit.corpus.extract import Unreadable, read_file
from labkit.corpus.rules import DATATROVE, PROFILES, broken
from labkit.corpus.signals import cut, measure
from labkit.corpus.sources import environment_files, verses

FILTERS = {'gopher repetition': GopherRepetitionFilter, 'gopher quality': GopherQualityFilter, 'c4': lambda: C4QualityFilter(filter_no_terminal_punct=False), 'fineweb': FineWebQualityFilter}
BAR, FLOOR, AGREE = 8., 4., .97 # times datatrove; MB/s on one core; share of equal decisions for each filter
RULES = PROFILES['fineweb-code']

def chapters(book: str) -> list[str]:
    "Verses of a Bible joined into chapters, a line each"
    out = {}
    for d in verses(book): out.setdefault(d.metadata['verse'] // 1000, []).append(d.text)
    return ['\n'.join(v) for v in out.values()]

def sample(texts, mb: float, seed: int = 0) -> list[str]:
    "Distinct texts in a random order, up to so many megabytes"
    texts = sorted({t for t in texts if t.strip()})
    random.Random(seed).shuffle(texts)
    out, size = [], 0.
    for t in texts:
        if size >= mb: break
        out.append(t); size += len(t.encode('utf-8', 'surrogatepass')) / 1e6
    return out

def files(kinds, most: int = 100_000) -> list[str]:
    "Texts of this environment's files of some kinds, as they stand"
    out = []
    for f in environment_files():
        if f.kind not in kinds or not 200 < f.bytes < most: continue
        try: out.append(read_file(f).text)
        except Unreadable: continue
    return out

def corpora(mb: float) -> dict[str, list[str]]:
    "Prose: chapters of two translations, and the licences and notices of packages; technical text: documentation and code"
    return {'prose': sample(chapters('kjv') + chapters('web'), .7 * mb) + sample(files(('text',)), .3 * mb), 'technical': sample(files(('markdown', 'rst', 'metadata')), mb) + sample(files(('python',)), mb)}

def labkit_chain(texts) -> float:
    "MB/s of cutting, measuring and judging"
    t = time.process_time()
    for x in texts: broken(measure(cut(x)), RULES)
    return size(texts) / (time.process_time() - t)

def comparable_chain(texts) -> float:
    "MB/s with datatrove's tokens and definitions"
    t = time.process_time()
    for x in texts: broken(comparable.measure(x), PROFILES['datatrove'])
    return size(texts) / (time.process_time() - t)

def datatrove_chain(texts) -> float:
    "MB/s of the four filters, each document until the first that drops it"
    chain = [f() for f in FILTERS.values()]
    t = time.process_time()
    for x in texts:
        d = PeerDocument(text=x, id='x')
        all(f.filter(d) is True for f in chain)
    return size(texts) / (time.process_time() - t)

def size(texts) -> float: return sum(len(x.encode('utf-8', 'surrogatepass')) for x in texts) / 1e6

def why(text: str, tokenizer) -> str:
    "The sort of token that the two cut differently; or none"
    a, b = comparable.tokens(text), tokenizer.word_tokenize(text)
    if a == b: return 'same tokens'
    odd = next((c for c in text.split() if comparable.tokens(c) != tokenizer.word_tokenize(c)), '')
    if '://' in odd or '@' in odd: return 'tokens of an address'
    if any(ord(c) > 0x24f for c in odd): return 'tokens of a script outside spaCy\'s lists'
    return 'tokens of an abbreviation inside a chunk' if '.' in odd else 'other tokens'

def agreement(texts, tokenizer) -> dict:
    "For each filter the share of equal decisions, and reasons of the others; and tokens"
    out = {name: dict(share=0., dropped=0, disagree=Counter()) for name in FILTERS}
    for name, make in FILTERS.items():
        f = make()
        for x in texts:
            theirs, ours = f.filter(PeerDocument(text=x, id='x')) is True, not broken(comparable.measure(x), DATATROVE[name])
            out[name]['dropped'] += not theirs
            if theirs != ours: out[name]['disagree'][f"{why(x, tokenizer)}; datatrove {'keeps' if theirs else 'drops'}"] += 1
        out[name]['share'] = round(1 - sum(out[name]['disagree'].values()) / len(texts), 4)
    return out

def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--mb', type=float, default=1.5, help='megabytes of each kind of text')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'corpus_rules.json')
    a = p.parse_args()
    tokenizer, texts = load_word_tokenizer('en'), corpora(a.mb)
    for f in (labkit_chain, comparable_chain, datatrove_chain): f(texts['prose'][:3]) # compile, load
    rates = {kind: {'labkit': [], 'labkit, profile datatrove': [], 'datatrove': []} for kind in texts}
    for _ in range(a.rounds):
        for kind, xs in texts.items():
            for who, f in zip(rates[kind], (labkit_chain, comparable_chain, datatrove_chain)): rates[kind][who].append(f(xs))
    ratio = {k: [x / y for x, y in zip(r['labkit'], r['datatrove'])] for k, r in rates.items()}
    exact = {k: [x / y for x, y in zip(r['labkit, profile datatrove'], r['datatrove'])] for k, r in rates.items()}
    agree = {kind: agreement(xs, tokenizer) for kind, xs in texts.items()}
    equal = {kind: dict(Counter(why(x, tokenizer) for x in xs)) for kind, xs in texts.items()}
    m = statistics.median
    row = lambda x: dict(value=round(m(x), 1), bar=BAR, spread=[round(min(x), 1), round(max(x), 1)])
    for kind, r in rates.items():
        print(f"{kind}: {len(texts[kind])} documents, {size(texts[kind]):.1f} MB; " + ', '.join(f'{who} {m(x):.3g} MB/s' for who, x in r.items()) + f'; ratio {m(ratio[kind]):.0f} ({min(ratio[kind]):.0f}–{max(ratio[kind]):.0f}), with its own definitions {m(exact[kind]):.0f}')
        for name, x in agree[kind].items(): print(f"   {name}: {x['share']:.2%} alike, datatrove drops {x['dropped']}; {dict(x['disagree'])}")
    holds = all(min(x) >= BAR for r in (ratio, exact) for x in r.values()) and all(m(r['labkit']) >= FLOOR for r in rates.values()) and all(x['share'] >= AGREE for f in agree.values() for x in f.values())
    result = dict(claim="the whole rule chain, labkit / datatrove's four filters, one core, prose (technical text and datatrove's own definitions in \"more\")", **row(ratio['prose']), unit='x datatrove', holds=holds,
        more={'technical': row(ratio['technical']), 'prose, profile datatrove': row(exact['prose']), 'technical, profile datatrove': row(exact['technical'])},
        mb_per_s={k: {who: round(m(x), 3) for who, x in r.items()} for k, r in rates.items()}, floor_mb_per_s=FLOOR, agreement=agree, least_agreement=AGREE, tokens_of_documents=equal,
        documents={k: len(x) for k, x in texts.items()}, megabytes={k: round(size(x), 2) for k, x in texts.items()},
        machine=f'{platform.machine()}, {os.cpu_count()} cores', versions=dict(datatrove=getattr(datatrove, '__version__', '0.10'), spacy=spacy.__version__, python=platform.python_version()),
        date=datetime.date.today().isoformat(), load=round(os.getloadavg()[0], 1))
    with replacing(a.out) as f: f.write(json.dumps(result, indent=1, ensure_ascii=False) + '\n')
    print(json.dumps(result, ensure_ascii=False))
    return 0

if __name__ == '__main__': sys.exit(main())
