"The two lanes of a trace, from a file made by hand and from two ranks"
import json
import pytest
from labkit.pretrain.overlap import covered, hidden, spans, trace_kinds
from labkit.pretrain.parallel import launch
from small import quiet

def event(name, cat, ts, dur): return dict(ph='X', name=name, cat=cat, ts=ts, dur=dur)

def test_lanes_of_a_gpu(tmp_path):
    (tmp_path/'t.json').write_text(json.dumps(dict(traceEvents=[dict(ph='M', name='thread'), event('aten::mm', 'cpu_op', 0, 9000), event('gemm', 'kernel', 1000, 100),
        event('norm', 'kernel', 1110, 100), event('gemm', 'kernel', 2000, 50), event('ncclDevKernel_AllGather_RING_LL(x)', 'kernel', 1050, 300), event('ncclDevKernel_ReduceScatter_Sum_f32', 'kernel', 1400, 100)])))
    assert spans(tmp_path/'t.json') == [['compute', 'kernels', 0, .21], ['compute', 'kernels', 1., 1.05], ['messages', 'all-gather', .05, .35], ['messages', 'reduce-scatter', .4, .5]]

def test_lanes_of_a_cpu(tmp_path):
    (tmp_path/'t.json').write_text(json.dumps(dict(traceEvents=[event('forward', 'user_annotation', 0, 1000), event('backward', 'user_annotation', 1000, 1000), event('averaging', 'user_annotation', 2000, 500),
        event('gloo:all_reduce', 'user_annotation', 1500, 1000), event('aten::mm', 'cpu_op', 0, 10)])))
    found = spans(tmp_path/'t.json')
    assert [s[:2] for s in found] == [['compute', 'forward'], ['compute', 'backward'], ['messages', 'all-reduce']] and hidden(found) == .5

def test_bars_that_overlap_count_once():
    assert covered([(3, 6), (0, 4), (8, 9)]) == [(0, 6), (8, 9)]
    assert hidden([['compute', 'a', 0, 4], ['compute', 'b', 2, 6], ['messages', 'm', 5, 7], ['messages', 'n', 6, 7]]) == .5

def test_two_ranks():
    kinds = ['afterwards', 'a message each', 'buckets', 'by itself', 'two ahead']
    r = launch('labkit.pretrain.overlap:trace_kinds', 2, 1, quiet, kinds=kinds, name='lab-1m', vocab=256, seq_len=32, steps=1)[0]
    assert hidden(r['afterwards']['spans']) == 0 < hidden(r['a message each']['spans']) and hidden(r['buckets']['spans']) > 0
    for k in kinds[1:3]: assert r[k]['losses'] == pytest.approx(r['afterwards']['losses'], abs=1e-5)
    assert r['by itself']['losses'] == pytest.approx(r['two ahead']['losses'], abs=1e-3)
    assert {s[1] for s in r['by itself']['spans'] if s[0] == 'messages'} >= {'all-gather'}
