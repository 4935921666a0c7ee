"What can't be asked of an engine: each is told to the one who asked, before anything runs, and nobody else notices."
import json, math, signal, time
from dataclasses import replace
import numpy as np
import pytest, torch
from hypothesis import given, settings as hyp, strategies as st
from labkit.core.lm import Sampling
from labkit.core.settings import RunSettings, SettingsError, UserError
from labkit.corpus.tokens import Tokenizer, train_tokenizer
from labkit.inference import speculate
from labkit.inference.cache import BlockPool
from labkit.inference.engine import Engine, EngineSettings, PromptTooLong, replay
from labkit.inference.formats import save_as
from labkit.inference.quantize import quantize_model
from labkit.inference.request import fewest
from labkit.inference.backend import open_weights
from labkit.core.device import pick_device
from labkit.inference.score import pair_ids
from labkit.model.checkpoint import save_model
from engine_doubles import GREEDY, MODEL, PROMPTS, TOKENIZER, alone, check_empty, engine, run, tiny, write_adapter

torch.set_num_threads(1)

@pytest.mark.parametrize('bad', [dict(max_batch=-1), dict(block_size=0), dict(cache_tokens=-5), dict(step_tokens=-1), dict(max_context=-1), dict(guesses=-3), dict(guesses=0), dict(tensor_parallel=0), dict(swap_gb=math.nan), dict(swap_gb=-1.),
                                 dict(rope_factor=math.inf), dict(backend='foo'), dict(weights='w3'), dict(kv='int2'), dict(prefix='yes'), dict(max_batch=2.5), dict(speculate=3)])
def test_settings_name_what_is_wrong(bad):
    with pytest.raises(SettingsError, match=next(iter(bad))): EngineSettings(**bad)

@pytest.mark.parametrize('huge', [dict(cache_tokens=10**15), dict(block_size=10**12)])
def test_a_cache_that_has_no_room_is_an_error(huge):
    with pytest.raises(UserError, match='cache_tokens = .*block_size'): engine(**huge)

def test_more_memory_for_swapping_than_there_is(): assert engine(swap_gb=1e300).generate(['hello'], GREEDY)[0].tokens == alone('hello')

def test_a_journal_that_cannot_be_written(tmp_path):
    for path in (tmp_path, tmp_path/'nowhere'/'j.jsonl'):
        with pytest.raises(UserError, match='journal'): engine(journal=path)

@pytest.mark.parametrize('prompt, said', [('a\udcff b', 'surrogate'), ([1.5, 2], 'token ids'), (b'hello', 'token ids'), (None, 'token ids'), ([10**6], 'vocabulary'), (['a'], 'token ids')])
def test_prompts_that_are_none(prompt, said):
    e = engine()
    for ask in (lambda: e.add(prompt), lambda: e.generate([prompt]), lambda: e.stream(prompt), lambda: e.embed([prompt]), lambda: e.token_scores(prompt)):
        with pytest.raises(UserError, match=said): ask()
    assert not e.has_work

@pytest.mark.parametrize('prompts', ['hello', None, 5])
def test_one_text_is_no_list_of_prompts(prompts):
    e = engine()
    for ask in (e.generate, e.embed):
        with pytest.raises(UserError, match='expected a list of texts'): ask(prompts)

@pytest.mark.parametrize('pairs', [None, 'ab', ['ab'], [('a',)], [('a', 'b', 'c')], [('a', None)], [([1, 2], [3])], [5]])
def test_pairs_that_are_none(pairs):
    with pytest.raises(UserError, match='pair|a list'): engine().loglikelihood(pairs)

@pytest.mark.parametrize('more, said', [(dict(session=['a']), 'session'), (dict(priority='high'), 'priority'), (dict(session='\ud800'), 'surrogate'), (dict(adapter=3), 'adapter'), (dict(adapter=''), 'no adapter')])
def test_places_that_cannot_be(more, said, tmp_path):
    e = engine(journal=tmp_path/'j.jsonl')
    with pytest.raises(UserError, match=said): e.add('hello', GREEDY, **more)
    assert len(e.generate(['hello'], GREEDY)[0].tokens) == GREEDY.max_tokens

