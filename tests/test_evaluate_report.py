"""The whole pass on a model that answers by rule: resume, tables, command line."""
import csv, json, os, re, signal, subprocess, sys, time

import pytest

from labkit.core.lm import Completion, EndpointError, Sampling
from labkit.core.settings import SettingsError, UserError
from labkit.evaluate.report import (EvaluateSettings, Score, as_csv, as_markdown, dimension_scores, evaluate, fingerprint, main, make_tasks, model_label, radar, record_folder,
                                    run_humaneval, run_task, save_scores, score, table)
from labkit.evaluate.store import Store

SMALL = EvaluateSettings(limit=2, humaneval_limit=2, label='ruler')


class Ruler:
    "Prefers the shorter option and writes the same line always"
    model_name = 'ruler'
    def __init__(self, fail_after=10**9): self.calls, self.fail_after = 0, fail_after
    def _count(self, n):
        self.calls += n
        if self.calls > self.fail_after: raise KeyboardInterrupt
    def loglikelihood(self, pairs): self._count(len(pairs)); return [(-float(len(c)), False) for _, c in pairs]
    def generate(self, prompts, params=Sampling()): self._count(len(prompts)); return [Completion('    return []', prompt_tokens=len(p)) for p in prompts]
    def chat(self, messages, tools=None, **params): self._count(1); return dict(role='assistant', content='no')


def test_everything_is_scored(tmp_path):
    scores = evaluate(Ruler(), SMALL, tmp_path)
    assert len(scores) == 13 and {s.model for s in scores} == {'ruler'} and {s.mode for s in scores} == {'ll', 'ppl', 'gen', 'code'}
    assert all(0 <= s.low <= s.value <= s.high <= 1 and s.n == 2 for s in scores)
    rows = [json.loads(l) for l in open(next(tmp_path.glob('records/*/exam-en-*.jsonl')))]
    assert set(rows[0]) == {'id', 'prompt', 'prediction', 'gold', 'correct', 'scores'} and rows[0]['prompt']['A'][0].startswith('Question: ')


def test_nothing_is_asked_twice(tmp_path):
    first, lm = evaluate(Ruler(), SMALL, tmp_path), Ruler()
    again = evaluate(lm, SMALL, tmp_path)
    assert lm.calls == 0 and [s.values for s in again] == [s.values for s in first]
    more = Ruler()
    evaluate(more, EvaluateSettings(limit=3, humaneval_limit=2, label='ruler'), tmp_path)
    assert 0 < more.calls < Ruler_calls(tmp_path / 'fresh', 3)


def Ruler_calls(folder, limit):
    lm = Ruler()
    evaluate(lm, EvaluateSettings(limit=limit, humaneval_limit=2, label='ruler'), folder)
    return lm.calls


def test_interrupted_run_goes_on(tmp_path):
    settings = EvaluateSettings(humaneval_limit=0, label='ruler', batch=2)
    with pytest.raises(KeyboardInterrupt): evaluate(Ruler(fail_after=100), settings, tmp_path)
    done = sum(1 for f in tmp_path.glob('records/*/*.jsonl') for _ in open(f))
    assert 0 < done < 168
    part, whole = Ruler(), Ruler()
    scores = evaluate(part, settings, tmp_path)
    assert [s.values for s in scores] == [s.values for s in evaluate(whole, settings, tmp_path / 'other')] and part.calls < whole.calls


def test_half_a_line_is_cut_and_a_broken_one_is_named(tmp_path):
    store = Store(tmp_path / 's.jsonl')
    store.add([dict(id='a', correct=1.)]); store.add([dict(id='b', correct=0.)])
    whole = store.path.read_bytes()
    store.path.write_bytes(whole + b'{"id": "c", "corr')
    assert list(Store(store.path).rows) == ['a', 'b'] and store.path.read_bytes() == whole
    store.path.write_bytes(b'{"id": "a"}\nnonsense\n{"id": "b"}\n')
    with pytest.raises(UserError, match=r's\.jsonl:2: not a record'): Store(store.path)


def test_other_state_of_a_model_has_other_records(tmp_path):
    model = tmp_path / 'model'; model.mkdir(); (model / 'w').write_text('1')
    folder = lambda: record_folder(EvaluateSettings(model=str(model)), tmp_path)
    first = folder()
    os.utime(model / 'w', (1, 1))
    assert folder() != first and fingerprint('no-such-model') == '' and first.name.startswith('model-')
    assert model_label(EvaluateSettings(model='a/b/', adapter='x/lora')) == 'b+lora' and model_label(EvaluateSettings(model='m', label='L')) == 'L'
    assert '/' not in record_folder(EvaluateSettings(label='../..//x'), tmp_path).name


