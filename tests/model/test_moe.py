"""Mixture of experts: the sorted form against the loop, its gradients, the balance loss, stacks and their parts."""
import pytest, torch
from hypothesis import given, settings, strategies as st
from labkit.model.checkpoint import load_model, save_model
from labkit.model.config import matmul_params, parameters_by_part, preset
from labkit.model.moe import MoE, balance_loss, by_expert, expert_loop, expert_views, route, router_logits
from labkit.model.transformer import FeedForward, Transformer, feed_forward

def layer(E=5, k=2, D=16, F=24, seed=0, **kw) -> MoE:
    torch.manual_seed(seed)
    m = feed_forward(preset('lab-moe', dim=D, n_heads=4, n_experts=E, experts_per_token=k, expert_dim=F, **kw))
    for p in m.parameters(): torch.nn.init.normal_(p, 0, .3)
    return m

def loop(m: MoE, x: torch.Tensor) -> torch.Tensor:
    flat, e = x.flatten(0, -2), m.experts
    y = expert_loop(flat, *route(m.gate(flat), m.k, m.norm), e.gate_proj, e.up_proj, e.down_proj)
    if m.shared_expert is not None: y = y + m.shared_expert_gate(flat).sigmoid()*m.shared_expert(flat)
    return y.view_as(x)

@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.data(), st.integers(1, 20), st.booleans(), st.booleans(), st.integers(0, 99))
def test_sorted_equals_the_loop_forward_and_backward(E, data, N, norm, shared, seed):
    m = layer(E, data.draw(st.integers(1, E)), seed=seed, norm_topk=norm, **(dict(shared_expert_dim=7) if shared else {}))
    x, results = torch.randn(2, N, 16), []
    for f in (m, lambda x: loop(m, x)):
        m.zero_grad(); a = x.clone().requires_grad_()
        y = f(a); y.square().sum().backward()
        results.append((y, a.grad, *(p.grad for p in m.parameters())))
    for p, q in zip(*results): torch.testing.assert_close(p, q, atol=2e-4, rtol=2e-4)

def test_one_expert_is_a_dense_network():
    m, ffn = layer(1, 1, norm_topk=True), FeedForward(preset('lab-1m', dim=16, n_heads=4, ffn_dim=24))
    with torch.no_grad():
        for name in ('gate_proj', 'up_proj', 'down_proj'): getattr(ffn, name).weight.copy_(getattr(m.experts, name)[0])
        x = torch.randn(3, 4, 16)
        torch.testing.assert_close(m(x), ffn(x), atol=1e-5, rtol=1e-4)

@given(st.integers(1, 6), st.integers(1, 30), st.integers(0, 99))
def test_sorting_brings_every_pair_to_its_expert(E, N, seed):
    g = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(E, generator=g)[:min(2, E)] for _ in range(N)])
    order, ends = by_expert(chosen, E)
    assert sorted(order.tolist()) == list(range(chosen.numel())) and ends[-1] == chosen.numel()
    for e, (a, b) in enumerate(zip([0, *ends.tolist()], ends.tolist())): assert (chosen.flatten()[order[a:b]] == e).all()

def test_autocast_computes_in_bfloat16():
    m, x = layer(), torch.randn(7, 16)
    with torch.autocast('cpu', torch.bfloat16): y = m(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), m(x), atol=.1, rtol=.1)
    y.float().sum().backward()
    assert m.experts.up_proj.grad.dtype == torch.float32

def test_balance_loss_is_transformers_layer_by_layer():
    mixtral = pytest.importorskip('transformers.models.mixtral.modeling_mixtral')
    torch.manual_seed(0)
    logits = [2*torch.randn(50, 6) for _ in range(3)]
    want = [mixtral.load_balancing_loss_func((l,), 6, 2).item() for l in logits]
    assert balance_loss(logits, 2).item() == pytest.approx(sum(want)/3, rel=1e-5)
    assert balance_loss([torch.cat(logits)], 2).item() == pytest.approx(mixtral.load_balancing_loss_func(tuple(logits), 6, 2).item(), rel=1e-5)

def test_routers_are_heard_and_the_loss_reaches_them():
    model, x = Transformer(preset('lab-moe', vocab_size=64, n_layers=2)), torch.arange(20)[None]
    with router_logits(model) as seen: model(x)
    assert [tuple(l.shape) for l in seen] == [(20, 8)]*2
    balance_loss(seen, 2).backward()
    assert all(l.mlp.gate.weight.grad.abs().sum() > 0 for l in model.layers)
    model(x); assert len(seen) == 2, 'the hooks are gone'

def test_stacks_and_their_parts_share_memory():
    model = Transformer(preset('lab-moe', vocab_size=64, n_layers=1, family='mixtral'))
    parts = dict(v for pair in model.named_parameters() for v in expert_views(*pair))
    with torch.no_grad(): parts['layers.0.mlp.experts.3.up_proj.weight'].fill_(7)
    assert (model.layers[0].mlp.experts.up_proj[3] == 7).all() and sum(p.numel() for p in parts.values()) == model.cfg.n_params

def test_active_parameters_are_what_a_token_is_multiplied_with():
    cfg = preset('mixtral-8x7b')
    assert cfg.n_params - cfg.active_params == cfg.n_layers*6*3*cfg.dim*cfg.expert_dim
    assert matmul_params(cfg) == cfg.active_params - parameters_by_part(cfg)['norms'] - parameters_by_part(cfg)['embedding']
    assert preset('lab-1m').active_params == preset('lab-1m').n_params

@pytest.mark.parametrize('missing', ['experts.2.w1', 'gate'])
def test_a_lost_expert_is_named(missing, tmp_path):
    from safetensors.torch import load_file, save_file
    from labkit.core.settings import UserError
    save_model(Transformer(preset('lab-moe', vocab_size=64, n_layers=1)), tmp_path/'m')
    path = tmp_path/'m'/'model.safetensors'
    save_file({k: t for k, t in load_file(path).items() if f'block_sparse_moe.{missing}' not in k}, path)
    with pytest.raises(UserError, match='1 tensors are missing, among them layers.0.mlp.' + missing.replace('w1', 'gate_proj')): load_model(tmp_path/'m')