def test_a_session_needs_shared_prefixes():
    with pytest.raises(UserError, match='prefix = true'): engine(prefix=False).add('hello', session='s')

@pytest.mark.parametrize('params', [None, dict(max_tokens=3), [1]])
def test_parameters_of_another_kind(params):
    with pytest.raises(UserError, match='expected a Sampling'): engine().generate(['hello'], params)

def test_alternatives_beyond_the_vocabulary():
    for top in (10**6, 1.5, None, -1):
        with pytest.raises(UserError, match='top'): engine().token_scores('hello world', top=top)

@pytest.mark.parametrize('odd', [dict(regex='\ud800'), dict(grammar='start: "\ud800"'), dict(json_schema='{"const": "\ud800"}'), dict(json_schema='{"const": "\\ud800"}'), dict(json_schema='{"not":' * 10**5)])
def test_grammars_that_cannot_be_read(odd):
    with pytest.raises(UserError, match='surrogate|json_schema'): engine().generate(['hello'], Sampling(**odd))

@pytest.mark.parametrize('name, odd', [('logit_bias', ((5, 1e39),)), ('logit_bias', ((5, 1e31),)), ('presence_penalty', 1e39), ('frequency_penalty', -1e39), ('repetition_penalty', 1e39), ('repetition_penalty', 1e-39), ('temperature', 1e39), ('top_p', 1e-40)])
def test_numbers_that_float32_does_not_have(name, odd):
    "they would become infinite, and what is drawn then is no token that the model wants"
    with pytest.raises(UserError, match=name): engine().generate(['hello'], replace(Sampling(temperature=1., seed=1), **{name: odd}))

def test_the_smallest_nucleus_is_one_token():
    for p in (1e-3, 1e-30): assert engine().generate(['hello'], replace(GREEDY, temperature=1., seed=1, top_p=p))[0].tokens == alone('hello')

@pytest.mark.parametrize('error', [TypeError('odd'), UserError('a grammar that grew too large')])
def test_a_choice_that_breaks_ends_its_request_alone(monkeypatch, error):
    e, want = engine(), [c.tokens for c in engine().generate(PROMPTS[:3], GREEDY)]
    choose, victim = speculate.choose, TOKENIZER.encode(PROMPTS[1])
    def breaks(logits, p, written, generator, greedy, prompt, *more):
        if prompt == victim and len(written) == 3: raise error
        return choose(logits, p, written, generator, greedy, prompt, *more)
    monkeypatch.setattr(speculate, 'choose', breaks)
    ids = [e.add(p, GREEDY) for p in PROMPTS[:3]]
    got = run(e)
    assert [got[i][0] for i in ids] == [want[0], want[1][:3], want[2]] and got[ids[1]][1] == 'error'
    assert e.stats()['cache_blocks_used'] == 0

def test_ctrl_c_between_two_choices_loses_nobody(monkeypatch):
    e, want = engine(), [c.tokens for c in engine().generate(PROMPTS[:3], GREEDY)]
    choose, calls = speculate.choose, iter(range(10**6))
    def interrupted(*args):
        if next(calls) == 4: raise KeyboardInterrupt
        return choose(*args)
    monkeypatch.setattr(speculate, 'choose', interrupted)
    ids, got = [e.add(p, GREEDY) for p in PROMPTS[:3]], {}
    with pytest.raises(KeyboardInterrupt): run(e, got)
    run(e, got)
    assert [got[i][0] for i in ids] == want

