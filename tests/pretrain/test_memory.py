"What is counted is what is there; a block that runs twice gives the same bits"
import copy
import pytest, torch
from torch import nn
from labkit.core.settings import UserError
from labkit.model.config import preset
from labkit.model.cross_entropy import cross_entropy_sum
from labkit.model.transformer import Transformer
from labkit.pretrain.memory import Meter, recompute, saved_bytes, saved_tensors, state_memory
from labkit.pretrain.optimizer import make_optimizer

X = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))

def new(**changes):
    torch.manual_seed(0)
    return Transformer(preset('lab-1m', **{**dict(vocab_size=64, dim=32, n_heads=4, n_kv_heads=2, ffn_dim=48, n_layers=3), **changes}))

def loss_of(model): return cross_entropy_sum(model.hidden(X).flatten(0, 1), model.embed_tokens.weight, X.flatten())/X.numel()

def gradient(model, low=False):
    model.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, enabled=low): loss = loss_of(model)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])

@pytest.mark.parametrize('low', [False, True])
@pytest.mark.parametrize('changes', [{}, dict(qkv_bias=True, o_bias=True, family='internlm2'), dict(n_experts=4, experts_per_token=2, expert_dim=16, family='mixtral')])
def test_gradients_have_the_same_bits(changes, low):
    model = new(**changes); names = list(model.state_dict())
    plain = gradient(model, low)
    for kind in ('full', 'selective', 'none'):
        assert torch.equal(gradient(recompute(model, kind), low), plain), kind
        assert list(model.state_dict()) == names

def test_each_kind_keeps_less():
    model, kept = new(), {}
    for kind in ('none', 'selective', 'full'):
        recompute(model, kind)
        with Meter() as meter: loss = loss_of(model)
        kept[kind] = meter.now; del loss
        assert meter.now < kept[kind] # all is freed with the loss
    assert kept['full'] < kept['selective'] < kept['none']

def test_two_ways_to_count_the_activations():
    model = new(); loss_of(model) # the tables of the rotary angles are made once
    with Meter() as meter: loss = loss_of(model); lives = meter.now
    assert abs(saved_bytes(model, lambda: loss_of(model)) - lives) <= X.nbytes*4 + 4 # the ids, and the loss itself

def test_a_meter_by_hand():
    a = torch.ones(1000)
    with Meter() as meter:
        b = a + 1; assert meter.now == 4000
        c = b.view(10, 100); assert meter.now == 4000 # a view is nothing new
        d = b.double(); assert meter.now == 12000
        b = c = None; assert meter.now == 8000
        a.add_(1); assert meter.now == 8000
    assert meter.peak == 12000

@pytest.mark.parametrize('kind, each', [('adamw', 16), ('muon', 12)])
def test_state_memory(kind, each):
    model = new(n_layers=1, tie_embeddings=False); o = make_optimizer(model, kind=kind)
    loss = cross_entropy_sum(model.hidden(X).flatten(0, 1), model.lm_head.weight, X.flatten()); loss.backward(); o.step()
    m = state_memory(model, o)
    n = sum(p.numel() for p in model.parameters())
    assert m['weights'] == m['gradients'] == 4*n
    inside = sum(p.numel() for g in o.param_groups if g.get('muon') for p in g['params'])
    assert abs(m['optimizer'] - (8*(n - inside) + 4*inside)) <= 4*len(list(model.parameters()))

def test_another_kind():
    with pytest.raises(UserError, match='recompute = some: expected none, full or selective'): recompute(new(), 'some')

def test_a_copy_of_a_model_that_recomputes_is_its_own():
    model = recompute(new(), 'full')
    assert torch.equal(gradient(recompute(new(), 'none')), gradient(model))

def test_it_compiles():
    model = new(n_layers=2); plain = gradient(model)
    for kind in ('full', 'selective'):
        m = recompute(new(n_layers=2), kind)
        for block in m.layers: block.compile(backend='aot_eager', fullgraph=True)
        torch.testing.assert_close(gradient(m), plain, atol=1e-6, rtol=1e-5)
