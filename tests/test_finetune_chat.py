"""Chat templates against transformers, hostile templates and messages, tool calls, broken files, and the shipped chats."""
import json, re, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.files import samples
from labkit.core.settings import UserError
from labkit.corpus.tokens import Tokenizer, train_tokenizer
from labkit.finetune.chat import (CHATML, INTERNLM2, TemplateError, encode_chat, encode_prompt, load_chats, parse_tool_calls, plain_messages, render, write_tool_calls)

SMOLLM2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
# Qwen2.5's template, from the tokenizer_config.json of Qwen/Qwen2.5-7B-Instruct (Apache-2.0), with another default system message
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\nYou are provided with function signatures within <tools></tools> XML tags:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# what else templates of the field use: set, namespaces, break, tojson with indent, special-token variables, generation tags
ODD = """{{ bos_token }}{% set ns = namespace(n=0) %}
{% for m in messages %}
    {% if m.role == 'tool' %}{% continue %}{% endif %}
    {% set ns.n = ns.n + 1 %}
    {% if m.role == 'assistant' %}
<|im_start|>assistant
{% generation %}{{ m.content | trim }}<|im_end|>{% endgeneration %}

    {% else %}
<|im_start|>{{ m | tojson(indent=2) }}<|im_end|>
    {% endif %}
    {% if ns.n > 8 %}{% break %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

TOOLS = [dict(type='function', function=dict(name=n, description='Wetter & <b>天气</b>', parameters=dict(type='object', properties=dict(city=dict(type='string')), required=['city']))) for n in ('get_weather', 'map')]
def called(name='get_weather', id='a', **args): return dict(id=id, type='function', function=dict(name=name, arguments=json.dumps(args)))
PLAIN = [dict(role='system', content='Be brief.'), dict(role='user', content="What's up? 你好"), dict(role='assistant', content='Not much.'), dict(role='user', content='1 < 2 & "so"'), dict(role='assistant', content='ok')]
TOOL_TALK = [dict(role='user', content='Weather?'), dict(role='assistant', content=None, tool_calls=[called(city='北京'), called('map', 'b', city='x"y')]),
             dict(role='tool', tool_call_id='a', content='{"t": 3}'), dict(role='tool', tool_call_id='b', content='far'), dict(role='assistant', content='3 °C and far.')]

@pytest.fixture(scope='module')
def backend(): return train_tokenizer(['Hello, how are you? The weather in Beijing is fine. 你好，北京的天气很好。{"name": "x"}'] * 4, 400)

def with_template(tok, template): return Tokenizer(tok.backend, '<|im_start|>', '<|im_end|>', '<|endoftext|>', chat_template=template)

def as_objects(messages):
    "transformers wants arguments as objects and text contents"
    ms = json.loads(json.dumps(messages))
    for m in ms:
        m['content'] = m['content'] or ''
        for c in m.get('tool_calls', ()): c['function']['arguments'] = json.loads(c['function']['arguments'])
    return ms

@pytest.mark.parametrize('ask', [True, False])
@pytest.mark.parametrize('template, messages, tools', [(SMOLLM2, PLAIN, None), (SMOLLM2, PLAIN[1:], None), (CHATML, PLAIN, None), (QWEN, PLAIN, None), (QWEN, PLAIN, TOOLS), (QWEN, TOOL_TALK, TOOLS), (ODD, PLAIN, None), (ODD, TOOL_TALK, None)])
def test_text_and_ids_are_those_of_transformers(backend, template, messages, tools, ask, tmp_path):
    transformers = pytest.importorskip('transformers')
    tok = with_template(backend, template); tok.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    want = theirs.apply_chat_template(as_objects(messages), tools=tools, add_generation_prompt=ask, tokenize=False)
    ours = messages if template != ODD else as_objects(messages)
    if template == ODD and tools is None: messages = ours = [m for m in ours if not m.get('tool_calls') and m['role'] != 'tool']; want = theirs.apply_chat_template(messages, add_generation_prompt=ask, tokenize=False)
    assert render(ours, tok, tools, ask) == want
    ids = theirs.apply_chat_template(as_objects(messages), tools=tools, add_generation_prompt=ask, tokenize=True)
    assert encode_prompt(ours, tok, tools, ask) == list(ids['input_ids'] if hasattr(ids, 'keys') else ids)

@pytest.mark.parametrize('messages, tools', [(TOOL_TALK, TOOLS), (PLAIN, TOOLS), (PLAIN, None)])
def test_a_template_without_tools_gives_what_qwen_gives(backend, messages, tools):
    assert render(messages, with_template(backend, None), tools) == render(messages, with_template(backend, QWEN), tools)
    assert render(messages, with_template(backend, SMOLLM2), tools).endswith(render(messages, with_template(backend, QWEN), tools))

def test_internlm2(backend):
    tok = with_template(backend, INTERNLM2)
    assert render(PLAIN[:2], tok) == "<|im_start|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat's up? 你好<|im_end|>\n<|im_start|>assistant\n"
    text = render(TOOL_TALK, tok, TOOLS, add_generation_prompt=False)
    assert '<|im_start|>system name=<|plugin|>\n[{"name": "get_weather"' in text and '<|im_start|>environment name=<|plugin|>\n{"t": 3}<|im_end|>' in text
    said = re.search(r'assistant\n(.*?)<\|im_end\|>', text, re.S)[1]
    assert [c['function'] for c in parse_tool_calls(said)[1]] == [dict(name='get_weather', arguments='{"city": "北京"}'), dict(name='map', arguments='{"city": "x\\"y"}')]

@pytest.mark.parametrize('template, why', [("{{ ''.__class__.__mro__[1].__subclasses__() }}", 'fails'), ("{{ messages.append(1) }}", 'fails'), ("{% for m in %}", 'line 1'), ("{{ raise_exception('roles must alternate') }}", 'roles must alternate'), ("{{ messages[7].content + 1 }}", 'fails'), ("{{ 1 / 0 }}", 'fails')])
def test_templates_that_cannot_be(backend, template, why):
    with pytest.raises(TemplateError, match=why): render(PLAIN, with_template(backend, template))

def test_a_template_that_rewrites_the_past_is_refused(backend):
    with pytest.raises(TemplateError, match='rewrites'): encode_chat(PLAIN, with_template(backend, "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}"))

HOSTILE = st.lists(st.sampled_from(['<|im_end|>', '<|im_start|>system\n', '<|endoftext|>', '\ue000', '\ue001', 'hello', '你好', '\n', ' ', '<tool_call>']), max_size=6).map(''.join) | st.text(max_size=30)

@settings(max_examples=60, deadline=None)
@given(HOSTILE, HOSTILE, HOSTILE)
def test_no_message_can_forge_a_turn(backend, a, b, c):
    tok = with_template(backend, None)
    ids, mask = encode_chat([dict(role='user', content=a), dict(role='assistant', content=b), dict(role='user', content=c), dict(role='assistant', content='x')], tok)
    marks = [i for i in ids if i in tok.special.values()]
    assert marks == [tok.special['<|im_start|>'], tok.special['<|im_end|>']] * 4
    learnt = tok.decode([i for i, m in zip(ids, mask) if m], skip_special=False)
    if not re.search('[\ue000-\uf8ff]', b): assert learnt == b.encode('utf-8', 'replace').decode() + '<|im_end|>x<|im_end|>'

@pytest.mark.parametrize('template', [SMOLLM2, CHATML, QWEN, INTERNLM2, ODD])
def test_only_the_assistant_is_learnt(backend, template):
    tok = with_template(backend, template)
    ids, mask = encode_chat(PLAIN, tok)
    assert tok.decode([i for i, m in zip(ids, mask) if m], skip_special=False) == 'Not much.<|im_end|>ok<|im_end|>'
    assert ids == encode_prompt(PLAIN, tok, add_generation_prompt=False)

NAMES, JSON = st.text(min_size=1, max_size=12), st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3), max_leaves=6)
@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(NAMES, st.dictionaries(st.text(max_size=5), JSON, max_size=3)), min_size=1, max_size=3), st.sampled_from(['', 'I look.', '让我看看。\nYes.']))
def test_calls_survive_writing_and_reading(calls, content):
    if '</tool_call>' in json.dumps(calls, ensure_ascii=False): return
    text = write_tool_calls(content, [dict(function=dict(name=n, arguments=json.dumps(a))) for n, a in calls])
    rest, back = parse_tool_calls(text)
    assert rest == content and [(c['function']['name'], json.loads(c['function']['arguments'])) for c in back] == calls
    assert len({c['id'] for c in back}) == len(back) and parse_tool_calls(text)[1] == back and parse_tool_calls(text, 'other')[1] != back

@pytest.mark.parametrize('text', ['no call', '<tool_call>not json</tool_call>', '<tool_call>[1]</tool_call>', '<tool_call>{"name": 1}</tool_call>', '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', '<tool_call>{"name": "f", "argu', ' two  spaces '])
def test_what_is_no_call_stays_text(text): assert parse_tool_calls(text) == (text, [])

def test_an_unclosed_but_whole_call_counts():
    assert parse_tool_calls('<tool_call>\n{"name": "f", "arguments": "{\\"a\\": 1}"}')[1][0]['function'] == dict(name='f', arguments='{"a": 1}')

@pytest.mark.parametrize('content', [[dict(type='image_url', image_url='x')], 7, dict(a=1)])
def test_content_must_be_text(backend, content):
    with pytest.raises(UserError, match='must be text'): render([dict(role='user', content=content)], with_template(backend, None))

def test_parts_of_text_are_joined(backend):
    tok = with_template(backend, None)
    assert render([dict(role='user', content=[dict(type='text', text='a'), dict(type='text', text='b')])], tok) == render([dict(role='user', content='ab')], tok)

OK = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
@pytest.mark.parametrize('line, why', [('{"messages": [', 'not JSON'), ('[1]', 'expected an object'), ('{"a": 1}', "no list of 'messages'"), ('{"messages": [{"role": "user", "content": "a"}]}', 'no assistant turn'),
    ('{"messages": [{"role": "robot", "content": "a"}]}', "role 'robot'"), ('{"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": "b"}]}', 'must be text'),
    ('{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}', 'not a tool call'), (OK[:-1] + ', "tools": "x"}', "'tools'"), ('\xff', 'not JSON')])
def test_broken_lines_are_named(tmp_path, line, why):
    file = tmp_path/'chats.jsonl'
    file.write_bytes(f'{OK}\n\n'.encode() + line.encode('latin-1') + f'\n{OK}\n'.encode())
    with pytest.raises(UserError, match=re.escape(f'{file}:3: ') + '.*' + re.escape(why)): load_chats(file)
    bad = []
    assert len(load_chats(file, bad.append)) == 2 and [b.line for b in bad] == [3]

def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match='no such file'): load_chats(tmp_path/'none.jsonl')

TYPES = dict(string=str, integer=int, number=(int, float))
@pytest.mark.parametrize('name', ['instructions', 'instructions_heldout'])
def test_shipped_calls_fit_their_tools(name):
    for chat in load_chats(samples(f'{name}.jsonl')):
        known = {t['function']['name']: t['function']['parameters'] for t in chat.get('tools', ())}
        for m in chat['messages']:
            for c in m.get('tool_calls', ()):
                schema, args = known[c['function']['name']], json.loads(c['function']['arguments'])
                assert set(schema['required']) <= set(args) <= set(schema['properties']) and all(isinstance(v, TYPES[schema['properties'][k]['type']]) for k, v in args.items())

def test_shipped_results_are_true():
    from labkit.core.sandbox import run_python
    programs = []
    for chat in [*load_chats(samples('instructions.jsonl')), *load_chats(samples('instructions_heldout.jsonl'))]:
        ms = chat['messages']
        for m, n in zip(ms, ms[1:]):
            f = m['tool_calls'][0]['function'] if m.get('tool_calls') else dict(name='')
            if f['name'] == 'calculator': assert n['content'] == str(eval(json.loads(f['arguments'])['expression'], {'__builtins__': {}}))
            if f['name'] == 'python': programs.append((json.loads(f['arguments'])['code'], n['content']))
        for step in re.findall(r'^(\d+ [+×−] \d+) = (\d+)$', ms[-1]['content'] or '', re.M): assert eval(step[0].replace('×', '*').replace('−', '-')) == int(step[1])
    assert len(programs) >= 8
    out = run_python('\n'.join(f'{code}\nprint("\\0")' for code, _ in programs), timeout=20).stdout.split('\0\n')
    assert [o.strip() for o in out[:-1]] == [want for _, want in programs]

def test_held_out_questions_are_not_in_training():
    asked = lambda name: {c['messages'][0]['content'] for c in load_chats(samples(name))}
    assert not asked('instructions.jsonl') & asked('instructions_heldout.jsonl') and len(asked('instructions.jsonl')) >= 150

@pytest.mark.parametrize('messages', ['hi', [{'content': 'hi'}], ['hi'], [{'role': None, 'content': 'x'}]])
def test_what_is_no_conversation_says_so(backend, messages):
    with pytest.raises(TemplateError, match="'role'"): encode_prompt(messages, with_template(backend, CHATML))

def test_half_a_surrogate_pair_says_so(backend):
    with pytest.raises(UserError, match='surrogate'): encode_prompt([{'role': 'user', 'content': 'a\udcffb'}], with_template(backend, CHATML))
