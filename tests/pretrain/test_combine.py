"Several kinds of parallelism at once, on four processes: losses and norms of one"
import pytest
from labkit.core.settings import SettingsError
from labkit.pretrain.combine import train_combined
from labkit.pretrain.parallel import launch
from small import quiet

def run(ranks, layouts, **how): return launch('labkit.pretrain.combine:train_combined', ranks, threads=1, on_line=quiet, layouts=layouts, **how)

def same(answers, layouts, **how):
    one = train_combined([''], **{k: v for k, v in how.items() if k in ('model', 'steps')})['']
    for rank in answers:
        for name in layouts:
            assert rank[name]['losses'] == pytest.approx(one['losses'], rel=2e-5), name
            assert rank[name]['norms'] == pytest.approx(one['norms'], rel=1e-3), name

TWO = ['tp:2', 'pp:2', 'cp:2', 'fsdp:2', 'ddp:2']
FOUR = ['fsdp:2,tp:2', 'pp:2,fsdp:2', 'fsdp:2,cp:2', 'pp:2,tp:2', 'cp:2,tp:2', 'pp:2,cp:2', 'ddp:2,fsdp:2', 'ddp:2,tp:2', 'pp:2,ddp:2', 'pp:4', 'tp:2,fsdp:2', 'fsdp:4']

def test_each_kind_alone(): same(run(2, TWO), TWO)

@pytest.mark.slow
def test_pairs_of_kinds(): same(run(4, FOUR), FOUR)

@pytest.mark.slow
@pytest.mark.parametrize('how', [dict(context='ulysses'), dict(zero=1), dict(zero=2), dict(model=dict(tie_embeddings=False, qk_norm=True)), dict(model=dict(n_experts=4, experts_per_token=2, expert_dim=64, family='mixtral', tie_embeddings=False))], ids=str)
def test_other_models_and_ways(how):
    layouts = ['fsdp:2,tp:2', 'pp:2,fsdp:2', 'fsdp:2,cp:2']
    same(run(4, layouts, **how), layouts, **how)

@pytest.mark.slow
@pytest.mark.parametrize('schedule', ['gpipe', 'interleaved', 'zerobubble', 'zbv'])
def test_other_schedules_with_zero(schedule):
    layouts, model = ['pp:2,fsdp:2'], dict(tie_embeddings=False)
    same(run(4, layouts, schedule=schedule, model=model), layouts, model=model)

def test_a_tied_table_on_both_ends_of_one_rank_is_refused():
    with pytest.raises(SettingsError, match='zbv puts both ends of a tied embedding table'): run(4, ['pp:2,fsdp:2'], schedule='zbv')
