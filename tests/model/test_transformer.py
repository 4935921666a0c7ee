"""Logits against transformers, for every family; attention callables; positions."""
import pytest, torch
from functools import partial
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.model.checkpoint import load_model, save_model, split_wqkv
from labkit.model.config import PRESETS, ModelConfig, RopeScaling, from_hf, preset, to_hf
from labkit.model.transformer import Transformer, apply_rope, causal_attention, from_tensors, window_mask

transformers = pytest.importorskip('transformers')
BASE = dict(vocab_size=160, dim=48, n_layers=3, n_heads=6, n_kv_heads=2, ffn_dim=80, max_seq_len=64)
TINY = {
    'llama': {}, 'llama-tied': dict(tie_embeddings=True), 'llama-bias': dict(qkv_bias=True, o_bias=True),
    'llama-linear': dict(rope_scaling=RopeScaling('linear', 3.)), 'llama-dynamic': dict(rope_scaling=RopeScaling('dynamic', 2.), max_seq_len=16),
    'llama-3.1': dict(rope_scaling=RopeScaling('llama3', 8., 1., 4., 32), rope_theta=5e5),
    'qwen2': dict(family='qwen2', qkv_bias=True, norm_eps=1e-6, rope_theta=1e6), 'qwen2-window': dict(family='qwen2', qkv_bias=True, sliding_window=9),
    'qwen3': dict(family='qwen3', qk_norm=True, head_dim=16, tie_embeddings=True),
    'llama-yarn': dict(rope_scaling=RopeScaling('yarn', 4., original_max_seq_len=32), head_dim=32), 'llama-yarn-set': dict(rope_scaling=RopeScaling('yarn', 2., original_max_seq_len=24, beta_fast=8., beta_slow=2., attention_factor=1.3), head_dim=32),
    'qwen2-yarn': dict(family='qwen2', qkv_bias=True, rope_theta=1e6, head_dim=16, rope_scaling=RopeScaling('yarn', 4., original_max_seq_len=64)),
    'qwen2-mixed': dict(family='qwen2', qkv_bias=True, sliding_window=9, window_layers=(1, 2)), 'qwen3-mixed': dict(family='qwen3', qk_norm=True, sliding_window=9, window_layers=(0, 2)),
    'qwen3-bias': dict(family='qwen3', qk_norm=True, qkv_bias=True, o_bias=True),
    'mixtral': dict(family='mixtral', n_experts=4, experts_per_token=2), 'mixtral-window': dict(family='mixtral', n_experts=4, experts_per_token=1, sliding_window=7, n_kv_heads=6),
    'qwen2_moe': dict(family='qwen2_moe', qkv_bias=True, n_experts=6, experts_per_token=3, expert_dim=24, shared_expert_dim=56, norm_topk=False),
    'qwen2_moe-norm': dict(family='qwen2_moe', qkv_bias=True, n_experts=5, experts_per_token=2, expert_dim=24, shared_expert_dim=40),
    'qwen3_moe': dict(family='qwen3_moe', qk_norm=True, head_dim=16, n_experts=8, experts_per_token=3, expert_dim=24), 'qwen3_moe-plain': dict(family='qwen3_moe', qk_norm=True, n_experts=8, experts_per_token=8, expert_dim=24, norm_topk=False),
    'mistral': dict(family='mistral'), 'mistral-window': dict(family='mistral', sliding_window=7)}

def tiny(name: str, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(**{**BASE, **TINY[name]})).eval()
    with torch.no_grad(): # far from the initial state, where norms are 1 and biases 0
        for p in model.parameters(): p.add_(torch.randn_like(p) * .2)
    return model

def tokens(T=40, B=2, V=160): return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(1))

@pytest.mark.parametrize('name', TINY)
def test_logits_equal_transformers(name, tmp_path):
    model = tiny(name)
    save_model(model, tmp_path/'m')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/'m', dtype=torch.float32, attn_implementation='eager').eval()
    x = tokens()
    with torch.inference_mode():
        want, got = theirs(x).logits, model(x)
    assert want.abs().max() > .5 and (got - want).abs().max() <= 1e-4

