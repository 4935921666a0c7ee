"""A whole batch at once on one GPU: output tokens a second of the whole call, prefill included, from the same files for every engine.

python benchmarks/serve_offline.py                                   labkit in its schemes, batches of 1 to 256, 128 tokens in and 128 out
python benchmarks/serve_offline.py --engine labkit,transformers --batch 1,16,64
python benchmarks/serve_offline.py --prompt 2048 --batch 64 --scheme w4+kv8,fp8+kv8
python benchmarks/serve_offline.py --session                         time to the first token of turn 10 of a conversation, against a fresh request with the new turn alone
python benchmarks/serve_offline.py --start                           seconds from the files to a ready engine, against reading the bytes
transformers runs as `generate` comes, without compilation.
A scheme names weights and cache: bf16, w4 (16-bit activations), fp8 (both in 8 bits), with +kv8 or +kv4. vllm and lmdeploy run where they can be imported.
The model has Llama-2-7B's shape and random weights (`--shape` for another); its files are written to `--folder` once."""
import argparse, gc, importlib.util, json, os, statistics, sys, time
from pathlib import Path
import torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

RESULTS = Path(__file__).parent/'results'
BARS = {('bf16', 128, 1): 180, ('w4+kv8', 128, 1): 400, ('bf16', 128, 16): 2500, ('w4', 128, 16): 4000, ('bf16', 128, 64): 6900, ('w4+kv8', 128, 64): 8000,
        ('best', 128, 128): 10000, ('best', 128, 256): 12500, ('best', 2048, 64): 1500}
ELSEWHERE = 'vLLM 0.25.1 and LMDeploy 0.18 on one H100 80GB HBM3, another machine, 2026-11-22'
PEERS = {('vllm bf16', 128, 1): 163, ('vllm w4', 128, 1): 245, ('vllm bf16', 128, 16): 2246, ('vllm w4', 128, 16): 3193, ('vllm bf16', 128, 64): 6187, ('vllm w4', 128, 64): 7499,
         ('vllm bf16', 128, 128): 8640, ('vllm w4', 128, 128): 9533, ('vllm bf16', 128, 256): 10571, ('vllm w4', 128, 256): 10730, ('vllm bf16', 2048, 64): 1089, ('vllm w4', 2048, 64): 1183,
         ('lmdeploy bf16', 128, 1): 170, ('lmdeploy w4+kv8', 128, 1): 151, ('lmdeploy bf16', 128, 16): 2347, ('lmdeploy w4+kv8', 128, 16): 2174, ('lmdeploy bf16', 128, 64): 6543, ('lmdeploy w4+kv8', 128, 64): 5949,
         ('lmdeploy bf16', 128, 128): 9405, ('lmdeploy w4+kv8', 128, 128): 9350, ('lmdeploy bf16', 128, 256): 11746, ('lmdeploy w4+kv8', 128, 256): 11958, ('lmdeploy bf16', 2048, 64): 1104, ('lmdeploy w4+kv8', 2048, 64): 1462}

def stamp() -> dict: return dict(device=torch.cuda.get_device_name(), torch=torch.__version__, date=time.strftime('%Y-%m-%d'))

def write_model(folder: Path, shape: str) -> Path:
    "Random weights of a shape as a Hugging Face folder, one file a layer"
    from safetensors.torch import save_file
    from labkit.corpus.tokens import train_tokenizer
    from labkit.model.config import preset, to_hf
    from labkit.model.transformer import Transformer
    if (folder/'done').exists(): return folder
    folder.mkdir(parents=True, exist_ok=True)
    cfg = preset(shape)
    with torch.device('meta'): state = Transformer(cfg).state_dict()
    files, where = {}, {}
    for n, t in state.items():
        w = torch.ones(t.shape, dtype=torch.bfloat16) if t.dim() == 1 else torch.empty(t.shape, dtype=torch.bfloat16, device='cuda').normal_(std=.02).cpu()
        files.setdefault('.'.join(n.split('.')[:2]), {})[n if n.startswith('lm_head') else f'model.{n}'] = w
    for i, (part, tensors) in enumerate(files.items()):
        name = f'model-{i + 1:05d}-of-{len(files):05d}.safetensors'
        save_file(tensors, folder/name, metadata={'format': 'pt'}); where |= {n: name for n in tensors}
    (folder/'model.safetensors.index.json').write_text(json.dumps(dict(metadata=dict(total_size=sum(t.numel() * 2 for t in state.values())), weight_map=where)))
    (folder/'config.json').write_text(json.dumps({**to_hf(cfg), 'torch_dtype': 'bfloat16'}))
    train_tokenizer(['the cat sat on the mat ' * 9] * 9, 300).save(folder)
    (folder/'done').touch()
    return folder

def prompts_of(batch: int, length: int, vocab: int, seed: int = 0) -> list[list[int]]:
    return torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(seed)).tolist()

