"A model on several processes computes what one computes; steps reach all ranks whole; processes end with rank 0, and a dead one is named"
import os, signal, subprocess, sys, time, pytest, torch
from pathlib import Path
from labkit.core.settings import SettingsError, UserError
from labkit.inference.quantize import quantize_model, save_quantized, twin
from labkit.inference.pipeline import micro_batches
from labkit.inference.ranks import SplitCache, Told, open_split, pack, unpack
from labkit.inference.tensor_parallel import Share, as_tensor, cut, cut_model, load_part, local_config, spread
from labkit.model.checkpoint import stored_tensors
from labkit.model.config import preset
from labkit.pretrain.parallel import RankError, launch
from tensor_parallel_ranks import asked, save_small

os.environ['PYTHONPATH'] = f'{Path(__file__).parent}:{Path(__file__).parents[2]}:{os.environ.get("PYTHONPATH", "")}' # ranks find the modules of this folder

MODELS = {'gqa': {}, 'one_kv_head': dict(n_kv_heads=1), 'untied_all_biases': dict(qkv_bias=True, o_bias=True, tie_embeddings=False), 'qk_norm': dict(qk_norm=True), 'wide_heads': dict(head_dim=32), 'window': dict(sliding_window=3),
          'some_windows': dict(sliding_window=3, window_layers=[1, 3]), 'odd_vocabulary': dict(vocab_size=513), 'uneven_heads': dict(n_heads=6, n_kv_heads=3, dim=96),
          'experts': dict(n_experts=4, experts_per_token=2, expert_dim=64, family='mixtral', tie_embeddings=False),
          'shared_expert': dict(n_experts=4, experts_per_token=2, expert_dim=64, shared_expert_dim=32, family='qwen2_moe', qkv_bias=True, tie_embeddings=False)}
COMPARE, PROMPTS = 'tensor_parallel_ranks:compare_split', [list(range(5, 40)), list(range(90, 93)), list(range(200, 217))]
PIPE = dict(target='labkit.inference.pipeline:generate_staged')

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A checkpoint of a small model"
    return save_small(tmp_path_factory.mktemp('split')/'model')

@pytest.fixture(scope='module')
def two(folder):
    g = dict(target='tensor_parallel_ranks:generate', name=folder, prompts=PROMPTS, tokens=12, blocks=32)
    calls = [dict(target=COMPARE, models=MODELS), dict(target=COMPARE, models={k: MODELS[k] for k in ('gqa', 'untied_all_biases', 'one_kv_head')}, packed=True), g, {**g, **PIPE, 'micro': 1}, {**g, **PIPE, 'micro': 3},
             dict(target='tensor_parallel_ranks:pass_on', n=50_000)]
    return list(zip(*launch('labkit.pretrain.parallel:each', 2, threads=1, calls=calls)))

@pytest.fixture(scope='module')
def one(folder): return launch('tensor_parallel_ranks:generate', 1, threads=1, name=folder, prompts=PROMPTS, tokens=12, blocks=32)[0]

@pytest.mark.parametrize('name', MODELS)
def test_two_ranks_equal_one(two, name): assert two[0][0][name] < 1e-5

def test_four_bit_weights_equal_one(two): assert max(two[1][0].values()) < 1e-5

def test_greedy_tokens_are_the_same(one, two):
    tensor = two[2]
    assert tensor[0]['tokens'] == one['tokens'] and [len(t) for t in one['tokens']] == [12]*3
    assert sum(r['weights'] for r in tensor) < 1.02*one['weights'] and sum(r['cache'] for r in tensor) == one['cache']

def test_bytes_are_counted(two):
    cfg, n = preset('lab-1m', n_layers=3), sum(map(len, PROMPTS)) + 3*11
    sent = two[2][0]['sent']
    assert sent['sums'] == 4*7*cfg.dim*n + 4*300*3*12

@pytest.mark.parametrize('run', [3, 4])
def test_a_pipeline_writes_the_same(one, two, run):
    assert two[run][0]['tokens'] == one['tokens']
    assert two[run][0]['sent']['send'] == two[3][0]['sent']['send']        # micro-batches send the same numbers in smaller messages
    assert sum(r['cache'] for r in two[run]) == one['cache']

