"""Greedy output against transformers, token by token over 200 tokens, for every family; and the same tokens, or the same bits, however requests are put together.

transformers has no InternLM 1 and 2 of its own: there its Llama computes with the same weights (`tests/model/test_transformer.py` holds the
conversion of InternLM2's packed `wqkv` against a loop of its own)."""
from dataclasses import replace
import pytest, torch
from labkit.core.lm import Sampling
from labkit.corpus.tokens import train_tokenizer
from labkit.inference.cpu_runner import packed_layers, unsupported
from labkit.inference.engine import Engine, EngineSettings
from labkit.inference.quantize import quantize_model
from labkit.model.checkpoint import save_model
from labkit.model.config import FAMILIES, ModelConfig, RopeScaling
from labkit.model.transformer import Transformer

torch.set_num_threads(1)
TOKENIZER = train_tokenizer(['hello world'] * 3, 300)
BASE = dict(vocab_size=320, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, max_seq_len=288)
MIX = dict(n_experts=6, experts_per_token=2)
MOE = dict(expert_dim=48, **MIX)
MAIN = {
    'llama': dict(rope_scaling=RopeScaling('llama3', 8., 1., 4., 32), rope_theta=5e5), 'internlm': dict(n_kv_heads=4, qkv_bias=True, o_bias=True, norm_eps=1e-6),
    'internlm2': dict(rope_theta=1e6, rope_scaling=RopeScaling('dynamic', 2.)), 'internlm3': dict(rope_scaling=RopeScaling('dynamic', 6.), rope_theta=5e7, head_dim=32),
    'qwen2': dict(qkv_bias=True, norm_eps=1e-6, rope_theta=1e6), 'qwen3': dict(qk_norm=True, head_dim=32, tie_embeddings=True), 'mistral': dict(sliding_window=9),
    'mixtral': MIX, 'qwen2_moe': dict(qkv_bias=True, shared_expert_dim=64, norm_topk=False, **MOE), 'qwen3_moe': dict(qk_norm=True, head_dim=32, **MOE)}
MORE = {
    'llama tied': dict(tie_embeddings=True), 'llama bias': dict(qkv_bias=True, o_bias=True), 'llama linear': dict(rope_scaling=RopeScaling('linear', 3.)), 'llama mqa': dict(n_kv_heads=1),
    'llama yarn': dict(rope_scaling=RopeScaling('yarn', 4., original_max_seq_len=32), head_dim=32), 'qwen2 mixed': dict(qkv_bias=True, sliding_window=9, window_layers=(1,)),
    'qwen3 bias': dict(qk_norm=True, qkv_bias=True, o_bias=True), 'mistral whole': {}, 'mixtral window': dict(sliding_window=7, n_kv_heads=4, **MIX), 'qwen2_moe norm': dict(qkv_bias=True, shared_expert_dim=40, **MOE)}
CASES = [*MAIN, *(pytest.param(n, marks=pytest.mark.slow) for n in MORE)]
N = 200
LONG = [7 * i % 311 for i in range(60)]                                            # a beginning that prompts share
PROMPTS = [LONG + [5, 9, 300], [17], LONG + [44]]
GREEDY = Sampling(max_tokens=N, ignore_eos=True)

def tiny(name: str) -> Transformer:
    torch.manual_seed(1)
    model = Transformer(ModelConfig(**BASE | (MAIN | MORE)[name], family=name.split()[0])).eval().requires_grad_(False)
    for n, p in model.named_parameters():                                         # far from the initial state, and scores far apart
        p.add_(torch.randn_like(p) * .2)
        if 'embed' in n and not model.cfg.tie_embeddings or 'lm_head' in n: p *= 4
        if model.cfg.tie_embeddings and ('o_proj' in n or 'down_proj' in n): p *= 3   # else the likeliest token is the last one again
    return model

def twin(model: Transformer, folder):
    "transformers' model with the same weights"
    transformers = pytest.importorskip('transformers')
    as_llama = Transformer(replace(model.cfg, family='llama')) if model.cfg.family in ('internlm', 'internlm2', 'internlm3') else model
    as_llama.load_state_dict(model.state_dict())
    save_model(as_llama, folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation='eager').eval()
    theirs.generation_config.eos_token_id = None                                  # as `ignore_eos`
    return theirs

