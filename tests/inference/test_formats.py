"AWQ's and GPTQ's files: written and read number by number, with a second, independent decoder; damaged files; the command."
import json, resource, shutil, signal
import pytest, torch
from hypothesis import given, settings as hyp, strategies as st
from safetensors.torch import load_file, save_file
from labkit.core.settings import UserError
from labkit.corpus.tokens import train_tokenizer
from labkit.inference.formats import AWQ, PLAIN, OrderedW4, awq_tensors, from_awq, from_gptq, gptq_tensors, main, open_quantized, pack_words, save_as, unpack_words
from labkit.inference.quantize import W4Linear, dequantize_groups, linears, quantize_groups, quantize_model
from labkit.model.config import ModelConfig
from labkit.model.transformer import Transformer

torch.set_num_threads(1)
TOKENIZER = train_tokenizer(['hello world, the cat sat on the mat. 你好世界 ' * 3] * 3, 300)
IDS = torch.arange(12)[None]

def tiny(**changes):
    torch.manual_seed(0)
    return Transformer(ModelConfig(**{**dict(vocab_size=300, dim=64, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=96, qkv_bias=True, family='qwen2'), **changes})).eval().requires_grad_(False)

# A second decoder, written from the layouts alone, one number at a time

def nibble(word, i): return (int(word) & 0xffffffff) >> 4 * i & 15