def test_a_continuation_begins_with_the_first_token_of_its_own():
    cut = lambda a, b: tuple(TOKENIZER.decode(t, False) for t in pair_ids(a, b, lambda s: TOKENIZER.encode(s) or [TOKENIZER.eos_id], TOKENIZER))
    assert cut('the cat', ' sat') == ('the cat', ' sat')
    before, after = cut('hello ', 'world')
    assert before + after == 'hello world' and after.endswith('world')
    e = engine(MODEL)
    (a, _), (b, _) = e.loglikelihood([('hello ', 'world'), ('hello', ' world')])
    assert a == pytest.approx(b, abs=1e-4)

@pytest.mark.parametrize('pair', [('', ''), ('a', '')])
def test_a_continuation_that_is_empty(pair):
    with pytest.raises(UserError, match='empty'): engine().loglikelihood([pair])

@pytest.mark.parametrize('backend', ['torch', 'numba'])
def test_scores_of_long_and_short_contexts_together(backend):
    e, pairs = engine(backend=backend), [('a b c d e f g h i j k l m n o p q r s t u v w', ' x'), ('z', ' y')]
    one_by_one = [e.loglikelihood([p])[0][0] for p in pairs]
    assert [s for s, _ in e.loglikelihood(pairs)] == pytest.approx(one_by_one, abs=1e-4)

def test_long_and_short_prompts_share_a_compiled_step():
    e, steps = engine(backend='numba', step_tokens=64), []
    runner = e.runner
    e.runner = lambda work: steps.append(len(work)) or runner(work)
    e.generate(['a b c d e f g h i j k l m n o p q r s t u v w' * 2, 'z'], GREEDY)
    e.runner = runner
    assert len(steps) == e.stats()['steps'], 'a step failed and was computed again request by request'

@pytest.mark.parametrize('backend', ['torch', 'numba'])
def test_who_has_no_adapter_keeps_the_runner_beside_one_that_has(tmp_path, backend):
    e, parts = engine(backend=backend), []
    e.load_adapter('a', write_adapter(tmp_path/'a'))
    runner = e.runner
    e.runner = lambda work: parts.append([w.request.adapter for w in work]) or runner(work)
    ids = [e.add(p, GREEDY, adapter=a) for p, a in zip(PROMPTS, (None, 'a', None, 'a'))]
    got = run(e)
    assert parts and not any(a for step in parts for a in step)
    for i, p in zip(ids[::2], PROMPTS[::2]): assert got[i][0] == alone(p, backend=backend)

def test_a_closed_engine_says_so(tmp_path):
    e = engine(journal=tmp_path/'j.jsonl')
    i = e.add('hello', GREEDY)
    e.step(); e.close()
    assert [o.finish_reason for o in e.step() if o.id == i][-1] == 'abort' and e.stats()['cache_blocks_used'] == 0
    for ask in (lambda: e.add('hello'), lambda: e.generate(['hello']), lambda: e.loglikelihood([('a', ' b')]), lambda: e.embed(['a'])):
        with pytest.raises(UserError, match='closed'): ask()

GOOD = dict(step=0, add=1, prompt=[1], params={}, priority=0, session=None, adapter=None)
@pytest.mark.parametrize('text', ['{"step": 0, "add"', '[]', '{}', '{"step": 0}', '{"step": "x", "abort": 1}', *(json.dumps({**GOOD, **odd}) for odd in (dict(params=5), dict(params=dict(foo=1)), dict(step=None)))])
def test_a_journal_that_is_cut_off(tmp_path, text):
    (tmp_path/'j.jsonl').write_text(text)
    with pytest.raises(UserError, match='line|j.jsonl|replayed'): replay(engine(), tmp_path/'j.jsonl')
    with pytest.raises(UserError, match='nowhere'): replay(engine(), tmp_path/'nowhere.jsonl')

def test_states_that_are_no_numbers():
    model = tiny()
    model.norm.weight.data[0] = math.nan
    with pytest.raises(UserError, match='NaN'): engine(model).embed(['hello'])

