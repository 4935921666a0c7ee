"Parameter groups, schedule, and the cross-entropy that never holds whole logits"
import math, pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from labkit.model.config import preset
from labkit.model.transformer import Transformer
from labkit.pretrain.optimizer import cross_entropy_sum, learning_rate, make_optimizer, param_groups

@pytest.mark.parametrize('tied', [True, False])
def test_groups_hold_every_parameter_once(tied):
    m = Transformer(preset('lab-1m', vocab_size=64, dim=16, n_heads=2, n_kv_heads=1, tie_embeddings=tied, qkv_bias=True, family='qwen2'))
    decay, rest = param_groups(m, .1)
    names = {id(p): n for n, p in m.named_parameters()}
    assert sorted(names.values()) == sorted(names[id(p)] for g in (decay, rest) for p in g['params'])
    assert {names[id(p)].split('.')[-2] for p in decay['params']} == {'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'} | ({'lm_head'} - ({'lm_head'} if tied else set()))
    assert rest['weight_decay'] == 0 and 'embed_tokens.weight' in [names[id(p)] for p in rest['params']]

def test_frozen_parameters_are_left_out():
    m = torch.nn.Linear(3, 3); m.bias.requires_grad_(False)
    assert [len(g['params']) for g in param_groups(m, .1)] == [1, 0]

@given(n=st.integers(1, 40), chunk=st.integers(1, 50), v=st.integers(2, 30), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_chunked_cross_entropy_equals_the_plain_one(n, chunk, v, seed):
    g = torch.Generator().manual_seed(seed)
    h, w = (torch.randn(*s, generator=g, dtype=torch.float64).float().requires_grad_() for s in ((n, 5), (v, 5)))
    y = torch.randint(0, v, (n,), generator=g)
    ours, plain = cross_entropy_sum(h, w, y, chunk) / n, F.cross_entropy(h @ w.T, y)
    for a, b in zip(torch.autograd.grad(ours, (h, w)), torch.autograd.grad(plain, (h, w))): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)

def test_logits_of_any_size_do_not_overflow():
    h, w = torch.full((2, 1), 1e4, requires_grad=True), torch.tensor([[1.], [-1.]], requires_grad=True)
    loss = cross_entropy_sum(h, w, torch.tensor([0, 1])); loss.backward()
    assert loss.item() == pytest.approx(2e4) and torch.isfinite(h.grad).all() and torch.isfinite(w.grad).all()

def test_bf16_gradients_are_close_and_without_gradients_nothing_is_kept():
    h, w, y = torch.randn(64, 32, requires_grad=True), torch.randn(50, 32, requires_grad=True), torch.randint(0, 50, (64,))
    with torch.autocast('cpu', torch.bfloat16): low = cross_entropy_sum(h, w, y)
    with torch.no_grad(): alone = cross_entropy_sum(h, w, y)
    assert low.dtype == torch.float32 and alone.grad_fn is None
    assert low.item() == pytest.approx(alone.item(), rel=1e-2)

@given(lr=st.floats(1e-6, 1), part=st.floats(0, 1), warmup=st.integers(0, 50), steps=st.integers(1, 100))
def test_the_schedule_stays_between_its_ends(lr, part, warmup, steps):
    rates = [learning_rate(i, i / steps, lr, lr * part, warmup) for i in range(steps + 1)]
    assert all(0 <= r <= lr * (1 + 1e-9) for r in rates)
    if steps > warmup: assert math.isclose(rates[-1], lr * part, rel_tol=1e-6, abs_tol=1e-12)

def test_adamw_is_pytorchs_fused_one_with_our_groups():
    o = make_optimizer(torch.nn.Linear(2, 2), 1e-3, (.9, .95), .1)
    assert o.defaults['fused'] and [g['weight_decay'] for g in o.param_groups] == [.1, 0.]
