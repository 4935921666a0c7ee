"""GGUF: the embedded model against transformers, tiny files of every architecture, and broken files."""
import functools, struct
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.model.checkpoint import embedded_file, open_model, save_model
from labkit.model.config import ModelConfig, RopeScaling
from labkit.model.gguf import _BLOCKS, gguf_config, gguf_tokenizer, load_gguf, model_tensors, read_gguf, unpermute
from labkit.model.transformer import Transformer, rope_frequencies

gguf = pytest.importorskip('gguf')
GPT2_BYTES = __import__('tokenizers').pre_tokenizers.ByteLevel.alphabet()
THEIRS = {'embed_tokens': 'token_embd', 'norm': 'output_norm', 'lm_head': 'output', 'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v',
          'self_attn.o_proj': 'attn_output', 'self_attn.q_norm': 'attn_q_norm', 'self_attn.k_norm': 'attn_k_norm', 'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up',
          'mlp.gate': 'ffn_gate_inp', 'mlp.shared_expert_gate': 'ffn_gate_inp_shexp', **{f'mlp.{a}.{p}_proj': f'ffn_{p}_{b}' for p in ('gate', 'up', 'down') for a, b in (('experts', 'exps'), ('shared_expert', 'shexp'))},
          'mlp.down_proj': 'ffn_down', 'input_layernorm': 'attn_norm', 'post_attention_layernorm': 'ffn_norm'}

def permute(w, heads): # llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute
    return w.reshape(heads, 2, w.shape[0]//heads//2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)

def write(path, model, arch, kind='F32', keys={}, extra={}):
    "A GGUF file as llama.cpp's converter lays it out, by the gguf package's own writer"
    cfg, w = model.cfg, gguf.GGUFWriter(path, arch)
    w.add_block_count(cfg.n_layers); w.add_context_length(cfg.max_seq_len); w.add_embedding_length(cfg.dim); w.add_feed_forward_length(cfg.ffn_dim)
    w.add_head_count(cfg.n_heads); w.add_head_count_kv(cfg.n_kv_heads); w.add_key_length(cfg.head_dim); w.add_layer_norm_rms_eps(cfg.norm_eps); w.add_rope_freq_base(cfg.rope_theta)
    for key, value in keys.get('more', {}).items(): (w.add_float32 if isinstance(value, float) else w.add_string if isinstance(value, str) else w.add_uint32)(f'{arch}.{key}', value)
    words = ['<|endoftext|>', *sorted(GPT2_BYTES)]; words += ['ab', *(f'w{i}' for i in range(cfg.vocab_size - len(words) - 1))]
    w.add_tokenizer_model('gpt2'); w.add_tokenizer_pre(keys.get('pre', 'smollm')); w.add_token_list(words); w.add_token_types([3] + [1]*(len(words) - 1)); w.add_token_merges(['a b']); w.add_eos_token_id(0)
    for name, t in {**model.state_dict(), **extra}.items():
        a, stem = t.float().numpy(), name.removesuffix('.weight').removesuffix('.bias')
        if 'shared_expert_gate' in name: a = a[0]
        stem, i = (stem.split('.', 2)[2], stem.split('.')[1]) if stem.startswith('layers.') else (stem, None)
        if arch in ('llama', 'internlm2') and stem.endswith(('q_proj', 'k_proj')): a = permute(a, cfg.n_heads if 'q_proj' in stem else cfg.n_kv_heads)
        theirs = THEIRS.get(stem, stem)
        theirs = (f'blk.{i}.{theirs}' if i else theirs) + ('.bias' if name.endswith('.bias') else '.weight')
        q = gguf.GGMLQuantizationType[kind] if a.ndim >= 2 else gguf.GGMLQuantizationType.F32
        w.add_tensor(theirs, gguf.quants.quantize(np.ascontiguousarray(a), q), raw_dtype=q)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()

def tiny(**kw):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**{**dict(vocab_size=320, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, max_seq_len=64), **kw})).eval()
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p)*.1)
    return model

ARCH = {'llama': {}, 'internlm2': dict(family='internlm2', rope_theta=1e6), 'qwen2': dict(family='qwen2', qkv_bias=True), 'qwen3': dict(family='qwen3', qk_norm=True, head_dim=32, tie_embeddings=True)}

@pytest.mark.parametrize('arch', [*ARCH, 'llama-bias'])
def test_every_architecture_comes_back(arch, tmp_path):
    kw = ARCH.get(arch, dict(qkv_bias=True))
    model, arch = tiny(**kw), arch.removesuffix('-bias')
    write(tmp_path/'m.gguf', model, arch)
    back, tok = load_gguf(tmp_path/'m.gguf')
    x = torch.randint(0, 320, (2, 30))
    assert back.cfg == model.cfg
    with torch.inference_mode(): assert torch.equal(back(x), model(x))

