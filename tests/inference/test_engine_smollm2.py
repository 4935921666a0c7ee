"The embedded model, whole: greedy text equals transformers' in float32, on both backends (minutes; run with -m slow)."
import pytest, torch
from labkit.core.device import set_threads
from labkit.core.lm import Sampling
from labkit.core.settings import RunSettings
from labkit.inference.engine import Engine, EngineSettings
from labkit.model.checkpoint import save_model

pytestmark = pytest.mark.slow
PROMPT, N = 'The history of the lighthouse begins', 200

@pytest.fixture(scope='module')
def engines():
    run = RunSettings(device='cpu', threads=set_threads(1))
    fast = Engine.open(run=run)
    assert fast.stats()['backend'] == 'numba' and 'q4_1' in fast.stats()['weights']
    return [fast, *(Engine(fast.model, fast.tokenizer, EngineSettings(backend=b, cache_tokens=1024)) for b in ('numba', 'torch'))] # as it comes; in float32

@pytest.fixture(scope='module')
def wanted(engines, tmp_path_factory):
    transformers = pytest.importorskip('transformers')
    path = tmp_path_factory.mktemp('hf')/'m'
    save_model(engines[0].model, path, engines[0].tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ids = torch.tensor([engines[0].tokenizer.encode(PROMPT)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=N, max_new_tokens=N, pad_token_id=0)
    return tuple(out[0, ids.shape[1]:].tolist())

@pytest.mark.parametrize('which', [1, 2], ids=['numba', 'torch'])
def test_greedy_text_equals_transformers_for_200_tokens(engines, wanted, which):
    c, = engines[which].generate([PROMPT], Sampling(max_tokens=N, ignore_eos=True))
    assert c.tokens == wanted

def test_it_knows_the_capital_of_france(engines):
    assert 'Paris' in engines[0].chat([dict(role='user', content='What is the capital of France?')], max_tokens=20)['content']