@pytest.mark.parametrize('name', TINY)
def test_their_checkpoint_is_read(name, tmp_path):
    save_model(tiny(name), tmp_path/'ours')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/'ours', dtype=torch.float32, attn_implementation='eager').eval()
    theirs.save_pretrained(tmp_path/'theirs')
    x = tokens()
    with torch.inference_mode(): assert (load_model(tmp_path/'theirs')(x) - theirs(x).logits).abs().max() <= 1e-4

def typical(error: torch.Tensor, model) -> float: # (B, T, V)
    each = error.float().square().mean(-1) # (B, T)
    return (each.median() if model.cfg.n_experts else each.mean()).sqrt().item()

@pytest.mark.parametrize('name', TINY)
def test_bfloat16_is_no_worse_than_transformers(name, tmp_path):
    "Against transformers' float32: the mean error over three sets of weights, a tenth allowed for chance. Where a router's scores almost tie, rounding picks another expert in either program: there the median token decides"
    ours, their = 0., 0.
    for seed in range(3):
        model = tiny(name, seed)
        save_model(model, tmp_path/f'{seed}')
        load = partial(transformers.AutoModelForCausalLM.from_pretrained, tmp_path/f'{seed}', attn_implementation='sdpa')
        x = tokens()
        with torch.inference_mode():
            want = load(dtype=torch.float32).eval()(x).logits
            a, b = load_model(tmp_path/f'{seed}', dtype=torch.bfloat16)(x) - want, load(dtype=torch.bfloat16).eval()(x).logits - want
        ours, their = ours + typical(a, model), their + typical(b, model)
    assert 0 < ours <= 1.1*their

@pytest.mark.parametrize('family, kw', [('internlm', dict(n_kv_heads=6, qkv_bias=True, o_bias=True, norm_eps=1e-6)), ('internlm', dict(n_kv_heads=6)),
                                        ('internlm3', dict(rope_scaling=RopeScaling('dynamic', 6.), rope_theta=5e7, head_dim=16)), ('internlm3', dict(qkv_bias=True, o_bias=True))])
def test_internlm_1_and_3_equal_llama_of_the_same_weights(family, kw, tmp_path):
    import json
    from safetensors.torch import save_file
    cfg = ModelConfig(**{**BASE, **kw}, family=family)
    hf = {k: v for k, v in to_hf(cfg).items() if k not in ('architectures', 'model_type', 'bias', 'qkv_bias')}
    torch.manual_seed(1)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hf, attention_bias=cfg.o_bias)).eval()
    with torch.no_grad():
        for p in theirs.parameters(): p.add_(torch.randn_like(p)*.2)
    state = {k: t.clone() for k, t in theirs.state_dict().items()} | {'model.layers.0.self_attn.rotary_emb.inv_freq': torch.ones(4)} # old checkpoints carry it
    (tmp_path/'config.json').write_text(json.dumps(to_hf(cfg))); save_file(state, tmp_path/'model.safetensors')
    x = tokens(T=100) # beyond max_seq_len
    with torch.inference_mode(): assert (load_model(tmp_path)(x) - theirs(x).logits).abs().max() <= 1e-4

