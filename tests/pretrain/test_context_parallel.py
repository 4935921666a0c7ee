"Sequences cut over two and four processes: the same losses and gradients as in one"
import pytest, torch
from labkit.core.settings import SettingsError
from labkit.model.config import preset
from labkit.pretrain.context_parallel import attend, attend_backward, check_context, join_sequence, merge, positions_of, split_sequence, train_context
from small import in_one_start

MODELS = {'gqa': {}, 'mha': dict(n_kv_heads=4), 'mqa': dict(n_kv_heads=1), 'qk_norm_untied': dict(qk_norm=True, tie_embeddings=False), 'experts': dict(n_experts=4, experts_per_token=2, expert_dim=64, family='mixtral', tie_embeddings=False)}

COMPARE = 'labkit.pretrain.context_parallel:compare_context'
WINDOWS = {'window': dict(sliding_window=10), 'window_mqa_qk_norm': dict(sliding_window=10, n_kv_heads=1, qk_norm=True), 'window_of_one': dict(sliding_window=1), 'window_longer_than_a_part': dict(sliding_window=40)}
CASES = [(name, kind) for name in MODELS for kind in ('ring', 'ulysses')] + [(name, 'ulysses') for name in WINDOWS] # of 64 tokens; the ring knows no windows

def compared(ranks):
    whole, windows, train = in_one_start(ranks, dict(target=COMPARE, models=MODELS), dict(target=COMPARE, models=WINDOWS, kinds=['ulysses']), dict(target='labkit.pretrain.context_parallel:train_context', kind='ring', steps=3))
    return [{**a, **b} for a, b in zip(whole, windows)], train

@pytest.fixture(scope='module')
def two(): return compared(2)

@pytest.fixture(scope='module')
def four(): return compared(4)

@pytest.mark.parametrize('name, kind', CASES)
def test_loss_and_gradients_equal_one_process(two, name, kind):
    for rank in two[0]: assert rank[name][kind]['loss'] < 1e-5 and rank[name][kind]['gradient'] < 1e-4

@pytest.mark.slow
@pytest.mark.parametrize('name, kind', CASES)
def test_on_four_ranks(four, name, kind):
    for rank in four[0]: assert rank[name][kind]['loss'] < 1e-5 and rank[name][kind]['gradient'] < 1e-4

def test_training_equals_one_process(two):
    one, parts = train_context(steps=3), two[1]
    assert parts[0]['losses'] == pytest.approx(one['losses'], abs=1e-5) and parts[0]['saved'] < .6*one['saved']

@pytest.mark.parametrize('n', [1, 2, 3, 4])
def test_split_and_join(n):
    x = torch.randn(2, 24, 3)
    parts = [split_sequence(x, r, n) for r in range(n)]
    assert torch.equal(join_sequence(parts), x)
    at = [positions_of(2, 24, r, n) for r in range(n)]
    for p, a in zip(parts, at): assert torch.equal(p, x.gather(1, a[..., None].expand(-1, -1, 3)))
    work = [int((a[0] + 1).sum()) for a in at]
    assert len(set(work)) == 1, 'the pairs of query and key are shared equally'

@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_pieces_merge_forward_and_backward(dtype, tolerance):
    torch.manual_seed(0)
    q, k, v, do = (torch.randn(2, h, t, 16, dtype=dtype) for h, t in ((4, 8), (2, 20), (2, 20), (4, 8)))
    out, lse, state = attend(q, k, v, False)
    (a, la, _), (b, lb, _) = attend(q, k[:, :, :7], v[:, :, :7], False), attend(q, k[:, :, 7:], v[:, :, 7:], False)
    got, l = merge(a.float(), la, b, lb)
    torch.testing.assert_close(got, out.float(), atol=tolerance, rtol=tolerance); torch.testing.assert_close(l, lse, atol=tolerance, rtol=tolerance)
    dq, dk, dv = attend_backward(do, q, k, v, out, lse, False, state)
    pieces = [attend_backward(do, q, k[:, :, s], v[:, :, s], out, lse, False, state) for s in (slice(0, 7), slice(7, None))]
    torch.testing.assert_close(sum(p[0] for p in pieces), dq, atol=5*tolerance, rtol=5*tolerance)
    for i, whole in ((1, dk), (2, dv)): torch.testing.assert_close(torch.cat([p[i] for p in pieces], 2), whole, atol=5*tolerance, rtol=5*tolerance)

@pytest.mark.parametrize('name, kind, n, T, more, word', [('smollm2-135m', 'ulysses', 2, 2048, {}, 'cannot be shared'), ('mistral-7b', 'ring', 2, 8192, {}, 'sliding window'), ('internlm2-7b', 'ring', 8, 4100, {}, 'multiple of 16'),
                                                          ('internlm2-7b', 'ring', 8, 65536, {}, 'dynamic RoPE'), ('llama3-8b', 'ring', 2, 8192, dict(documents=True), 'documents'), ('llama3-8b', 'star', 2, 8192, {}, 'known: ring, ulysses'),
                                                          ('llama3-8b', 'ulysses', 8, 8192, dict(heads=4), 'cannot be shared')])
def test_contexts_that_cannot_be(name, kind, n, T, more, word):
    with pytest.raises(SettingsError, match=word): check_context(preset(name), kind, n, T, **more)

def test_sequences_that_cannot_be_split():
    with pytest.raises(SettingsError, match='multiple of 4'): split_sequence(torch.zeros(1, 6), 0, 2)
