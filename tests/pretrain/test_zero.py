"ZeRO in all stages, by hand and by FSDP2, on two ranks and in groups of two on four: the losses, norms and bytes that it should have"
import pytest, torch
from labkit.model.config import preset
from labkit.model.transformer import Transformer
from labkit.pretrain.zero import clip, held, train_by_hand, train_sharded
from small import in_one_start

Z = 'labkit.pretrain.zero:'
STAGES = (1, 2, 3)

@pytest.fixture(scope='module')
def alone(corpus): return train_sharded(str(corpus)), train_by_hand(str(corpus))

@pytest.fixture(scope='module')
def two(corpus):
    "everything on two ranks in one start"
    calls = dict(ddp=dict(target=Z + 'train_sharded', parallel='ddp:2'), bf16=dict(target=Z + 'train_sharded', parallel='fsdp:2', bf16=True),
                 **{f'fsdp{s}': dict(target=Z + 'train_sharded', parallel='fsdp:2', stage=s) for s in STAGES}, **{f'hand{s}': dict(target=Z + 'train_by_hand', stage=s) for s in STAGES})
    return dict(zip(calls, in_one_start(2, *(dict(corpus=str(corpus), **c) for c in calls.values()))))

@pytest.mark.parametrize('kind', ['ddp', 'fsdp1', 'fsdp2', 'fsdp3', 'hand1', 'hand2', 'hand3'])
def test_losses_of_one_process(alone, two, kind):
    one = alone[kind.startswith('hand')]
    for r in two[kind]:
        assert r['losses'] == pytest.approx(one['losses'], abs=1e-5)
        if 'norms' in one: assert r['norms'] == pytest.approx(one['norms'], rel=1e-4)

def test_bfloat16_is_near(alone, two): assert two['bf16'][0]['losses'] == pytest.approx(alone[0]['losses'], abs=.03)

def test_what_is_held(alone, two):
    whole = alone[0]['rest']
    for s in STAGES:
        rest, peak = two[f'fsdp{s}'][0]['rest'], two[f'fsdp{s}'][0]['peak']
        assert all(v == pytest.approx(whole[k]/2, rel=.02) for k, v in rest.items()), 'between steps every stage holds half'
        assert peak['optimizer'] == pytest.approx(whole['optimizer']/2, rel=.02)
    peaks = [sum(two[k][0]['peak'].values()) for k in ('ddp', 'fsdp1', 'fsdp2', 'fsdp3')]
    assert sorted(peaks, reverse=True) == peaks and len(set(peaks)) == 4, 'each stage holds less than the one before'

def test_what_is_sent(two):
    sent = {k: two[k][0]['sent'] for k in ('ddp', 'fsdp1', 'fsdp2', 'fsdp3')} # two micro-batches a rank
    whole = sent['ddp']['all-reduce']
    assert sum(sent['fsdp1'].values()) == pytest.approx(whole, rel=.02) and sent['fsdp1']['reduce-scatter'] == pytest.approx(whole/2, rel=.02)
    assert sent['fsdp2']['reduce-scatter'] == pytest.approx(whole, rel=.02) and sent['fsdp2']['all-gather'] == pytest.approx(whole/2, rel=.02)
    assert whole/2 < sent['fsdp3']['all-gather'] < 2*whole

@pytest.mark.slow
def test_groups_of_two_on_four_ranks(corpus, alone):
    calls = [dict(target=Z + 'train_sharded', corpus=str(corpus), parallel=p, stage=s) for p, s in (('fsdp:4', 3), ('ddp:2,fsdp:2', 3), ('ddp:2,fsdp:2', 1))]
    flat, *hybrid = (ranks[3] for ranks in in_one_start(4, *calls))
    for r in (flat, *hybrid): assert r['losses'] == pytest.approx(alone[0]['losses'], abs=1e-5) and r['norms'] == pytest.approx(alone[0]['norms'], rel=1e-4)
    assert 'all-reduce' not in flat['sent'] and all(r['rest']['weights'] == pytest.approx(alone[0]['rest']['weights']/2, rel=.02) for r in hybrid)

def test_clip_alone():
    model = torch.nn.Linear(3, 4)
    for p in model.parameters(): p.grad = torch.ones_like(p)
    assert float(clip(model.parameters(), 2.)) == pytest.approx(4.) and float(clip(model.parameters(), 9.)) == pytest.approx(2., rel=1e-5)
    assert float(clip(model.parameters(), 9.)) == pytest.approx(2., rel=1e-5), 'a gradient that is short enough stays as it is'

def test_held_counts_each_storage_once():
    model = Transformer(preset('lab-1m', dim=32, n_layers=1, vocab_size=64)) # tied: the table is counted once
    opt = torch.optim.AdamW(model.parameters())
    assert held(model, opt) == dict(weights=4*model.cfg.n_params, gradients=0, optimizer=0)