def internlm2_like(cfg: ModelConfig, seed: int) -> dict:
    "A checkpoint as InternLM2's own code names and packs it, built from random numbers alone"
    g, d, K = torch.Generator().manual_seed(seed), cfg.head_dim, cfg.n_kv_heads
    w = lambda *shape: torch.randn(shape, generator=g) * .2
    out = {'model.tok_embeddings.weight': w(cfg.vocab_size, cfg.dim), 'model.norm.weight': 1 + w(cfg.dim), 'output.weight': w(cfg.vocab_size, cfg.dim)}
    for i in range(cfg.n_layers):
        p = f'model.layers.{i}.'
        out |= {p + 'attention.wqkv.weight': w((cfg.n_heads + 2*K)*d, cfg.dim), p + 'attention.wo.weight': w(cfg.dim, cfg.n_heads*d),
                p + 'feed_forward.w1.weight': w(cfg.ffn_dim, cfg.dim), p + 'feed_forward.w3.weight': w(cfg.ffn_dim, cfg.dim),
                p + 'feed_forward.w2.weight': w(cfg.dim, cfg.ffn_dim), p + 'attention_norm.weight': 1 + w(cfg.dim), p + 'ffn_norm.weight': 1 + w(cfg.dim)}
    return out

def as_llama(state: dict, cfg: ModelConfig) -> dict:
    "The same weights for transformers' Llama, split row by row with a loop that shares nothing with `split_wqkv`"
    out, group, d = {}, cfg.n_heads//cfg.n_kv_heads, cfg.head_dim
    plain = {'tok_embeddings': 'embed_tokens', 'attention.wo': 'self_attn.o_proj', 'feed_forward.w1': 'mlp.gate_proj', 'feed_forward.w3': 'mlp.up_proj',
             'feed_forward.w2': 'mlp.down_proj', 'attention_norm': 'input_layernorm', 'ffn_norm': 'post_attention_layernorm'}
    for name, t in state.items():
        if 'wqkv' not in name:
            for a, b in plain.items(): name = name.replace(a, b)
            out['lm_head.weight' if name == 'output.weight' else name] = t; continue
        rows = {'q': [], 'k': [], 'v': []}
        for r in range(t.shape[0]):
            place = r//d % (group + 2)
            rows['q' if place < group else 'k' if place == group else 'v'].append(t[r])
        for p in 'qkv': out[name.replace('attention.wqkv', f'self_attn.{p}_proj')] = torch.stack(rows[p])
    return out

@pytest.mark.parametrize('kv', [1, 2, 3, 6])
def test_internlm2_checkpoint_equals_llama_on_the_split_weights(kv, tmp_path):
    import json
    from safetensors.torch import load_file, save_file
    cfg = ModelConfig(**{**BASE, 'n_kv_heads': kv}, rope_theta=1e6, rope_scaling=RopeScaling('dynamic', 2.), family='internlm2')
    state = internlm2_like(cfg, kv)
    (tmp_path/'config.json').write_text(json.dumps({**to_hf(cfg), 'architectures': ['InternLM2ForCausalLM']})); save_file(state, tmp_path/'model.safetensors')
    ours = load_model(tmp_path)
    hf = transformers.LlamaConfig(vocab_size=160, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=kv, max_position_embeddings=64,
                                  rms_norm_eps=1e-5, tie_word_embeddings=False, rope_theta=1e6, rope_scaling={'rope_type': 'dynamic', 'factor': 2.})
    theirs = transformers.LlamaForCausalLM(hf).eval()
    assert not theirs.load_state_dict(as_llama(state, cfg), strict=False).missing_keys
    x = tokens(T=100) # longer than max_seq_len: dynamic scaling acts
    with torch.inference_mode(): assert (ours(x) - theirs(x).logits).abs().max() <= 1e-4
    save_model(ours, tmp_path/'again')
    again = load_file(tmp_path/'again'/'model.safetensors')
    assert again.keys() == state.keys() and all(torch.equal(again[k], state[k]) for k in state)

@pytest.mark.parametrize('name', ['llama', 'qwen3', 'mistral-window', 'llama-3.1'])
def test_a_cache_is_an_attention_callable(name):
    "Prompt in two pieces, then token by token, equals everything at once"
    model, x, kept = tiny(name), tokens(T=24), {}
    def cached(q, k, v, layer):
        if layer in kept: k, v = torch.cat((kept[layer][0], k), 1), torch.cat((kept[layer][1], v), 1)
        kept[layer] = k, v
        return causal_attention(q, k, v, layer, model.cfg.sliding_window)
    with torch.inference_mode():
        want, got, at = model(x), [], 0
        for n in (10, 6, *[1]*8):
            pos = torch.arange(at, at + n).expand(2, n)
            got.append(model(x[:, at:at + n], pos, cached)); at += n
    assert (torch.cat(got, 1) - want).abs().max() <= 2e-5

