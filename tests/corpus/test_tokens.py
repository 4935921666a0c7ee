"Tokenizer and shards over arbitrary text and ids."
import inspect, pickle, textwrap
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.tokens import BYTES, Shards, Tokenizer, compression, graft, train_tokenizer, write_shards

TEXT = st.text(st.characters(exclude_categories=['Cs']))
MARKED = st.lists(TEXT | st.sampled_from(['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<0xE4>', '<0x0A>', '你好', '\n\n', '  ']), max_size=6).map(''.join)

LEARNED = ['hello world, hello tokens', '你好，世界。世界，你好。', 'def f(x):\n    return x + 1\n', *inspect.getsource(textwrap).splitlines()] * 20

@pytest.fixture(scope='module')
def tok(): return train_tokenizer(LEARNED, 400)

@pytest.fixture(scope='module')
def unigram(): return train_tokenizer(LEARNED, 600, kind='unigram')

@settings(max_examples=200, deadline=None)
@given(MARKED)
def test_any_text_comes_back(tok, text):
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert not set(ids) & set(tok.special.values()), 'text must never become a special token by itself'

@settings(max_examples=200, deadline=None)
@given(MARKED)
def test_any_text_comes_back_from_unigram(unigram, text):
    ids = unigram.encode(text)
    assert unigram.decode(ids) == text and unigram.encode_batch([text, text]) == [ids, ids]
    assert not set(ids) & set(unigram.special.values()), 'neither unknown nor a marker'

@settings(max_examples=60, deadline=None)
@given(MARKED)
def test_unigram_comes_back_from_its_files(unigram, tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()/'unigram'
    if not folder.exists(): unigram.save(folder)
    again = Tokenizer.load(folder)
    assert again.digest == unigram.digest and again.encode(text) == unigram.encode(text) and again.decode(again.encode(text)) == text

@pytest.mark.parametrize('size', [259, 260, 261, 270])
@pytest.mark.parametrize('texts', [[], [''], ['a'], ['茶茶茶 hello <0x41>'] * 3], ids=['none', 'empty', 'one', 'some'])
def test_unigram_from_nearly_nothing(texts, size):
    t, text = train_tokenizer(texts, size, kind='unigram'), '茶 <0x41> <|im_end|>\r\n\t 龘🙂'
    assert t.decode(t.encode(text)) == text and 259 <= t.vocab_size <= size

def test_unigram_spells_rare_characters_in_bytes(unigram):
    assert [unigram.backend.id_to_token(i) for i in unigram.encode('龘')] == [BYTES[b] for b in '龘'.encode()]
    assert len(unigram.encode('self.width')) < 8

def test_unigram_has_special_tokens_in_the_places_of_bpe(tok, unigram):
    assert (unigram.special, unigram.eos_ids, unigram.eos_id, unigram.chat_template) == (tok.special, tok.eos_ids, tok.eos_id, tok.chat_template)
    assert unigram.encode('<|im_end|>', special=True) == [2]

def test_transformers_reads_unigram(unigram, tmp_path):
    AutoTokenizer = pytest.importorskip('transformers').AutoTokenizer
    unigram.save(tmp_path/'t')
    text = 'def hello(世界):\n    return "龘" + 42'
    hf = AutoTokenizer.from_pretrained(tmp_path/'t')
    assert hf.encode(text) == unigram.encode(text) and hf.decode(hf.encode(text)) == text

def test_other_kinds_are_refused():
    with pytest.raises(UserError, match="'wordpiece': expected 'bpe' or 'unigram'"): train_tokenizer(['x'], 300, kind='wordpiece')
    with pytest.raises(UserError, match='259'): train_tokenizer(['x'], 258, kind='unigram')

@pytest.mark.parametrize('size', [259, 300, 399, 400])
def test_the_beginning_of_a_bpe_is_a_bpe(tok, size): assert graft(tok, size).backend.get_vocab() == train_tokenizer(LEARNED, size).backend.get_vocab()

@settings(max_examples=60, deadline=None)
@given(MARKED)
def test_grafted_tokenizers_lose_nothing(grafted, text): assert grafted.decode(grafted.encode(text)) == text

@pytest.fixture(scope='module')
def grafted(tok): return graft(tok, 320, train_tokenizer(['我们在酒店住了三天，早餐很好，房间很大。'] * 20, 300), 350)

def test_grafting_brings_the_other_language(tok, grafted):
    assert grafted.vocab_size == 350 and grafted.special == tok.special and grafted.eos_ids == tok.eos_ids
    zh, en = '我们在酒店住了三天', 'hello world, hello tokens'
    assert len(grafted.encode(zh)) < len(tok.encode(zh)) / 2 and grafted.encode(en) == graft(tok, 320).encode(en)

def test_only_bpe_is_grafted(unigram):
    with pytest.raises(UserError, match='only a BPE'): graft(unigram, 300)

def test_compression_weighs_by_length(tok):
    texts = {'a': ['hello', 'hello world, hello tokens'], 'none': []}
    assert compression(tok, texts) == {'a': 30 / (len(tok.encode(texts['a'][0])) + len(tok.encode(texts['a'][1]))), 'none': 0.}

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
    assert len(raw := pickle.dumps(sh)) < 1000 and (pickle.loads(raw)[:] == flat).all(), 'a process is sent the place, not the tokens'

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

@settings(max_examples=100, deadline=None)
@given(text=st.lists(TEXT | st.sampled_from(['<|im_end|>', '<tool>', 'ab  ', 'AB', ' hello', '<|x|>']), max_size=6).map(''.join))
def test_ordinary_text_is_read_by_a_copy_that_shares_the_vocabulary(mixed, text):
    "The copy gives the ids that a whole copy of the tokenizer would, added tokens of both kinds included"
    tok, whole = mixed
    assert tok.encode(text) == whole.encode(text, add_special_tokens=False).ids

@pytest.fixture(scope='module')
def mixed(tok):
    from tokenizers import AddedToken, Tokenizer as Backend, normalizers
    backend = Backend.from_str(tok.backend.to_str())
    backend.normalizer = normalizers.NFKC()
    backend.add_tokens([AddedToken('<tool>'), AddedToken('ab', rstrip=True)])
    backend.add_special_tokens([AddedToken('<|x|>', special=True)])
    backend.add_tokens([AddedToken('AB', normalized=False)])
    whole = Backend.from_str(backend.to_str()); whole.encode_special_tokens = True
    return Tokenizer(backend), whole
