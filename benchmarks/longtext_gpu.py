"""The filter for long text with a transformer: SmolLM2-135M at LongWanjuan's windows (3072 tokens of context, the last 1024 scored), on one GPU, beside labkit's n-gram cache.

Three domains (三国演义, books of the World English Bible, Python files), each text as it is, with its paragraphs shuffled, with groups of eight paragraphs shuffled, and as
glued scraps of the same domain. *gain near 0* is InternLM2's log P(S2|S1) - log P(S2) in nats a token, and the claim; `ppl_delta` is LongWanjuan's, against the nearest 1024;
beside them other near contexts, the first 127 tokens of the second part alone, and *order*: what shuffling the paragraphs of the window itself costs (a text that was
shuffled before loses nothing more). AUC is by text (the mean of its windows), because the filter decides on texts; its interval is a bootstrap over texts.
Texts and n-gram scores need no GPU and can be made elsewhere. The last line is one JSON object.

    python benchmarks/longtext_gpu.py --prepare texts.npz   # where the texts are installed; no GPU
    python benchmarks/longtext_gpu.py --texts texts.npz     # on the GPU; without --texts it prepares first
"""
import argparse, json, math, random, re, sys, tempfile, time
from pathlib import Path
import numpy as np
from labkit.core.files import replacing
from labkit.corpus.classifier import auc
from labkit.corpus.longtext import delta, glued, ngram_scores, shuffled, windows
from labkit.corpus.ngram import NgramModel

FAR, NEAR, SCORED, WINDOWS = 3072, (1024, 256, 0), 1024, 168 # tokens; windows of each kind in each domain, about
FIRST = 128 # of the scored tokens, for the short form
INTERNLM2 = dict(far=2048, near=0, scored=256, most=24) # words of the n-gram model
KINDS = ('as it is', 'shuffled', 'shuffled by eight', 'scraps')
SPLIT = dict(novel=r'\n', bible=r'\n', python=r'\n(?=def |class |    def |@)')
MEASURES = ('ppl_delta', 'gain near 1024', 'gain near 256', 'gain near 0', f'gain near 0, first {FIRST}', 'order', 'gain near 0 + order')

