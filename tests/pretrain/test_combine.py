"Several kinds of parallelism at once, on four processes: losses and norms of one"
import pytest
from labkit.core.settings import SettingsError
from labkit.pretrain.combine import parallelize, train_combined
from labkit.pretrain.parallel import Layout, launch
from labkit.pretrain.pipeline import small_model
from small import quiet

def run(ranks, layouts, **how): return launch('labkit.pretrain.combine:train_combined', ranks, threads=1, on_line=quiet, layouts=layouts, **how)

def same(answers, layouts, **how):
    one = train_combined([''], **{k: v for k, v in how.items() if k in ('model', 'steps')})['']
    for rank in answers:
        for name in layouts:
            assert rank[name]['losses'] == pytest.approx(one['losses'], rel=2e-5), name
            assert rank[name]['norms'] == pytest.approx(one['norms'], rel=1e-3), name

TWO = ['tp:2', 'pp:2', 'cp:2', 'fsdp:2', 'ddp:2']
FOUR = ['fsdp:2,tp:2', 'pp:2,fsdp:2', 'fsdp:2,cp:2', 'pp:2,tp:2', 'cp:2,tp:2', 'pp:2,cp:2', 'ddp:2,fsdp:2', 'ddp:2,tp:2', 'pp:2,ddp:2', 'fsdp:4']

def test_each_kind_alone(): same(run(2, TWO), TWO)

@pytest.mark.slow
def test_pairs_of_kinds(): same(run(4, FOUR), FOUR)

@pytest.mark.slow
@pytest.mark.parametrize('how', [dict(context='ulysses'), dict(zero=1), dict(zero=2), dict(model=dict(tie_embeddings=False, qk_norm=True)), dict(steps=2, model=dict(n_experts=4, experts_per_token=2, expert_dim=64, family='mixtral', tie_embeddings=False))], ids=str)
def test_other_models_and_ways(how):
    layouts = ['fsdp:2,tp:2', 'pp:2,fsdp:2', 'fsdp:2,cp:2']
    same(run(4, layouts, **how), layouts, **how)

@pytest.mark.slow
@pytest.mark.parametrize('schedule', ['gpipe', 'interleaved'])
def test_other_schedules_with_zero(schedule):
    layouts, model = ['pp:2,fsdp:2'], dict(tie_embeddings=False)
    same(run(4, layouts, schedule=schedule, model=model), layouts, model=model)

@pytest.mark.parametrize('schedule', ['zerobubble', 'zbv'])
def test_a_split_backward_pass_with_zero_is_refused(schedule):
    "torch's split backward pass goes past the hooks that sum FSDP's gradients: the norms come out wrong"
    with pytest.raises(SettingsError, match='wrong gradients'): parallelize(small_model(), Layout(pp=2, fsdp=2), None, schedule)
