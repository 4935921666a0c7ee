"Which tokens a step sees: properties that hold for every corpus, batch and number of ranks"
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.blend import Blend
from labkit.pretrain.data import Batches, as_pairs, held_out, micro_batches, window_starts

sizes = dict(n=st.integers(40, 400), seq=st.integers(2, 16), seed=st.integers(0, 2**32), epoch=st.integers(0, 5))

@given(**sizes)
def test_an_epoch_sees_each_window_once(n, seq, seed, epoch):
    starts = np.sort(window_starts(n, seq, seed, epoch))
    assert len(starts) == n // seq - 1
    assert (np.diff(starts) == seq).all() and starts[0] >= 0 and starts[-1] + seq + 1 <= n

@given(step=st.integers(0, 50), share=st.integers(1, 4), ranks=st.integers(1, 4), micro=st.integers(1, 5), seed=st.integers(0, 99))
def test_ranks_and_pieces_make_up_the_global_batch(step, share, ranks, micro, seed):
    b = Batches(np.arange(301), 7, share * ranks, seed)
    whole = torch.cat([x for x, _ in micro_batches(b, step, 10**6)])
    parts = torch.cat([x for r in range(ranks) for x, _ in micro_batches(b, step, micro, r, ranks)])
    assert torch.equal(whole, parts) and whole.shape == (share * ranks, 7)

@given(step=st.integers(0, 200))
def test_targets_are_the_next_tokens(step):
    (x, y), = micro_batches(Batches(np.arange(100), 5, 3), step, 3)
    assert torch.equal(x + 1, y)

def test_epochs_differ_and_seeds_differ():
    a, b, c = window_starts(1000, 10, 0, 0), window_starts(1000, 10, 0, 1), window_starts(1000, 10, 1, 0)
    assert not np.array_equal(a, b) and not np.array_equal(a, c)
    assert np.array_equal(a, window_starts(1000, 10, 0, 0))

def test_the_order_is_that_of_the_corpus_stage():
    b = Batches(np.arange(1000), 10, 4, seed=3)
    first = [int(b.sequence(i)[0]) for i in range(2 * b.windows)]
    assert first == [*window_starts(1000, 10, 3, 0), *window_starts(1000, 10, 3, 1)]

def test_several_corpora_are_read_in_their_proportions():
    blend = Blend(dict(a=np.arange(300), b=np.arange(1000, 1600)), 10, dict(a=3, b=1))
    x = torch.cat([x for step in range(16) for x, _ in micro_batches(Batches(blend, 10, 8), step, 3)])
    assert (x[:, 0] < 1000).sum() == 96 and len(x) == 128
    with pytest.raises(UserError, match='the blend has sequences of 10'): Batches(blend, 20, 8)

@pytest.mark.parametrize('n', [0, 1, 10, 19])
def test_too_few_tokens(n):
    with pytest.raises(UserError, match='too few for sequences of 10'): Batches(np.arange(n), 10, 1)

@given(n=st.integers(2, 200), ranks=st.integers(1, 4))
def test_held_out_windows_do_not_overlap_whatever_the_ranks(n, ranks):
    rows = [r for k in range(ranks) for x, _ in held_out(np.arange(n), 8, 10**9, 3, k, ranks) for r in x[:, 0].tolist()]
    starts = sorted(rows)
    assert len(starts) == (n - 1) // 8 and all(b - a >= 8 for a, b in zip(starts, starts[1:])) and all(s + 8 < n for s in starts)

def test_held_out_windows_reach_the_whole_text():
    "A few windows of a long text must not all come from its first document"
    starts = [r for x, _ in held_out(np.arange(10_000), 10, 100, 4) for r in x[:, 0].tolist()]
    assert len(starts) == 10 and starts[0] == 0 and starts[-1] > 8_000

def test_big_ids_survive():
    x, y = as_pairs(np.stack([np.array([0, 65535, 92543], dtype=np.int64)]))
    assert y.tolist() == [[65535, 92543]]