@pytest.mark.parametrize('journal', [False, True])
def test_what_is_asked_before_an_engine_closes_and_read_after_it_says_so(tmp_path, journal):
    e = engine(journal=tmp_path/'j.jsonl' if journal else None)
    late, begun = e.stream('hello', GREEDY), e.stream('hello', GREEDY)
    next(begun)
    i = e.add('hello', GREEDY)                                    # no step has taken it in
    e.close()
    assert [(o.id, o.finish_reason) for o in e.step()] == [(i, 'error')] and [d.finish_reason for d in begun][-1] == 'abort'
    with pytest.raises(UserError, match='closed'): list(late)
    assert not e.has_work and not e._jobs and e.stats()['cache_blocks_used'] == 0

WEIGHTS = MODEL.state_dict()
@pytest.mark.parametrize('state', [None, [1, 2], 'model.safetensors', {n: w.numpy() for n, w in WEIGHTS.items()}, dict.fromkeys(WEIGHTS), {**WEIGHTS, 'norm.weight': [1.] * 32}, list(WEIGHTS.items())])
def test_weights_that_are_none(state):
    e = engine()
    with pytest.raises(UserError, match='expected a dict of tensors by name'): e.load_weights(state)
    assert e.generate(['hello'], GREEDY)[0].tokens == alone('hello')

# ------------------------------------------------------------------------------------------------------------------ folders with odd numbers
RUN, SMALL = RunSettings(device='cpu', threads=1), EngineSettings(backend='torch', cache_tokens=64)

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "A model as it is and in three formats of four bits, with its config"
    root, out = tmp_path_factory.mktemp('odd'), {}
    save_model(tiny(ffn_dim=32, sliding_window=5, family='mistral'), root/'plain', TOKENIZER)
    for form in ('labkit', 'awq', 'gptq'):
        model = tiny(ffn_dim=32)
        quantize_model(model, scheme='w4'); save_as(model, root/form, form, TOKENIZER)
    return {f.name: (f, json.loads((f/'config.json').read_text())) for f in root.iterdir()}

BIG, SIZES = 10**30, ('num_hidden_layers', 'vocab_size', 'hidden_size', 'num_attention_heads', 'num_key_value_heads', 'intermediate_size', 'max_position_embeddings', 'head_dim')
@pytest.mark.parametrize('key, value', [*((k, v) for k in SIZES for v in (-1, 0, '4', [4], 1.5, True, BIG)), *(('sliding_window', v) for v in (-1, '4', [4], 1.5, BIG)), *((k, v) for k in ('rope_theta', 'rms_norm_eps') for v in ('4', [4], -1, BIG)),
                                        *((k, v) for k in ('rope_scaling', 'rope_parameters', 'quantization_config') for v in (5, 'x', [4], True)), ('tie_word_embeddings', 'yes'), ('model_type', 5), ('hidden_act', 5)])
def test_an_odd_value_in_a_config_is_named_with_its_file(folders, key, value):
    folder, good = folders['plain']
    (folder/'config.json').write_text(json.dumps({**good, key: value}))
    with pytest.raises(UserError, match=rf'config.json.*{key}') as said: Engine.open(folder, run=RUN, settings=SMALL)
    assert any(w in str(said.value) for w in ('must be', 'expected', 'known', 'implemented'))

@pytest.mark.parametrize('form', ['labkit', 'awq', 'gptq'])
@pytest.mark.parametrize('value', [5, 'x', None, [], [1], {}, True])
def test_odd_values_of_a_quantization_are_named(folders, form, value):
    folder, good = folders[form]
    for key in ('quant_method', 'scheme' if form == 'labkit' else 'bits'):
        (folder/'config.json').write_text(json.dumps({**good, 'quantization_config': {**good['quantization_config'], key: value}}))
        with pytest.raises(UserError, match=f'config.json: quantization_config: {key} = .*; expected'): Engine.open(folder, run=RUN, settings=SMALL)