@torch.inference_mode()
def written(theirs, prompt: list[int]) -> tuple[int, ...]:
    ids = torch.tensor([prompt])
    return tuple(theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=N, pad_token_id=0)[0, len(prompt):].tolist())

def engine(model, packed=None, **changes):
    return Engine(model, TOKENIZER, EngineSettings(**dict(backend='torch', block_size=8, cache_tokens=4096, max_batch=16, step_tokens=128) | changes), packed=packed)

def tokens(e, prompts, params=GREEDY): return [c.tokens for c in e.generate(prompts, params)]

def test_every_family_is_tried(): assert set(MAIN) == set(FAMILIES)

@pytest.mark.parametrize('name', CASES)
def test_greedy_equals_transformers(name, tmp_path):
    model = tiny(name)
    theirs = twin(model, tmp_path/'m')
    want = [written(theirs, p) for p in PROMPTS]
    assert sum(len(set(w)) > 15 for w in want) > 1                                # not one token over and over
    for backend in ['torch'] if unsupported(model) else ['torch', 'numba']:
        e = engine(model, backend=backend, step_tokens=24)                        # prompts of 60 tokens come in chunks
        assert e.stats()['backend'] == backend
        assert tokens(e, PROMPTS) == want                                         # in one batch, the third begins like the first
        assert e.prefix.hits > 0 and e.stats()['cache_blocks_used'] == 0
        first = [w[:60] for w in want]
        assert tokens(e, PROMPTS[:1], replace(GREEDY, max_tokens=60)) == first[:1] # alone, on blocks that are there already
        assert tokens(engine(model, backend=backend, prefix=False), PROMPTS[1:], replace(GREEDY, max_tokens=60)) == first[1:] # whole prompts, nothing shared

W4 = quantize_model(tiny('llama'), 32)
SHORT = Sampling(max_tokens=40, ignore_eos=True, logprobs=0)
CROWD = PROMPTS + [[i, 2 * i, 300 - i] for i in range(1, 14)]

def bits(e, prompts): return [(c.tokens, c.logprobs) for c in e.generate(prompts, SHORT)]

@pytest.mark.parametrize('changes', [dict(step_tokens=16), dict(block_size=32), dict(prefix=False), dict(max_batch=3), dict(cache_tokens=320)])
def test_the_compiled_step_gives_the_same_bits_in_any_company(changes):
    "On 4-bit weights everything goes through the compiled step: batch, chunks, blocks, sharing and preemption change no bit"
    alone = [bits(engine(W4, packed_layers(W4), backend='numba', max_batch=1, prefix=False), [p])[0] for p in PROMPTS]
    e = engine(W4, packed_layers(W4), **{**dict(backend='numba'), **changes})
    assert e.runner.packed
    assert bits(e, CROWD)[:3] == alone
    assert bits(e, PROMPTS) == alone
    if 'cache_tokens' in changes: assert e.stats()['preemptions'] > 0

@pytest.mark.parametrize('changes', [{}, dict(step_tokens=20), dict(prefix=False), dict(step_tokens=20, block_size=4)], ids=['', 'chunks', 'nothing shared', 'chunks and small blocks'])
@pytest.mark.parametrize('backend', ['torch', 'numba'])
def test_sixteen_together_write_what_each_writes_alone(backend, changes):
    "In float32 rounding depends on the shape of the step; the tokens do not"
    model = tiny('qwen2')
    short, e, one = Sampling(max_tokens=16, ignore_eos=True), engine(model, backend=backend, **changes), engine(model, backend=backend, max_batch=1, prefix=False)
    assert len(CROWD) == 16 and tokens(e, CROWD, short) == [tokens(one, [p], short)[0] for p in CROWD]
    assert e.stats()['backend'] == backend and (e.prefix is None or e.prefix.hits >= 60 // e.settings.block_size * e.settings.block_size)
