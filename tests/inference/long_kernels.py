"Run with TRITON_INTERPRET=1: requests longer than training on the GPU runner, one step ahead, against the torch runner."
import os
os.environ['TRITON_INTERPRET'] = '1'
import torch
from labkit.core.lm import Sampling
from labkit.corpus.tokens import train_tokenizer
from labkit.inference.engine import Engine, EngineSettings
from labkit.model.config import ModelConfig, RopeScaling
from labkit.model.transformer import Transformer

torch.set_num_threads(1); torch.manual_seed(0)
tokenizer = train_tokenizer(['hello world, the cat sat on the mat. 你好世界 ' * 3] * 3, 300)
cfg = ModelConfig(tokenizer.vocab_size + -tokenizer.vocab_size % 4, 64, 1, 4, 2, 128, head_dim=16, max_seq_len=16, rope_theta=100., rope_scaling=RopeScaling('dynamic', 2.))
model = Transformer(cfg).eval().requires_grad_(False)
for p in model.parameters():
    if p.dim() > 1: p *= 12
prompts = [torch.randint(3, 250, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 30, 14, 40)]

def tokens(backend):
    e = Engine(model, tokenizer, EngineSettings(backend=backend, block_size=16, cache_tokens=512, max_batch=4, step_tokens=32, max_context=72))
    out = [c.tokens for c in e.generate(prompts, Sampling(max_tokens=5, ignore_eos=True))]
    assert e.stats()['backend'] == backend and e.stats()['cache_blocks_used'] == 0 and e.stats()['preemptions'] == 2, e.stats()
    return out

assert tokens('cuda') == tokens('torch')
print('equal')