@pytest.mark.slow
def test_the_kernels_of_the_gpu_step_interpreted(monkeypatch):
    "their products are summed over the ranks too"
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    r = launch(COMPARE, 2, threads=1, models={k: {**MODELS[k], 'n_layers': 1} for k in ('untied_all_biases',)}, backend='cuda', max_batch=4, max_len=16)
    assert max(r[0].values()) < 1e-5

@pytest.mark.slow
def test_four_ranks_with_fewer_heads_than_that():
    r = launch(COMPARE, 4, threads=1, models={k: MODELS[k] for k in ('gqa', 'one_kv_head', 'odd_vocabulary', 'experts')})
    assert max(r[0].values()) < 1e-5

@pytest.mark.parametrize('change', [{}, dict(n_heads=8, n_kv_heads=2), dict(n_heads=9, n_kv_heads=3, dim=72), dict(n_kv_heads=1), dict(vocab_size=301), dict(ffn_dim=33)])
@pytest.mark.parametrize('ranks', [1, 2, 3, 4])
def test_shares_cover_the_model_once(change, ranks):
    cfg = preset('lab-1m', **change)
    try: shares = [Share(cfg, r, ranks) for r in range(ranks)]
    except SettingsError: return
    for what, n in (('heads', cfg.n_heads), ('vocab', cfg.vocab_size)): assert [i for s in shares for i in getattr(s, what)] == list(range(n))
    assert [i for s in shares for i in s.ffn()] == list(range(cfg.ffn_dim))
    assert {i for s in shares for i in s.kv} == set(range(cfg.n_kv_heads))
    P = cfg.n_heads//cfg.n_kv_heads
    for s in shares:
        assert {h//P for h in s.heads} == set(s.kv) and len(s.heads) % len(s.kv) == 0
        assert local_config(s).head_dim == cfg.head_dim

def test_spread_gives_every_rank_something():
    for n in range(1, 30):
        for r in range(1, n + 1):
            parts = [len(spread(n, i, r)) for i in range(r)]
            assert sum(parts) == n and max(parts) - min(parts) <= 1

@pytest.mark.parametrize('change, ranks, word', [(dict(n_heads=9, n_kv_heads=3, dim=72), 18, 'cannot be shared by 18'), (dict(n_heads=4, n_kv_heads=2), 3, '2 key/value heads'), (dict(ffn_dim=2), 4, 'narrower')])
def test_models_that_cannot_be_shared(change, ranks, word):
    with pytest.raises(SettingsError, match=word): Share(preset('lab-1m', **change), 0, ranks)

def test_a_part_of_a_stored_weight(folder):
    file = Path(folder)/'model.safetensors'
    stored = stored_tensors(file)
    t = stored['model.layers.0.mlp.down_proj.weight']
    whole = t.load()
    assert torch.equal(as_tensor(t), whole)
    share = Share(preset('lab-1m', n_layers=3), 1, 2)
    part = share.ffn()
    assert 0 < part.start < part.stop == whole.shape[1]
    assert torch.equal(cut(share, 'layers.0.mlp.down_proj.weight', t), whole[:, part.start:])
    assert torch.equal(cut(share, 'layers.0.mlp.up_proj.weight', stored['model.layers.0.mlp.up_proj.weight']), stored['model.layers.0.mlp.up_proj.weight'].load()[part.start:])

def test_parts_from_disk_are_parts_in_memory(folder):
    from labkit.model.checkpoint import load_model
    whole = load_model(folder)
    for r in range(2):
        part, share, _ = load_part(folder, r, 2)
        assert all(torch.equal(a, b) for a, b in zip(part.state_dict().values(), cut_model(whole, share).state_dict().values()))

def test_quantized_folders_and_groups_that_do_not_fit(folder, tmp_path):
    from labkit.model.checkpoint import load_model
    from labkit.corpus.tokens import Tokenizer
    whole = load_model(folder)
    save_quantized(quantize_model(twin(whole), 32), tmp_path/'w4', Tokenizer.load(folder))
    for r in range(2):
        part, share, _ = load_part(tmp_path/'w4', r, 2)
        m, full = part.layers[0].mlp.down_proj, quantize_model(twin(whole), 32).layers[0].mlp.down_proj
        cols = share.ffn()
        assert torch.equal(m.dequantize(), full.dequantize()[:, cols.start:cols.stop])
    with pytest.raises(SettingsError, match='a group of 128 weights would be cut in two'): cut(Share(preset('lab-1m', n_heads=6, n_kv_heads=6, dim=384), 1, 2), 'layers.0.self_attn.o_proj.scales', torch.ones(384, 3), 384)

def test_steps_survive_the_wire():
    known, work = {}, [Told(asked([4, 7], 2, 55, 1, 4096), 16, 3, [11, 12, 13], 2), Told(asked([]), 0, 1, [9], 0)]
    copies, got = unpack(pack(work, [(1, 2), (3, 4)]), known)
    assert copies == [(1, 2), (3, 4)] and [(w.request.table, w.start, w.n, w.ids, w.wants) for w in got] == [(w.request.table, w.start, w.n, w.ids, w.wants) for w in work]
    assert got[0].guess == [13] and (got[0].request.row, got[0].request.id, got[0].request.preemptions, got[0].request.reach) == (2, 55, 1, 4096)
    again = unpack(pack(work[:1], []), known)[1]
    assert again[0].request is got[0].request                               # a runner sees that it is the same request
    other = unpack(pack([Told(asked([4], 2, 56), 0, 1, [1], 1)], []), known)[1]
    assert other[0].request is not got[0].request

def test_messages_shorter_and_longer_than_the_first_one(two): assert two[5] == (True, True)

def test_micro_batches_keep_the_order_and_the_wanted_together():
    work = [Told(asked([0]), 0, 50, list(range(50)), 1), Told(asked([1]), 3, 4, [1, 2, 3, 4], 4), Told(asked([2]), 7, 1, [5], 1), Told(asked([3]), 0, 9, list(range(9)), 0)]
    for n in (1, 2, 3, 5, 64, 100):
        parts = micro_batches(work, n)
        flat = [w for b in parts for w in b]
        assert all(b for b in parts) and sum(w.n for w in flat) == 64 and [i for w in flat for i in w.ids] == [i for w in work for i in w.ids]
        assert [w.wants for w in flat if w.wants] == [1, 4, 1] and all(w.wants <= w.n for w in flat)
        assert len(parts) <= n + 4

def test_copies_of_blocks_are_noted():
    cache = SplitCache(preset('lab-1m', n_layers=1), 8, 4)
    table = []
    cache.grow(table, 6)
    other = cache.fork(table, 6)
    cache.grow(other, 8, 6)
    assert cache.copies == [(table[1], other[1])]

def test_a_file_that_is_not_there_starts_nothing(tmp_path):
    with pytest.raises(UserError): open_split(tmp_path/'none', 2)

def test_a_rank_that_cannot_start_is_named(folder, tmp_path):
    import shutil
    shutil.copytree(folder, tmp_path/'m')
    out = subprocess.run([sys.executable, '-c', f'from tensor_parallel_ranks import bad_start; bad_start({str(tmp_path/"m")!r})'], capture_output=True, text=True, timeout=120)
    assert 'process 1 of 2 that share the model ended with 1: ' in out.stdout and 'no such file' in out.stdout, out.stdout + out.stderr

@pytest.mark.slow
def test_killed_ranks_and_killed_leaders(folder):
    "a follower that dies is named; followers of a leader that is killed are gone"
    run = subprocess.Popen([sys.executable, '-c', f'from tensor_parallel_ranks import lead; lead({folder!r})'], stdout=subprocess.PIPE, text=True)
    lines = iter(run.stdout.readline, '')
    pid = int(next(lines))
    assert next(lines).startswith('tokens ')
    os.kill(pid, signal.SIGKILL)
    assert 'process 1 of 2 that share the model was killed by signal 9' in next(lines)
    assert next(lines).strip() == 'still: the same'
    assert next(lines).startswith('tokens ')                                # opened again
    second = int(next(lines))
    run.kill(); run.wait()
    end = time.monotonic() + 20
    while Path(f'/proc/{second}').exists() and 'Z' not in Path(f'/proc/{second}/stat').read_text().split()[2] and time.monotonic() < end: time.sleep(.1)
    assert not Path(f'/proc/{second}').exists() or 'Z' in Path(f'/proc/{second}/stat').read_text().split()[2]
