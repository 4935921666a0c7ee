"Every kind of parallelism, alone and with others: losses, norms and held-out loss of one process; whole runs that are cut and go on"
import functools, shutil
import pytest, torch
from labkit.core.settings import SettingsError
from labkit.model.checkpoint import load_model
from labkit.pretrain.checkpoint import checkpoints
from labkit.pretrain.trainer import train
from labkit.pretrain.worker import PretrainSettings, check_settings
from run_ranks import few_steps
from small import RUN, as_file, assert_same_bits, in_one_start, losses, quiet, tiny, weights

@functools.cache
def one_process(**how): return few_steps(layouts=[''], **how)['']

def same(answers, layouts, **how): # answers of the ranks
    one = one_process(**{k: v for k, v in how.items() if k in ('model', 'steps', 'packed', 'optimizer', 'micro_batch', 'window')})
    for answer in answers:
        for name in layouts:
            assert answer[name]['losses'] == pytest.approx(one['losses'], rel=2e-5), name
            assert answer[name]['norms'] == pytest.approx(one['norms'], rel=1e-3), name
            assert answer[name]['held_out'] == pytest.approx(one['held_out'], rel=1e-4), name

def names(ways): return {f"{','.join(w['layouts'])} {' '.join(f'{k}={v}' for k, v in w.items() if k != 'layouts')}": w for w in ways}

TWO = names([*(dict(layouts=[l]) for l in ('ddp:2', 'fsdp:2', 'tp:2', 'cp:2', 'pp:2')), dict(layouts=['fsdp:2'], zero=1), dict(layouts=['fsdp:2'], zero=2), dict(layouts=['fsdp:2', 'ddp:2'], packed=True),
             dict(layouts=['fsdp:2', 'ddp:2', 'pp:2'], optimizer='muon', steps=2), *(dict(layouts=['pp:2'], pipeline=p) for p in ('gpipe', 'interleaved', 'zerobubble', 'zbv')),
             dict(layouts=['cp:2', 'pp:2'], context='ulysses', window=10)])
PAIRS = ['fsdp:2,tp:2', 'pp:2,fsdp:2', 'fsdp:2,cp:2']
FOUR = names([dict(layouts=['fsdp:4', *PAIRS, 'pp:2,tp:2', 'cp:2,tp:2', 'pp:2,cp:2', 'ddp:2,fsdp:2', 'ddp:2,tp:2', 'pp:2,ddp:2']), dict(layouts=PAIRS, context='ulysses'), dict(layouts=PAIRS, zero=1), dict(layouts=PAIRS, zero=2),
              dict(layouts=PAIRS, model='lab-moe', steps=2), dict(layouts=['fsdp:2,cp:2', 'cp:2,tp:2', 'pp:2,cp:2'], context='ulysses', window=10)])

def start(ranks, ways, *more): return dict(zip([*ways, *more], in_one_start(ranks, *(dict(target='run_ranks:few_steps', **w) for w in ways.values()), *(dict(target=t) for t in more))))

@pytest.fixture(scope='module')
def two(): return start(2, TWO, 'muon_rank:shards')

@pytest.fixture(scope='module')
def four(): return start(4, FOUR)

@pytest.mark.parametrize('name', TWO)
def test_losses_norms_and_held_out_loss_are_those_of_one_process(two, name): same(two[name], **TWO[name])

@pytest.mark.slow
@pytest.mark.parametrize('name', FOUR)
def test_pairs_of_kinds(four, name): same(four[name], **FOUR[name])

def test_muon_on_shards_is_muon_on_the_whole(two):
    "of parameters whose rows two ranks cannot share equally"
    assert max(two['muon_rank:shards']) < 1e-5

def test_a_window_is_felt(): assert abs(one_process(window=10)['losses'][0] - one_process()['losses'][0]) > 1e-3

@pytest.mark.parametrize('change, word', [
    (dict(parallel='pp:2', packed=True), 'packed = true'), (dict(parallel='tp:2', fp8=True), 'fp8 = true'), (dict(backend='deepspeed'), 'needs processes'),
    (dict(backend='deepspeed', parallel='tp:2'), 'tp, pp and cp need backend = torch'), (dict(parallel='pp:2,fsdp:2', pipeline='zerobubble'), 'goes past the hooks'), (dict(zero=4), 'zero = 4')])
def test_what_cannot_go_together(change, word):
    with pytest.raises(SettingsError, match=word): check_settings(PretrainSettings(**change))

# ---- whole runs

RUNS = {'fsdp': dict(parallel='fsdp:2'), 'pp': dict(parallel='pp:2', micro_batch=1), 'muon, pp': dict(parallel='pp:2', micro_batch=1, optimizer='muon'),
        'muon, two stages a rank': dict(parallel='pp:2', micro_batch=1, optimizer='muon', pipeline='interleaved', layers=4), 'muon, fsdp': dict(parallel='fsdp:2', optimizer='muon')}

def run(corpus, out, **changes): return tiny(corpus, out, **{**dict(steps=7, eval_every=7, min_lr=1e-2), **changes}) # a rate that does not depend on `steps`

@pytest.fixture(scope='module')
def runs(corpus, tmp_path_factory):
    "Each run whole, and once more in two parts: four steps, then the rest from the checkpoint"
    top, calls = tmp_path_factory.mktemp('runs'), []
    for i, change in enumerate(RUNS.values()):
        for j, (out, steps) in enumerate((('whole', 7), ('parts', 4), ('parts', 7))):
            calls.append(dict(target='run_ranks:run', settings=as_file(run(corpus, top/f'{i}-{out}', steps=steps, **change), top/f'{i}-{j}.ini')))
    done = [first for first, _ in in_one_start(2, *calls)]
    return {name: (top/f'{i}-whole', top/f'{i}-parts', done[3*i], done[3*i + 2]) for i, name in enumerate(RUNS)}

@pytest.fixture(scope='module')
def alone(corpus, tmp_path_factory):
    return functools.cache(lambda **change: train(run(corpus, tmp_path_factory.mktemp('alone'), **change), RUN, say=quiet))

def of_one_process(change): return {k: v for k, v in change.items() if k in ('optimizer', 'layers')}

@pytest.mark.parametrize('name', RUNS)
def test_a_run_in_two_parts_is_the_whole_run_bit_for_bit(runs, name):
    whole, parts, a, b = runs[name]
    assert 'error' not in a and 'error' not in b and b['resumed_from'] == 4 and checkpoints(parts)[-1].name == 'step-7'
    assert losses(b['log']) == losses(a['log'])
    assert_same_bits(weights(whole, 7), weights(parts, 7))

@pytest.mark.parametrize('name', RUNS)
def test_a_run_is_that_of_one_process(runs, alone, name):
    "and the model at its end opens like any other"
    one, many = alone(**of_one_process(RUNS[name])), runs[name][3]
    assert losses(many['log']) == pytest.approx(losses(one.log), abs=2e-4)
    ours, theirs = (load_model(x).state_dict() for x in (many['final'], one.final))
    assert max(float((ours[k] - theirs[k]).abs().max()) for k in theirs) < 2e-3

@pytest.mark.parametrize('name', RUNS)
def test_one_process_goes_on_from_a_checkpoint_of_two(runs, alone, corpus, tmp_path, name):
    one = of_one_process(RUNS[name])
    shutil.copytree(runs[name][1]/'step-4', tmp_path/'step-4')
    r = train(run(corpus, tmp_path, **one), RUN, say=quiet)
    assert r.resumed_from == 4 and losses(r.log) == pytest.approx(losses(alone(**one).log)[4:], abs=2e-4)
