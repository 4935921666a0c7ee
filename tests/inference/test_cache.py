"The cache: each kind of keys and values, blocks that are shared until somebody writes, and blocks that leave for the host's memory and come back."
import pytest, torch
from hypothesis import given, settings as hyp, strategies as st
from labkit.core.settings import UserError
from labkit.inference.cache import BlockPool, KVCache, OutOfBlocks, PagedAttention, PagedCache, Span, dequantize_kv, quantize_kv
from labkit.model.config import ModelConfig
from engine_doubles import MODEL, PROMPTS, TOKENIZER

CFG = ModelConfig(vocab_size=64, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64, max_seq_len=96)
KINDS = ['model', 'int8', 'int4', 'fp8']

def random_kv(n, seed=0): return torch.randn(2, n, 2, 8, generator=torch.Generator().manual_seed(seed))

@pytest.mark.parametrize('kind, error, size', [('model', 0, 0), ('int8', .006, 96), ('int4', .11, 64), ('fp8', .04, 64)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_each_kind_gives_back_what_was_written(kind, error, size, dtype):
    c, table = PagedCache(CFG, 6, 4, dtype, kind=kind), []
    c.grow(table, 20)
    kv = random_kv(11)
    if dtype == torch.bfloat16: kv, error = kv.bfloat16().float(), error and error + .01
    at = c.slots(table, 5, 16)
    c.write(1, at, *kv.to(dtype))
    for x, y in zip(kv, c.read(1, at)): assert (x - y).norm() / x.norm() <= error and y.dtype == torch.float32
    assert c.read(0, at)[0].eq(0).all() and c.read(1, c.slots(table, 0, 5))[0].eq(0).all()
    assert c.bytes_per_token == (size or 64 * dtype.itemsize)

def test_kinds_are_named():
    with pytest.raises(UserError, match="'int3' is not known; one of model, int8, int4, fp8"): PagedCache(CFG, 2, kind='int3')

@pytest.mark.parametrize('bits', [8, 4])
@given(spread=st.floats(1e-3, 1e3), shift=st.floats(-50, 50))
@hyp(max_examples=40, deadline=None)
def test_quantization_is_off_by_less_than_a_step(bits, spread, shift):
    x = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(3)) * spread + shift
    q, meta = quantize_kv(x, bits)
    step = (x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)) / (2**bits - 1)
    assert q.shape[-1] == 16 * bits // 8 and meta.dtype == torch.float16
    assert ((dequantize_kv(q, meta, bits=bits) - x).abs() <= step + x.abs().amax() * 2**-10).all()

def test_four_bits_keep_dimension_i_low_and_its_partner_high():
    x = torch.arange(16.)[None]
    q, meta = quantize_kv(x, 4)
    assert meta.tolist() == [[1, 0]] and (q & 15).tolist() == [list(range(8))] and (q >> 4).tolist() == [list(range(8, 16))]

def test_equal_numbers_and_zeros_survive():
    for bits in (8, 4):
        for x in (torch.zeros(2, 8), torch.full((2, 8), 3.5)): torch.testing.assert_close(dequantize_kv(*quantize_kv(x, bits), bits=bits), x, atol=1e-3, rtol=0)

def test_fp8_has_no_infinity():
    c, table = PagedCache(CFG, 2, 4, kind='fp8'), [0]
    c.write(0, torch.tensor([1]), torch.full((1, 2, 8), 1e6), torch.full((1, 2, 8), -1e6))
    k, v = c.read(0, torch.tensor([1]))
    assert k.eq(448).all() and v.eq(-448).all()

@pytest.mark.parametrize('kind', KINDS)
def test_a_copy_is_made_when_somebody_writes(kind):
    c, a = PagedCache(CFG, 8, 4, kind=kind), []
    c.grow(a, 10)
    c.write(0, c.slots(a, 0, 10), *random_kv(10))
    b = c.fork(a, 10)
    assert a == b and b is not a and c.pool.n_free == 5
    assert [c.missing(b, 12, 10), c.missing(b, 13, 10), c.missing(b, 13, 4), c.missing(b, 12)] == [1, 2, 3, 0]
    before = [t.clone() for t in c.read(0, c.slots(a, 0, 10))]
    c.grow(b, 12, start=10)
    assert a[:2] == b[:2] and a[2] != b[2]
    c.write(0, c.slots(b, 10, 12), *random_kv(2, 1))
    for x, y, z in zip(before, c.read(0, c.slots(a, 0, 10)), c.read(0, c.slots(b, 0, 10))): assert x.equal(y) and x.equal(z)
    c.grow(a, 12, start=10)
    assert c.pool.uses[a[2]] == 1, 'the last user writes where it is'
    c.free(a); c.free(b)
    assert c.pool.n_free == 8

def test_growing_with_a_copy_takes_all_or_none():
    c, a = PagedCache(CFG, 3, 4), []
    c.grow(a, 8)
    b = c.fork(a, 8)
    with pytest.raises(OutOfBlocks, match='2 blocks are needed, 1 are free'): c.grow(b, 8, start=0)
    assert a == b and c.pool.n_free == 1

