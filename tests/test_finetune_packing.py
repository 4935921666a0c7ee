"""Packing: every chat once, nothing leaks between neighbours, loss and gradient equal to chats one by one."""
import pytest, torch, torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from labkit.corpus.tokens import Tokenizer, train_tokenizer
from labkit.finetune.packing import Example, as_example, make_pack, pack_loss, packs
from labkit.model.config import ModelConfig
from labkit.model.transformer import Transformer

torch.manual_seed(0)
MODEL = Transformer(ModelConfig(vocab_size=50, dim=24, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=32))

@st.composite
def examples(draw):
    "Chats, some of which begin alike"
    heads = draw(st.lists(st.lists(st.integers(0, 49), max_size=6), min_size=1, max_size=3))
    def one():
        head = draw(st.sampled_from(heads))
        own = draw(st.lists(st.tuples(st.integers(0, 49), st.booleans()), min_size=1, max_size=8))
        return Example((*head, own[0][0], *(t for t, _ in own), 7), (*[False] * len(head), False, *(m for _, m in own), True), len(head))
    return [one() for _ in range(draw(st.integers(1, 8)))]

def loss_alone(model, e):
    h = model.hidden(torch.tensor([e.ids]))[0]
    at = [i for i in range(1, len(e.ids)) if e.mask[i]]
    return F.cross_entropy(model.head(h[[i - 1 for i in at]]), torch.tensor([e.ids[i] for i in at]), reduction='sum')

@settings(max_examples=40, deadline=None)
@given(examples(), st.integers(1, 60), st.integers(0, 9))
def test_packed_loss_is_the_sum_of_the_chats(rows, batch, seed):
    got = sum(pack_loss(MODEL, p).item() for p in packs(rows, batch, seed))
    assert got == pytest.approx(sum(loss_alone(MODEL, e).item() for e in rows), rel=1e-4, abs=1e-4)

@settings(max_examples=60, deadline=None)
@given(examples(), st.integers(1, 60), st.integers(0, 9))
def test_every_chat_is_there_once(rows, batch, seed):
    out = packs(rows, batch, seed)
    found = sorted(tuple(p.tokens[s[2]:s[3]].tolist() + p.tokens[s[0]:s[1]].tolist()) for p in out for s in p.segments if s[1] != s[3] and not any(t[2:] == (s[0], s[1]) and t != s for t in p.segments))
    assert found == sorted(e.ids for e in rows)
    assert sum(len(p.labels) for p in out) == sum(e.learnt for e in rows)
    assert all(len(p) <= batch or sum(s[3] == s[2] == s[0] or s[3] > s[2] for s in p.segments) >= 1 for p in out)
    for p in out:
        assert len(p) == len(p.positions) and all(p.positions[s[0]] == s[3] - s[2] for s in p.segments)

def test_gradients_are_those_of_the_chats():
    rows = [Example((1, 2, 3, 4, 5), (False, False, False, True, True), 2), Example((1, 2, 9, 8), (False, False, False, True), 2), Example((6, 7, 8), (False, True, True), 0)]
    grads = []
    for f in (lambda: pack_loss(MODEL, make_pack([rows[:2], rows[2:]])), lambda: sum(loss_alone(MODEL, e) for e in rows)):
        MODEL.zero_grad(); f().backward(); grads.append([p.grad.clone() for p in MODEL.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads)) and any(g.abs().max() > 1e-3 for g in grads[0])

def test_a_neighbour_changes_nothing():
    a = Example((1, 2, 3, 4), (False, False, False, True), 1)
    one, two = (pack_loss(MODEL, make_pack([[a, b]])).item() - loss_alone(MODEL, b).item() for b in (Example((1, 5, 6, 7), (False, False, True, True), 1), Example((1, 9, 9, 9, 9), (False,) * 4 + (True,), 1)))
    assert one == pytest.approx(two, abs=1e-4)

def test_packs_depend_on_the_seed_alone():
    rows = [Example(tuple(range(i, i + 5)), (False,) * 4 + (True,)) for i in range(20)]
    flat = lambda seed: [p.tokens.tolist() for p in packs(rows, 12, seed)]
    assert flat(1) == flat(1) != flat(2) and all(len(p.tokens) <= 12 for p in packs(rows, 12, 1))

@pytest.fixture(scope='module')
def tok(): return Tokenizer(train_tokenizer(['hello there, how are you'] * 3, 300).backend, '<|im_start|>', '<|im_end|>', '<|endoftext|>')

TOOL = [dict(type='function', function=dict(name='f', description='d', parameters={}))]
def talk(q, a, **more): return dict(messages=[dict(role='user', content=q), dict(role='assistant', content=a)], **more)

def test_the_shared_beginning_ends_before_the_question(tok):
    a, b, c = (as_example(talk(q, 'x', tools=TOOL), tok, 5000) for q in ('hello', 'you', 'h'))
    assert a.head == b.head == c.head and tok.decode(a.head, skip_special=False).endswith('<|im_start|>user\n') and not any(a.mask[:a.prefix])
    assert as_example(talk('hello', 'x'), tok).head != a.head
    first = as_example(dict(messages=[dict(role='assistant', content='hi'), *talk('a', 'b')['messages']]), tok)
    assert first.prefix == 0 or not any(first.mask[:first.prefix + 1])

def test_long_chats_are_cut_and_empty_ones_dropped(tok):
    e = as_example(talk('hello', 'there ' * 50), tok, 30)
    assert len(e.ids) == 30 and e.learnt > 0 and as_example(talk('hello ' * 50, 'there'), tok, 30) is None
