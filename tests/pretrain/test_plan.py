"The planner: activations to the byte, the timeline, layouts and what cannot be"
import json, re
from pathlib import Path
import pytest, torch
from hypothesis import given, settings, strategies as st
from labkit.core.settings import SettingsError, load
from labkit.model.config import preset
from labkit.model.transformer import Transformer
from labkit.pretrain.memory import saved_bytes
from labkit.pretrain.parallel import Layout, parse_parallel
from labkit.pretrain.pipeline import check_pipeline
from labkit.pretrain.plan import GPUS, KINDS, PlanSettings, Run, as_settings, dry_run, main, moments, plan, plan_memory, saved_by_block, step_time, tokens_per_second
from labkit.pretrain.worker import PretrainSettings, check_settings, model_config

RESULTS = Path(__file__).parents[2]/'benchmarks'/'results'
GiB = 2**30

@pytest.mark.parametrize('B, T, changes', [(2, 64, {}), (1, 96, {}), (3, 32, dict(dim=64)), (2, 64, dict(n_heads=8, n_kv_heads=4, ffn_dim=512))])
def test_saved_bytes_are_exact(B, T, changes):
    model = Transformer(preset('lab-1m', **changes))
    block, angles = model.layers[0], model.rope(None, T, 'cpu')
    x = torch.randn(B, T, model.cfg.dim, requires_grad=True)
    def forward():
        with torch.autocast('cpu', torch.bfloat16): block(x, *angles, model.attention)
    copies = sum(2*p.numel() for p in block.parameters() if p.ndim == 2)
    assert saved_bytes(model, forward) - copies == sum(saved_by_block(model.cfg, written_out=True, rows=B).values())*B*T

@pytest.mark.parametrize('recompute', ['none', 'full'])
def test_timeline_is_that_of_the_graph(recompute):
    cfg, run = preset('internlm2-1.8b', n_layers=4), Run(2, 1024, recompute=recompute)
    counted, rows = dry_run(cfg, run), {n: sum(m[k] for k in ('gradients', 'activations', 'buffers')) for n, m in moments(cfg, run=run)}
    assert rows['forward 4'] == pytest.approx(counted['forward'], rel=.02) and rows['end'] == pytest.approx(counted['end'], rel=.01)
    assert max(v for n, v in rows.items() if n.split()[0] in ('head', 'backward', 'end')) == pytest.approx(counted['backward'], rel=.05)

@pytest.mark.parametrize('name', ['plan_gpu', 'plan2_gpu'])
def test_measured_peaks(name):
    result = json.loads((RESULTS/f'{name}.json').read_text())
    for r in result['rows']:
        p = plan_memory(preset(r.get('model', result.get('model'))), Layout(fsdp=r.get('ranks', 1)), Run(r['micro'], r['seq'], r['pieces'], stage=r.get('stage', 3), recompute=r['recompute'], compiled=r['compiled']))
        assert (sum(p.values()) - p['context'])/r['peak'] == pytest.approx(1, abs=.05), r

def test_each_part_divides_what_it_should():
    cfg, run = preset('internlm2-7b'), Run(1, 4096, 8, compiled=True)
    whole, zero, tensor, context = (plan_memory(cfg, l, run) for l in (Layout(), Layout(fsdp=8), Layout(tp=8), Layout(fsdp=4, cp=2)))
    assert set(whole) == set(KINDS) and all(v >= 0 for v in whole.values())
    assert zero['weights'] == pytest.approx(whole['weights']/8) == pytest.approx(tensor['weights'], rel=.01)
    assert tensor['activations'] == pytest.approx(whole['activations']/8, rel=.01)
    assert context['weights'] == zero['weights'] and context['activations'] == pytest.approx(zero['activations']/2, rel=.01)
    assert plan_memory(cfg, Layout(fsdp=8), Run(1, 4096, 8, stage=1))['gradients'] == pytest.approx(8*zero['gradients'])

def test_time_has_its_parts():
    cfg, gpu = preset('internlm2-7b'), GPUS['A100-80G']
    t = step_time(cfg, Layout(pp=2, ddp=2, fsdp=4, tp=2), Run(1, 4096, 8), gpu)
    assert all(t[k] > 0 for k in ('compute', 'pipeline', 'tensor', 'zero', 'copies', 'optimizer'))
    assert t['pipeline'] == pytest.approx(t['compute']/8)
    rate, mfu = tokens_per_second(cfg, Layout(fsdp=8), Run(2, 2048, 4, compiled=True), gpu)
    assert 3600 < rate < 4100 and .5 < mfu < .6 # InternEvo: 4078 on eight A100

def test_the_answer_can_be_used(capsys, tmp_path):
    assert main(['--model', '7b', '--gpus', '8xA100-80G']) == 0
    out = capsys.readouterr().out
    assert 'internlm2-7b' in out and 'fsdp:8' in out
    (tmp_path/'settings.ini').write_text(out[out.index('[pretrain]'):])
    check_settings(load(PretrainSettings, 'pretrain', tmp_path/'settings.ini'))

