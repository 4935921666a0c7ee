"Every kind of parallelism, alone and with others: losses, norms and held-out loss of one process; whole runs that are cut and go on"
import pytest
from labkit.core.files import read_jsonl
from labkit.core.settings import SettingsError
from labkit.model.checkpoint import load_model
from labkit.pretrain.checkpoint import checkpoints
from labkit.pretrain.parallel import launch
from labkit.pretrain.trainer import train
from labkit.pretrain.worker import PretrainSettings, check_settings, few_steps
from small import RUN, quiet, tiny

def same(ranks, layouts, **how):
    alone = {k: v for k, v in how.items() if k in ('model', 'steps', 'packed', 'optimizer', 'micro_batch')}
    one = few_steps([''], **alone)['']
    for answer in launch('labkit.pretrain.worker:few_steps', ranks, 1, on_line=quiet, layouts=layouts, **how):
        for name in layouts:
            assert answer[name]['losses'] == pytest.approx(one['losses'], rel=2e-5), name
            assert answer[name]['norms'] == pytest.approx(one['norms'], rel=1e-3), name
            assert answer[name]['held_out'] == pytest.approx(one['held_out'], rel=1e-4), name

TWO = ['ddp:2', 'fsdp:2', 'tp:2', 'cp:2', 'pp:2']
FOUR = ['fsdp:4', 'fsdp:2,tp:2', 'pp:2,fsdp:2', 'fsdp:2,cp:2', 'pp:2,tp:2', 'cp:2,tp:2', 'pp:2,cp:2', 'ddp:2,fsdp:2', 'ddp:2,tp:2', 'pp:2,ddp:2']

def test_each_kind_alone(): same(2, TWO)

@pytest.mark.parametrize('how', [dict(zero=1), dict(zero=2), dict(packed=True), dict(optimizer='muon', steps=2)], ids=str)
def test_ways_of_zero(how): same(2, ['fsdp:2'] if how.get('zero') else ['fsdp:2', 'ddp:2'], **how)

@pytest.mark.parametrize('how', [dict(pipeline='gpipe'), dict(pipeline='interleaved'), dict(pipeline='zerobubble'), dict(pipeline='zbv')], ids=str)
def test_schedules(how): same(2, ['pp:2'], **how)

@pytest.mark.slow
def test_pairs_of_kinds(): same(4, FOUR)

@pytest.mark.slow
@pytest.mark.parametrize('how', [dict(context='ulysses'), dict(zero=1), dict(zero=2), dict(model='lab-moe', steps=2)], ids=str)
def test_pairs_in_other_ways(how): same(4, ['fsdp:2,tp:2', 'pp:2,fsdp:2', 'fsdp:2,cp:2'], **how)

@pytest.mark.parametrize('change, word', [
    (dict(parallel='pp:2', packed=True), 'packed = true'), (dict(parallel='tp:2', fp8=True), 'fp8 = true'), (dict(backend='deepspeed'), 'needs processes'),
    (dict(backend='deepspeed', parallel='tp:2'), 'tp, pp and cp need backend = torch'), (dict(parallel='pp:2,fsdp:2', pipeline='zerobubble'), 'goes past the hooks'), (dict(zero=4), 'zero = 4')])
def test_what_cannot_go_together(change, word):
    with pytest.raises(SettingsError, match=word): check_settings(PretrainSettings(**change))

def losses(log): return [r['loss'] for r in read_jsonl(log) if 'loss' in r]

@pytest.fixture(scope='module')
def alone(corpus, tmp_path_factory): return train(tiny(corpus, tmp_path_factory.mktemp('alone'), min_lr=1e-2), RUN, say=quiet)

@pytest.mark.parametrize('change', [dict(parallel='fsdp:2'), dict(parallel='pp:2', micro_batch=1), dict(parallel='fsdp:2', backend='deepspeed', zero=2)], ids=str)
def test_a_whole_run_is_that_of_one_process_and_goes_on(alone, corpus, tmp_path, change):
    "Six steps, then the rest from the checkpoint; the model at the end opens like any other"
    s = dict(min_lr=1e-2, **change)
    train(tiny(corpus, tmp_path, steps=6, **s), RUN, say=quiet)
    r = train(tiny(corpus, tmp_path, **s), RUN, say=quiet)
    assert r.resumed_from == 6 and checkpoints(tmp_path)[-1].name == 'step-10'
    assert losses(r.log) == pytest.approx(losses(alone.log), abs=2e-4)
    ours, theirs = (load_model(x.final).state_dict() for x in (r, alone))
    assert max(float((ours[k] - theirs[k]).abs().max()) for k in theirs) < 2e-3

def test_other_ranks_go_on_from_a_checkpoint(alone, corpus, tmp_path):
    train(tiny(corpus, tmp_path, steps=6, min_lr=1e-2, parallel='fsdp:2'), RUN, say=quiet)
    r = train(tiny(corpus, tmp_path, min_lr=1e-2), RUN, say=quiet)
    assert r.resumed_from == 6 and losses(r.log) == pytest.approx(losses(alone.log), abs=2e-4)