class Labkit:
    def __init__(self, folder, scheme, a):
        from labkit.inference.engine import Engine, EngineSettings
        weights, *kv = scheme.split('+')
        t = time.perf_counter()
        self.engine = Engine.open(folder, settings=EngineSettings(weights={'bf16': 'auto'}.get(weights, weights), kv={'kv8': 'int8', 'kv4': 'int4'}.get(kv[0], kv[0]) if kv else 'auto', prefix=False))
        torch.cuda.synchronize(); self.start_s = time.perf_counter() - t
        assert self.engine.runner.name == 'cuda', self.engine.backend_reason
        self.vocab = self.engine.model.cfg.vocab_size
    def __call__(self, prompts, n):
        from labkit.core.lm import Sampling
        return [c.tokens for c in self.engine.generate(prompts, Sampling(max_tokens=n, ignore_eos=True))]

class Transformers:
    def __init__(self, folder, scheme, a):
        from transformers import AutoModelForCausalLM
        if scheme != 'bf16': raise SystemExit('transformers is measured in bf16')
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map='cuda').eval()
        self.vocab = self.model.config.vocab_size
    @torch.inference_mode()
    def __call__(self, prompts, n):
        x = torch.tensor(prompts, device='cuda')
        y = self.model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0)
        return y[:, x.shape[1]:].tolist()

class Vllm:
    def __init__(self, folder, scheme, a):
        from vllm import LLM
        kind = {'bf16': {}, 'fp8': dict(quantization='fp8')}[scheme.split('+')[0]]
        self.llm = LLM(str(folder), dtype='bfloat16', skip_tokenizer_init=True, enable_prefix_caching=False, kv_cache_dtype='fp8' if '+' in scheme else 'auto', **kind)
        self.vocab = self.llm.llm_engine.model_config.get_vocab_size()
    def __call__(self, prompts, n):
        from vllm import SamplingParams
        out = self.llm.generate([dict(prompt_token_ids=p) for p in prompts], SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False), use_tqdm=False)
        return [o.outputs[0].token_ids for o in out]

class Lmdeploy:
    def __init__(self, folder, scheme, a):
        from lmdeploy import TurbomindEngineConfig, pipeline
        self.pipe = pipeline(str(folder), backend_config=TurbomindEngineConfig(max_batch_size=256, quant_policy=8 if scheme.endswith('kv8') else 4 if scheme.endswith('kv4') else 0))
        self.vocab = 32000
    def __call__(self, prompts, n):
        from lmdeploy import GenerationConfig
        return [r.token_ids for r in self.pipe(prompts, gen_config=GenerationConfig(max_new_tokens=n, ignore_eos=True, do_sample=False))]

ENGINES = dict(labkit=Labkit, transformers=Transformers, vllm=Vllm, lmdeploy=Lmdeploy)

def rate(engine, batch, length, n, rounds) -> dict:
    prompts, took = prompts_of(batch, length, engine.vocab), []
    engine(prompts_of(batch, length, engine.vocab, 1), 4)                  # kernels compiled, graphs recorded
    for _ in range(rounds):
        torch.cuda.synchronize(); t = time.perf_counter()
        out = engine(prompts, n)
        torch.cuda.synchronize(); took.append(time.perf_counter() - t)
        assert all(len(o) == n for o in out)
    return dict(tokens_per_s=round(batch * n / min(took), 1), seconds=[round(s, 4) for s in took])

def run_engine(name, scheme, a, rows):
    engine = ENGINES[name](a.folder, scheme, a)
    engine(prompts_of(2, 16, engine.vocab), 8)
    for b in a.batches:
        try: r = rate(engine, b, a.prompt, a.out_tokens, a.rounds)
        except Exception as e: r = dict(error=f'{type(e).__name__}: {str(e)[:300]}')
        rows[f'{name} {scheme} {a.prompt}/{a.out_tokens} B{b}'] = dict(engine=name, scheme=scheme, prompt=a.prompt, out=a.out_tokens, batch=b, **r)
        print(f'{name} {scheme} {a.prompt}/{a.out_tokens} batch {b}: {r}', flush=True)
    if hasattr(engine, 'start_s'): rows[f'{name} {scheme} start'] = dict(engine=name, scheme=scheme, start_s=round(engine.start_s, 2)); print(f'{name} {scheme}: ready after {engine.start_s:.1f} s')
    del engine; gc.collect(); torch.cuda.empty_cache()

def claims(rows) -> list[dict]:
    out = []
    for (scheme, prompt, batch), bar in BARS.items():
        mine = [r for r in rows.values() if r.get('engine') == 'labkit' and r.get('batch') == batch and r.get('prompt') == prompt and 'tokens_per_s' in r and (scheme == 'best' or r['scheme'] == scheme)]
        if not mine: continue
        best = max(mine, key=lambda r: r['tokens_per_s'])
        elsewhere = {k[0]: v for k, v in PEERS.items() if k[1:] == (prompt, batch)}
        out.append(dict(claim=f'{prompt} tokens in, 128 out, batch {batch}, {best["scheme"]}', value=best['tokens_per_s'], unit='tokens/s', bar=bar, holds=best['tokens_per_s'] >= bar, spread=[round(batch * best['out'] / s, 1) for s in (max(best['seconds']), min(best['seconds']))], elsewhere=elsewhere))
    return out

