"Constrained decoding: whatever a model's weights are, the text follows the schema, expression or grammar"
import json, jsonschema, pytest, re, torch
from labkit.core.lm import Sampling
from labkit.corpus.tokens import train_tokenizer
from labkit.finetune.chat import parse_tool_calls
from labkit.inference.grammar import BadGrammar, compile, tool_grammar
from labkit.inference.sampling import choose

WORDS = ['{"name": "Ada", "age": 36}', '[1, 2.5, -3e2, true, false, null]', 'some text, 12 km and 7 miles', '"a": "b", "c": {"d": []}', '北京 上海 你好'] * 20

@pytest.fixture(scope='module')
def tok(): return train_tokenizer(WORDS, 400)

def write(tok, state, seed, V=None, most=3000):
    "Random scores at temperature 1; mask, choose, accept; returns the text and whether it came to its end"
    V = V or tok.vocab_size
    g, out, allowed = torch.Generator().manual_seed(seed), [], torch.zeros(V, dtype=torch.bool)
    while len(out) < most:
        ends = state.mask(allowed)[list(tok.eos_ids)]
        assert bool(ends.any()) == state.complete, 'the end may come exactly where the grammar is complete'
        t = choose(3*torch.randn(V, generator=g), Sampling(temperature=1.), out, g, allowed=allowed).token
        if t in tok.eos_ids: return tok.decode(out, skip_special=False), True
        assert t not in tok.special.values() and t < tok.vocab_size
        out.append(t)
        assert state.accept(t)
    return tok.decode(out, skip_special=False), False

SCHEMAS = [
    dict(type='object', properties=dict(name=dict(type='string', maxLength=8), age=dict(type='integer', minimum=0, maximum=150)), required=['name', 'age'], additionalProperties=False),
    dict(type='array', items=dict(enum=['a', 'b', 3, None]), minItems=1, maxItems=4),
    dict(anyOf=[dict(type='boolean'), dict(type='number'), dict(const='x y')]),
    {'type': 'object', 'properties': {'at': {'$ref': '#/$defs/point'}}, 'required': ['at'], 'additionalProperties': False, '$defs': {'point': dict(type='array', prefixItems=[dict(type='integer'), dict(type='integer')], minItems=2, items=False)}},
    dict(type='object', properties=dict(kind=dict(const='n'), tags=dict(type='array', items=dict(type='string', pattern='^[a-z]{1,3}$'), maxItems=3)), required=['kind', 'tags'], additionalProperties=False),
]

@pytest.mark.parametrize('schema', SCHEMAS, ids=lambda s: str(s)[:40])
def test_random_weights_write_valid_json(tok, schema):
    grammar, ended = compile('json_schema', json.dumps(schema), tok), 0
    for seed in range(40):
        text, end = write(tok, grammar.start(), seed)
        if not end: continue
        ended += 1
        jsonschema.validate(json.loads(text), schema)
    assert ended >= 36

@pytest.mark.parametrize('pattern', [r'([0-9]{1,3})(\.[0-9]{2})? (km|miles)', '(ab|c)*d{2,4}', r'[^"<>]{3,9}', '北京|上海', 'a?b?c?'])
def test_regex_matches_as_a_whole(tok, pattern):
    for seed in range(30):
        text, end = write(tok, compile('regex', pattern, tok).start(), seed)
        assert not end or re.fullmatch(pattern, text), text

def test_grammar(tok):
    sums = compile('grammar', 'start: term ("+" term)*\nterm: /[0-9]{1,3}/ | "(" start ")"', tok)
    texts = [write(tok, sums.start(), s, most=200) for s in range(30)]
    assert all(isinstance(eval(re.sub(r'\b0+(?=\d)', '', t)), int) for t, end in texts if end) and sum(end for _, end in texts) > 20

def test_a_larger_vocabulary_than_the_tokenizers(tok):
    text, end = write(tok, compile('regex', '[0-9]{4}', tok).start(), 1, V=tok.vocab_size + 100)
    assert end and len(text) == 4