def test_positions_default_to_counting_and_only_distance_matters():
    model, x = tiny('llama'), tokens(T=12)
    pos = torch.arange(12).expand(2, 12)
    with torch.inference_mode():
        want = model(x)
        assert torch.equal(model(x, pos), want)
        assert (model(x, pos + 17) - want).abs().max() < 1e-4 # a relative encoding
        assert (model(x, pos*2) - want).abs().max() > 1e-2

def test_left_padding_by_an_attention_callable():
    "A batch of different lengths, padded in front, through positions and a masking callable"
    import torch.nn.functional as F
    model, x = tiny('qwen2'), tokens(T=12)
    real = torch.tensor([12, 7])
    pad = torch.arange(12)[None] < (12 - real)[:, None] # (B, T)
    pos = (torch.arange(12)[None] - (12 - real)[:, None]).clamp(min=0)
    def masked(q, k, v, layer):
        mask = window_mask(12, 12) & ~pad[:, None, None, :] | torch.eye(12, dtype=torch.bool)
        return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_mask=mask, enable_gqa=True).transpose(1, 2)
    with torch.inference_mode():
        got = model(x, pos, masked)
        assert (got[1, 5:] - model(x[1:, 5:])[0]).abs().max() < 1e-4

@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 12))
def test_window_mask_is_its_definition(T, more, window):
    S = T + more
    got = window_mask(T, S, window)
    for i in range(T):
        for j in range(S): assert bool(got[i, j]) == (0 <= (S - T + i) - j < window)

