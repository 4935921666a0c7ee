"The loss that keeps experts equally busy: its gradient, in one process and two, computed again, compiled; its column in the log"
from importlib.util import find_spec
import pytest, torch
from torch import nn
from labkit.core.device import Device
from labkit.core.files import read_jsonl
from labkit.core.settings import SettingsError
from labkit.model.cross_entropy import cross_entropy_sum
from labkit.model.moe import balance_loss, router_logits
from labkit.pretrain.trainer import train
from labkit.pretrain.worker import PretrainSettings, Worker, few_steps, model_config
from small import RUN, in_one_start, quiet, tiny

SMALL = dict(model='lab-moe', layers=2, dim=32, heads=2, kv_heads=1, ffn_dim=32, seq_len=16, batch_tokens=16*8, micro_batch=2, compile='no', balance=.3)
ROWS = torch.randint(0, 64, (8, 17), generator=torch.Generator().manual_seed(0))

def pieces(n): return [(r[:, :-1], r[:, 1:]) for r in ROWS.split(n)]

def worker(dtype='float32', **changes):
    s = PretrainSettings(**{**SMALL, **changes})
    return Worker(s, model_config(s, 64), Device('cpu', dtype, ''))

def flat(model): return torch.cat([p.grad.flatten() for p in model.parameters()])

def by_hand(w, n): # gradient, loss, balance
    "Cross-entropy and balance loss as autograd sees them, on a plain model with the same weights"
    total = judged = 0.
    for m in w.model.layers: m.mlp.balance = None
    for x, y in pieces(n):
        with w.autocast(), router_logits(w.model) as seen: loss = cross_entropy_sum(w.model.hidden(x).flatten(0, 1), w.model.embed_tokens.weight, y.flatten()) / ROWS[:, 1:].numel()
        balance = balance_loss(seen, 2)*len(x)/len(ROWS)
        (loss + w.s.balance*balance).backward()
        total += loss.item(); judged += balance.item()
    return flat(w.model), total, judged

@pytest.mark.parametrize('recompute', ['none', 'full', 'selective'])
@pytest.mark.parametrize('n', [2, 3, 8])
def test_the_gradient_is_that_of_both_losses(recompute, n):
    w = worker(recompute=recompute, micro_batch=n)
    loss, balance = w.gradients(pieces(n)), w.balance_part()
    grad, want_loss, want_balance = by_hand(worker(), n)
    torch.testing.assert_close(flat(w.model), grad, atol=1e-6, rtol=1e-5)
    assert loss == pytest.approx(want_loss, rel=1e-5), 'the cross-entropy alone'
    assert balance == pytest.approx(want_balance, rel=1e-5) and balance > 2
    assert w.balance_part() == 0., 'told once'

@pytest.mark.parametrize('recompute', ['none', 'full', 'selective'])
def test_compiled_blocks_tell_it_once_too(recompute, monkeypatch):
    torch._dynamo.reset()
    whole = nn.Module.compile
    monkeypatch.setattr(nn.Module, 'compile', lambda m: whole(m, backend='aot_eager')) # all of torch.compile but the kernels
    w = worker('bfloat16', compile='yes', recompute=recompute)
    w.gradients(pieces(2))
    grad, _, balance = by_hand(worker('bfloat16'), 2)
    torch.testing.assert_close(flat(w.model), grad, atol=1e-5, rtol=1e-4)
    assert w.balance_part() == pytest.approx(balance, rel=1e-4) and not torch._dynamo.utils.counters['graph_break']

def test_evaluation_is_not_judged():
    w = worker()
    w.evaluate(pieces(2))
    assert w.balance_part() == 0. and w.model.training

def test_the_cross_entropys_gradient_does_not_depend_on_the_pieces():
    def alone(n): w = worker(balance=0., micro_batch=n); w.gradients(pieces(n)); return flat(w.model)
    for n in (1, 3, 4): torch.testing.assert_close(alone(n), alone(8), atol=1e-6, rtol=1e-5)

WAYS = {'each kind': dict(layouts=['ddp:2', 'fsdp:2', 'tp:2', 'pp:2']), 'pieces that do not fit': dict(layouts=['ddp:2', 'fsdp:2'], zero=1, micro_batch=8, recompute='full'),
        'deepspeed': dict(layouts=['fsdp:2'], backend='deepspeed', zero=2, steps=1)}
WAYS = {name: {**dict(model='lab-moe', balance=1., steps=2), **how} for name, how in WAYS.items() if name != 'deepspeed' or find_spec('deepspeed')}

@pytest.fixture(scope='module')
def two(): return dict(zip(WAYS, in_one_start(2, *(dict(target='labkit.pretrain.worker:few_steps', **how) for how in WAYS.values()))))

@pytest.mark.parametrize('way', WAYS)
def test_two_processes_are_one(two, way):
    one = few_steps([''], **{k: v for k, v in WAYS[way].items() if k not in ('layouts', 'zero', 'backend')})['']
    for answer in two[way]:
        for name in WAYS[way]['layouts']:
            for what in ('losses', 'balances', 'norms'): assert answer[name][what] == pytest.approx(one[what], rel=1e-3 if what == 'norms' else 3e-5), (name, what)

def test_a_skewed_router_is_straightened():
    "All tokens share a direction, and two experts like it: always the same two is 8, all alike is 2"
    def judged(weight):
        w, out = worker(balance=weight, micro_batch=8), []
        with torch.no_grad():
            w.model.embed_tokens.weight += 1
            for m in w.model.layers: m.mlp.gate.weight[:2] += .1
        for _ in range(30):
            w.gradients(pieces(8)); out.append(w.balance_part()); w.clip(1.); w.step(1e-2)
        return out
    told, left_alone = judged(.3), judged(1e-9)
    assert told[0] == pytest.approx(left_alone[0]) and told[0] > 6 and told[-1] < 3 < left_alone[-1], (told[-1], left_alone[-1])

def test_the_log_has_a_column_of_its_own(corpus, tmp_path):
    moe = dict(SMALL, steps=4)
    rows = [[r for r in read_jsonl(train(tiny(corpus, tmp_path/str(b), **{**moe, 'balance': b}), RUN, say=quiet).log) if 'loss' in r] for b in (.01, 0.)]
    assert all(2 <= r['balance'] < 8 for r in rows[0]) and not any('balance' in r for r in rows[1])
    assert rows[0][0]['loss'] == pytest.approx(rows[1][0]['loss'], rel=1e-6), 'the loss is the cross-entropy'
    assert 'balance' not in next(r for r in read_jsonl(train(tiny(corpus, tmp_path/'dense', steps=1), RUN, say=quiet).log) if 'loss' in r)

@pytest.mark.parametrize('change, word', [(dict(balance=-1.), 'balance = -1.0: must be at least 0'), (dict(balance=float('nan')), 'balance = nan'), (dict(parallel='pp:2', pipeline='zerobubble'), 'balance = 0.3: the split backward pass of pipeline = zerobubble')])
def test_a_balance_that_cannot_be(corpus, tmp_path, change, word):
    with pytest.raises(SettingsError, match=word): train(tiny(corpus, tmp_path/'out', **{**SMALL, **change}), RUN, say=quiet)

def test_the_compiler_takes_no_float32_experts():
    with pytest.raises(SettingsError, match=r'compile = yes: .* bfloat16 only; set dtype = bfloat16 in \[run\], or compile = no'): worker(compile='yes')
