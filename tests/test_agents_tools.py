"Tools: schemas of all kinds of signatures, arguments of all kinds of wrong, calls that raise, hang or are interrupted"
import dataclasses, enum, json, threading, time
from typing import Literal, Optional
import pytest
from hypothesis import given, settings, strategies as st
from labkit.agents.tools import Tool, ToolError, Toolbox, as_text, calculator, function_schema, parameter_docs, read_object, shorten

class Color(enum.Enum): RED = 'red'; BLUE = 'blue'

@dataclasses.dataclass
class Point: x: float; y: float

def everything(
    a: int, # a whole number
    b: float,
    c: str,
    d: bool,
    e: list[int],
    f: dict[str, float],
    g: Literal['x', 'y'],
    h: Color,
    i: list[Point], # places
    j: Optional[int] = None,
    *,
    k: str = 'ü',
) -> str:
    "Take one of each"
    return repr((a, b, c, d, e, f, g, h, i, j, k))

GOOD = dict(a=1, b=2.5, c='c', d=True, e=[1, 2], f={'z': 1}, g='x', h='red', i=[{'x': 1, 'y': 2}])

def echo(text: str, # what to say
         ) -> str:
    "Say it again"
    return text

# ---- schemas
def test_schema_of_every_kind_of_type():
    s = function_schema(everything)
    assert s['required'] == list('abcdefghi') and s['properties']['a'] == {'type': 'integer', 'description': 'a whole number'}
    assert s['properties']['g']['enum'] == ['x', 'y'] and s['properties']['e'] == {'type': 'array', 'items': {'type': 'integer'}}
    assert s['properties']['k']['default'] == 'ü' and s['properties']['j']['default'] is None
    assert s['properties']['i']['items']['$ref'].removeprefix('#/$defs/') in s['$defs'] and '"title"' not in json.dumps(s)

def test_the_schema_is_valid_and_accepts_what_the_tool_accepts():
    jsonschema = pytest.importorskip('jsonschema')
    s = function_schema(everything)
    jsonschema.Draft202012Validator.check_schema(s); jsonschema.validate(GOOD, s)
    with pytest.raises(jsonschema.ValidationError): jsonschema.validate(GOOD | {'g': 'z'}, s)

def test_values_arrive_with_their_types():
    args = Tool.of(everything).validate(GOOD)
    assert args['h'] is Color.RED and args['i'] == [Point(1, 2)] and Tool.of(everything).call(GOOD).ok

def test_a_parameter_called_title_keeps_its_schema():
    def book(title: str, schema: int = 1, model_config: str = '') -> str:
        "Names that pydantic uses itself"
        return title
    assert set(function_schema(book)['properties']) == {'title', 'schema', 'model_config'} and Tool.of(book).call({'title': 'T'}).text == 'T'

@pytest.mark.parametrize('make', [
    lambda: Tool.of(lambda x: x), lambda: Tool.of(type('C', (), {'__call__': None}).__init__),
    lambda: Tool.of(exec_function('def f(x): "doc"')), lambda: Tool.of(exec_function('def f(*xs: int): "doc"')),
    lambda: Tool.of(exec_function('def f(**xs: int): "doc"')), lambda: Tool.of(exec_function('def f(x: int, /): "doc"')), lambda: Tool.of(exec_function('def f(x: int): pass'))])
def test_what_a_model_could_not_call_is_refused_when_the_tool_is_made(make):
    with pytest.raises(TypeError): make()

def exec_function(source): space = {}; exec(source, space); return space['f']

def test_a_function_without_source_text_still_has_its_docstring():
    f = exec_function('def f(x: int):\n    """Double it.\n\n    Args:\n        x: the number\n    """\n    return 2*x')
    assert parameter_docs(f) == {'x': 'the number'} and Tool.of(f).description == 'Double it.' and Tool.of(f).call({'x': 4}).text == '8'

def test_numpy_docstrings_are_read():
    def f(x: int):
        """Double it

        Parameters
        ----------
        x : int
            the number
        """
    assert parameter_docs(f) == {'x': 'the number'}

def test_two_tools_of_one_name_are_refused():
    with pytest.raises(ValueError, match='echo'): Toolbox([echo, echo])

json_values = st.recursive(st.none() | st.booleans() | st.integers(-10**6, 10**6) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3), max_leaves=6)

@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([*'abcdefghijk', 'nonsense', 'ä']), json_values, max_size=12))
def test_no_arguments_get_an_exception_out_of_a_call(args):
    r = Tool.of(everything).call(args)
    assert isinstance(r.text, str) and (r.ok or r.text.startswith('error: '))