def domains():
    "(texts as lists of paragraphs, texts to train on, pool for scraps) of each domain"
    from labkit.corpus.extract import read_file
    from labkit.corpus.sources import environment_files, novel, reviews, verses
    chapters, reviewed, books = [d.text for d in novel()], [d.text for d in reviews()][::40], {}
    for d in verses('web'): books.setdefault(d.metadata['verse'] // 1_000_000, []).append(d.text)
    books = [v for v in books.values() if len(' '.join(v)) > 40_000]
    python = sorted((f for f in environment_files() if f.kind == 'python' and f.name.startswith('python/') and 45_000 < f.bytes < 160_000), key=lambda f: f.name)
    python = [read_file(f).text for f in python]
    return dict(novel=([''.join(chapters[i:i + 4]).split('\n') for i in range(40, 120, 4)], chapters[:40], chapters[40:] + ['\n'.join(reviewed[i:i + 40]) for i in range(0, 800, 40)]),
                bible=([[' '.join(v[i:i + 4]) for i in range(0, len(v), 4)] for v in books[1::2]], [' '.join(v) for v in books[::2]], [' '.join(v) for v in books[1::2]]),
                python=([re.split(SPLIT['python'], t) for t in python[1::2]], python[::2], python[1::2]))

def kinds_of(paragraphs, pool, rng):
    "A text in its four kinds"
    whole = '\n'.join(paragraphs)
    eights = ['\n'.join(paragraphs[i:i + 8]) for i in range(0, len(paragraphs), 8)]
    return dict(zip(KINDS, (whole, shuffled(paragraphs, rng), shuffled(eights, rng), glued(pool, len(whole), rng))))

def in_pieces(tokenizer, ids, split, rng):
    "A window's own paragraphs as they are and in two other orders: the same tokens thrice, the first and the last piece stay"
    first, *pieces = [tokenizer.encode(t) for t in re.split(f'(?={split})', tokenizer.decode(ids.tolist()))]
    if len(pieces) < 3: return None
    orders = [pieces[:-1], *(rng.sample(pieces[:-1], len(pieces) - 1) for _ in range(2))]
    return [np.concatenate([first, *o, pieces[-1]]).astype(np.uint16) for o in orders]

def prepare(path, most=None, texts=None):
    "Cut the windows, score the texts by n-gram, write both"
    from labkit.model.checkpoint import embedded_file
    from labkit.model.gguf import gguf_tokenizer, read_gguf
    tokenizer, rng = gguf_tokenizer(read_gguf(embedded_file())), random.Random(0)
    ids, rows, by_text, permuted = [], [], [], []
    for domain, (documents, train, pool) in domains().items():
        documents = documents[:texts]
        f = ngram_scores(model := NgramModel.train(train))
        for n, paragraphs in enumerate(documents):
            for kind, t in kinds_of(paragraphs, pool, rng).items():
                words, tokens = model.ids(t), np.array(tokenizer.encode(t))
                by_text.append((domain, kind, n, delta(f, words, **INTERNLM2).gain, delta(f, words).gain if len(words) >= 4096 else math.nan))
                for a in windows(len(tokens), FAR + SCORED, most or -(-WINDOWS // len(documents))):
                    w = tokens[a:a + FAR + SCORED]
                    ids.append(w); rows.append((domain, kind, n)); permuted.append(in_pieces(tokenizer, w, SPLIT[domain], rng))
        print(f'{domain}: {len(documents)} texts, {sum(r[0] == domain for r in rows)} windows', flush=True)
    length = np.array([len(p[0]) if p else 0 for p in permuted]); orders = np.zeros((len(ids), 3, length.max()), np.uint16)
    for i, p in enumerate(permuted):
        if p: orders[i, :, :length[i]] = p
    np.savez_compressed(path, ids=np.array(ids, np.uint16), orders=orders, length=length, rows=json.dumps(rows), by_text=json.dumps(by_text))

def logprobs(model, x, last):
    "Log-probability of each of the last tokens of equally long rows, (B, last) float32"
    import torch
    with torch.inference_mode():
        h = model.hidden(x)[:, -last - 1:-1]
        return torch.cat([-torch.nn.functional.cross_entropy(model.head(r).float(), y, reduction='none')[None] for r, y in zip(h, x[:, -last:])])

def batched(model, ids, last, device, tokens=65_536):
    "(N, last) log-probabilities, as many rows at once as make about `tokens` tokens"
    import torch
    step, out = max(1, tokens // ids.shape[1]), []
    for i in range(0, len(ids), step): out.append(logprobs(model, torch.as_tensor(ids[i:i + step].astype(np.int64), device=device), last).cpu())
    return torch.cat(out).numpy()

def score(model, ids, device):
    "(N, contexts, SCORED-1) log-probabilities of the same tokens after 3072 tokens and after each near context"
    return np.stack([batched(model, ids[:, FAR - n:], SCORED - 1, device) for n in (FAR, *NEAR)], 1)

def order_gain(model, orders, length, device):
    "What another order of a window's paragraphs costs, nats a token; nan for a window without paragraphs"
    N, K, T = orders.shape
    lp = batched(model, orders.reshape(N * K, T), T - 1, device).reshape(N, K, T - 1)
    keep = np.arange(1, T) < length[:, None]
    mean = np.where(keep[:, None], lp, 0).sum(-1) / np.maximum(keep.sum(-1), 1)[:, None] # (N, 3)
    return np.where(length > 0, mean[:, 0] - mean[:, 1:].mean(1), np.nan)

def measures(lp, order):
    "(measures,) of windows or, given their means, of a text; `lp` is (contexts, 2) of all scored and the first scored"
    a, first = lp[:, 0], lp[:, 1]
    return [math.exp(-a[1]) - math.exp(-a[0]), *(a[0] - a[i] for i in (1, 2, 3)), first[0] - first[3], order, a[0] - a[3] + order]

def summary(lp): return np.stack([lp.mean(-1), lp[..., :FIRST - 1].mean(-1)], -1) # (N, contexts, 2)

def area(good, bad): return auc(np.r_[good, bad], np.r_[np.ones(len(good)), np.zeros(len(bad))])

def areas(good, bad, rng, n=400):
    "AUC and resampled AUCs"
    good, bad = good[~np.isnan(good)], bad[~np.isnan(bad)]
    return area(good, bad), np.array([area(rng.choice(good, len(good)), rng.choice(bad, len(bad))) for _ in range(n)])

def table(columns, names):
    "AUC of texts as they are against each other kind: by measure, kind, domain and over the domains (their mean), each with the middle 95% of resamples"
    rng, out = np.random.default_rng(0), {}
    domain, kind = np.array(columns['domain']), np.array(columns['kind'])
    def entry(a, r): return [round(float(x), 3) for x in (a, *np.quantile(r, (.025, .975)))]
    for name in names:
        x = np.array(columns[name], float)
        for k in KINDS[1:]:
            got = {d: areas(x[(domain == d) & (kind == KINDS[0])], x[(domain == d) & (kind == k)], rng) for d in SPLIT}
            out.setdefault(name, {})[k] = {d: entry(*v) for d, v in got.items()} | {'mean': entry(np.mean([v[0] for v in got.values()]), np.mean([v[1] for v in got.values()], 0))}
    return out

def columns_of(rows, values, names): # dict of lists, four decimals
    return {n: [r[i] for r in rows] for i, n in enumerate(('domain', 'kind', 'text'))} | {n: [None if v is None or v != v else round(float(v), 4) for v in values[:, i]] for i, n in enumerate(names)}

def matmul_peak():
    "FLOP/s of an 8192-cube bf16 product on this GPU"
    import torch
    a, b = (torch.randn(8192, 8192, device='cuda', dtype=torch.bfloat16) for _ in range(2))
    for i in range(13):
        if i == 3: torch.cuda.synchronize(); t = time.perf_counter()
        a @ b
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (time.perf_counter() - t)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--prepare', type=Path, help='write the windows to this file and stop')
    p.add_argument('--texts', type=Path, help='a file that --prepare wrote')
    p.add_argument('--most', type=int, help='windows of a text, for a try'); p.add_argument('--few', type=int, help='texts of a domain, for a try')
    p.add_argument('--device', default='cuda'); p.add_argument('--raw', type=Path, help='where the log-probabilities go (.npz)')
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'longtext_gpu.json', help='where the result goes')
    a = p.parse_args()
    if a.prepare: return prepare(a.prepare, a.most, a.few)
    import torch
    from labkit.model.checkpoint import open_model
    if a.device == 'cuda' and not torch.cuda.is_available(): sys.exit('longtext_gpu: needs a CUDA device')
    with tempfile.TemporaryDirectory() as tmp:
        if not a.texts: prepare(Path(tmp)/'texts.npz', a.most, a.few)
        data = dict(np.load(a.texts or Path(tmp)/'texts.npz'))
    rows, by_text, ids = json.loads(str(data['rows'])), json.loads(str(data['by_text'])), data['ids']
    gpu = a.device == 'cuda'
    model, _ = open_model('smollm2-135m-instruct', a.device, torch.float16 if gpu else torch.float32) # bfloat16 has too few digits for gains of .01
    few = np.linspace(0, len(ids) - 1, min(len(ids), 48)).astype(int)
    score(model, ids[few[:16]], a.device) # warm-up
    start = time.perf_counter()
    lp = score(model, ids, a.device); seconds = time.perf_counter() - start
    order = order_gain(model, data['orders'], data['length'], a.device)
    if a.raw: np.savez_compressed(a.raw, lp=lp.astype(np.float16), order=order)
    s = summary(lp)
    def one(x): return logprobs(model, torch.as_tensor(x.astype(np.int64), device=a.device)[None], len(x) - 1)[0].float().cpu().numpy()
    alone = delta(one, ids[0].astype(np.int64), FAR, NEAR[0], SCORED).gain
    check = dict(delta_alone=round(alone, 4), delta_batched=round(float(s[0, 0, 0] - s[0, 1, 0]), 4))
    n = len(ids) * sum(x + SCORED for x in (FAR, *NEAR)); c = model.cfg
    speed = dict(tokens=n, seconds=round(seconds, 2), tokens_per_s=round(n / seconds))
    if gpu:
        exact = summary(score(open_model('smollm2-135m-instruct', 'cuda', torch.float32)[0], ids[few], 'cuda'))
        check['float16 against float32, greatest difference of a gain'] = round(float(np.abs((s[few, :1] - s[few, 1:]) - (exact[:, :1] - exact[:, 1:])).max()), 4)
        body = sum(q.numel() for q in model.parameters()) - c.vocab_size * c.dim
        pairs = sum((x + SCORED)**2 / 2 for x in (FAR, *NEAR))
        flop = 2 * body * n + len(ids) * (c.n_layers * 4 * c.n_heads * c.head_dim * pairs + 2 * c.vocab_size * c.dim * (SCORED - 1) * (1 + len(NEAR)))
        speed |= dict(tflop_per_s=round(flop / seconds / 1e12, 1), share_of_matmul_peak=round(flop / seconds / matmul_peak(), 3))
    by_window = columns_of(rows, np.array([measures(x, o) for x, o in zip(s, order)]), MEASURES)
    where = {}
    for i, r in enumerate(rows): where.setdefault(tuple(r), []).append(i)
    values = [[*measures(s[w].mean(0), np.nanmean(order[w]) if not np.isnan(order[w]).all() else math.nan), *g] if (w := where.get((d, k, t))) else [math.nan] * len(MEASURES) + g for d, k, t, *g in by_text]
    names = (*MEASURES, 'ngram near 0', 'ngram near 1024')
    texts = columns_of(by_text, np.array(values, float), names)
    aucs, aucs_by_window = table(texts, names), table(by_window, MEASURES)
    for k in KINDS[1:]:
        print(f'as it is against {k}: AUC by text')
        for name in names: print(f'  {name:24}', '  '.join(f'{d} {v[0]:.2f} [{v[1]:.2f}, {v[2]:.2f}]' for d, v in aucs[name][k].items()))
    print(check, speed)
    value = aucs['gain near 0']['scraps']['mean']
    def also(name, kind): return dict(value=(v := aucs[name][kind]['mean'])[0], unit='AUC', bar=.9, spread=v[1:])
    row = dict(claim='log P(S2|S1) - log P(S2) of SmolLM2-135M, 3072 and 1024 tokens, tells texts from scraps of their domain: AUC by text, mean of three domains', value=value[0], unit='AUC', bar=.9, holds=value[0] >= .9, spread=value[1:],
               more={"the same by LongWanjuan's ppl_delta, 3072/1024/1024": also('ppl_delta', 'scraps'), 'the same by n-gram cache': also('ngram near 0', 'scraps'), 'gain + order': also('gain near 0 + order', 'scraps'),
                     'shuffled texts by the gain': also('gain near 0', 'shuffled'), 'shuffled texts by what shuffling them again costs': also('order', 'shuffled')},
               device=torch.cuda.get_device_name() if gpu else 'cpu', date=time.strftime('%Y-%m-%d'), versions=dict(torch=torch.__version__), dtype=str(model.embed_tokens.weight.dtype).removeprefix('torch.'),
               windows_scored=len(ids), check=check, speed=speed)
    with replacing(a.out) as f: f.write('{\n' + ',\n'.join(f'{json.dumps(k)}: {json.dumps(v)}' for k, v in (row | dict(auc=aucs, auc_by_window=aucs_by_window, texts=texts, windows=by_window)).items()) + '\n}\n')
    print(json.dumps(row))

if __name__ == '__main__': main()
