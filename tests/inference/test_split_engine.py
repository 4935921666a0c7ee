"The engine over several processes: the same text and scores as in one, what it refuses, and what its requests hear when a process dies"
import os, signal, threading, time, pytest, torch
from types import SimpleNamespace
from labkit.core.lm import Sampling
from labkit.core.settings import RunSettings, SettingsError, UserError
from labkit.inference.engine import Engine, EngineSettings
from labkit.inference.ranks import Leader, SplitCache, Told, open_split
from labkit.inference.tensor_parallel import Ranks
from labkit.model.config import preset
from labkit.pretrain.parallel import RankError
from tensor_parallel_ranks import asked, save_small

PROMPTS, DEAD = [list(range(5, 30)), [7, 8, 9], list(range(5, 25)), [40]], 'process 1 of 2 that share the model was killed by signal 9'

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return save_small(tmp_path_factory.mktemp('split')/'model')

def engine(folder, **settings): return Engine.open(folder, run=RunSettings(device='cpu', threads=1), settings=EngineSettings(backend='torch', cache_tokens=512, **settings))

@pytest.fixture(scope='module')
def two(folder):
    eng = engine(folder, tensor_parallel=2, step_tokens=16)
    yield eng
    eng.close()

@pytest.fixture(scope='module')
def one(folder): return engine(folder, step_tokens=16)

@pytest.mark.parametrize('params', [Sampling(max_tokens=12, ignore_eos=True), Sampling(max_tokens=12, temperature=1., seed=3, ignore_eos=True), Sampling(max_tokens=8, regex='[0-9]{3} some')])
def test_the_same_text(one, two, params):
    texts = lambda e: [c.tokens for c in e.generate(PROMPTS, params)]
    assert texts(two) == texts(one)
    assert two.stats()['backend'] == 'torch, 2 processes' and '2 parts' in two.stats()['backend_reason']

def test_the_same_scores(one, two):
    pairs = [('some text', ' to train'), ('some text', ' 1 2 3'), ('on', ' a tokenizer')]
    for (a, x), (b, y) in zip(two.loglikelihood(pairs), one.loglikelihood(pairs)): assert abs(a - b) < 1e-4 and x == y

def test_what_one_process_alone_can_do(two):
    for call in (lambda: two.embed(['some text']), lambda: two.load_adapter('a', 'folder'), lambda: two.load_weights({})):
        with pytest.raises(UserError, match='not with tensor_parallel = 2; open the model in one process'): call()
    with pytest.raises(UserError, match="no adapter 'a'"): two.generate(PROMPTS[:1], adapter='a')

def test_one_group_at_a_time(folder, two):
    with pytest.raises(SettingsError, match='close the other engine first'): open_split(folder, 2)

@pytest.fixture
def closed(two): two.close()                                                 # one group at a time: the tests from here on open their own

def test_guesses_too(folder, one, closed):
    eng = engine(folder, tensor_parallel=2, speculate='lookup')
    try: assert [c.tokens for c in eng.generate([PROMPTS[0]*2], Sampling(max_tokens=16, ignore_eos=True))] == [c.tokens for c in one.generate([PROMPTS[0]*2], Sampling(max_tokens=16, ignore_eos=True))]
    finally: eng.close()

@pytest.mark.parametrize('settings, word', [(dict(tensor_parallel=3), '2 key/value heads|key/value heads with'), (dict(tensor_parallel=0), 'tensor_parallel = 0: expected'), (dict(tensor_parallel=2, swap_gb=1.), 'swap_gb: with tensor_parallel')])
def test_what_cannot_be_opened(folder, closed, settings, word):
    with pytest.raises(UserError, match=word): engine(folder, **settings)
    assert not torch.distributed.is_initialized()

def test_no_adapter_is_merged_into_parts(folder):
    with pytest.raises(UserError, match='merge it first with `merge_lora`'): Engine.open(folder, adapter='somewhere', run=RunSettings(device='cpu'), settings=EngineSettings(tensor_parallel=2))

def test_a_gpu_for_each(folder, closed, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(SettingsError, match='tensor_parallel = 2: 2 processes need a GPU each, and there are 1'): open_split(folder, 2, 'cuda')

def test_everybody_who_waits_hears_of_a_dead_process(folder, closed):
    eng = engine(folder, tensor_parallel=2, max_batch=2)
    began, ids = time.monotonic(), [eng.add(p, Sampling(max_tokens=30, ignore_eos=True)) for p in PROMPTS]
    heard = []
    waiting = threading.Thread(target=lambda: heard.append(_error(lambda: eng.generate(PROMPTS[:1], Sampling(max_tokens=30, ignore_eos=True)))))
    for _ in range(5): assert all(o.finish_reason is None for o in eng.step())
    os.kill(eng._split.processes[0].pid, signal.SIGKILL)
    waiting.start()
    ended = {}
    while eng.has_work and time.monotonic() < began + 60: ended |= {o.id: o for o in eng.step() if o.finish_reason}
    waiting.join(60)
    assert sorted(ended) == ids and all(o.finish_reason == 'error' and DEAD in o.error for o in ended.values()), 'running ones and those in the queue'
    assert len(heard) == 1 and DEAD in heard[0] and DEAD in _error(lambda: eng.generate(['some'])) and DEAD in _error(lambda: eng.loglikelihood([('some', ' text')]))
    assert eng.stats()['cache_blocks_used'] == 0
    eng.close()
    assert time.monotonic() < began + 60 and not torch.distributed.is_initialized()

def _error(call) -> str:
    with pytest.raises(UserError) as e: call()
    return str(e.value)

def test_a_step_that_fails_here_breaks_the_leader():
    class Breaks:
        name, weights = 'breaks', 'none'
        def __call__(self, work): raise ValueError('too large')
    lead = Leader(Breaks(), Ranks(0, 1), SplitCache(preset('lab-1m', n_layers=1), 4))
    for _ in range(2):
        with pytest.raises(RankError, match='process 0 of 1 that share the model failed within a step: ValueError: too large; open the engine again'): lead([Told(asked([0]), 0, 1, [5], 1)])

def test_a_gpu_that_waits_for_a_dead_partner_is_not_waited_for(monkeypatch):
    "its sum never ends: the event behind the step stays open, and the leader finds out why"
    class Never:
        def record(self): pass
        def query(self): return False
    monkeypatch.setattr(torch.cuda, 'Event', Never)
    lead = Leader(SimpleNamespace(name='gpu', weights='bf16'), Ranks(0, 1), SplitCache(preset('lab-1m', n_layers=1), 4), why=lambda patience: 'process 1 of 2 is gone')
    lead.runner, began = lambda work: SimpleNamespace(is_cuda=True), time.monotonic()
    with pytest.raises(RankError, match='process 1 of 2 is gone'): lead([Told(asked([0]), 0, 1, [5], 1)])
    assert .4 < time.monotonic() - began < 10
