"Which attention is picked, and that no token sees another document (the kernels themselves are checked in test_kernels.py)"
import pytest, torch
from hypothesis import given, settings, strategies as st
from labkit.model.config import preset
from labkit.model.flash import attention_with_lse, pick_attention, visible
from labkit.model.transformer import Transformer, causal_attention

@given(T=st.integers(1, 40), window=st.none() | st.integers(1, 50), documents=st.booleans(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_two_numbers_say_what_is_visible(T, window, documents, seed):
    g, t = torch.Generator().manual_seed(seed), torch.arange(T)
    docs = (torch.rand(2, T, generator=g) < .2).cumsum(1) if documents else None
    low, high = visible(T, window, docs)
    want = (t <= t[:, None])[None] & (t > t[:, None] - (window or T + 1))
    if documents: want = want & (docs[:, :, None] == docs[:, None])
    assert torch.equal((t <= t[:, None]) & (t >= low[:, :, None]), want.expand(len(low), T, T))
    assert torch.equal((t[:, None] >= t) & (t[:, None] <= high[:, None]), want.expand(len(low), T, T))
    assert (low.diff() >= 0).all() and (high.diff() >= 0).all(), 'the kernels skip tiles by the first and the last row of a block'

def test_a_packed_row_gives_each_document_what_it_gets_alone():
    torch.manual_seed(0)
    model, parts = Transformer(preset('lab-1m')).eval(), [torch.randint(0, 1000, (1, n)) for n in (7, 1, 20)]
    docs = torch.cat([torch.full((1, p.shape[1]), i) for i, p in enumerate(parts)], 1)
    positions = torch.cat([torch.arange(p.shape[1]) for p in parts])[None]
    attention, name = pick_attention('cpu', documents=docs)
    with torch.no_grad():
        together = model(torch.cat(parts, 1), positions, attention).split([p.shape[1] for p in parts], 1)
        for a, p in zip(together, parts): torch.testing.assert_close(a, model(p), atol=1e-4, rtol=1e-4)
    assert 'documents' in name

def test_other_documents_do_not_compile_the_model_again():
    model, graphs = Transformer(preset('lab-1m')), []
    def backend(graph, _): graphs.append(graph); return graph.forward
    for layer in model.layers: layer.compile(backend=backend, fullgraph=True)
    for seed in range(3):
        docs = (torch.rand(2, 32, generator=torch.Generator().manual_seed(seed)) < .2).cumsum(1)
        model(torch.zeros(2, 32, dtype=torch.long), attention=pick_attention('cpu', documents=docs)[0])
    assert len(graphs) == 1

@pytest.mark.parametrize('T', [1, 7, 256, 300])
def test_short_bfloat16_rows_err_no_more_than_bfloat16_scores_do(T):
    g = torch.Generator().manual_seed(T)
    q, k, v = (torch.randn(2, T, h, 16, generator=g).bfloat16() for h in (4, 2, 2))
    def results(f, dtype):
        xs = [t.to(dtype).requires_grad_() for t in (q, k, v)]
        out = f(*xs)
        return [t.float() for t in (out, *torch.autograd.grad(out.float().square().sum(), xs))]
    exact, fused, picked = results(causal_attention, torch.float32), results(causal_attention, torch.bfloat16), results(pick_attention('cpu')[0], torch.bfloat16)
    for e, f, p in zip(exact, fused, picked): assert (p - e).norm() <= 2.5*(f - e).norm() + 1e-6*e.norm()

def test_heads_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match='H a multiple of K'): attention_with_lse(torch.zeros(1, 4, 3, 16), torch.zeros(1, 4, 2, 16), torch.zeros(1, 4, 2, 16))