@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(0, 8), st.sampled_from([(4, 4), (4, 2), (6, 1)]), st.none() | st.integers(1, 9), st.integers(0, 99))
def test_causal_attention_is_softmax_over_the_mask(T, more, heads, window, seed):
    H, K = heads; S = T + more; g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, n, h, 8, generator=g) for n, h in ((T, H), (S, K), (S, K)))
    kk, vv = (t.repeat_interleave(H//K, 2) for t in (k, v))
    scores = torch.einsum('bthd,bshd->bhts', q, kk) / 8**.5
    p = scores.masked_fill(~window_mask(T, S, window), -torch.inf).softmax(-1)
    assert torch.allclose(causal_attention(q, k, v, 0, window), torch.einsum('bhts,bshd->bthd', p, vv), atol=1e-5)

def test_gradients_flow_after_inference_mode():
    "The cached rotary table is no inference tensor"
    model, x = tiny('llama'), tokens(T=8)
    with torch.inference_mode(): model(x); model(x, torch.arange(8).expand(2, 8))
    model(x).square().mean().backward()
    model(x, torch.arange(8).expand(2, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

@pytest.mark.parametrize('name', PRESETS)
def test_counted_parameters_are_the_modules(name):
    cfg = PRESETS[name]
    with torch.device('meta'): model = Transformer(cfg)
    assert sum(p.numel() for p in model.parameters()) == cfg.n_params
    assert from_hf(to_hf(cfg)) == cfg

def test_published_sizes():
    "Parameter counts as the model cards' safetensors state them"
    known = {'smollm2-135m': 134515008, 'smollm2-360m': 361821120, 'smollm2-1.7b': 1711376384, 'llama2-7b': 6738415616, 'llama3-8b': 8030261248, 'llama3.2-1b': 1235814400,
             'qwen2.5-0.5b': 494032768, 'qwen2.5-1.5b': 1543714304, 'qwen2.5-7b': 7615616512, 'qwen3-0.6b': 596049920, 'qwen3-8b': 8190735360, 'mistral-7b': 7241732096,
             'mixtral-8x7b': 46702792704, 'qwen1.5-moe-a2.7b': 14315784192, 'qwen3-30b-a3b': 30532122624}
    assert {n: preset(n).n_params for n in known} == known
    assert preset('internlm2-7b').flops_per_token(4096) == pytest.approx(50.6e9, rel=1e-3)
    reports = {'internlm2-1.8b': 1.889, 'internlm2-7b': 7.738, 'internlm2-20b': 19.86, 'internlm3-8b': 8.80, 'internlm-7b': 7.32, 'internlm-20b': 20.09, 'llama2-70b': 68.98}
    for n, b in reports.items(): assert preset(n).n_params/1e9 == pytest.approx(b, rel=1e-3), n
    assert (round(preset('mixtral-8x7b').active_params/1e9, 1), round(preset('qwen3-30b-a3b').active_params/1e9, 1)) == (12.9, 3.4)

@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_config_survives_its_hugging_face_form(data):
    "Whatever a family can say comes back as it was; what it can't is an error"
    d = lambda s: data.draw(s)
    family, kv = d(st.sampled_from(['llama', 'internlm', 'internlm2', 'internlm3', 'qwen2', 'qwen3', 'mistral', 'mixtral', 'qwen2_moe', 'qwen3_moe'])), d(st.integers(1, 4))
    n = d(st.integers(1, 5))
    scaling = d(st.none() | st.builds(RopeScaling, st.sampled_from(['linear', 'dynamic']), st.floats(1, 64))
                | st.builds(lambda f, lo, hi, m: RopeScaling('llama3', f, lo, hi, m), st.floats(1, 64), st.floats(.5, 2), st.floats(2.5, 8), st.integers(16, 9999))
                | st.builds(lambda f, m, a: RopeScaling('yarn', f, original_max_seq_len=m, attention_factor=a), st.floats(1, 64), st.integers(16, 9999), st.none() | st.floats(.5, 2)))
    experts = dict(n_experts=(e := d(st.integers(1, 9))), experts_per_token=d(st.integers(1, e)), expert_dim=8*d(st.integers(1, 99)), shared_expert_dim=d(st.integers(0, 50)), norm_topk=d(st.booleans())) if d(st.booleans()) else {}
    window = dict(sliding_window=d(st.integers(1, 99)), window_layers=d(st.none() | st.sets(st.integers(0, n - 1), min_size=1).map(tuple))) if d(st.booleans()) else {}
    cfg = ModelConfig(d(st.integers(1, 10**6)), 8*d(st.integers(1, 512)), n, kv*d(st.integers(1, 4)), kv, 8*d(st.integers(1, 999)), head_dim=2*d(st.integers(1, 64)), max_seq_len=d(st.integers(1, 10**6)),
        rope_theta=d(st.floats(10, 1e8)), rope_scaling=scaling, norm_eps=d(st.sampled_from([1e-5, 1e-6])), tie_embeddings=d(st.booleans()), qkv_bias=d(st.booleans()), o_bias=d(st.booleans()),
        qk_norm=d(st.booleans()), family=family, **window, **experts)
    try: hf = to_hf(cfg)
    except UserError as e: assert "can't hold" in str(e) or 'not implemented' in str(e) or 'lacks' in str(e) or 'experts = 0; it must be' in str(e)
    else: assert from_hf(__import__('json').loads(__import__('json').dumps(hf))) == cfg

def test_preset_changes():
    assert preset('lab-10m', dim=64, n_heads=4, n_kv_heads=2).head_dim == 16
    assert preset('qwen3-0.6b', dim=512).head_dim == 128 # was set on its own
    with pytest.raises(UserError, match="'lab-11m'.*lab-10m"): preset('lab-11m')

@pytest.mark.parametrize('change, why', [(dict(n_kv_heads=4), 'multiple of n_kv_heads'), (dict(head_dim=7), 'odd'), (dict(n_layers=0), 'n_layers'), (dict(family='gpt'), 'known'),
    (dict(n_experts=4), 'experts_per_token = 0; it must be between 1 and n_experts = 4'), (dict(n_experts=4, experts_per_token=5), 'between 1 and'), (dict(n_experts=4, experts_per_token=2, expert_dim=20), 'multiple of 8'), (dict(experts_per_token=2), 'set n_experts'),
    (dict(shared_expert_dim=8), 'set n_experts'), (dict(window_layers=(0,)), 'without a sliding_window'), (dict(sliding_window=4, window_layers=(3,)), 'expected some of 0 … 2'), (dict(sliding_window=4, window_layers=()), 'expected some')])
def test_impossible_shapes(change, why):
    with pytest.raises(UserError, match=why): ModelConfig(**{**BASE, **change})

NAN, INF = float('nan'), float('inf')
@pytest.mark.parametrize('bad', [0, -1, NAN, 2.5, '7', None, True])
@pytest.mark.parametrize('field', ['vocab_size', 'dim', 'n_layers', 'n_heads', 'n_kv_heads', 'ffn_dim', 'max_seq_len'])
def test_sizes_are_whole_numbers(field, bad):
    with pytest.raises(UserError, match=f'model config: {field} = {bad!r}; it must be a whole number, at least 1'): ModelConfig(**{**BASE, field: bad})

@pytest.mark.parametrize('change, why', [(dict(rope_theta=0.), 'above 1'), (dict(rope_theta=-1e4), 'above 1'), (dict(rope_theta=NAN), 'finite'), (dict(norm_eps=-1e-5), 'at least 0'), (dict(norm_eps=INF), 'finite'),
    (dict(norm_eps='1e-5'), "'1e-5'; it must be a finite number"), (dict(sliding_window=-4), 'at least 1'), (dict(shared_expert_dim=-8), 'at least 0'), (dict(n_experts=-2, experts_per_token=1), 'at least 0')])
def test_numbers_that_cannot_be(change, why):
    with pytest.raises(UserError, match=f'model config: {list(change)[0]} = .*{why}'): ModelConfig(**{**BASE, **change})

def test_a_width_that_the_heads_do_not_share():
    with pytest.raises(UserError, match='dim = 128 is not a multiple of n_heads = 3; change one of them, or give head_dim'): preset('lab-1m', n_heads=3, n_kv_heads=1)
    assert preset('lab-1m', n_heads=3, n_kv_heads=1, head_dim=32).head_dim == 32

@pytest.mark.parametrize('change', [dict(factor=0.), dict(factor=NAN), dict(factor='8'), dict(low_freq_factor=4.), dict(original_max_seq_len=0), dict(beta_fast=-1.), dict(attention_factor=-1.)], ids=str)
def test_scalings_that_cannot_be(change):
    with pytest.raises(UserError, match=f'rope scaling: {list(change)[0]} = '): RopeScaling(**{**dict(kind='llama3', factor=8.), **change})

@pytest.mark.parametrize('change, why', [(dict(qk_norm=True), 'qk_norm'), (dict(sliding_window=5), 'sliding_window'), (dict(qkv_bias=True), 'qkv_bias')])
def test_a_family_that_cannot_say_it(change, why):
    with pytest.raises(UserError, match=why): to_hf(ModelConfig(**BASE, **change))

def test_same_seed_same_model_and_residual_projections_are_smaller():
    torch.manual_seed(5); a = Transformer(preset('lab-1m'))
    torch.manual_seed(5); b = Transformer(preset('lab-1m'))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    mlp = a.layers[0].mlp
    assert mlp.up_proj.weight.std().item() == pytest.approx(128**-.5, rel=.05) and mlp.down_proj.weight.std().item() == pytest.approx(128**-.5/6**.5, rel=.05)
