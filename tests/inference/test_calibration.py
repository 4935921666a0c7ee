"AWQ and GPTQ: what they promise, matrix by matrix and on a whole model."
import copy
import pytest, torch
from labkit.core.settings import UserError
from labkit.corpus.tokens import train_tokenizer
from labkit.inference.calibration import GROUPS, Recipe, best_scale, calibrate, calibration_tokens, fold, gptq_round, output_error, refitted, repaired, second_moment, uniform_group
from labkit.inference.quantize import W4Linear, dequantize_groups, linears, quantize_groups, quantize_model
from labkit.model.config import ModelConfig
from labkit.model.transformer import Transformer

torch.set_num_threads(1)
TOKENIZER = train_tokenizer(['hello world, the cat sat on the mat. 你好世界 ' * 3] * 3, 300)
SIZES = dict(vocab_size=300, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=128)

def tiny(**changes):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**{**SIZES, **changes})).eval().requires_grad_(False)
    for n, p in model.named_parameters():
        if 'norm' in n: p.mul_(torch.exp(.8 * torch.randn_like(p)))              # some inputs are large, as in real models
        elif p.dim() > 1: p.mul_(4)
    return model

@pytest.fixture(scope='module')
def matrix():
    "Weights, inputs that hang together, their second moment"
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 24, generator=g) @ torch.randn(24, 128, generator=g) + .3 * torch.randn(2000, 128, generator=g)
    x *= torch.exp(torch.randn(128, generator=g))
    return torch.randn(32, 128, generator=g), x, second_moment(x)

def error(q, w, h, s=1.): return float(output_error(dequantize_groups(*q) / s - w, h))

def test_the_moment_gives_the_error_of_the_product(matrix):
    w, x, h = matrix
    d = torch.randn_like(w)
    torch.testing.assert_close(output_error(d, h), (x @ d.T).square().sum(1).mean(), rtol=1e-4, atol=0)