MIXTURES = {'llama': (dict(family='mixtral'), {}), 'qwen2moe': (dict(family='qwen2_moe', qkv_bias=True, shared_expert_dim=64, norm_topk=False), {'expert_shared_feed_forward_length': 64}), 'qwen3moe': (dict(family='qwen3_moe', qk_norm=True), {})}

@pytest.mark.parametrize('arch', MIXTURES)
@pytest.mark.parametrize('kind', ['F32', 'Q8_0'])
def test_mixtures_come_back(arch, kind, tmp_path):
    kw, more = MIXTURES[arch]
    model = tiny(**kw, n_experts=4, experts_per_token=2, **({} if arch == 'llama' else {'expert_dim': 32}))
    write(tmp_path/'m.gguf', model, arch, kind, keys={'more': {'expert_count': 4, 'expert_used_count': 2, **({} if arch == 'llama' else {'expert_feed_forward_length': 32}), **more}})
    back, tok = load_gguf(tmp_path/'m.gguf')
    assert back.cfg == model.cfg
    for a, b in zip(back.parameters(), model.parameters()): assert (a - b).abs().max() <= (0 if kind == 'F32' else .02)

def test_yarn_is_read(tmp_path):
    model = tiny(rope_scaling=RopeScaling('yarn', 4., original_max_seq_len=16), head_dim=32)
    write(tmp_path/'m.gguf', model, 'llama', keys={'more': {'rope.scaling.type': 'yarn', 'rope.scaling.factor': 4., 'rope.scaling.original_context_length': 16}})
    assert gguf_config(read_gguf(tmp_path/'m.gguf')) == model.cfg

# SentencePiece

LETTERS = '▁abcdeé'
PIECES = {**{c: -1000. - i for i, c in enumerate(LETTERS)}, **{p: -float(i) for i, p in enumerate(('ab', '▁a', 'cd', 'abc', '▁ab', 'de', 'cde', 'bc', '▁▁', '▁abcd', 'ee', 'abcd', 'éé'))}}

def sentencepiece_file(path, prefix=True, drop=()):
    w = gguf.GGUFWriter(path, 'llama')
    words = ['<unk>', '<s>', '</s>', *(f'<0x{b:02X}>' for b in range(256)), *PIECES, '<|im_start|>', '[USER]']
    n = len(PIECES)
    w.add_tokenizer_model('llama'); w.add_token_list(words); w.add_token_types([2, 3, 3] + [6]*256 + [1]*n + [3, 4])
    if 'scores' not in drop: w.add_token_scores([0.]*259 + [*PIECES.values()] + [0., 0.])
    w.add_bos_token_id(1); w.add_eos_token_id(2); w.add_add_space_prefix(prefix)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    return words

