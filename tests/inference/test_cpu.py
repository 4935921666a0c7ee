"The compiled CPU step: packed products, the same bits in every batch and chunk, float32 equal to torch, keys and values in 8 bits, threads that end"
import gc, os, subprocess, sys, threading, time
from pathlib import Path
import numpy as np, pytest, torch
from labkit.inference import cpu_linear, cpu_runner as cpu
from labkit.inference.cache import PagedCache
from labkit.inference.runner import TorchRunner
from labkit.inference.scheduler import Request, Work
from labkit.core.lm import Sampling
from labkit.model.checkpoint import embedded_file
from labkit.model.config import ModelConfig
from labkit.model.transformer import Transformer

torch.set_num_threads(1)
SIZES = dict(vocab_size=96, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, max_seq_len=256)
IDS = [int(i) for i in np.random.default_rng(0).integers(0, 96, 70)]

def tiny(**changes):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**{**SIZES, **changes})).eval().requires_grad_(False)
    for n, p in model.named_parameters(): p.normal_(0, .2) if p.dim() > 1 or n.endswith('bias') else p.uniform_(.5, 1.5)
    return model

def packed(model): return {n: cpu.rounded(p.numpy()) for n, p in model.named_parameters() if p.dim() > 1}

def runner(model, packed=None, threads=1, size=16, kind='model', max_rows=160, tokens=512):
    cache = PagedCache(model.cfg, tokens // size, size, kind=kind)
    return cpu.NumbaRunner(model, cache, packed, max_rows, threads, TorchRunner(model, cache))

def table(r, n=80):
    t = []
    r.cache.grow(t, n)
    return t

def pieces(r, *cuts, ids=IDS):
    "Logits of every token of the sequence, computed in pieces"
    t, ends = table(r), [*cuts, len(ids)]
    out = [r.rows([(ids[a:b], t, a)], list(range(b - a))) for a, b in zip([0, *ends], ends)]
    return torch.cat(out)

@pytest.mark.parametrize('fmt', cpu_linear.FORMATS)
def test_product_of_packed_rows(fmt):
    import cpu_checks                                        # which takes the gguf package's word for the numbers
    cpu_checks.check(fmt)

@pytest.mark.slow
@pytest.mark.parametrize('name, features', [('haswell', '+avx,+avx2,+fma,+f16c,+bmi,+bmi2'), ('ivybridge', '+avx,+f16c')])
def test_product_on_other_processors(name, features, tmp_path):
    if not {'avx2', 'f16c'} <= cpu_linear.FEATURES: pytest.skip('this processor is no better')
    env = dict(os.environ, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES='+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+64bit,' + features, NUMBA_CACHE_DIR=str(tmp_path))
    done = subprocess.run([sys.executable, Path(__file__).with_name('cpu_checks.py'), *cpu_linear.FORMATS], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and 'LANES 8' in done.stdout, done.stderr

@pytest.mark.parametrize('changes', [{}, dict(n_kv_heads=4), dict(tie_embeddings=True), dict(qk_norm=True, family='qwen3'), dict(qkv_bias=True, family='qwen2'), dict(sliding_window=13, family='mistral')])
def test_float32_equals_torch(changes):
    model = tiny(**changes)
    want = model(torch.tensor([IDS]))[0]
    for cuts in ((), (1, 2, 5, 40)): torch.testing.assert_close(pieces(runner(model), *cuts), want, atol=1e-4, rtol=1e-4)

@pytest.mark.parametrize('size', [1, 4, 16])
@pytest.mark.parametrize('kind', ['model', 'int8'])
def test_same_bits_in_every_chunk_batch_and_number_of_threads(size, kind):
    model = tiny(sliding_window=37, family='mistral')
    P = packed(model)
    whole = pieces(runner(model, P, size=size, kind=kind))
    assert (pieces(runner(model, P, size=size, kind=kind), 1, 2, 3, 7, 20, 37, 69) == whole).all()
    r = runner(model, P, threads=3, size=size, kind=kind, max_rows=160)
    assert (pieces(r) == whole).all()
    a, b = table(r), table(r)
    r.rows([(IDS[:50], a, 0), (IDS[20:60], b, 0)], [0])
    both = r.rows([(IDS[7:40][::-1], b, 5), (IDS[50:], a, 50)], list(range(33, 53)))
    assert (both == whole[50:]).all()

def test_rounding_the_activations_changes_little():
    model = tiny()
    P = packed(model)
    for n, p in model.named_parameters():
        if n in P: p.copy_(torch.from_numpy(_numbers(P[n])))
    want, got = model(torch.tensor([IDS]))[0], pieces(runner(model, P))
    kl = torch.nn.functional.kl_div(got.log_softmax(-1), want.log_softmax(-1), log_target=True, reduction='batchmean')
    assert 0 < kl < 2e-3

def _numbers(p):
    blocks = p.data.reshape(len(p.data), -1, 34)
    return (blocks[..., 2:].view(np.int8) * blocks[..., :2].copy().view(np.float16).astype(np.float32)).reshape(len(p.data), -1)

def test_int8_cache_is_torchs():
    model = tiny()
    r, cache = runner(model, kind='int8'), PagedCache(model.cfg, 32, kind='int8')
    request = Request(0, IDS, Sampling(), 1)
    cache.grow(request.table, 80)
    want = TorchRunner(model, cache)([Work(request, 0, len(IDS))])
    t = table(r)
    got = r.rows([(IDS, t, 0)], [len(IDS) - 1])
    torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)
    for a, b in zip(r.cache.stores, cache.stores): assert (a.float() - b.float()).abs().max() <= (1 if a.dtype == torch.uint8 else 1e-2)

@pytest.mark.parametrize('changes', [{}, dict(n_heads=6, n_kv_heads=2), dict(n_kv_heads=1), dict(sliding_window=150, family='mistral')], ids=['two groups', 'groups of three', 'one group', 'window'])
@pytest.mark.parametrize('kind, tolerance', [('model', 2e-4), ('int8', 3e-2)])
def test_contexts_of_several_parts_equal_torch(kind, tolerance, changes):
    "Up to five parts of 64 keys, the last token with those before it or alone; two sequences at a time"
    model = tiny(max_seq_len=512, **changes)
    ids = [int(i) for i in np.random.default_rng(1).integers(0, 96, 300)]
    cache, r = PagedCache(model.cfg, 64, kind=kind), runner(model, kind=kind, threads=2, max_rows=600, tokens=640)
    for n in (64, 65, 129, 257, 300):
        request = Request(n, ids[:n], Sampling(), 1)
        cache.grow(request.table, n)
        want = TorchRunner(model, cache)([Work(request, 0, n)])[0]
        cache.free(request.table)
        a, b = table(r, n), table(r, n)
        whole = r.rows([(ids[:n], a, 0), (ids[:n - 1], b, 0)], [n - 1])[0]
        alone = r.rows([(ids[n - 1:n], b, n - 1), (ids[n - 1:n], a, n - 1)], [0, 1])
        torch.testing.assert_close(whole, want, atol=tolerance, rtol=tolerance)
        assert (alone == whole).all(), f'{n} tokens: the last one alone is another'
        for t in (a, b): r.cache.free(t)

def test_work_is_cut_into_calls_and_put_together_again():
    model = tiny()
    P = packed(model)
    r, whole = runner(model, P, max_rows=16), pieces(runner(model, P))
    work = []
    for i, (start, n, guess) in enumerate(((0, 66, (IDS[66], IDS[67], 1)), (0, 30, ()), (0, 1, ()))):
        request = Request(i, IDS[:66] if guess else IDS[:30 if n == 30 else 1], Sampling(), 1)
        r.cache.grow(request.table, 80)
        work.append(Work(request, 0, n + len(guess), guess))
    got = r(work)
    assert [w.wants for w in work] == [4, 1, 1] and (got == torch.cat([whole[65:68], got[3:4], whole[29:30], whole[:1]])).all()

def test_float32_model_sends_long_prompts_to_torch():
    model = tiny()
    r, sent = runner(model), []
    r.prefill, plain = lambda work: (sent.extend(work), plain(work))[1], r.prefill
    long, short = Request(0, IDS, Sampling(), 1), Request(1, IDS[:3], Sampling(), 1)
    for q in (long, short): r.cache.grow(q.table, 80)
    got = r([Work(long, 0, 70), Work(short, 0, 3)])
    want = model(torch.tensor([IDS]))[0]
    assert [w.request for w in sent] == [long]
    torch.testing.assert_close(got, want[[69, 2]], atol=1e-4, rtol=1e-4)

def test_helper_threads_sleep_and_end_with_the_runner():
    before = threading.active_count()
    r = runner(tiny(), threads=2)
    first = pieces(r)
    assert threading.active_count() == before + 1
    time.sleep(1)
    busy = time.process_time()
    time.sleep(.5)
    assert time.process_time() - busy < .25
    assert (pieces(r) == first).all()
    del r; gc.collect()
    deadline = time.time() + 10
    while threading.active_count() > before and time.time() < deadline: time.sleep(.05)
    assert threading.active_count() == before

def test_machine_code_is_kept_and_loaded_without_the_compiler():
    "A second process neither compiles nor imports what numba needs for it, nor the gguf package for the usual blocks"
    runner(tiny()).compile()                                 # so that the file is there
    code = "import sys; sys.path.insert(0, 'tests/inference'); import test_cpu as t; r = t.runner(t.tiny()); fresh = r.compile(); t.pieces(r); t.cpu.open_packed(t.embedded_file()); print(fresh, [m for m in ('numba.np.linalg', 'scipy.linalg', 'gguf') if m in sys.modules])"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == 'False []', done.stderr

def test_machine_code_of_other_sources_or_arguments_is_another(monkeypatch):
    keys = {cpu._key(('int64:1',)), cpu._key(('int64:2',))}
    monkeypatch.setattr(cpu, 'SOURCES', cpu.SOURCES + b'#')
    assert len(keys | {cpu._key(('int64:1',))}) == 3

def test_only_whole_machine_code_is_taken_and_where_none_can_be_kept_it_is_said(tmp_path):
    cpu._keep(tmp_path / 'a', b'code')
    whole = (tmp_path / 'a').read_bytes()
    assert cpu._kept(tmp_path / 'a') == b'code' and cpu._kept(tmp_path / 'b') is None
    for damaged in (b'', whole[:20], whole[:-1], whole + b'x', b'x' + whole[1:]):
        (tmp_path / 'a').write_bytes(damaged)
        assert cpu._kept(tmp_path / 'a') is None
    with pytest.raises(cpu.UserError, match='NUMBA_CACHE_DIR'): cpu._keep(tmp_path / 'a' / 'b', b'')

def test_nan_stays_with_its_request():
    model = tiny()
    model.embed_tokens.weight[95] = float('nan')
    r, other = runner(model, packed(tiny())), [i for i in IDS if i != 95]
    r.embed, = [np.array(cpu._plain(model.embed_tokens.weight).describe(model.embed_tokens.weight.numpy()), np.int64)]
    r._scratch()
    a, b = table(r), table(r)
    got = r.rows([([95] * 20, a, 0), (other[:30], b, 0)], [19, 49])
    assert got[0].isnan().all() and got[1].isfinite().all()
    r.cache.free(a)
    c = table(r)                                             # blocks in which NaN was
    assert r.rows([(other[:3], c, 0)], [2]).isfinite().all() and r.rows([(other[3:21], c, 3)], [17]).isfinite().all()

def test_what_cannot_run_says_why():
    model = tiny(head_dim=12, n_heads=8)
    with pytest.raises(cpu.UserError, match='head size 12'): runner(model)
    with pytest.raises(cpu.UserError, match='int4'): runner(tiny(), kind='int4')
