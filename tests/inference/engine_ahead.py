"The engine on its GPU runner, one step ahead, against the torch runner: `python engine_ahead.py` on the interpreter, `… cuda` on a GPU."
import os, sys
DEVICE = 'cuda' if 'cuda' in sys.argv[1:] else 'cpu'
if DEVICE == 'cpu': os.environ['TRITON_INTERPRET'] = '1'
import torch
from labkit.core.lm import Sampling
from labkit.corpus.tokens import train_tokenizer
from labkit.inference.engine import Engine, EngineSettings
from labkit.model.config import ModelConfig
from labkit.model.transformer import Transformer

torch.set_num_threads(1); torch.manual_seed(0)
tokenizer = train_tokenizer(['hello world, the cat sat on the mat. 你好世界 ' * 3] * 3, 300)
model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size + -tokenizer.vocab_size % 4, dim=64, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=128, max_seq_len=96)).to(DEVICE).eval().requires_grad_(False)
for p in model.parameters():
    if p.dim() > 1: p *= 12
prompts = ['hello world', 'the cat sat on the mat', '你好', 'a b c d e f g h i j k l m n o p q r']
engine = lambda backend, **more: Engine(model, tokenizer, EngineSettings(**{**dict(backend=backend, block_size=16, cache_tokens=512, max_batch=4, step_tokens=16), **more}))
greedy = Sampling(max_tokens=6, ignore_eos=True)

def tokens(e, params=greedy): return [c.tokens for c in e.generate(prompts, params)]

plain, ahead = engine('torch'), engine('cuda')
assert ahead.stats()['backend'] == 'cuda', ahead.stats()
want = tokens(plain)
assert tokens(ahead) == want, 'greedy tokens'
assert ahead.stats()['cache_blocks_used'] == 0 and not ahead.has_work
assert tokens(engine('cuda', cache_tokens=80)) == want, 'with preemption while tokens are in flight'
warm = Sampling(max_tokens=5, temperature=1., top_k=20, seed=5, ignore_eos=True)
a = tokens(ahead, warm)
assert a == tokens(engine('cuda', max_batch=1), warm), 'draws depend on the batch'
with_scores = Sampling(max_tokens=5, temperature=1., top_k=20, seed=5, ignore_eos=True, logprobs=1)
assert tokens(ahead, with_scores) == a, 'draws depend on where they are made'
for kind in ('int8', 'int4', 'fp8')[:1 if DEVICE == 'cpu' else 3]: assert all(len(t) == 6 for t in tokens(engine('cuda', kv=kind)))
i, j = ahead.add('hello', greedy), ahead.add('the cat', greedy)
ahead.step(); ahead.step(); ahead.abort(i)
ends = {}
while ahead.has_work:
    for o in ahead.step(): ends[o.id] = o.finish_reason or ends.get(o.id)
assert ends == {i: 'abort', j: 'length'} and ahead.stats()['cache_blocks_used'] == 0

# the same bits, whoever else is in the batch: scores of a request alone and among sixteen. The interpreter multiplies with numpy, which rounds by shape: there only the tokens are compared
crowd = [prompts[i % 4] + ' a cat' * (i // 4) for i in range(16 if DEVICE == 'cuda' else 4)]
scored = Sampling(max_tokens=5 if DEVICE == 'cuda' else 2, ignore_eos=True, logprobs=3)

def bits(e, ps): return [(c.tokens, c.logprobs, c.top_logprobs) if DEVICE == 'cuda' else c.tokens for c in e.generate(ps, scored)]

def check_bits():
    make = lambda **more: engine('cuda', invariant=True, cache_tokens=2048, **dict(dict(prefix=False, step_tokens=512), **more))
    lone = make(max_batch=1)
    alone = [bits(lone, [p])[0] for p in crowd]
    for more in (dict(), dict(prefix=True), dict(step_tokens=16))[:3 if DEVICE == 'cuda' else 1]:
        assert bits(make(max_batch=16, **more), crowd) == alone, f'other bits in company: {next(model.parameters()).dtype}, {more}'

check_bits()
if DEVICE == 'cuda':
    model = model.to(torch.bfloat16)
    check_bits()
print('equal')
