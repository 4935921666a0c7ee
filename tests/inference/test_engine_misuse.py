"What can't be asked of an engine: each is told to the one who asked, before anything runs, and nobody else notices."
import math
import pytest, torch
from labkit.core.lm import Sampling
from labkit.core.settings import SettingsError, UserError
from labkit.inference import engine as engines
from labkit.inference.engine import EngineSettings, replay
from labkit.inference.score import pair_ids
from engine_doubles import GREEDY, MODEL, PROMPTS, TOKENIZER, alone, engine, run, tiny, write_adapter

torch.set_num_threads(1)

@pytest.mark.parametrize('bad', [dict(max_batch=-1), dict(block_size=0), dict(cache_tokens=-5), dict(step_tokens=-1), dict(max_context=-1), dict(guesses=-3), dict(guesses=0), dict(tensor_parallel=0), dict(swap_gb=math.nan), dict(swap_gb=-1.),
                                 dict(rope_factor=math.inf), dict(backend='foo'), dict(weights='w3'), dict(kv='int2'), dict(prefix='yes'), dict(max_batch=2.5), dict(speculate=3)])
def test_settings_name_what_is_wrong(bad):
    with pytest.raises(SettingsError, match=next(iter(bad))): EngineSettings(**bad)

def test_a_cache_that_has_no_room_is_an_error():
    with pytest.raises(UserError, match='cache_tokens'): engine(cache_tokens=10**15)

@pytest.mark.parametrize('prompt, said', [('a\udcff b', 'surrogate'), ([1.5, 2], 'token ids'), (None, 'token ids'), ([10**6], 'vocabulary'), (['a'], 'token ids')])
def test_prompts_that_are_none(prompt, said):
    e = engine()
    for ask in (lambda: e.add(prompt), lambda: e.generate([prompt]), lambda: e.stream(prompt), lambda: e.embed([prompt]), lambda: e.token_scores(prompt)):
        with pytest.raises(UserError, match=said): ask()
    assert not e.has_work

def test_one_text_is_no_list_of_prompts():
    e = engine()
    for ask in (e.generate, e.embed):
        with pytest.raises(UserError, match='brackets'): ask('hello')

@pytest.mark.parametrize('more, said', [(dict(session=['a']), 'session'), (dict(priority='high'), 'priority'), (dict(session='\ud800'), 'surrogate'), (dict(adapter=3), 'adapter')])
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
    with pytest.raises(UserError, match='top'): engine().token_scores('hello', top=10**6)

@pytest.mark.parametrize('error', [TypeError('odd'), UserError('a grammar that grew too large')])
def test_a_choice_that_breaks_ends_its_request_alone(monkeypatch, error):
    e, want = engine(), [c.tokens for c in engine().generate(PROMPTS[:3], GREEDY)]
    choose, victim = engines.choose, TOKENIZER.encode(PROMPTS[1])
    def breaks(logits, p, written, generator, greedy, prompt, *more):
        if prompt == victim and len(written) == 3: raise error
        return choose(logits, p, written, generator, greedy, prompt, *more)
    monkeypatch.setattr(engines, 'choose', breaks)
    ids = [e.add(p, GREEDY) for p in PROMPTS[:3]]
    got = run(e)
    assert [got[i][0] for i in ids] == [want[0], want[1][:3], want[2]] and got[ids[1]][1] == 'error'
    assert e.stats()['cache_blocks_used'] == 0

def test_ctrl_c_between_two_choices_loses_nobody(monkeypatch):
    e, want = engine(), [c.tokens for c in engine().generate(PROMPTS[:3], GREEDY)]
    choose, calls = engines.choose, iter(range(10**6))
    def interrupted(*args):
        if next(calls) == 4: raise KeyboardInterrupt
        return choose(*args)
    monkeypatch.setattr(engines, 'choose', interrupted)
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

@pytest.mark.parametrize('text', ['{"step": 0, "add"', '[]'])
def test_a_journal_that_is_cut_off(tmp_path, text):
    (tmp_path/'j.jsonl').write_text(text)
    with pytest.raises(UserError, match='line|j.jsonl'): replay(engine(), tmp_path/'j.jsonl')
    with pytest.raises(UserError, match='nowhere'): replay(engine(), tmp_path/'nowhere.jsonl')

def test_states_that_are_no_numbers():
    model = tiny()
    model.norm.weight.data[0] = math.nan
    with pytest.raises(UserError, match='NaN'): engine(model).embed(['hello'])