def test_rollback_and_refusal(tok):
    state, allowed = compile('json_schema', '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}', tok).start(), torch.zeros(tok.vocab_size, dtype=torch.bool)
    first = state.mask(allowed).clone()
    ids = tok.encode('{"name": "Ad')
    assert all(state.accept(t) for t in ids)
    assert not state.accept(tok.special['<|im_start|>']) and not state.accept(tok.eos_id), 'nothing changes when a token may not come'
    middle = state.mask(allowed).clone()
    for t in tok.encode('a"}'): assert state.accept(t)
    assert state.complete
    state.rollback(len(tok.encode('a"}')))
    assert torch.equal(state.mask(allowed), middle)
    state.rollback(len(ids))
    assert torch.equal(state.mask(allowed), first) and not state.complete

def test_after_the_end_too(tok):
    state = compile('regex', 'a', tok).start()
    assert state.accept(tok.encode('a')[0]) and state.done and state.complete and state.accept(tok.eos_id)
    state.rollback(2)
    assert not state.done and not state.complete
    state = compile('regex', 'a+', tok).start()
    assert not state.accept(tok.eos_id) and state.accept(tok.encode('a')[0]) and not state.done and state.accept(tok.eos_id)
    state.rollback(1)
    assert state.accept(tok.encode('a')[0])

def test_requests_do_not_disturb_each_other(tok):
    grammar, allowed = compile('regex', 'ab*', tok), torch.zeros(tok.vocab_size, dtype=torch.bool)
    one, two = grammar.start(), grammar.start()
    one.accept(tok.encode('a')[0])
    assert one.complete and not two.complete and not grammar.start().complete

def test_compiled_once(tok): assert compile('regex', 'x+y', tok) is compile('regex', 'x+y', tok)

@pytest.mark.parametrize('kind, text, why', [('json_schema', '{"type": "strin"}', 'strin'), ('json_schema', '{"type": ', 'no JSON'), ('json_schema', '[1]', 'list'), ('json_schema', '{"not": {}}', 'not'),
    ('json_schema', '{"$ref": "#/x"}', 'x'), ('regex', 'a(b', 'unclosed group'), ('regex', '(?=x)y', 'look-around'), ('grammar', 'start: foo', 'foo'), ('grammar', 'x: "a"', 'start'), ('ebnf', 'x', 'json_schema')])
def test_what_is_wrong_is_said(tok, kind, text, why):
    with pytest.raises(BadGrammar, match=why): compile(kind, text, tok)

TOOLS = [dict(type='function', function=dict(name='weather', parameters=dict(type='object', properties=dict(city=dict(enum=['Oslo', '北京']), days=dict(type='integer', minimum=1, maximum=9)), required=['city', 'days'], additionalProperties=False))),
         dict(type='function', function=dict(name='clock'))]

def test_tool_calls_fit_their_function(tok):
    seen = set()
    for seed in range(30):
        text, end = write(tok, compile('grammar', tool_grammar(TOOLS), tok).start(), seed)
        rest, (call,) = parse_tool_calls(text)
        assert end and not rest
        name, arguments = call['function']['name'], json.loads(call['function']['arguments'])
        jsonschema.validate(arguments, dict(weather=TOOLS[0]['function']['parameters'], clock=dict(maxProperties=0))[name]); seen.add(name)
    assert seen == {'weather', 'clock'}

def test_a_named_tool_and_several(tok):
    for seed in range(10): assert '"clock"' in write(tok, compile('grammar', tool_grammar(TOOLS, 'clock'), tok).start(), seed)[0]
    texts = [write(tok, compile('grammar', tool_grammar(TOOLS, several=True), tok).start(), s)[0] for s in range(20)]
    assert max(len(parse_tool_calls(t)[1]) for t in texts) > 1
    with pytest.raises(BadGrammar, match='clock'): tool_grammar(TOOLS, 'nope')
    with pytest.raises(BadGrammar, match='no tools'): tool_grammar([])
