"""Inferencers on models whose answers are known, and configurations in OpenCompass's form."""
import copy, math
from collections import Counter

import pytest

from labkit.core.files import samples
from labkit.core.lm import Completion, Sampling
from labkit.core.settings import UserError
from labkit.evaluate.datasets import ItemSet
from labkit.evaluate.inferencers import GEN, LL, PPL, Ask, count_tokens, likelihood_scores, perplexity_scores
from labkit.evaluate.opencompass import ConfigError, as_messages, as_text, build, examples, fill, load_config, option, turns


class Letters:
    "A model of letters: each has probability by its count in a corpus, whatever stands before it; a token is a letter"
    def __init__(self, corpus='the cat sat on the mat and ate'):
        self.p, self.asked = Counter(corpus), []
        self.n = sum(self.p.values()) + 50
    def loglikelihood(self, pairs):
        self.asked += pairs
        return [(sum(math.log((self.p[c] + 1) / self.n) for c in cont), False) for _, cont in pairs]
    def generate(self, prompts, params=Sampling()):
        self.asked += prompts
        return [Completion(' B. yes'[:params.max_tokens], prompt_tokens=len(p)) for p in prompts]
    def chat(self, messages, tools=None, **params): self.asked.append(messages); return dict(role='assistant', content=f"{len(messages)} {params['max_tokens']}")


def ask(**options): return Ask('1', ('A',), options={k: tuple(v) for k, v in options.items()})


def test_continuation_rules():
    lm = Letters()
    short, long = ('q', 't'), ('q', 'tttttttt')
    assert LL()(lm, [ask(A=short, B=long)])[0].prediction == 'A'
    sums, means = likelihood_scores(lm, [short, long]), likelihood_scores(lm, [short, long], 'byte')
    assert math.isclose(sums[1], 8 * sums[0]) and math.isclose(*means)
    assert math.isclose(likelihood_scores(lm, [('', '猫')], 'byte')[0], likelihood_scores(lm, [('', '猫')])[0] / 3)


def test_perplexity_is_of_the_whole_text():
    lm = Letters()
    a = PPL()(lm, [ask(A=('zzzz', 't'), B=('', 'tt'))])[0]
    assert a.prediction == 'B' and ('', 'zzzzt') in lm.asked
    assert math.isclose(a.scores['A'], lm.loglikelihood([('', 'zzzzt')])[0][0] / 5)
    assert math.isclose(*perplexity_scores(lm, ['ta', 'tata']))


def test_token_counts_by_tokenizer_or_by_asking():
    lm = Letters()
    assert count_tokens(lm, ['abc', 'a']) == [3, 1]
    lm.tokenizer = type('T', (), dict(encode=lambda self, t: t.split()))()
    assert count_tokens(lm, ['a b', 'c']) == [2, 1]


def test_batches_do_not_change_scores():
    asks = [Ask(str(i), ('A',), options={l: (f'q{i}', l * (i + 1)) for l in 'AB'}) for i in range(7)]
    whole = LL()(Letters(), asks)
    assert whole == [a for one in asks for a in LL()(Letters(), [one])]


def test_generation_and_chat_mix():
    lm = Letters()
    got = GEN(Sampling(max_tokens=3), str.strip)(lm, [Ask('1', ('B',), prompt='x'), Ask('2', ('B',), prompt=(dict(role='user', content='x'),)), Ask('3', ('B',), prompt='y')])
    assert [a.prediction for a in got] == ['B.', '1 3', 'B.']


ROUNDS = dict(begin=[dict(role='SYSTEM', fallback_role='HUMAN', prompt='Be {mood}.')], round=[dict(role='HUMAN', prompt='Q {q}'), dict(role='BOT', prompt='A {answer}')], end='E')
META = dict(begin='<s>', round=[dict(role='HUMAN', begin='[', end=']'), dict(role='BOT', begin='(', end=')', generate=True)], end='</s>')


def test_rounds_for_each_kind_of_model():
    row = dict(q='1', answer='2', mood='kind')
    parts = turns(ROUNDS, row)
    assert as_text(parts) == 'Be kind.\nQ 1\nA 2\nE'
    assert as_text(parts[:-1], META) == '<s>[Be kind.][Q 1](A 2'
    assert as_text(parts[:-2], META) == '<s>[Be kind.][Q 1]</s>'
    assert [m['role'] for m in as_messages(parts[:-1])] == ['system', 'user']
    assert as_text(turns(ROUNDS, row, ice=True)) == 'Q 1\nA 2'


def test_braces_stay():
    assert fill('{a} {b} {"c": {a}} {}', dict(a='{b}', b=1)) == '{b} 1 {"c": {b}} {}'