# ------------------------------------------------------------------------------------------------------------------ prompts that are far too long
def test_a_prompt_that_is_far_too_long_is_refused_before_it_is_read():
    e, text = engine(), 'the cat sat on the mat. ' * 400_000                # 10 MB take more than ten seconds to become tokens
    fewest('a', TOKENIZER)
    t = time.process_time()
    with pytest.raises(PromptTooLong, match='9,600,000 characters.*room for 96'): e.add(text, GREEDY)
    with pytest.raises(PromptTooLong, match='1000000 tokens.*room for 96'): e.add([1] * 1_000_000, GREEDY)
    assert time.process_time() - t < 1

UNIGRAM = train_tokenizer(['hello world, the cat sat on the mat. 你好世界 日本語'] * 9, 300, 'unigram')
@pytest.fixture(scope='module')
def smollm2(): return open_weights('smollm2-135m-instruct', None, EngineSettings(), pick_device(RUN))[1]

@given(st.one_of(st.text(max_size=60), st.text(' \n\tab<|im_end|>#=-\x04\x06', max_size=300), st.text('的你好e\u0301\u0302\u1100\u1161ΐι\u0308', max_size=40)))
@hyp(max_examples=300, deadline=None)
def test_a_text_has_no_fewer_tokens_than_the_bound_says(smollm2, text):
    for t in (TOKENIZER, UNIGRAM, NFC, LACKS, smollm2): assert fewest(text, t) <= len(t.encode(text, special=True))

def test_the_bound_says_something(smollm2):
    for t in (TOKENIZER, UNIGRAM, NFC, LACKS, smollm2): assert fewest('the cat sat on the mat. ' * 1000, t) > 200
    for c in '\x04\x06': assert fewest(c * 1000, smollm2) == 0                   # it has no token for them and drops them

def changed(change):
    "TOKENIZER with something else in its file"
    from tokenizers import Tokenizer as Backend
    spec = json.loads(TOKENIZER.backend.to_str()); change(spec)
    return Tokenizer(Backend.from_str(json.dumps(spec)), '<|endoftext|>', '<|endoftext|>')

NFC, LACKS = changed(lambda s: s.update(normalizer=dict(type='NFC'))), changed(lambda s: s['model']['vocab'].pop('ġ'))

@pytest.mark.parametrize('change', [lambda s: s.update(normalizer=dict(type='Strip', strip_left=True, strip_right=True)), lambda s: s['added_tokens'][2].update(rstrip=True),
                                    lambda s: s['pre_tokenizer']['pretokenizers'].insert(0, dict(type='WhitespaceSplit')), lambda s: s.update(normalizer=dict(type='Replace', pattern=dict(Regex=' +'), content=' '))])
def test_where_text_may_vanish_nothing_is_refused_by_its_length(change): assert fewest('a' * 1000, changed(change)) == 0

# ------------------------------------------------------------------------------------------------------------------ Ctrl-C in the middle of the books
@pytest.mark.parametrize('at', [1, 2, 5, 9, 14, 20, 33, 47, 60, 77, 95])
def test_ctrl_c_while_blocks_are_counted_leaves_the_books_right(monkeypatch, at):
    "The signal comes between two lines that belong together; whoever pressed is told when the step is done, also when it is pressed again while the request ends"
    e, want, calls, count = engine(cache_tokens=52), [alone(p, cache_tokens=52) for p in PROMPTS], iter(range(1, 10**6)), BlockPool._count
    def interrupted(pool, *args):
        if pool is e.cache.pool and next(calls) in (at, at + 1): signal.raise_signal(signal.SIGINT)
        count(pool, *args)
    monkeypatch.setattr(BlockPool, '_count', interrupted)
    with pytest.raises(KeyboardInterrupt): [e.generate(PROMPTS, GREEDY) for _ in range(3)]
    monkeypatch.setattr(BlockPool, '_count', count)
    assert not e.has_work and [c.tokens for c in e.generate(PROMPTS, GREEDY)] == want
    check_empty(e)