def awq_weight(t, n, m, group): # AutoAWQ gemm: eight outputs a word, in the order 0 2 4 6 1 3 5 7
    i = (0, 2, 4, 6, 1, 3, 5, 7).index(n % 8)
    return (nibble(t['qweight'][m, n // 8], i) - nibble(t['qzeros'][m // group, n // 8], i)) * float(t['scales'][m // group, n])

def gptq_weight(t, n, m, less): # AutoGPTQ: eight inputs a word, zeros eight outputs a word, less one in version 1
    g = int(t['g_idx'][m])
    return (nibble(t['qweight'][m // 8, n], m % 8) - nibble(t['qzeros'][g, n // 8], n % 8) - less) * float(t['scales'][g, n])

@pytest.fixture(scope='module')
def parts():
    w = torch.randn(48, 128, generator=torch.Generator().manual_seed(0))
    return quantize_groups(w, 32)

def test_awq_layout_is_autoawqs(parts):
    t, w = awq_tensors(*parts), dequantize_groups(*parts)
    assert {k: tuple(v.shape) for k, v in t.items()} == dict(qweight=(128, 6), qzeros=(4, 6), scales=(4, 48)) and t['qweight'].dtype == torch.int32
    assert all(awq_weight(t, n, m, 32) == pytest.approx(float(w[n, m]), abs=1e-6) for n in range(48) for m in range(0, 128, 7))

@pytest.mark.parametrize('less', [1, 0])
def test_gptq_layout_is_autogptqs(parts, less):
    t, w = gptq_tensors(*parts, less), dequantize_groups(*parts)
    assert {k: tuple(v.shape) for k, v in t.items()} == dict(qweight=(16, 48), qzeros=(4, 6), scales=(4, 48), g_idx=(128,))
    assert all(gptq_weight(t, n, m, less) == pytest.approx(float(w[n, m]), abs=1e-6) for n in range(48) for m in range(0, 128, 7))

def test_a_zero_point_of_zero_is_refused_in_version_1(parts):
    q, s, z = parts
    with pytest.raises(UserError, match='gptq_v2'): gptq_tensors(q, s, torch.zeros_like(z))
    gptq_tensors(q, s, torch.zeros_like(z), less=0)

@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([PLAIN, AWQ]), st.integers(0, 10**6))
@hyp(max_examples=40, deadline=None)
def test_words_round_trip(rows, words, order, seed):
    q = torch.randint(0, 16, (rows, 8 * words), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(unpack_words(pack_words(q, order), order), q)

def test_matrices_come_back(parts):
    for there, back in ((awq_tensors, from_awq), (gptq_tensors, from_gptq)):
        got = back(there(*parts))
        assert all(torch.equal(got[k], p) for k, p in zip(('qweight', 'scales', 'zeros'), parts))

FAMILIES = {'qwen2': {}, 'llama': dict(family='llama', qkv_bias=False), 'internlm2': dict(family='internlm2', qkv_bias=False), 'tied': dict(tie_embeddings=True)}

@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('format', ['labkit', 'awq', 'gptq', 'gptq_v2'])
def test_folders_come_back(family, format, tmp_path):
    model = quantize_model(tiny(**FAMILIES[family]), 32)
    save_as(model, tmp_path/'q', format, TOKENIZER)
    back = open_quantized(tmp_path/'q')
    assert all(torch.equal(a.dequantize(), b.dequantize()) for (_, a), (_, b) in zip(linears(model, W4Linear), linears(back, W4Linear), strict=True))
    torch.testing.assert_close(back(IDS), model(IDS), atol=.02, rtol=.02)                     # the rest is in float16
    q = json.loads((tmp_path/'q'/'config.json').read_text())['quantization_config']
    assert q['quant_method'] == format.removesuffix('_v2') and (format == 'labkit' or (q['bits'], q['group_size']) == (4, 32))

def test_names_in_the_file_are_the_familys(tmp_path):
    save_as(quantize_model(tiny(**FAMILIES['internlm2']), 32), tmp_path/'q', 'awq')
    t = load_file(tmp_path/'q'/'model.safetensors')
    assert t['model.layers.0.attention.wqkv.qweight'].shape == (64, 16) and 'model.layers.0.self_attn.q_proj.qweight' not in t
    save_as(quantize_model(tiny(), 32), tmp_path/'g', 'gptq')
    t = load_file(tmp_path/'g'/'model.safetensors')
    assert t['model.layers.1.mlp.down_proj.g_idx'].tolist() == [i // 32 for i in range(96)] and t['model.layers.0.self_attn.q_proj.bias'].dtype == torch.float16

def act_order_folder(folder, v2=False):
    "A GPTQ folder whose columns are in the order that desc_act makes, and the model it stands for"
    model, g = quantize_model(tiny(), 32), torch.Generator().manual_seed(4)
    save_as(model, folder, 'gptq_v2' if v2 else 'gptq')
    t = load_file(folder/'model.safetensors')
    for n, m in linears(model, W4Linear):
        columns = torch.randperm(m.in_features, generator=g)                                    # column c of the file is column columns[c] of the model
        q = unpack_words(t[f'model.{n}.qweight'].T.contiguous())
        t[f'model.{n}.qweight'], t[f'model.{n}.g_idx'] = pack_words(q[:, columns]).T.contiguous(), (columns // 32).to(torch.int32)
    save_file(t, folder/'model.safetensors')
    config = json.loads((folder/'config.json').read_text()); config['quantization_config']['desc_act'] = True
    (folder/'config.json').write_text(json.dumps(config))
    return t

@pytest.mark.parametrize('v2', [False, True])
def test_desc_act_is_read(v2, tmp_path):
    t = act_order_folder(tmp_path/'q', v2)
    back = open_quantized(tmp_path/'q')
    for n, layer in linears(back, OrderedW4):
        part = {k: t[f'model.{n}.{k}'] for k in ('qweight', 'qzeros', 'scales', 'g_idx')}
        w = layer.dequantize()
        assert all(gptq_weight(part, r, c, 0 if v2 else 1) == pytest.approx(float(w[r, c]), abs=1e-6) for r in range(0, w.shape[0], 5) for c in range(0, w.shape[1], 3))
    assert len(linears(back, OrderedW4)) == 14 and not linears(back, W4Linear) and torch.isfinite(back(IDS)).all()

WRONG = [({'quant_method': 'fp8'}, "'fp8' is not implemented"), ({'bits': 8}, 'bits = 8'), ({'version': 'gemv'}, "'gemv'"), ({'quant_method': 'gptq', 'checkpoint_format': 'marlin'}, "'marlin'")]

@pytest.mark.parametrize('changes, words', WRONG)
def test_what_is_not_supported_is_named(changes, words, tmp_path):
    save_as(quantize_model(tiny(), 32), tmp_path/'q', 'awq')
    config = json.loads((tmp_path/'q'/'config.json').read_text()); config['quantization_config'].update(changes)
    (tmp_path/'q'/'config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match=words): open_quantized(tmp_path/'q')

@pytest.mark.parametrize('drop', ['model.layers.0.mlp.up_proj.scales', 'model.norm.weight', 'model.layers.1.mlp.up_proj.qweight'])
def test_a_missing_tensor_is_named(drop, tmp_path):
    save_as(quantize_model(tiny(), 32), tmp_path/'q', 'awq')
    t = load_file(tmp_path/'q'/'model.safetensors'); del t[drop]
    save_file(t, tmp_path/'q'/'model.safetensors')
    with pytest.raises(UserError, match=drop.removeprefix('model.').rsplit('.', 1)[0].split('.')[-1]): open_quantized(tmp_path/'q')

def test_groups_of_two_sizes_cannot_be_written(tmp_path):
    model = quantize_model(tiny(), 64)                                                          # 64 columns take 64, 96 take 32
    with pytest.raises(UserError, match='group = 32'): save_as(model, tmp_path/'q', 'awq')
    with pytest.raises(UserError, match='no 4-bit weights'): save_as(tiny(), tmp_path/'q', 'gptq')
    with pytest.raises(UserError, match='unknown'): save_as(model, tmp_path/'q', 'exl2')
    assert not (tmp_path/'q').exists()

def decoded(t, name, config):
    "The matrix `name` of a file, by the published layouts alone and not by labkit's code: (N, M) float32"
    shifts = torch.arange(0, 32, 4)
    across = lambda words: (words[..., None] >> shifts & 15).flatten(1)                          # eight numbers of an int32 lie side by side
    words, zeros, scales = (t[f'{name}.{k}'] for k in ('qweight', 'qzeros', 'scales'))
    if config['quant_method'] == 'awq':
        place = lambda x: x.unflatten(1, (-1, 8))[..., [0, 4, 1, 5, 2, 6, 3, 7]].flatten(1)      # where AutoAWQ put numbers 0 … 7
        q, z, g = place(across(words)), place(across(zeros)), torch.arange(len(words)) // config['group_size']
    else:
        q = across(words.T.contiguous()).T                                                       # packed along the inputs
        z, g = across(zeros) + (config['checkpoint_format'] == 'gptq'), t[f'{name}.g_idx'].long()
    return ((q - z[g]) * scales.float()[g]).T

@pytest.mark.parametrize('format', ['awq', 'gptq', 'gptq_v2'])
def test_transformers_model_filled_from_the_file_computes_the_same(format, tmp_path):
    "Names, shapes, config.json: transformers itself needs packages (gptqmodel, optimum) to read the packed tensors, so the decoder above unpacks them for it"
    transformers = pytest.importorskip('transformers')
    model = quantize_model(tiny(), 32)
    save_as(model, tmp_path/'q', format, TOKENIZER)
    config = transformers.AutoConfig.from_pretrained(tmp_path/'q')
    q = config.quantization_config
    read = (transformers.AwqConfig if format == 'awq' else transformers.GPTQConfig).from_dict(dict(q))
    assert read.bits == 4 and read.group_size == 32 and read.quant_method == q['quant_method']
    del config.quantization_config
    theirs, t = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), load_file(tmp_path/'q'/'model.safetensors')
    state = {n: v.float() for n, v in t.items() if n.rpartition('.')[2] not in ('qweight', 'qzeros', 'scales', 'g_idx')}
    state |= {n.replace('qweight', 'weight'): decoded(t, n.removesuffix('.qweight'), q) for n in t if n.endswith('.qweight')}
    assert len([n for n in t if n.endswith('.qweight')]) == 14
    lost = theirs.load_state_dict(state, strict=False)
    assert not lost.unexpected_keys and set(lost.missing_keys) <= {'lm_head.weight'}
    with torch.no_grad(): torch.testing.assert_close(theirs(IDS).logits, open_quantized(tmp_path/'q')(IDS), atol=1e-4, rtol=1e-3)

# Damaged files

def folder_of(format, path):
    save_as(quantize_model(tiny(), 32), path, format)
    return path/'model.safetensors'

@pytest.mark.parametrize('format', ['labkit', 'awq', 'gptq'])
@pytest.mark.parametrize('left', [0, 5, 3000, -1])
def test_a_cut_file_is_refused(format, left, tmp_path):
    f = folder_of(format, tmp_path/'q')
    f.write_bytes(f.read_bytes()[:left])
    with pytest.raises(UserError, match='model.safetensors'): open_quantized(tmp_path/'q')

@pytest.mark.parametrize('format', ['labkit', 'awq', 'gptq'])
@pytest.mark.parametrize('kind', ['qweight', 'scales', 'nan', 'rows'])
def test_tensors_that_contradict_each_other_are_refused(format, kind, tmp_path):
    f = folder_of(format, tmp_path/'q')
    t, n = load_file(f), 'model.layers.1.mlp.down_proj'                                            # 96 columns, 3 groups
    if kind == 'nan': t[f'{n}.scales'][0, 0] = float('nan')
    elif kind == 'rows': t[f'{n}.qweight'] = torch.cat([t[f'{n}.qweight']] * 2)
    elif kind == 'scales': t[f'{n}.scales'] = torch.ones(64, 5).half() if format == 'labkit' else torch.ones(5, 64).half()
    else: t[f'{n}.qweight'] = t[f'{n}.qweight'].flatten()
    save_file({k: v.contiguous() for k, v in t.items()}, f)
    with pytest.raises(UserError, match='down_proj'): open_quantized(tmp_path/'q')

@pytest.mark.parametrize('damage', [lambda g: g * 0, lambda g: g + 1, lambda g: g - 1, lambda g: g[:-1]])
def test_a_wrong_g_idx_is_refused(damage, tmp_path):
    t = act_order_folder(tmp_path/'q')
    n = 'model.layers.0.mlp.down_proj.g_idx'
    save_file(t | {n: damage(t[n]).contiguous()}, tmp_path/'q'/'model.safetensors')
    with pytest.raises(UserError, match='down_proj'): open_quantized(tmp_path/'q')

@pytest.mark.parametrize('format', ['labkit', 'awq'])
@pytest.mark.parametrize('file, words', [('config.json', 'config.json'), ('model.safetensors', 'model.safetensors')])
def test_a_missing_or_broken_part_is_named(format, file, words, tmp_path):
    folder_of(format, tmp_path/'q')
    (tmp_path/'q'/file).write_text((tmp_path/'q'/file).read_text(errors='replace')[:100])
    with pytest.raises(UserError, match=words): open_quantized(tmp_path/'q')
    (tmp_path/'q'/file).unlink()
    with pytest.raises(UserError): open_quantized(tmp_path/'q')

@pytest.mark.parametrize('left', [0, 20, 2000, -100])
def test_a_cut_gguf_is_refused(left, tmp_path):
    from labkit.model.checkpoint import embedded_file
    whole = embedded_file('smollm2-135m-instruct')
    with open(whole, 'rb') as f: (tmp_path/'m.gguf').write_bytes(f.read()[:left])
    with pytest.raises(UserError, match='m.gguf'): main([str(tmp_path/'m.gguf'), '--method', 'rtn', '--out', str(tmp_path/'q')])
    assert not (tmp_path/'q').exists()

# The command

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    from labkit.model.checkpoint import save_model
    path = tmp_path_factory.mktemp('model')/'m'
    save_model(tiny(), path, TOKENIZER)
    text = path.parent/'t.txt'; text.write_text('hello 你好 the cat sat on the mat ' * 60)
    return path, text

@pytest.mark.parametrize('method, format', [('rtn', 'labkit'), ('awq', 'awq'), ('gptq', 'gptq'), ('awq+gptq', 'gptq_v2'), ('int8', 'labkit'), ('fp8', 'labkit')])
def test_the_command(saved, method, format, tmp_path, capsys):
    path, text = map(str, saved)
    assert main([path, '--method', method, '--format', format, '--out', str(tmp_path/'q'), '--text', text, '--calibrate', text, '--windows', '6', '--window', '32']) == 0
    said = capsys.readouterr().out
    assert 'perplexity before' in said and 'perplexity after' in said and '→' in said and ('calibration: 192 tokens' in said) == ('q' in method)
    assert torch.isfinite(open_quantized(tmp_path/'q')(IDS)).all()

def test_the_engine_on_its_result(saved, tmp_path):
    from labkit.core.lm import Sampling
    from labkit.core.settings import RunSettings
    from labkit.inference.engine import Engine
    main([str(saved[0]), '--method', 'rtn', '--out', str(tmp_path/'q')])
    e = Engine.open(tmp_path/'q', run=RunSettings(device='cpu', threads=1))
    assert 'w4' in e.stats()['weights'] and e.stats()['backend'] == 'numba'
    assert len(e.generate(['hello'], Sampling(max_tokens=5, ignore_eos=True))[0].tokens) == 5

@pytest.mark.parametrize('args, words', [(['/nothing/here'], 'neither a folder'), (['MODEL', '--method', 'int8', '--format', 'awq'], 'needs --format labkit'),
    (['MODEL', '--text', '/nothing/here'], 'cannot be read'), (['MODEL', '--calibrate', '/nothing/here'], 'cannot be read'), (['MODEL', '--calibrate', 'TEXT', '--windows', '5000'], 'too short')])
def test_the_command_names_what_is_wrong(saved, args, words, tmp_path):
    args = [str(saved[0]) if a == 'MODEL' else str(saved[1]) if a == 'TEXT' else a for a in args]
    with pytest.raises(UserError, match=words): main([*args, '--out', str(tmp_path/'q')])
    assert not (tmp_path/'q').exists()

def test_what_would_fail_later_is_refused_at_once(saved, tmp_path, monkeypatch):
    path, text = saved
    run = lambda model, out, *more: main([str(model), '--method', 'rtn', '--out', str(out), *more])
    run(path, tmp_path/'q')
    with pytest.raises(UserError, match='quantized already'): run(tmp_path/'q', tmp_path/'again')
    run(path, tmp_path/'q')                                                                        # its own old result may be replaced
    kept = path.parent/'kept'; shutil.copytree(path, kept)
    for out in (kept, text): pytest.raises(UserError, run, kept, out).match('something else')
    assert (kept/'model.safetensors').exists() and text.exists()
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match='1 B free'): run(path, tmp_path/'new')

def test_an_unknown_method_is_named(saved, capsys):
    with pytest.raises((UserError, SystemExit)) as e: main([str(saved[0]), '--method', 'awqq'])
    said = str(e.value) + capsys.readouterr().err
    assert 'awqq' in said and 'gptq' in said

def test_an_interrupted_run_leaves_the_old_result(saved, tmp_path, monkeypatch):
    from labkit.core import progress
    path, text = map(str, saved)
    main([path, '--method', 'rtn', '--out', str(tmp_path/'q')])
    old = (tmp_path/'q'/'model.safetensors').read_bytes()
    def stop(items, *a, **k):
        yield next(iter(items))
        raise KeyboardInterrupt
    monkeypatch.setattr(progress, 'track', stop)
    with pytest.raises(KeyboardInterrupt): main([path, '--method', 'awq', '--out', str(tmp_path/'q'), '--calibrate', text, '--windows', '2', '--window', '16'])
    assert (tmp_path/'q'/'model.safetensors').read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ['q']

def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    "The system refuses files over 20 kB, as a full disk would"
    save_as(quantize_model(tiny(), 32), tmp_path/'q', 'awq')
    old, limit, handler = (tmp_path/'q'/'model.safetensors').read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        with pytest.raises(UserError, match='cannot be written.*nothing half-written'): save_as(quantize_model(tiny(), 32), tmp_path/'q', 'gptq')
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limit); signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path/'q'/'model.safetensors').read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ['q']

@pytest.mark.parametrize('args, said', [(['--windows', '0'], '--windows 0'), (['--window', '0'], '--window 0'), (['--group', '-8'], '--group -8')])
def test_counts_below_one_are_refused_before_any_work(tmp_path, args, said):
    with pytest.raises(UserError, match=said): main(['smollm2-135m-instruct', '--out', str(tmp_path/'q'), *args])

def test_an_empty_calibration_text_is_refused(tmp_path):
    (tmp_path/'t.txt').write_text(' \n')
    with pytest.raises(UserError, match='holds no text'): main(['smollm2-135m-instruct', '--out', str(tmp_path/'q'), '--calibrate', str(tmp_path/'t.txt')])
