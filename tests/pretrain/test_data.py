"Which tokens a step sees: properties that hold for every corpus, batch and number of ranks"
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.blend import Blend
from labkit.model.config import preset
from labkit.model.cross_entropy import cross_entropy_sum
from labkit.model.transformer import Transformer
from labkit.pretrain.data import Batches, as_packed, as_pairs, counted, held_out, micro_batches, window_starts

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

# ---- documents in one row

rows = st.integers(1, 4).flatmap(lambda b: st.integers(2, 20).flatmap(lambda t: st.lists(st.lists(st.integers(0, 3), min_size=t, max_size=t), min_size=b, max_size=b)))

@given(rows=rows)
def test_documents_positions_and_targets_by_hand(rows):
    "id 0 ends a document"
    x, y, documents, positions = as_packed(np.array(rows), 0)
    for r, row in enumerate(rows):
        doc = place = 0
        for t, token in enumerate(row[:-1]):
            assert (x[r, t], documents[r, t], positions[r, t]) == (token, doc, place) and y[r, t] == (-100 if token == 0 else row[t + 1])
            doc, place = (doc + 1, 0) if token == 0 else (doc, place + 1)
    assert documents.dtype == torch.int32 and counted([(x, y)]) == int((x != 0).sum())

@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_a_document_in_a_row_has_the_loss_of_one_alone(lengths, seed):
    import torch.nn.functional as F
    g = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = Transformer(preset('lab-1m', vocab_size=32, dim=16, n_heads=2, n_kv_heads=1, ffn_dim=16, n_layers=2))
    docs = [[*g.integers(1, 32, n).tolist(), 0] for n in lengths]
    def loss(row, packed):
        x, y, documents, positions = as_packed(np.array([row]), 0)
        mask = (documents[:, None, :, None] == documents[:, None, None, :]) & torch.ones(len(row) - 1, len(row) - 1, dtype=torch.bool).tril()
        def apart(q, k, v, layer): return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_mask=mask, enable_gqa=True).transpose(1, 2)
        return cross_entropy_sum(model.hidden(x, *((positions, apart) if packed else ())).flatten(0, 1), model.embed_tokens.weight, y.flatten())
    together, alone = loss(sum(docs, []) + [5], True), sum(loss([*d, 5], False) for d in docs)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5, abs=1e-5)
    params = list(model.parameters())
    for a, b in zip(torch.autograd.grad(together, params), torch.autograd.grad(alone, params)): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)

def test_packed_batches_hold_the_same_tokens(corpus):
    from labkit.corpus.tokens import Shards
    b = Batches(Shards(corpus/'train'), 32, 4)
    for plain, packed in zip(micro_batches(b, 3, 3), micro_batches(b, 3, 3, packed=True)):
        assert torch.equal(plain[0], packed[0]) and ((plain[1] == packed[1]) | (packed[0] == b.eos_id)).all() and (packed[1][packed[0] == b.eos_id] == -100).all()
    (x, y, documents, positions), *_ = held_out(Shards(corpus/'valid'), 32, 10**6, 2, packed=True)
    assert x.shape == y.shape == documents.shape == positions.shape

def test_an_unknown_end_of_documents():
    with pytest.raises(UserError, match='which id ends a document'): next(micro_batches(Batches(np.arange(100), 5, 3), 0, 3, packed=True))
    assert len(next(micro_batches(Batches(np.arange(100), 5, 3, eos_id=7), 0, 3, packed=True))) == 4