@pytest.mark.parametrize('kind', KINDS)
def test_blocks_leave_and_come_back(kind):
    c, a = PagedCache(CFG, 4, 4, torch.bfloat16, kind=kind), []
    c.grow(a, 11)
    c.write(1, c.slots(a, 0, 11), *random_kv(11).bfloat16())
    want = [t.clone() for t in c.read(1, c.slots(a, 0, 11))]
    saved = c.swap_out(a)
    assert a == [] and c.pool.n_free == 4 and sum(t.nbytes for t in saved) == 3 * 4 * c.bytes_per_token
    other = []; c.grow(other, 3); c.write(1, c.slots(other, 0, 3), *random_kv(3, 5).bfloat16())
    a = c.swap_in(saved)
    assert set(a).isdisjoint(other)
    for x, y in zip(want, c.read(1, c.slots(a, 0, 11))): assert x.equal(y)
    with pytest.raises(OutOfBlocks): c.swap_in(saved)

@pytest.mark.parametrize('kind', KINDS)
def test_attention_over_each_kind_is_near_the_exact_one(kind):
    out = []
    for k in ('model', kind):
        c, table = PagedCache(CFG, 4, 4, kind=k), []
        c.grow(table, 12)
        kv = random_kv(12)[:, None]
        q = torch.randn(1, 12, 4, 8, generator=torch.Generator().manual_seed(9))
        out.append(PagedAttention(c, [Span(table, 0, 12)])(q, *kv, 0))
    error = (out[0] - out[1]).norm() / out[0].norm()
    assert error <= dict(model=0, int8=.01, int4=.15, fp8=.06)[kind] and (kind == 'model' or error > 0)

@given(st.lists(st.tuples(st.sampled_from('tskrd'), st.integers(0, 5)), max_size=80))
@hyp(max_examples=100, deadline=None)
def test_a_pool_counts_what_is_free_and_idle(ops):
    p, uses, kept = BlockPool(6), [0] * 6, [0] * 6
    for op, b in ops:
        if op == 't' and p.n_free: b = p.take(); assert uses[b] == 0; uses[b] = 1
        elif op == 's' and uses[b]: p.share(b); uses[b] += 1
        elif op == 'k' and uses[b]: p.keep(b); uses[b] += 1; kept[b] += 1
        elif op == 'r':
            if uses[b] > kept[b]: p.release(b); uses[b] -= 1
            else:
                with pytest.raises(AssertionError): p.release(b)
        elif op == 'd' and kept[b]: p.drop(b); uses[b] -= 1; kept[b] -= 1
        assert p.uses == uses and p.n_free == uses.count(0) and p.n_idle == sum(u == k > 0 for u, k in zip(uses, kept))

def test_paged_attention_equals_the_contiguous_cache():
    ids = torch.tensor([TOKENIZER.encode(PROMPTS[3])])
    paged, flat, table = PagedCache(MODEL.cfg, 64, 4), KVCache(MODEL.cfg, max_len=64), []
    for a, b in ((0, 7), (7, 8), (8, 20)):
        paged.grow(table, b)
        pos = torch.arange(a, b)[None]
        x, y = (MODEL.hidden(ids[:, a:b], pos, att) for att in (PagedAttention(paged, [Span(table, a, b - a)]), flat))
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)

def test_contiguous_cache_says_when_it_is_full():
    with pytest.raises(UserError, match='holds 4 tokens'): MODEL.hidden(torch.zeros(1, 5, dtype=torch.long), attention=KVCache(MODEL.cfg, max_len=4))

@given(st.floats(1e-3, 1e3), st.floats(-50, 50))
@hyp(max_examples=30, deadline=None)
def test_kv_quantization_is_off_by_less_than_a_step(spread, shift):
    x = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(3)) * spread + shift
    step = (x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)) / 255
    rounding = x.abs().amax() * 2**-10                       # scale and minimum are float16
    assert ((dequantize_kv(*quantize_kv(x)) - x).abs() <= step + rounding).all()

def test_a_fork_shares_blocks_until_somebody_writes():
    c = PagedCache(MODEL.cfg, 8, 4)
    a = []; c.grow(a, 6)
    b = c.fork(a, 6)
    assert a == b and c.missing(b, 7, start=6) == 1
    c.grow(b, 7, start=6)
    assert a[0] == b[0] and a[1] != b[1] and c.pool.uses[a[0]] == 2
    c.free(a); assert c.pool.uses[b[0]] == 1
    c.free(b); assert c.pool.n_free == 8

def test_growing_takes_all_blocks_or_none():
    c, t = PagedCache(MODEL.cfg, 3, 4), []
    with pytest.raises(OutOfBlocks): c.grow(t, 13)
    assert t == [] and c.pool.n_free == 3

def test_block_pool_counts():
    p = BlockPool(2); a = p.take(); p.take()
    with pytest.raises(OutOfBlocks): p.take()
    p.share(a); p.release(a); assert p.n_free == 0
    p.release(a); assert p.n_free == 1
    with pytest.raises(AssertionError): p.release(a)
