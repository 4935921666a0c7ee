"Parameter groups, Muon, and schedules"
import math, pytest, torch
from hypothesis import given, settings, strategies as st
from labkit.model.config import preset
from labkit.model.transformer import Transformer
from labkit.core.settings import UserError
from labkit.pretrain.optimizer import SCALES, Muon, learning_rate, make_optimizer, muon_groups, newton_schulz, param_groups

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

@given(lr=st.floats(1e-6, 1), part=st.floats(0, 1), warmup=st.integers(0, 50), steps=st.integers(1, 100), kind=st.sampled_from(['cosine', 'wsd']), decay=st.floats(0, 1))
def test_the_schedule_stays_between_its_ends(lr, part, warmup, steps, kind, decay):
    rates = [learning_rate(i, i / steps, lr, lr * part, warmup, kind, decay) for i in range(steps + 1)]
    assert all(0 <= r <= lr * (1 + 1e-9) for r in rates)
    assert all(b <= a*(1 + 1e-9) for a, b in zip(rates[warmup:], rates[warmup + 1:]))
    if steps > warmup and (decay or kind == 'cosine'): assert math.isclose(rates[-1], lr * part, rel_tol=1e-6, abs_tol=1e-12)

def test_adamw_is_pytorchs_fused_one_with_our_groups():
    o = make_optimizer(torch.nn.Linear(2, 2), 1e-3, (.9, .95), .1)
    assert o.defaults['fused'] and [g['weight_decay'] for g in o.param_groups] == [.1, 0.]

@given(decay=st.floats(.01, 1), progress=st.floats(0, 1))
def test_wsd_is_level_and_then_comes_down(decay, progress):
    rate = learning_rate(10**6, progress, 1., .1, 10, 'wsd', decay)
    assert (rate == 1.) == (progress <= 1 - decay) or abs(progress - (1 - decay)) < 1e-6
    assert math.isclose(learning_rate(10**6, 1., 1., .1, 10, 'wsd', decay), .1)

def test_what_there_is_not():
    with pytest.raises(UserError, match='schedule = line: expected cosine or wsd'): learning_rate(0, 0., 1., schedule='line')
    with pytest.raises(UserError, match='optimizer = sgd: expected adamw or muon'): make_optimizer(torch.nn.Linear(2, 2), kind='sgd')
    with pytest.raises(UserError, match='scaling = mine: expected jordan or moonshot'): Muon(muon_groups(torch.nn.Linear(2, 2), .1), scaling='mine')

# ---- Muon

shapes = dict(m=st.integers(1, 24), n=st.integers(1, 24), seed=st.integers(0, 99))

def directions(g): U, s, Vt = torch.linalg.svd(g.double(), full_matrices=False); return U, s, Vt

@given(**shapes, scale=st.floats(1e-4, 1e4))
@settings(deadline=None, max_examples=40)
def test_newton_schulz_keeps_directions_and_evens_out_strengths(m, n, seed, scale):
    g = scale*torch.randn(m, n, generator=torch.Generator().manual_seed(seed))
    U, s, Vt = directions(g)
    inside = U.T @ newton_schulz(g).double() @ Vt.T
    strong = s > .02*s.norm() # weaker directions take more rounds
    assert (inside - inside.diagonal().diag()).abs().max() < .02
    assert inside.diagonal().max() < 1.25 and (inside.diagonal()[strong] > .6).all()

def test_a_stack_of_matrices_is_done_matrix_by_matrix():
    g = torch.randn(3, 10, 6)
    torch.testing.assert_close(newton_schulz(g), torch.stack([newton_schulz(x) for x in g]), atol=1e-5, rtol=1e-4)
    assert torch.equal(newton_schulz(torch.zeros(4, 4)), torch.zeros(4, 4))

@given(**shapes)
@settings(deadline=None, max_examples=20)
def test_the_length_of_a_step(m, n, seed):
    "Moonshot: each number moves by about 0.2 of the rate, whatever the shape"
    w = torch.nn.Linear(n + 8, m + 8, bias=False)
    o = Muon(muon_groups(w, 0.), lr=.1)
    before = w.weight.detach().clone()
    w.weight.grad = torch.randn(w.weight.shape, generator=torch.Generator().manual_seed(seed)); o.step()
    assert .13 < (w.weight.detach() - before).square().mean().sqrt()/.1 < .24
    assert math.isclose(SCALES['jordan'](400, 100), 2.) and SCALES['jordan'](100, 400) == 1.

def groups_by_name(m, o): names = {id(p): n for n, p in m.named_parameters()}; return [{names[id(p)] for p in g['params']} for g in o.param_groups]

@pytest.mark.parametrize('changes', [dict(tie_embeddings=False), dict(tie_embeddings=True), dict(n_experts=2, experts_per_token=1, expert_dim=8, family='mixtral', tie_embeddings=False)])
def test_muon_gets_the_matrices_inside_the_blocks(changes):
    m = Transformer(preset('lab-1m', vocab_size=64, dim=16, n_heads=2, n_kv_heads=1, n_layers=1, **changes))
    o = make_optimizer(m, kind='muon')
    inside = set().union(*(n for n, g in zip(groups_by_name(m, o), o.param_groups) if g['muon']))
    assert inside == {n for n, p in m.named_parameters() if n.startswith('layers.') and p.ndim > 1}
    assert set().union(*groups_by_name(m, o)) == {n for n, _ in m.named_parameters()}

@pytest.mark.parametrize('kind', ['adamw', 'muon'])
def test_a_state_that_went_through_a_file_goes_on_bit_for_bit(kind, tmp_path):
    def steps(cut):
        torch.manual_seed(0)
        m = Transformer(preset('lab-1m', vocab_size=64, dim=16, n_heads=2, n_kv_heads=1, n_layers=1)); o = make_optimizer(m, 1e-2, kind=kind)
        for i in range(6):
            if i == cut:
                torch.save(o.state_dict(), tmp_path/'o.pt'); o = make_optimizer(m, 1e-2, kind=kind)
                o.load_state_dict(torch.load(tmp_path/'o.pt', weights_only=True))
            o.zero_grad(); m(torch.arange(8)[None]).logsumexp(-1).sum().backward(); o.step()
        return torch.cat([p.flatten() for p in m.parameters()])
    assert torch.equal(steps(None), steps(3))