def by_hand(text, prefix): # llama.cpp's llm_tokenizer_spm: join the best-scoring neighbours, the leftmost of equals; then bytes
    if not text: return []
    parts = list((('▁' if prefix else '') + text.replace(' ', '▁')))
    while ways := [(-PIECES[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in PIECES]:
        i = min(ways)[1]; parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return [p for part in parts for p in ([part] if part in PIECES else [f'<0x{b:02X}>' for b in part.encode()])]

@pytest.fixture(scope='module', params=[True, False])
def pieces(request, tmp_path_factory):
    path = tmp_path_factory.mktemp('spm')/'t.gguf'
    return sentencepiece_file(path, request.param), gguf_tokenizer(read_gguf(path)), request.param

@settings(deadline=None, max_examples=300)
@given(st.text(alphabet='abcdeé x你') | st.text())
def test_sentencepiece_is_its_rule(pieces, text):
    words, tok, prefix = pieces
    text = text.replace('[USER]', '').replace('▁', '')
    ids = tok.encode(text)
    assert [words[i] for i in ids] == by_hand(text, prefix)
    assert tok.decode(ids) == text

def test_sentencepiece_markers(pieces):
    words, tok, prefix = pieces
    assert (tok.bos_id, tok.eos_id) == (1, 2) and tok.vocab_size == len(words)
    assert words.index('<|im_start|>') in tok.encode('<|im_start|>ab', special=True) and words.index('<|im_start|>') not in tok.encode('<|im_start|>ab')
    assert words.index('[USER]') in tok.encode('ab[USER]ab')

def test_sentencepiece_without_scores(tmp_path):
    sentencepiece_file(tmp_path/'t.gguf', drop=('scores',))
    with pytest.raises(UserError, match='metadata lack tokenizer.ggml.scores'): gguf_tokenizer(read_gguf(tmp_path/'t.gguf'))

@pytest.mark.parametrize('kind, err', [('F16', 1e-3), ('BF16', 1e-2), ('Q8_0', 1e-2), ('Q4_1', .1), ('Q4_0', .1), ('Q5_0', .1), ('Q5_1', .1)])
def test_block_types(kind, err, tmp_path):
    model = tiny(); write(tmp_path/'m.gguf', model, 'llama', kind)
    f = read_gguf(tmp_path/'m.gguf')
    packed = {t.name: t for t in model_tensors(f, gguf_config(f))}
    assert packed['layers.0.mlp.up_proj.weight'].kind == kind
    for name, p in model.state_dict().items():
        d = packed[name].dequantize()
        assert d.shape == tuple(p.shape) and d.dtype == np.float32 and np.abs(d - p.numpy()).max() <= err*max(1, p.abs().max().item())

HALF = {'Q4_0': (0,), 'Q4_1': (0, 2), 'Q8_0': (0,), 'Q4_K': (0, 2), 'Q6_K': (208,)} # where a block has its 16-bit floats

def block_by_hand(kind, raw): # ggml's layouts, one number at a time
    half = lambda at: float(np.frombuffer(raw[at:at + 2], '<f2')[0])
    if kind == 'Q8_0': return [half(0)*(b - 256 if b > 127 else b) for b in raw[2:]]
    if kind in ('Q4_0', 'Q4_1'):
        q = raw[HALF[kind][-1] + 2:]
        q = [b & 15 for b in q] + [b >> 4 for b in q]
        return [half(0)*(v - 8) for v in q] if kind == 'Q4_0' else [half(0)*v + half(2) for v in q]
    if kind == 'Q4_K':
        six = raw[4:16]
        pair = lambda j: (six[j] & 63, six[j + 4] & 63) if j < 4 else ((six[j + 4] & 15) | six[j - 4] >> 6 << 4, (six[j + 4] >> 4) | six[j] >> 6 << 4)
        return [half(0)*pair(i//32)[0]*(raw[16 + i//64*32 + i%32] >> (4 if i//32 % 2 else 0) & 15) - half(2)*pair(i//32)[1] for i in range(256)]
    def six_bits(i):
        n, j, l = i//128, i%128//32, i%32
        return ((raw[n*64 + j%2*32 + l] >> (4 if j > 1 else 0) & 15) | (raw[128 + n*32 + l] >> 2*j & 3) << 4) - 32
    scale = lambda i: raw[192 + i//16] - (256 if raw[192 + i//16] > 127 else 0)
    return [half(208)*scale(i)*six_bits(i) for i in range(256)]

def test_our_sizes_of_blocks_are_ggufs():
    for n, (name, *sizes) in _BLOCKS.items(): assert gguf.GGMLQuantizationType(n).name == name and gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(n)] == tuple(sizes)

@pytest.mark.parametrize('kind', HALF)
def test_every_promised_kind_is_unpacked_as_ggml_defines_it(kind, tmp_path):
    per_block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    raw = np.random.default_rng(1).integers(0, 256, (3, 2*size), dtype=np.uint8)
    for b in (0, size):
        for at in HALF[kind]: raw[:, b + at:b + at + 2] = np.frombuffer(np.array([.013, -.4, 2.], '<f2').tobytes(), np.uint8).reshape(3, 2)
    w = gguf.GGUFWriter(tmp_path/'k.gguf', 'llama')
    w.add_tensor('token_embd.weight', raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    t = read_gguf(tmp_path/'k.gguf').tensors['token_embd.weight']
    want = [[x for b in (0, size) for x in block_by_hand(kind, bytes(row[b:b + size]))] for row in raw]
    assert (t.kind, t.shape) == (kind, (3, 2*per_block))
    np.testing.assert_allclose(t.dequantize(), want, rtol=2e-6, atol=1e-6)

def test_rows_of_k_quants_are_mapped():
    size = gguf.GGML_QUANT_SIZES
    for kind, want in (('Q6_K', (256, 210)), ('Q4_K', (256, 144))): assert size[gguf.GGMLQuantizationType[kind]] == want

def test_k_quants_reach_the_caller_packed(tmp_path):
    w = gguf.GGUFWriter(tmp_path/'k.gguf', 'llama'); raw = np.random.default_rng(0).integers(0, 100, (6, 420), dtype=np.uint8)
    w.add_tensor('token_embd.weight', raw, raw_dtype=gguf.GGMLQuantizationType.Q6_K)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    t = read_gguf(tmp_path/'k.gguf').tensors['token_embd.weight']
    assert (t.kind, t.shape) == ('Q6_K', (6, 512)) and np.array_equal(t.blocks, raw) and t.dequantize().shape == (6, 512)

def test_llama3_scaling_is_recognised(tmp_path):
    scaled = ModelConfig(320, 64, 1, 2, 2, 96, max_seq_len=131072, rope_theta=5e5, rope_scaling=RopeScaling('llama3', 8.))
    plain = tiny(n_layers=1, n_heads=2, max_seq_len=131072, rope_theta=5e5)
    divisors = rope_frequencies(plain.cfg)/rope_frequencies(scaled)
    write(tmp_path/'m.gguf', plain, 'llama', extra={'rope_freqs.weight': divisors})
    assert gguf_config(read_gguf(tmp_path/'m.gguf')).rope_scaling == scaled.rope_scaling
    write(tmp_path/'odd.gguf', plain, 'llama', extra={'rope_freqs.weight': torch.linspace(1, 8, 16)})
    with pytest.raises(UserError, match='rope_freqs'): load_gguf(tmp_path/'odd.gguf')

@given(st.integers(1, 4), st.sampled_from([2, 4, 8]), st.integers(1, 5))
def test_unpermute_inverts_llama_cpp(heads, d, cols):
    w = np.arange(heads*d*cols).reshape(heads*d, cols)
    assert np.array_equal(unpermute(permute(w, heads), heads), w)

# the embedded model

@pytest.fixture(scope='module')
def smol(): return open_model('smollm2-135m-instruct')

def test_smollm2_equals_transformers(smol, tmp_path_factory):
    transformers = pytest.importorskip('transformers')
    model, tok = smol
    f = read_gguf(embedded_file()); cfg = gguf_config(f)
    hf = transformers.LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                                  max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=1e5, tie_word_embeddings=True)
    with torch.device('meta'): theirs = transformers.LlamaForCausalLM(hf)
    theirs = theirs.to_empty(device='cpu').eval(); theirs.model.rotary_emb.__init__(hf)
    with torch.no_grad(): # straight from the file, permutation undone by indexing
        for t in f.tensors.values():
            a = torch.from_numpy(gguf.quants.dequantize(t.blocks, gguf.GGMLQuantizationType[t.kind]).reshape(t.shape).copy())
            parts = t.name.split('.')
            heads = {'attn_q': 9, 'attn_k': 3}.get(parts[-2])
            if heads: a = a[torch.tensor([h*64 + 2*(i % 32) + i//32 for h in range(heads) for i in range(64)])]
            ours = {v: k for k, v in THEIRS.items()}[parts[-2]]
            theirs.get_parameter(f'model.layers.{parts[1]}.{ours}.weight' if parts[0] == 'blk' else f'model.{ours}.weight').copy_(a)
    theirs.tie_weights()
    x = torch.tensor([tok.encode('The quick brown fox jumps over the lazy dog. 敏捷的棕色狐狸 ' * 4)])
    with torch.inference_mode(): want, got = theirs(x).logits, model(x)
    assert x.shape[1] > 100 and (got - want).abs().max() <= 1e-4 and torch.equal(got.argmax(-1), want.argmax(-1))

def test_smollm2_knows_the_capital(smol):
    model, tok = smol
    ids = tok.encode('<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n', special=True)
    with torch.inference_mode():
        for _ in range(7): ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert tok.decode(ids).endswith('The capital of France is Paris.')

def test_tokenizer_equals_transformers_conversion(smol):
    transformers = pytest.importorskip('transformers')
    tok = smol[1]; path = embedded_file()
    theirs = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    for text in ('Hello world', 'x = 12345 + 67', '  two  spaces\n\n\tand tabs', "it's we'll DON'T", '你好，世界', '🙂🙃', 'naïve café', 'a\r\nb'):
        assert tok.decode(tok.encode(text)) == text
        assert [theirs.convert_ids_to_tokens(i) for i in theirs(text, add_special_tokens=False).input_ids] == [tok.backend.id_to_token(i) for i in tok.encode(text)] or any(c.isdigit() for c in text)
    assert [tok.decode([i]) for i in tok.encode('x 2024')] == ['x', ' ', '2', '0', '2', '4']

MISSING_BYTES = [4, 6, 19, 20, 22, 29, 192, 193, 241, 242, *range(245, 256)] # SmolLM2's vocabulary has no token for them
TOK = functools.cache(lambda: gguf_tokenizer(read_gguf(embedded_file())))

@settings(deadline=None, max_examples=100)
@given(text=st.text())
def test_any_text_comes_back(text):
    known = text.encode().translate(None, bytes(MISSING_BYTES)).decode(errors='ignore')
    assert TOK().decode(TOK().encode(known)) == known

def test_special_tokens(smol):
    tok = smol[1]
    assert tok.encode('<|im_start|>', special=True) == [1] and len(tok.encode('<|im_start|>')) > 1
    assert tok.eos_id == 2 and {0, 2} <= set(tok.eos_ids) and 'SmolLM' in tok.chat_template

def test_saved_smollm2_opens_in_transformers(smol, tmp_path):
    transformers = pytest.importorskip('transformers')
    model, tok = smol
    save_model(model, tmp_path/'m', tok)
    theirs, ttok = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/'m', dtype=torch.float32), transformers.AutoTokenizer.from_pretrained(tmp_path/'m')
    x = torch.tensor([ttok('The capital of Italy is', add_special_tokens=False).input_ids])
    assert x[0].tolist() == tok.encode('The capital of Italy is')
    with torch.inference_mode(): assert (theirs(x).logits - model(x)).abs().max() <= 1e-4

# broken files

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp('g')/'m.gguf'; write(path, tiny(), 'llama', 'Q8_0')
    return path.read_bytes()

@settings(deadline=None, max_examples=40)
@given(share=st.floats(0, 1, exclude_max=True))
def test_cut_anywhere(whole, tmp_path_factory, share):
    path = tmp_path_factory.mktemp('cut')/'m.gguf'; path.write_bytes(whole[:int(len(whole)*share)])
    with pytest.raises(UserError, match='m.gguf: (truncated|too short)'): read_gguf(path)

def test_embedded_file_cut(tmp_path):
    (tmp_path/'half.gguf').write_bytes(embedded_file().read_bytes()[:50_000_000])
    with pytest.raises(UserError, match=r'half.gguf: truncated: tensor blk\.\d+.* needs .* bytes, the file has 50,000,000; download it again'): open_model(tmp_path/'half.gguf')

@pytest.mark.parametrize('change, why', [
    (lambda b: b'GGML' + b[4:], "begins with b'GGML', expected b'GGUF'"), (lambda b: b'<!doctype html>', 'not a GGUF file'), (lambda b: b'', 'too short'),
    (lambda b: b[:4] + struct.pack('<I', 1) + b[8:], 'version 1'), (lambda b: b[:4] + struct.pack('>I', 3) + b[8:], 'expected 2 or 3'),
    (lambda b: b[:16] + struct.pack('<Q', 2**60) + b[24:], 'truncated|value type'), (lambda b: b.replace(b'general.architecture\x08\0\0\0\5\0\0\0\0\0\0\0llama', b'general.architecture\x08\0\0\0\5\0\0\0\0\0\0\0mamba'), "architecture 'mamba' is unknown; known: llama"),
    (lambda b: b.replace(b'blk.1.ffn_up.weight', b'blk.1.ffn_ex.weight'), 'm.gguf: tensor blk.1.ffn_ex.weight belongs to no architecture'),
    (lambda b: b.replace(b'blk.1.ffn_up.weight', b'blk.0.ffn_up.weight'), r'missing, among them layers\.1\.mlp\.up_proj'),
    (lambda b: b.replace(b'smollm', b'falcon'), "pre-tokenizer 'falcon' is not implemented; known: smollm"), (lambda b: b.replace(b'llama.block_count', b'llama.block_cnt__'), 'metadata lack llama.block_count')])
def test_damage(whole, tmp_path, change, why):
    damaged = change(whole); assert damaged != whole
    (tmp_path/'m.gguf').write_bytes(damaged)
    with pytest.raises(UserError, match=why): load_gguf(tmp_path/'m.gguf')

def test_absent(tmp_path):
    with pytest.raises(UserError, match='cannot be read: No such file'): load_gguf(tmp_path/'no.gguf')

def test_noise_never_crashes(whole, tmp_path):
    "Flipped bytes in the header end in a UserError or a readable file, never in another exception"
    rng = np.random.default_rng(0)
    for _ in range(60):
        b = bytearray(whole)
        for at in rng.integers(4, 9000, 3): b[at] = int(rng.integers(256))
        (tmp_path/'n.gguf').write_bytes(b)
        try: load_gguf(tmp_path/'n.gguf')
        except UserError: pass