def session(a) -> dict:
    "First token of the tenth turn, against a request that holds the new turn alone"
    from labkit.core.lm import Sampling
    from labkit.inference.engine import Engine, EngineSettings
    engine = Engine.open(a.folder, settings=EngineSettings(weights='w4', kv='int8'))
    V, one = engine.model.cfg.vocab_size, Sampling(max_tokens=1, ignore_eos=True)
    def first(ids):
        torch.cuda.synchronize(); t = time.perf_counter()
        next(engine.stream(ids, Sampling(max_tokens=2, ignore_eos=True)))
        return (time.perf_counter() - t) * 1e3
    rows = []
    for k in range(a.rounds + 1):
        ids, turns = [], []
        for turn in range(10):
            new, = prompts_of(1, 100, V, seed=100 * k + turn)
            ids = ids + new
            turns.append(first(ids))
            ids += list(engine.generate([ids], Sampling(max_tokens=100, ignore_eos=True))[0].tokens)
        fresh = [first(prompts_of(1, 100, V, seed=10**6 + 100 * k + j)[0]) for j in range(3)]
        if k: rows.append(dict(turn_ms=turns, fresh_ms=min(fresh), history=len(ids)))
    ratio = [r['turn_ms'][9] / r['fresh_ms'] for r in rows]
    return dict(rows=rows, claims=[dict(claim=f'turn 10 with {rows[0]["history"] - 200} tokens of history: time to first token against a fresh request', value=round(statistics.median(ratio), 3), unit='x', bar=1.2, holds=statistics.median(ratio) <= 1.2, spread=[round(min(ratio), 3), round(max(ratio), 3)])])

def start(a) -> dict:
    "Seconds from the files to a ready engine, against reading the bytes into pinned memory and copying them to the GPU"
    files = sorted(a.folder.glob('*.safetensors')); size = sum(f.stat().st_size for f in files)
    buffer = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True); there = torch.empty_like(buffer, device='cuda')
    def floor():
        t = time.perf_counter()
        for f in files:
            with f.open('rb', buffering=0) as h:
                while n := h.readinto(memoryview(buffer.numpy())): there[:n].copy_(buffer[:n])
        torch.cuda.synchronize()
        return time.perf_counter() - t
    floors, ours = [floor() for _ in range(2)], []
    for _ in range(2):
        e = Labkit(a.folder, 'bf16', a); ours.append(e.start_s); del e; gc.collect(); torch.cuda.empty_cache()
    ratio = min(ours) / min(floors)
    return dict(bytes=size, floor_s=floors, start_s=ours, claims=[dict(claim='7B from safetensors: start-up against reading and copying the bytes', value=round(ratio, 2), unit='x', bar=1.2, holds=ratio <= 1.2, spread=[round(min(ours) / max(floors), 2), round(max(ours) / min(floors), 2)])])

def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--engine', default='labkit'); p.add_argument('--scheme', default='bf16,w4,w4+kv8,fp8+kv8'); p.add_argument('--batch', default='1,16,64,128,256'); p.add_argument('--prompt', type=int, default=128)
    p.add_argument('--out-tokens', type=int, default=128); p.add_argument('--rounds', type=int, default=3); p.add_argument('--shape', default='llama2-7b'); p.add_argument('--folder', type=Path, default=Path('/dev/shm/labkit-offline'))
    p.add_argument('--session', action='store_true'); p.add_argument('--start', action='store_true'); p.add_argument('--out', type=Path, default=RESULTS/'serve_offline.json')
    a = p.parse_args()
    a.batches = [int(b) for b in a.batch.split(',')]
    a.folder = write_model(a.folder/a.shape, a.shape)
    old = json.loads(a.out.read_text()) if a.out.exists() else dict(rows={})
    def keep(**new):
        old.update(stamp(), elsewhere=ELSEWHERE, **new); a.out.write_text(json.dumps(old, indent=1))
    if a.start: keep(start=(r := start(a))); found = r['claims']
    elif a.session: keep(session=(r := session(a))); found = r['claims']
    else:
        for name in a.engine.split(','):
            if name not in ENGINES: raise SystemExit(f'--engine {name}: expected some of {", ".join(ENGINES)}')
            if not importlib.util.find_spec(name): print(f'{name} is not installed: left out'); continue
            for scheme in a.scheme.split(',') if name == 'labkit' else ['bf16']:
                run_engine(name, scheme, a, old['rows']); keep()
        found = claims(old['rows']); keep(claims=found)
    for c in found: print(json.dumps(c))

if __name__ == '__main__': main()
