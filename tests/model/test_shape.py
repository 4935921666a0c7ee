"""Shapes of equal size, and the loss by token."""
import pytest, torch
from hypothesis import given, strategies as st
from labkit.corpus.tokens import train_tokenizer
from labkit.model.config import ModelConfig, preset
from labkit.model.shape import _body, aspect, equal_width, loss_page, token_losses, whole_pieces
from labkit.model.transformer import Transformer

@given(st.integers(1, 64))
def test_equal_width_keeps_the_size(n):
    base = preset('internlm2-7b')
    c = equal_width(base, n)
    assert c.n_layers == n and c.head_dim == 128 and c.n_heads//c.n_kv_heads == 4
    assert abs(_body(c)/_body(base) - 1) < .2

def test_the_same_depth_is_the_same_model():
    assert equal_width(preset('internlm2-7b'), 32) == preset('internlm2-7b') and aspect(preset('internlm2-7b')) == 128

def test_token_losses_are_cross_entropies_window_by_window():
    torch.manual_seed(0)
    model, ids = Transformer(ModelConfig(64, 16, 1, 2, 1, 24)).eval(), torch.randint(0, 64, (21,)).tolist()
    got = token_losses(model, ids, 5)
    assert got.shape == (20,)
    for w in range(4):
        x = torch.tensor(ids[5*w:5*w + 6])
        want = torch.nn.functional.cross_entropy(model(x[None, :-1])[0], x[1:], reduction='none')
        torch.testing.assert_close(got[5*w:5*w + 5], want.detach())

def test_pieces_hold_whole_characters_and_all_of_the_loss():
    tok = train_tokenizer(['abc abc'], 280)
    ids = tok.encode('ab 语言 <b>')
    pieces = whole_pieces(tok, ids, torch.ones(len(ids)))
    assert ''.join(t for t, _ in pieces) == 'ab 语言 <b>' and sum(l for _, l in pieces) == len(ids)
    assert '&lt;b&gt;' in loss_page([('<b>', 3.)]) and '<b>' not in loss_page([('<b>', 3.)])