@pytest.mark.parametrize('act_order', [False, True])
@pytest.mark.parametrize('group', [32, 64, 128])
def test_gptq_beats_rounding_by_far(matrix, group, act_order):
    w, x, h = matrix
    q, scale, zero = gptq_round(w, h, group, act_order=act_order)
    assert q.dtype == torch.uint8 and q.max() <= 15 and scale.shape == (32, 128 // group) and zero.min() >= 1
    assert error((q, scale, zero), w, h) < .6 * error(quantize_groups(w, group), w, h)

def test_gptq_with_independent_inputs_is_rounding(matrix):
    w = matrix[0]
    q, s, z = gptq_round(w, torch.eye(128), 32)
    r, s2, z2 = quantize_groups(w, 32, shrink=(1., .95, .9, .85, .8))
    assert torch.equal(s, s2) and torch.equal(z, z2) and (q != r).float().mean() < .001

def test_gptq_leaves_its_input_alone_and_survives_columns_that_are_never_used(matrix):
    w, x, h = matrix
    h = h.clone(); h[5], h[:, 5] = 0, 0
    before = w.clone()
    q, s, z = gptq_round(w, h, 32)
    assert torch.equal(w, before) and torch.isfinite(s.float()).all() and error((q, s, z), w, h) < error(quantize_groups(w, 32), w, h)

def test_scales_serve_large_columns(matrix):
    w, x, h = matrix
    s, errors = best_scale([w], h, x.abs().mean(0), 64)
    assert min(errors) < .9 * errors[0] and torch.corrcoef(torch.stack([s.log(), x.abs().mean(0).log()]))[0, 1] > .9
    assert error(quantize_groups(w * s, 64), w, h, s) == pytest.approx(min(errors), rel=1e-4)

@pytest.mark.parametrize('kv', [2, 4])
def test_folding_changes_nothing_in_floats(kv):
    model, ids = tiny(n_kv_heads=kv), torch.arange(40)[None]
    other = copy.deepcopy(model)
    b, cfg, g = other.layers[0], model.cfg, torch.Generator().manual_seed(2)
    for before, names in GROUPS.items():
        s = torch.rand(b.get_submodule(names[0]).in_features, generator=g) + .5
        if names == ('self_attn.o_proj',): s = s.view(cfg.n_kv_heads, -1, cfg.head_dim)[:, :1].expand(-1, 4 // kv, -1).flatten()
        for n in names: b.get_submodule(n).weight.mul_(s)
        fold(b.get_submodule(before), s, cfg)
    torch.testing.assert_close(other(ids), model(ids), atol=2e-3, rtol=2e-3)

def test_folding_into_rounded_rows_keeps_the_integers():
    model = quantize_model(tiny())
    v, s = model.layers[0].self_attn.v_proj, torch.rand(64) + .5
    old, q = v.dequantize(), v.qweight.clone()
    fold(v, s, model.cfg)                                                        # 4 query heads read 2 value heads
    want = old / s.view(2, 2, 16)[:, 0].flatten()[:, None]
    assert torch.equal(v.qweight, q)
    torch.testing.assert_close(v.dequantize(), want, atol=1e-3, rtol=2e-3)

def test_repair_undoes_a_linear_error(matrix):
    w, x, h = matrix
    off = x + .2 * x.roll(1, 1)
    lost = lambda v: float((x @ w.T - off @ v.T).square().mean())
    full, half = (repaired(w, second_moment(off), (x - off).T @ off / len(x), share, ridge=.001) for share in (1., .5))
    assert lost(full) < .2 * lost(w) and lost(full) < lost(half) < lost(w)
    assert torch.equal(repaired(w, h, torch.zeros_like(h)), w)

@pytest.mark.parametrize('rounding', [quantize_groups, lambda w, group, h: gptq_round(w, h, group)], ids=['nearest', 'gptq'])
def test_scales_are_fitted_to_their_integers(matrix, rounding):
    w, x, h = matrix
    q, s, z = rounding(w, 32, h=h) if rounding is not quantize_groups else rounding(w, 32)
    new = refitted(q, s, z, w, h)
    assert new.dtype == torch.float16 and error((q, new, z), w, h) < .98 * error((q, s, z), w, h)
    exact = dequantize_groups(q, s, z)                                           # weights that the integers hold without error
    torch.testing.assert_close(refitted(q, s, z, exact, h).float(), s.float(), rtol=2e-3, atol=0)
    lost = refitted(q, s, z, torch.zeros_like(w), h)                             # the best scale would be 0
    assert torch.equal(lost, s)

METHODS = [Recipe('awq', 64, refit=False, repair=0.), Recipe('awq', 64), Recipe('gptq', 64, refit=False, repair=0.), Recipe('awq+gptq', 64, repair=0.), Recipe(group=64), Recipe(group=64, act_order=True)]

@pytest.mark.parametrize('recipe', METHODS, ids=lambda r: f'{r.method} {r.refit} {r.repair} {r.act_order}')
def test_a_calibrated_model_beats_a_rounded_one(recipe):
    g = torch.Generator().manual_seed(1)
    calib, held = (torch.randint(0, 300, (n, 64), generator=g) for n in (24, 4))
    model, fitted = tiny(), tiny()
    seen = []
    errors = calibrate(fitted, calib, recipe, lambda blocks: (seen.append(len(blocks)), blocks)[1])
    off = lambda m: float((m.hidden(held) - model.hidden(held)).norm())
    assert seen == [2] and len(errors) == 2 and 0 < errors[0] < 1
    assert off(fitted) < .9 * off(quantize_model(tiny(), 64)), recipe
    assert len(linears(fitted, W4Linear)) == 14 and not linears(fitted) and {m.group for _, m in linears(fitted, W4Linear)} == {64}

def test_biases_and_norms_of_heads_are_kept():
    for changes in (dict(qkv_bias=True, family='qwen2'), dict(qk_norm=True, family='qwen3'), dict(n_kv_heads=4)):
        model, fitted = tiny(**changes), tiny(**changes)
        ids = torch.randint(0, 300, (16, 48), generator=torch.Generator().manual_seed(1))
        calibrate(fitted, ids, Recipe(group=64))
        off = lambda m: float((m.hidden(ids) - model.hidden(ids)).norm() / model.hidden(ids).norm())
        assert off(fitted) < .9 * off(quantize_model(tiny(**changes), 64)), changes

def test_a_group_is_as_large_as_its_rows_allow():
    model = tiny()                                                                # 64 columns take 64, 128 take 128
    calibrate(model, torch.randint(0, 300, (4, 32), generator=torch.Generator().manual_seed(1)))
    assert {n.rpartition('.')[2]: m.group for n, m in linears(model, W4Linear)}['down_proj'] == 128 and model.layers[0].mlp.up_proj.group == 64

def test_one_size_of_group_for_all():
    assert uniform_group(ModelConfig(300, 576, 1, 9, 3, 1536), 128) == 64 and uniform_group(ModelConfig(300, 1024, 1, 8, 8, 2048), 128) == 128

def test_windows_come_from_all_over_the_text():
    text = ''.join(f'{i} ' for i in range(4000))
    t = calibration_tokens(TOKENIZER, [text, text[:9000]], n=5, length=32)
    assert t.shape == (5, 32) and t[0].tolist() == TOKENIZER.encode(text)[:32] and t[2].tolist() == TOKENIZER.encode(text)[-32:]
    with pytest.raises(UserError, match='too short'): calibration_tokens(TOKENIZER, ['hello'], n=5, length=32)

def test_nothing_is_left_hanging_on_the_model():
    model = tiny()
    calibrate(model, torch.randint(0, 300, (4, 32), generator=torch.Generator().manual_seed(1)))
    assert not any(m._forward_pre_hooks for m in model.modules()) and {type(m).__name__ for b in model.layers for m in b.modules()} == {'Block', 'Attention', 'FeedForward', 'RMSNorm', 'W4Linear'}

def test_mixtures_are_refused():
    with pytest.raises(UserError, match='mixture of experts'): calibrate(tiny(n_experts=2, experts_per_token=1, family='mixtral'), torch.zeros(2, 8, dtype=torch.long))
