"Quality by scheme: what a row holds, and what is refused."
import pytest, torch
from labkit.core.settings import UserError
from labkit.corpus.tokens import train_tokenizer
from labkit.inference.quality import layer_errors, quality, quality_figure
from labkit.inference.quantize import quantize_model
from labkit.model.config import ModelConfig
from labkit.model.transformer import Transformer

torch.set_num_threads(1)
TEXT = 'hello world, the cat sat on the mat. 你好世界 ' * 12
TOKENIZER = train_tokenizer([TEXT] * 3, 300)

def tiny():
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=300, dim=64, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=96, family='llama', max_seq_len=512)).eval().requires_grad_(False)

def test_rows_and_their_figure():
    rows = quality(tiny(), TOKENIZER, TEXT, ['float32', 'w4', 'int8', 'w4+kv8', 'float32+kv4'], max_tokens=100, decode_tokens=3)
    by = {r['scheme']: r for r in rows}
    assert by['w4']['weight_mb'] < by['int8']['weight_mb'] < by['float32']['weight_mb'] and by['float32']['errors'] == [0, 0]
    assert 0 < by['int8']['errors'][1] < by['w4']['errors'][1] and all(r['tokens_per_s'] > 0 and r['perplexity'] > 1 for r in rows)
    assert by['float32+kv4']['kv_bytes_per_token'] < by['w4+kv8']['kv_bytes_per_token'] < by['w4']['kv_bytes_per_token']
    assert len(quality_figure(rows).axes) == 4
    assert len(quality_figure([dict(scheme=s, perplexity=dict(en=9., zh=12.), weight_mb=1., errors=[.1]) for s in 'ab']).axes) == 3

def test_errors_grow_from_nothing():
    model = tiny()
    assert layer_errors(model, model, torch.arange(20)[None]) == [0, 0] and layer_errors(model, quantize_model(tiny()), torch.arange(20)[None])[0] > 0

@pytest.mark.parametrize('scheme', ['w3', 'w4+kv2', 'kv8'])
def test_unknown_schemes_are_named(scheme):
    with pytest.raises(UserError, match='unknown'): quality(tiny(), TOKENIZER, TEXT, [scheme])