@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_no_text_gets_an_exception_out_of_a_call(text):
    assert isinstance(Tool.of(echo).call(text).text, str) and not Toolbox([echo]).call(text + '?', text).ok

@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_text_goes_through_a_tool_unchanged(text):
    assert Tool.of(echo).call(json.dumps({'text': text})).text == text

# ---- bad arguments
def test_all_complaints_come_at_once_and_name_what_is_right():
    with pytest.raises(ToolError) as e: Tool.of(everything).validate({'a': 'one', 'bb': 1} | {k: v for k, v in GOOD.items() if k not in 'ab'})
    assert all(s in str(e.value) for s in ("'b' is missing", "no 'bb'", "'a': should be a valid integer", 'found "one"', 'everything takes {"a": 1, "b": 1.5'))

@pytest.mark.parametrize('text', ['', '{', '{"text": }', '[1]', '"x"', 'null', '3', '{"text": "a"} trailing', "{'text': 'a'}", '[' * 100_000, '\x00'])
def test_malformed_json_is_an_error_that_shows_the_right_shape(text):
    with pytest.raises(ToolError, match=r'Send one JSON object: \{"text": "…"\}'): read_object(text, Tool.of(echo).example)

def test_raw_line_breaks_in_strings_are_read():
    assert read_object('{"code": "a = 1\nb"}') == {'code': 'a = 1\nb'}

def test_an_unknown_tool_names_the_known_ones():
    r = Toolbox([echo, calculator]).call('calculater', '{}')
    assert not r.ok and "did you mean 'calculator'" in r.text and 'echo' in r.text
    assert 'Tools: none' in Toolbox().call('x', {}).text

# ---- calls that go wrong
def test_a_tool_that_raises_is_an_answer():
    def broken(why: str) -> str:
        "Fail"
        raise KeyError(why)
    assert Tool.of(broken).call({'why': 'because'}).text == "error: KeyError: 'because'"

def test_a_tool_that_hangs_is_left_behind():
    done = threading.Event()
    def hang() -> str:
        "Wait"
        done.wait(30); return 'late'
    start = time.perf_counter(); r = Tool.of(hang).call({}, timeout=.2); took = time.perf_counter() - start
    done.set()
    assert not r.ok and 'no answer within 0.2 s' in r.text and took < 3

@pytest.mark.parametrize('stop', [KeyboardInterrupt, SystemExit])
def test_an_interrupt_gets_through(stop):
    def f() -> str:
        "Stop everything"
        raise stop
    with pytest.raises(stop): Tool.of(f).call({})

@pytest.mark.parametrize('value', [object(), {1, 2}, b'\xff', float('nan'), {'k': object()}, 2**100, [Point(1, 2)], None])
def test_whatever_a_tool_returns_becomes_text(value): assert isinstance(as_text(value), str)

@settings(max_examples=100, deadline=None)
@given(st.text(max_size=400), st.integers(2, 100))
def test_long_answers_are_shortened_and_say_so(text, limit):
    s = shorten(text, limit)
    assert s == text if len(text) <= limit else (s.startswith(text[:limit//2]) and s.endswith(text[-(limit//2):]) and 'left out' in s)

# ---- the calculator
numbers = st.integers(0, 999).map(str) | st.floats(.1, 99).map(lambda x: f'{x:.3f}')
expressions = st.recursive(numbers, lambda x: st.tuples(x, st.sampled_from(['+', '-', '*', '/', '//', '%']), x).map(lambda t: f'({t[0]} {t[1]} {t[2]})'), max_leaves=8)

@settings(max_examples=150, deadline=None)
@given(expressions)
def test_the_calculator_agrees_with_python(expression):
    try: want = eval(expression)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError): calculator(expression)
    else: assert calculator(expression) == want

@pytest.mark.parametrize('text', ["__import__('os')", 'open("/etc/passwd")', '().__class__', '[1,2]', '"a"*9', 'x', 'lambda: 1', 'abs.__self__', '1 if 1 else 2', 'True', '1j', '(-1)**.5',
                                  '9**9**9', '2**10**10', 'exec("1")', 'max(key=abs)', '', '1,000 + 1', '2 apples', '(' * 400, 'f"{1}"', '(x:=3)', '1' * 501])
def test_the_calculator_refuses_what_is_not_arithmetic(text):
    start = time.perf_counter(); r = Tool.of(calculator).call({'expression': text})
    assert not r.ok and time.perf_counter() - start < 2

def test_the_calculator_reads_chinese_signs(): assert calculator('（3＋4）×2÷7'.replace('＋', '+')) == 2 and calculator('2^10 − 24') == 1000
