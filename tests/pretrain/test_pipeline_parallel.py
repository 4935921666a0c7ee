"Layers on two processes: schedules by hand and torch's, against one process; what a simulator says of them"
import pytest, torch
from labkit.core.settings import SettingsError
from labkit.model.config import preset
from labkit.pretrain.pipeline import (KINDS, Stage, bubble, check_pipeline, gpipe_order, in_flight, layers_of_stage, make_stages, one_f_one_b_order, simulate, small_model, stages_of_rank,
                                      train_pipeline)
from small import in_one_start

WAYS = ['gpipe by hand', '1f1b by hand', *KINDS]
MODELS = {'tied': {}, 'untied': dict(tie_embeddings=False), 'qk_norm': dict(qk_norm=True), 'biases_five_layers': dict(qkv_bias=True, o_bias=True, n_layers=5),
          'experts': dict(n_experts=4, experts_per_token=2, expert_dim=64, family='mixtral', tie_embeddings=False)}

@pytest.fixture(scope='module')
def two(): return in_one_start(2, dict(target='labkit.pretrain.pipeline:compare_pipeline', models=MODELS, kinds=WAYS), dict(target='labkit.pretrain.pipeline:train_pipeline', kind='1f1b', steps=4))

@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('kind', WAYS)
def test_loss_and_gradients_equal_one_process(two, name, kind):
    for rank in two[0]: assert max(rank[name][kind]) < 1e-4

def test_training_with_a_tied_table_equals_one_process(two):
    "the two copies must stay equal over steps of AdamW"
    one, (first, last) = train_pipeline(steps=4), two[1]
    assert last['losses'] == pytest.approx(one['losses'], abs=1e-5) and first['losses'] == [None]*4

@pytest.mark.parametrize('order', [gpipe_order, one_f_one_b_order])
@pytest.mark.parametrize('p, m', [(1, 1), (2, 2), (2, 7), (4, 4), (4, 32), (8, 8)])
def test_the_bubble_is_the_formulas(order, p, m): assert bubble(simulate([order(r, p, m) for r in range(p)])) == pytest.approx((p - 1)/(m + p - 1))

def test_what_is_in_flight():
    assert [in_flight(gpipe_order(r, 4, 8)) for r in range(4)] == [8]*4
    assert [in_flight(one_f_one_b_order(r, 4, 8)) for r in range(4)] == [4, 3, 2, 1]

def test_a_schedule_that_waits_for_itself_is_named():
    with pytest.raises(ValueError, match='every rank waits'): simulate([[('B', 0, 0), ('F', 0, 0)], [('F', 1, 0), ('B', 1, 0)]])

@pytest.mark.parametrize('layers, stages', [(1, 1), (4, 2), (5, 4), (32, 8), (7, 7)])
def test_every_layer_has_one_stage(layers, stages):
    parts = [layers_of_stage(layers, s, stages) for s in range(stages)]
    assert [i for p in parts for i in p] == list(range(layers)) and max(map(len, parts)) - min(map(len, parts)) <= 1

@pytest.mark.parametrize('kind', KINDS)
def test_every_stage_has_one_rank(kind):
    owned = [stages_of_rank(kind, r, 4) for r in range(4)]
    assert sorted(s for mine, _ in owned for s in mine) == list(range(owned[0][1]))

def test_stages_keep_the_names_of_the_whole():
    model = small_model(tie_embeddings=False)
    names = [n for r in range(2) for s in make_stages(model, 'interleaved', r, 2) for n, _ in s.named_parameters()]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    assert Stage(model, 0, 1).state_dict().keys() == model.state_dict().keys()

@pytest.mark.parametrize('kind, pp, micro, word', [('1f1b', 8, 8, '4 layers'), ('zbv', 4, 8, 'needs 8 stages'), ('1f1b', 4, 2, 'at least 4 micro-batches'), ('interleaved', 2, 5, 'equal rounds'), ('zerobubble', 2, 1, 'equal rounds'), ('2f2b', 2, 4, 'known: gpipe')])
def test_pipelines_that_cannot_be(kind, pp, micro, word):
    with pytest.raises(SettingsError, match=word): check_pipeline(preset('lab-1m', n_layers=4), kind, pp, micro)
