"Tokenizer and shards over arbitrary text and ids."
import inspect, textwrap
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.tokens import Shards, Tokenizer, train_tokenizer, write_shards

TEXT = st.text(st.characters(exclude_categories=['Cs']))
MARKED = st.lists(TEXT | st.sampled_from(['<|endoftext|>', '<|im_start|>', '<|im_end|>', '你好', '\n\n', '  ']), max_size=6).map(''.join)

@pytest.fixture(scope='module')
def tok(): return train_tokenizer(['hello world, hello tokens', '你好，世界。世界，你好。', 'def f(x):\n    return x + 1\n', *inspect.getsource(textwrap).splitlines()] * 20, 400)

@settings(max_examples=200, deadline=None)
@given(MARKED)
def test_any_text_comes_back(tok, text):
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert not set(ids) & set(tok.special.values()), 'text must never become a special token by itself'

@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 399), max_size=30))
def test_any_ids_can_be_decoded(tok, ids): assert isinstance(tok.decode(ids), str)

def test_special(tok):
    assert tok.encode('<|im_end|>', special=True) == [tok.special['<|im_end|>']]
    assert tok.eos_ids == (tok.special['<|endoftext|>'], tok.special['<|im_end|>']) and tok.eos_id == tok.special['<|endoftext|>']
    assert tok.encode_batch(['hello', '<|im_end|>']) == [tok.encode('hello'), tok.encode('<|im_end|>')]

def test_save_and_load(tok, tmp_path):
    tok.save(tmp_path/'t')
    new = Tokenizer.load(tmp_path/'t')
    assert (new.digest, new.special, new.eos_ids, new.pad_id, new.bos_id, new.chat_template, new.vocab_size) == (tok.digest, tok.special, tok.eos_ids, tok.pad_id, tok.bos_id, tok.chat_template, tok.vocab_size)

def test_transformers_reads_it(tok, tmp_path):
    AutoTokenizer = pytest.importorskip('transformers').AutoTokenizer
    tok.save(tmp_path/'t')
    hf = AutoTokenizer.from_pretrained(tmp_path/'t')
    text = 'def hello(世界):\n    return "world" + 42'
    assert hf.encode(text) == tok.encode(text) and hf.eos_token_id == tok.eos_id
    chat = hf.apply_chat_template([{'role': 'user', 'content': 'hi'}], tokenize=False, add_generation_prompt=True)
    assert chat == '<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n'

def test_vocabulary_of_asked_size(tok):
    assert tok.vocab_size == 400
    with pytest.raises(UserError, match='259'): train_tokenizer(['x'], 100)

@pytest.mark.parametrize('text', ['', '{', '[]', '{"model": {"type": "Nonsense"}}'])
def test_damaged_tokenizer(tmp_path, text):
    (tmp_path/'tokenizer.json').write_text(text)
    with pytest.raises(UserError, match='tokenizer.json'): Tokenizer.load(tmp_path)

def test_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match='no tokenizer.json'): Tokenizer.load(tmp_path)

@settings(max_examples=60, deadline=None)
@given(docs=st.lists(st.lists(st.integers(3, 399), max_size=20), max_size=20), limit=st.integers(1, 60), cut=st.tuples(st.integers(-300, 300), st.integers(-300, 300)))
def test_shards_are_one_long_array(tok, tmp_path_factory, docs, limit, cut):
    folder = tmp_path_factory.mktemp('s')/'train'
    sh = write_shards(docs, folder, tok, tokens_per_file=limit)
    flat = np.array([i for d in docs for i in [*d, tok.eos_id]], np.uint16)
    assert len(sh) == len(flat) and sh.n_documents == len(docs)
    assert (sh[slice(*cut)] == flat[slice(*cut)]).all() and [sh[i] for i in range(len(sh))] == flat.tolist()
    assert [d.tolist() for d in sh.documents()] == docs
    Shards(folder).verify()

def test_ids_out_of_range(tok, tmp_path):
    for bad in ([70_000], [-1]):
        with pytest.raises(ValueError, match='does not fit'): write_shards([[5], bad], tmp_path/'train', tok)
    assert not list(tmp_path.iterdir()), 'nothing half-written is left'

def test_damaged_shards(tok, tmp_path):
    write_shards([[5, 6, 7]] * 10, tmp_path/'train', tok, tokens_per_file=16)
    first, index = tmp_path/'train'/'shard-00000.bin', tmp_path/'train'/'index.json'
    raw, meta = first.read_bytes(), index.read_text()
    first.write_bytes(raw[:-2])
    with pytest.raises(UserError, match='shard-00000.bin: has'): Shards(tmp_path/'train')
    first.write_bytes(b'\1\0' + raw[2:])
    with pytest.raises(UserError, match='not what was written'): Shards(tmp_path/'train').verify()
    first.unlink()
    with pytest.raises(UserError, match='is missing'): Shards(tmp_path/'train')
    index.write_text(meta[:50])
    with pytest.raises(UserError, match='index.json'): Shards(tmp_path/'train')
    index.write_text('{}')
    with pytest.raises(UserError, match='not an index'): Shards(tmp_path/'train')
    with pytest.raises(UserError, match='no token shards'): Shards(tmp_path)

def test_another_tokenizer_is_noticed(tok, tmp_path):
    sh = write_shards([[5]], tmp_path/'train', tok)
    with pytest.raises(UserError, match="no folder 'tokenizer'"): sh.tokenizer()
    tok.save(tmp_path/'tokenizer'); assert sh.tokenizer().digest == tok.digest
    train_tokenizer(['other words here'], 270).save(tmp_path/'tokenizer')
    with pytest.raises(UserError, match='not the tokenizer'): sh.tokenizer()

def test_large_vocabulary_takes_four_bytes(tok, tmp_path):
    big = Tokenizer(tok.backend, eos='<|endoftext|>'); big.vocab_size = 70_000
    sh = write_shards([[69_999]], tmp_path/'train', big)
    assert sh.dtype.itemsize == 4 and sh[0] == 69_999
