"Matrices cut over two processes: the same losses, gradients and logits as in one"
import pytest, torch
from labkit.core.settings import SettingsError
from labkit.model.config import preset
from labkit.pretrain.tensor_parallel import Saved, Traffic, apply_tensor_parallel, check_split, train_split
from small import in_one_start

MODELS = {'gqa': {}, 'untied': dict(tie_embeddings=False), 'qkv_bias': dict(qkv_bias=True), 'all_biases': dict(qkv_bias=True, o_bias=True, tie_embeddings=False),
          'qk_norm': dict(qk_norm=True), 'wide_heads': dict(head_dim=32, qk_norm=True), 'window': dict(sliding_window=8), 'one_layer': dict(n_layers=1),
          'experts': dict(n_experts=4, experts_per_token=2, expert_dim=64, family='mixtral', tie_embeddings=False),
          'shared_expert': dict(n_experts=4, experts_per_token=2, expert_dim=64, shared_expert_dim=32, family='qwen2_moe', qkv_bias=True, tie_embeddings=False)}

@pytest.fixture(scope='module')
def two(): return in_one_start(2, dict(target='labkit.pretrain.tensor_parallel:compare_split', models=MODELS), dict(target='labkit.pretrain.tensor_parallel:train_split', steps=5))

@pytest.fixture(scope='module')
def compared(two): return two[0]

@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('kind', ['plain', 'sequence'])
def test_loss_gradients_and_logits_equal_one_process(compared, name, kind):
    for rank in compared:
        r = rank[name][kind]
        assert r['loss'] < 1e-5 and r['gradient'] < 1e-4 and r['logits'] < 1e-3, r

def test_sequence_parallelism_sends_no_more_and_keeps_less(compared):
    plain, seq = (compared[0]['gqa'][k] for k in ('plain', 'sequence'))
    M, L = 4*2*32*64, 2
    assert plain['bytes']['all-reduce'] == (4*L + 2)*M
    assert seq['bytes']['reduce-scatter'] == (4*L + 1)*M and seq['bytes']['all-reduce'] == M
    assert seq['bytes']['all-gather'] - plain['bytes']['all-gather'] == (4*L + 2)*M
    assert seq['saved'] < plain['saved'] < plain['saved_whole']

def test_training_steps_equal_one_process(two):
    "with clipping and AdamW, whose states are DTensors too"
    one, parts = train_split(5), two[1]
    for r in parts: assert r['losses'] == pytest.approx(one['losses'], abs=1e-5)
    assert parts[0]['held'] < .51*one['held']

@pytest.mark.parametrize('change, word', [(dict(n_heads=9, n_kv_heads=3, dim=72), 'heads = 9, kv_heads = 3'), (dict(ffn_dim=33), 'ffn_dim = 33'), (dict(vocab_size=257), 'vocab_size = 257')])
def test_models_that_cannot_be_cut(change, word):
    with pytest.raises(SettingsError, match=word): check_split(preset('lab-1m', **change), 2)

def test_traffic_outside_of_distributed_is_nothing():
    with Traffic() as t: torch.ones(3).sum()
    assert t.calls == {} and t.bytes == {}

def test_saved_counts_a_storage_once_and_no_parameters():
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with Saved(layer) as s: (layer(x) + layer(x)).sum()
    assert s.bytes == x.numel()*4
