"Parameter groups and schedule"
import math, pytest, torch
from hypothesis import given, settings, strategies as st
from labkit.model.config import preset
from labkit.model.transformer import Transformer
from labkit.pretrain.optimizer import learning_rate, make_optimizer, param_groups

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

@given(lr=st.floats(1e-6, 1), part=st.floats(0, 1), warmup=st.integers(0, 50), steps=st.integers(1, 100))
def test_the_schedule_stays_between_its_ends(lr, part, warmup, steps):
    rates = [learning_rate(i, i / steps, lr, lr * part, warmup) for i in range(steps + 1)]
    assert all(0 <= r <= lr * (1 + 1e-9) for r in rates)
    if steps > warmup: assert math.isclose(rates[-1], lr * part, rel_tol=1e-6, abs_tol=1e-12)

def test_adamw_is_pytorchs_fused_one_with_our_groups():
    o = make_optimizer(torch.nn.Linear(2, 2), 1e-3, (.9, .95), .1)
    assert o.defaults['fused'] and [g['weight_decay'] for g in o.param_groups] == [.1, 0.]