def test_samples_and_pass_at_k(tmp_path):
    from labkit.evaluate.humaneval import problems
    p = problems(3)
    class Sometimes(Ruler):
        def generate(self, prompts, params=Sampling()): self._count(len(prompts)); return [Completion(q.solution if params.seed == 1 or q.id == p[0].id else '    return 7') for q in p if q.prompt in prompts]
    lm = Sometimes()
    one, many = run_humaneval(lm, p, Store(tmp_path / 'h.jsonl'), 2, Sampling(max_tokens=9, temperature=.8), model='m')
    assert (one.metric, many.metric) == ('pass@1', 'pass@2') and one.values == (1., .5, .5) and many.value == 1.
    calls = lm.calls
    run_humaneval(lm, p, Store(tmp_path / 'h.jsonl'), 2, Sampling(max_tokens=9, temperature=.8), model='m')
    assert lm.calls == calls == 6


def some(model='a', **kw): return [score(v, dataset=d, version='123abc', metric='accuracy', mode='ll', model=model, seconds=1., dimension=d) for d, v in dict(exam=[1., 0.], safety=[1., 1.], **kw).items()]


def test_table_markdown_csv():
    rows = table([*some('a'), *some('b', reasoning=[0.])])
    assert rows[0] == ['dataset', 'version', 'metric', 'mode', 'a', 'b']
    assert ['reasoning', '123abc', 'accuracy', 'll', '-', '0.0 (0–79)'] in rows
    assert list(csv.reader(as_csv(rows).splitlines())) == rows
    md = as_markdown(rows).splitlines()
    assert len({l.count('|') for l in md}) == 1 and len(md) == len(rows) + 1


def test_dimensions_pool_their_items():
    a = score([1., 0., 0.], dataset='exam-en', version='', metric='accuracy', mode='ll', model='m', seconds=0., dimension='exam')
    b = score([1.], dataset='exam-zh', version='', metric='accuracy', mode='ll', model='m', seconds=0., dimension='exam')
    code = score([1.], dataset='humaneval', version='', metric='pass@1', mode='code', model='m', seconds=0., dimension='code')
    assert [(s.dataset, s.value, s.n) for s in dimension_scores([a, b, code])] == [('exam', .5, 4)]
    with pytest.raises(UserError, match='no items'): score([], dataset='d', version='', metric='', mode='', model='', seconds=0.)


def test_files(tmp_path):
    path = save_scores([*some('a'), *some('b')], tmp_path)
    assert path.read_text().startswith('| dataset') and '<svg' in (tmp_path / 'radar.svg').read_text()
    assert len([json.loads(l) for l in open(tmp_path / 'scores.jsonl')]) == 4
    fig = radar([*some('a'), *some('b')])
    assert len(fig.axes[0].patches) == 2 and [t.get_text() for t in fig.axes[0].get_xticklabels()] == ['exam', 'safety']


def test_command(tmp_path, capsys):
    lent = []
    def open_lm(model, adapter): lent.append((model, adapter)); return Ruler()
    assert main(['some-model', '--datasets', 'exam', 'safety-zh', '--limit', '1', '--humaneval-limit', '0', '--out', str(tmp_path)], open_lm=open_lm) == 0
    said = capsys.readouterr().out
    assert lent == [('some-model', None)] and re.findall(r'^\| (\S+-(?:en|zh))', said, re.M) == ['exam-en', 'exam-zh', 'safety-zh'] and (tmp_path / 'summary.md').exists()


def test_mistakes_come_before_the_model_is_loaded(tmp_path):
    def never(*a): raise AssertionError('loaded')
    for argv, why in ((['m', '--datasets', 'exma'], 'no such data set: exma; known: .*exam'), (['m', '--config', 'nowhere.py'], 'nowhere.py')):
        with pytest.raises(UserError, match=why): main([*argv, '--out', str(tmp_path)], open_lm=never)
    with pytest.raises(UserError, match='URL'): main(['m', '--out', str(tmp_path)])
    with pytest.raises(EndpointError): main(['http://127.0.0.1:9/v1', '--out', str(tmp_path)])


def test_own_configuration(tmp_path):
    (tmp_path / 'mine.jsonl').write_text('{"q": "1+1?", "answer": "2", "id": "x"}\n')
    (tmp_path / 'mine.py').write_text('''
from pathlib import Path
mine_datasets = [dict(abbr='mine', path=str(Path(__file__).parent / 'mine.jsonl'), reader_cfg=dict(input_columns=['q'], output_column='answer'),
    infer_cfg=dict(prompt_template=dict(type='PromptTemplate', template='{q}='), retriever=dict(type='ZeroRetriever'), inferencer=dict(type='GenInferencer', max_out_len=4)),
    eval_cfg=dict(evaluator=dict(type='EMEvaluator'), pred_postprocessor=dict(type='last_number')))]''')
    s, = evaluate(Ruler(), EvaluateSettings(config=tmp_path / 'mine.py', humaneval_limit=0), tmp_path / 'out')
    assert (s.dataset, s.metric, s.value, s.n) == ('mine', 'exact_match', 0., 1)


def test_evaluate_imports_no_engine():
    code = 'import sys, labkit.evaluate.report; bad = [m for m in sys.modules if m.startswith(("labkit.inference", "labkit.serve", "torch"))]; print(bad)'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'