def would_train(section, file):
    "The settings of a section, past every check that a run makes before its first step"
    file.write_text(section)
    s = load(PretrainSettings, 'pretrain', file); check_settings(s)
    cfg, layout = model_config(s, preset(s.model).vocab_size), parse_parallel(s.parallel)
    rows = s.batch_tokens//(s.seq_len*layout.data_ranks)
    if layout.pp > 1:
        assert rows % s.micro_batch == 0
        check_pipeline(cfg, s.pipeline, layout.pp, rows//s.micro_batch)
    return s, s.seq_len*layout.data_ranks

@settings(deadline=None, max_examples=80)
@given(data=st.data(), world=st.sampled_from([1, 2, 3, 6, 8, 12, 64]), model=st.sampled_from(['internlm2-1.8b', 'mistral-7b', 'qwen2.5-0.5b', 'smollm2-135m', 'lab-moe']), seq=st.sampled_from([1, 7, 100, 512]), fp8=st.booleans())
def test_whatever_the_batch_each_section_would_train(data, world, model, seq, fp8, tmp_path_factory):
    batch = data.draw(st.integers(-seq, 40*seq*world) | st.integers(1, 40).map(lambda n: n*seq*world), 'batch')
    parts = [f'{p}:{world}' for p in ('fsdp', 'ddp', 'cp', 'pp', 'tp')] + ([f'fsdp:{world//2},{p}:2' for p in ('cp', 'pp')] if world % 2 == 0 else [])
    ask = dict(model=model, gpus=f'{world}xH100', seq_len=seq, parallel=data.draw(st.sampled_from(['', *parts]), 'parallel'), precision='fp8' if fp8 else 'bf16')
    try: found = plan(PlanSettings(**ask, batch_tokens=batch))
    except SettingsError as e:
        assert '\n' not in str(e)
        if enough := re.search(r'use at least (\d+)', str(e)): assert int(enough[1]) > batch and plan(PlanSettings(**ask, batch_tokens=int(enough[1]))), 'advice that helps'
        return
    for c in found:
        s, unit = would_train(as_settings(model, c), tmp_path_factory.getbasetemp()/'section.ini')
        assert batch - unit < s.batch_tokens <= batch and (s.micro_batch, s.batch_tokens//unit) == (c.run.micro_batch, c.run.micro_batch*c.run.pieces)

@pytest.mark.parametrize('batch, used', [(1_000_003, 983_040), (4096*8*13, 4096*8*13), (2**22, 2**22)])
def test_the_tokens_of_a_step_are_those_of_the_section(batch, used, capsys, tmp_path):
    main(['--gpus', '8xH100', '--parallel', 'fsdp:8', '--batch-tokens', str(batch)])
    out = capsys.readouterr().out
    assert would_train(out[out.index('[pretrain]'):], tmp_path/'s.ini')[0].batch_tokens == used
    assert f'{used:,} tokens a step' in out and (f'{batch:,} asked' in out) == (batch != used)

def test_a_window_needs_ulysses(tmp_path):
    c, = plan(PlanSettings(model='mistral-7b', gpus='8xH100', parallel='fsdp:4,cp:2'))
    assert would_train(as_settings('mistral-7b', c), tmp_path/'s.ini')[0].context == 'ulysses'
    with pytest.raises(SettingsError, match='cannot be shared by 64 ranks'): plan(PlanSettings(model='mistral-7b', gpus='64xH100', parallel='cp:64'))

def test_best_comes_first_and_fits():
    found = plan(PlanSettings(model='internlm2-20b', gpus='64xH100'))
    fits = [c for c in found if c.fits]
    assert found[0].fits and fits == sorted(fits, key=lambda c: -c.tokens_per_s)
    assert all(c.layout.world == 64 and sum(c.memory.values()) < 79.2*GiB for c in fits)

@pytest.mark.parametrize('asked, says', [
    (dict(gpus='1xA100-40G'), 'nothing fits'), (dict(gpus='eight'), '8xA100-80G'), (dict(gpus='8xB300'), 'known: A100-40G'), (dict(gpus='0xH100'), 'at least one'),
    (dict(model='internlm2-8b'), 'Did you mean'), (dict(parallel='tp:3'), 'heads = 32'), (dict(parallel='fsdp:16'), 'at most 8'), (dict(parallel='fdsp:8'), 'Did you mean'),
    (dict(batch_tokens=100), 'at least one row'), (dict(batch_tokens=0), 'batch_tokens = 0: a step must hold at least one row'), (dict(batch_tokens=-8192), 'at least one row'), (dict(seq_len=0), r'seq_len = 0: must be at least 1'),
    (dict(seq_len=-1, batch_tokens=-1), 'seq_len = -1'), (dict(rows=0), 'rows = 0: must be at least 1'), (dict(parallel='pp:8', batch_tokens=7*4096), 'use at least 32768'), (dict(gpus='64xH100', batch_tokens=8192, parallel='fsdp:64'), 'too few rows'), (dict(seq_len=10**6), 'at most'), (dict(precision='fp8'), '8-bit')])
def test_what_cannot_be_is_one_message(asked, says):
    argv = [x for k, v in asked.items() for x in (f"--{k.replace('_', '-')}", str(v))]
    with pytest.raises(SettingsError, match=says) as e: main(argv)
    assert '\n' not in str(e.value)
