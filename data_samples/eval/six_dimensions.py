"""The six dimensions of OpenCompass (学科、语言、知识、理解、推理、安全) on the small bilingual sets beside this file, in OpenCompass's own form."""
from pathlib import Path

from opencompass.openicl.icl_evaluator import AccEvaluator
from opencompass.openicl.icl_inferencer import GenInferencer, LLInferencer, PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import FixKRetriever, ZeroRetriever

here = Path(__file__).parent
WORDS = dict(en=dict(question='Question: ', answer='Answer:', passage='Text: ', space=' '), zh=dict(question='问题：', answer='答案：', passage='短文：', space=''))


def config(dimension, language, columns, infer, evaluator, post=None):
    return dict(abbr=f'{dimension}-{language}', dimension=dimension, path=str(here / f'{dimension}.jsonl'), language=language,
                reader_cfg=dict(input_columns=columns, output_column='answer'), infer_cfg=infer,
                eval_cfg=dict(evaluator=dict(type=evaluator), **(dict(pred_postprocessor=dict(type=post)) if post else {})))


def choice(dimension, language, labels, **inferencer):
    w = WORDS[language]
    template = {l: f"{w['question']}{{question}}\n{w['answer']}</S>{w['space']}{{{l}}}" for l in labels}
    infer = dict(prompt_template=dict(type=PromptTemplate, template=template, sep_token='</S>'), retriever=dict(type=ZeroRetriever), inferencer=dict(type=LLInferencer, **inferencer))
    return config(dimension, language, ['question', *labels], infer, AccEvaluator)


def sentences(dimension, language, labels='AB'):
    infer = dict(prompt_template=dict(type=PromptTemplate, template={l: f'{{{l}}}' for l in labels}), retriever=dict(type=ZeroRetriever), inferencer=dict(type=PPLInferencer))
    return config(dimension, language, list(labels), infer, AccEvaluator)


def short_answer(dimension, language, passage=False, shots=()):
    w = WORDS[language]
    turns = [dict(role='HUMAN', prompt=(f"{w['passage']}{{passage}}\n" if passage else '') + f"{w['question']}{{question}}"), dict(role='BOT', prompt=w['answer'] + (w['space'] + '{answer}' if shots else ''))]
    ask = dict(round=[turns[0], dict(role='BOT', prompt=w['answer'])])
    infer = dict(prompt_template=dict(type=PromptTemplate, template=ask), retriever=dict(type=FixKRetriever, fix_id_list=list(shots)) if shots else dict(type=ZeroRetriever),
                 inferencer=dict(type=GenInferencer, max_out_len=12, stopping_criteria=['\n']))
    if shots: infer['ice_template'] = dict(type=PromptTemplate, template=dict(round=turns))
    return config(dimension, language, ['question'] + ['passage'] * passage, infer, 'ContainsEvaluator', 'first_line')


datasets = [make for l in ('en', 'zh') for make in (
    choice('exam', l, 'ABCD'), sentences('language', l), short_answer('knowledge', l, shots=(0, 1, 2)),
    short_answer('understanding', l, passage=True), choice('reasoning', l, 'ABC'), choice('safety', l, 'AB', per='byte'))]
datasets.sort(key=lambda c: ['exam', 'language', 'knowledge', 'understanding', 'reasoning', 'safety'].index(c['dimension']))