def test_examples():
    items = ItemSet('s', [], [dict(q=str(i), answer='AB'[i % 2]) for i in range(3)])
    infer = dict(retriever=dict(fix_id_list=[2, 1]), ice_template=dict(template={'A': '</E>{q} yes', 'B': '</E>{q} no'}, ice_token='</E>'))
    assert examples(infer, items, 'answer') == '2 yes\n1 no\n'
    with pytest.raises(ConfigError, match='example 7; the train split has 3'): examples(dict(infer, retriever=dict(fix_id_list=[7])), items, 'answer')
    with pytest.raises(ConfigError, match='ice_template'): examples(dict(retriever=dict(fix_id_list=[0])), items, 'answer')


def test_options_split_at_the_separator():
    spec = dict(sep_token='</S>', ice_token='</E>')
    assert option({'A': '</E>{q}</S> {A}'}, dict(q='Q', A='x'), 'A', 'E\n', spec, 'answer') == ('E\nQ', ' x')
    assert option({'A': '{q} {A}'}, dict(q='Q', A='x'), 'A', '', {}, 'answer') == ('', 'Q x')


@pytest.fixture
def config(): return copy.deepcopy(next(c for c in load_config(samples('eval/six_dimensions.py')) if c['abbr'] == 'reasoning-zh'))


def test_shipped_configuration_has_all_sets():
    configs = load_config(samples('eval/six_dimensions.py'))
    assert Counter(c['dimension'] for c in configs) == dict.fromkeys(['exam', 'language', 'knowledge', 'understanding', 'reasoning', 'safety'], 2)
    assert all(len(build(c).asks) == 14 for c in configs)


def test_answers_do_not_leak_into_generative_prompts():
    for c in load_config(samples('eval/six_dimensions.py')):
        task = build(c)
        if task.mode == 'gen' and c['dimension'] == 'knowledge':
            assert [a.id for a in task.asks if any(g in a.prompt.splitlines()[-2] + a.prompt.splitlines()[-1] for g in a.gold)] == []


def test_version_follows_the_prompt_only(config):
    version = build(config).version
    assert build(config, limit=3).version == version and build({**config, 'path': str(samples('eval/reasoning.jsonl').resolve())}).version == version
    config['infer_cfg']['inferencer']['per'] = 'byte'
    assert build(config).version != version


@pytest.mark.parametrize('change,why', [
    (lambda c: c['infer_cfg']['inferencer'].update(type='X'), 'unknown type .X.; known: PPLInferencer'), (lambda c: c['infer_cfg']['retriever'].update(type='TopkRetriever'), 'known: ZeroRetriever, FixKRetriever'),
    (lambda c: c['eval_cfg']['evaluator'].update(type='X'), 'known: AccEvaluator'), (lambda c: c['infer_cfg'].pop('inferencer'), 'infer_cfg.inferencer.type is missing'),
    (lambda c: c['reader_cfg']['input_columns'].append('D'), 'has no column D'), (lambda c: c.update(path='nowhere.jsonl'), 'nowhere.jsonl'), (lambda c: c['reader_cfg'].update(test_range='x'), 'slice'),
    (lambda c: c.pop('abbr'), 'abbr is missing'), (lambda c: c['infer_cfg']['prompt_template'].update(template='one text'), "column 'labels'")])
def test_bad_configurations_are_explained(config, change, why):
    change(config)
    with pytest.raises(UserError, match=why): build(config)


def test_types_may_be_functions(config):
    config['type'] = lambda path, name, **kw: ItemSet(name, [dict(id='x', question='q', A='1', B='2', C='3', answer='B')])
    config['eval_cfg']['evaluator']['type'] = lambda prediction, golds: .5
    task = build(config)
    assert len(task.asks) == 1 and task.judge('A', ('B',)) == .5


def test_configuration_files_with_imports(tmp_path):
    (tmp_path / 'sets').mkdir()
    (tmp_path / 'sets' / 'one.py').write_text('from opencompass.openicl.icl_inferencer import GenInferencer\none_datasets = [dict(abbr="one", infer_cfg=dict(inferencer=dict(type=GenInferencer)))]\n')
    (tmp_path / 'all.py').write_text('from mmengine.config import read_base\nwith read_base():\n    from .sets.one import one_datasets\ndatasets = [*one_datasets, dict(abbr="two")]\n')
    found = load_config(tmp_path / 'all.py')
    assert [c['abbr'] for c in found] == ['one', 'two'] and found[0]['infer_cfg']['inferencer']['type'] == 'GenInferencer'
    (tmp_path / 'bad.py').write_text('x = (')
    with pytest.raises(ConfigError, match='bad.py: not a configuration'): load_config(tmp_path / 'bad.py')
    (tmp_path / 'none.py').write_text('x = 1')
    with pytest.raises(ConfigError, match='datasets'): load_config(tmp_path / 'none.py')
    with pytest.raises(ConfigError, match='missing.py'): load_config(tmp_path / 'missing.py')
