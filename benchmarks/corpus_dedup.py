"""Deduplication of near-copies on one core: labkit end to end (sign, bands, true similarity, clusters) against the MinHash of datatrove, rensa and datasketch.

All run in this process, alternating, on the same texts: passages of ten verses of the King James and the updated King James version,
and edited copies of a third of them, in which .2 to 5% of the words were replaced by new ones.
- datatrove: its signature stage alone (MinhashDedupSignature, defaults: 14 buckets of 8, 64 bits, words by spaCy), files written and sorted.
- rensa: words by a regular expression, 5-word shingles joined to strings, RMinHash in bulk with 112 numbers, and the flags of its LSH with 14 bands. No clusters, no verification.
- datasketch: the same words and shingles, MinHash.bulk with 112 numbers, MinHashLSH with 14 bands of 8, queried for every text.
Labels: two texts are the same where a chain of pairs joins them, each of a Jaccard similarity of .8 or more between their sets of 5-word shingles;
all such pairs are found by plain Python sets over an inverted list, without labkit. The F1 of labkit's clusters is over pairs of texts.
Prints the rates, the ratios with their spread, the limit that the hash functions set, and precision and recall; the last line is JSON.
"""
import os
for name in ('OMP_NUM_THREADS', 'NUMBA_NUM_THREADS', 'RAYON_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'RENSA_NUM_THREADS'): os.environ[name] = '1' # one core for everybody
import argparse, contextlib, datetime, json, platform, random, re, statistics, sys, tempfile, time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
import numpy as np
from labkit.core.files import replacing
from labkit.corpus.dedup import MinHash, UnionFind, candidates, cluster, pair_scores, shingles, sign, signature
from labkit.corpus.sources import verses

BARS = dict(datatrove=20., rensa=1.3, f1=.95)
THRESHOLD = .8

def edited(text: str, share: float, rng: random.Random) -> str:
    "A copy in which a share of the words is new"
    return ' '.join(w if rng.random() > share else f'new{rng.randrange(10**6)}' for w in text.split())

def make(n_verses: int) -> list[str]:
    "The texts, in an order without meaning"
    rng = random.Random(0)
    texts = [' '.join(v[k:k + 10]) for v in ([d.text for d in verses(name)] for name in ('kjv', 'ukjv')) for k in range(0, n_verses, 10)]
    texts += [edited(t, rng.choice((.002, .005, .01, .02, .03, .05)), rng) for t in rng.sample(texts, len(texts) // 3)]
    rng.shuffle(texts)
    return texts

def words(text: str) -> list[str]: return re.findall(r'\w+', text.lower())

def grams(text: str) -> list[str]:
    w = words(text)
    return [' '.join(w[i:i + 5]) for i in range(max(1, len(w) - 4))]

def labels(texts: list[str]) -> tuple[np.ndarray, int]:
    "The cluster each text belongs to, and the number of pairs that reach the threshold"
    sets, holders, uf, n = [set(grams(t)) for t in texts], {}, UnionFind(len(texts)), 0
    for i, s in enumerate(sets):
        for g in s: holders.setdefault(g, []).append(i)
    common = Counter((i, j) for h in holders.values() for k, j in enumerate(h) for i in h[:k])
    for (i, j), both in common.items():
        if both / (len(sets[i]) + len(sets[j]) - both) >= THRESHOLD: uf.union(i, j); n += 1
    return np.array([uf.find(i) for i in range(len(texts))]), n

def run_labkit(texts: list[str]):
    mh = MinHash(14, 8)
    sigs = np.stack([sign(t, mh)[1] for t in texts])
    return cluster(sigs, lambda i: shingles(texts[i]), THRESHOLD, mh)

def run_datatrove(texts: list[str]):
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupSignature
    with tempfile.TemporaryDirectory() as d, contextlib.redirect_stderr(open(os.devnull, 'w')):
        MinhashDedupSignature(d).run((Document(text=t, id=str(i)) for i, t in enumerate(texts)), 0, 1)

def run_rensa(texts: list[str]):
    from rensa import RMinHash, RMinHashLSH
    matrix = RMinHash.digest_matrix_from_token_sets([grams(t) for t in texts], 112, 1)
    return RMinHashLSH(THRESHOLD, 112, 14).query_duplicate_flags_matrix_one_shot(matrix)

def run_datasketch(texts: list[str]):
    from datasketch import MinHash as Sketch, MinHashLSH
    lsh, found = MinHashLSH(num_perm=112, params=(14, 8)), []
    for i, m in enumerate(Sketch.bulk([[g.encode() for g in grams(t)] for t in texts], num_perm=112)): found.append(lsh.query(m)); lsh.insert(i, m)
    return found

def unseen(texts: list[str]) -> np.ndarray:
    "Clusters where whatever shares a band is joined, as tools without verification do"
    uf = UnionFind(len(texts))
    for b in candidates(np.stack([sign(t)[1] for t in texts])):
        for i in b[1:].tolist(): uf.union(int(b[0]), i)
    return np.array([uf.find(i) for i in range(len(texts))])

RUNS = dict(labkit=run_labkit, datatrove=run_datatrove, rensa=run_rensa, datasketch=run_datasketch)

def clock(f, texts: list[str]) -> float:
    "CPU seconds of this process"
    t = time.process_time(); f(texts)
    return time.process_time() - t

def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--verses', type=int, default=8000, help='verses of each translation')
    p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'corpus_dedup.json')
    a = p.parse_args()
    texts = make(a.verses)
    mb = sum(len(t.encode()) for t in texts) / 1e6
    truth, pairs = labels(texts)
    for f in RUNS.values(): f(texts[:20]) # compiled, tokenizers loaded
    seconds = {k: [] for k in RUNS}
    for _ in range(a.repeats):
        for k, f in RUNS.items(): seconds[k].append(clock(f, texts))
    found, m = run_labkit(texts), statistics.median
    ready = [shingles(t) for t in texts]
    limit = mb / min(clock(lambda s: [signature(x) for x in s], ready) for _ in range(a.repeats))
    score, blind = pair_scores(found.cluster, truth), pair_scores(unseen(texts), truth)
    faster = {k: [x / y for x, y in zip(seconds[k], seconds['labkit'])] for k in RUNS if k != 'labkit'}
    for k, s in seconds.items(): print(f"{k:10} {mb / m(s):8.2f} MB/s" + (f"   labkit is {m(faster[k]):.1f} times as fast ({min(faster[k]):.1f}–{max(faster[k]):.1f})" if k in faster else f'   {len(texts)} texts, {mb:.1f} MB'))
    print(f'the 112 hash functions alone, on shingles that are there, allow {limit:.0f} MB/s; end to end reaches {mb / m(seconds["labkit"]) / limit:.0%} of that')
    print(f'{pairs} pairs reach {THRESHOLD}; labkit compared {found.pairs}: precision {score.precision:.4f}, recall {score.recall:.4f}, F1 {score.f1:.4f}; joined unseen: precision {blind.precision:.4f}, recall {blind.recall:.4f}, F1 {blind.f1:.4f}')
    slower = [1 / r for r in faster['rensa']]
    spread = lambda r: [round(min(r), 3), round(max(r), 3)]
    result = dict(claim="MinHash deduplication end to end (labkit) against datatrove's signature stage, same texts, one core", value=round(m(faster['datatrove']), 1), unit='x datatrove',
        bar=BARS['datatrove'], holds=m(faster['datatrove']) >= BARS['datatrove'] and m(slower) <= BARS['rensa'] and score.f1 >= BARS['f1'], spread=spread(faster['datatrove']),
        more={"time of labkit, with clusters and verification, over rensa's, without": dict(value=round(m(slower), 3), unit='x rensa', bar=BARS['rensa'], spread=spread(slower)),
              'speed over datasketch': dict(value=round(m(faster['datasketch']), 1), unit='x datasketch', bar=None, spread=spread(faster['datasketch'])),
              'F1 on the labelled near-duplicates': dict(value=round(score.f1, 4), unit='F1', bar=BARS['f1'], precision=round(score.precision, 4), recall=round(score.recall, 4)),
              'F1 where candidates are joined unseen': dict(value=round(blind.f1, 4), unit='F1', bar=None, precision=round(blind.precision, 4), recall=round(blind.recall, 4))},
        mb_per_s={k: round(mb / m(s), 2) for k, s in seconds.items()}, limit_mb_per_s=round(limit, 1), texts=len(texts), mb=round(mb, 2), true_pairs=pairs, compared=found.pairs,
        machine=f'{platform.machine()}, {os.cpu_count()} cores', versions={k: version(k) for k in ('datatrove', 'spacy', 'rensa', 'datasketch', 'numba', 'numpy')}, date=datetime.date.today().isoformat(), load=os.getloadavg()[0])
    with replacing(a.out) as f: f.write(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result))
    return 0

if __name__ == '__main__': sys.exit(main())
