"The real engine behind the server, and the commands as processes: ports, signals, terminals."
import codecs, os, pty, select, signal, socket, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import httpx, openai, pytest, torch
from labkit.core.lm import Endpoint, EndpointError, Sampling
from labkit.inference.engine import Engine, EngineSettings
from labkit.model.checkpoint import save_model
from labkit.model.config import ModelConfig
from labkit.model.transformer import Transformer
from labkit.serve.bench import BenchSettings, bench
from labkit.serve.http import serve_in_thread
from scripted_engine import tokenizer

LABKIT = Path(sys.executable).parent/'labkit'
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'LABKIT_QUIET': '1'}


def tiny_model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=tokenizer().vocab_size, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, max_seq_len=512)).float()


@pytest.fixture(scope='module')
def engine():
    torch.set_num_threads(1)
    return Engine(tiny_model(), tokenizer(), EngineSettings(backend='torch', cache_tokens=4096, max_batch=32), name='tiny')


@pytest.fixture(scope='module')
def server(engine):
    with serve_in_thread(engine) as s: yield s


@pytest.fixture(scope='module')
def client(server): return openai.OpenAI(base_url=f'{server.url}/v1', api_key='none', max_retries=0, timeout=60)


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory):
    d = tmp_path_factory.mktemp('model')/'tiny'
    save_model(tiny_model(), d, tokenizer())
    return d


@pytest.fixture(scope='module', autouse=True)
def settings_file(tmp_path_factory):
    f = tmp_path_factory.mktemp('settings')/'settings.ini'
    f.write_text('[inference]\nbackend = torch\n')            # nothing to compile in each process
    ENV['LABKIT_SETTINGS'] = str(f)


def idle(engine, seconds=5):
    end = time.time() + seconds
    while engine.stats()['running'] or engine.stats()['waiting'] or engine.stats()['cache_blocks_used']: assert time.time() < end, engine.stats(); time.sleep(.02)


PROMPTS = ['The capital of France is', 'one two', '你好 🌍', 'word']


# ---- the server says what the engine says

def test_endpoint_generates_what_the_engine_generates(engine, server):
    remote = Endpoint(f'{server.url}/v1')
    for params in (Sampling(max_tokens=12, logprobs=2), Sampling(max_tokens=12, temperature=.8, seed=3, top_p=.9), Sampling(max_tokens=30, stop=('a', 'e'))):
        here, there = engine.generate(PROMPTS, params), remote.generate(PROMPTS, params)
        assert [c.text for c in here] == [c.text for c in there] and [c.finish_reason for c in here] == [c.finish_reason for c in there]
        assert [c.prompt_tokens for c in here] == [c.prompt_tokens for c in there]
        if params.logprobs:
            for a, b in zip(here, there): assert b.logprobs == pytest.approx(a.logprobs, abs=1e-4)


def test_endpoint_scores_what_the_engine_scores(engine, server):
    pairs = [('The capital of France is', ' Paris'), ('one', ' two three'), ('你好', ' 🌍'), ('word', ' word word word')]
    greedy = engine.generate(['one two'], Sampling(max_tokens=3, ignore_eos=True))[0].text
    pairs.append(('one two', greedy))
    for (a, g), (b, h) in zip(engine.loglikelihood(pairs), Endpoint(f'{server.url}/v1').loglikelihood(pairs)): assert b == pytest.approx(a, abs=1e-3) and g == h


def test_endpoint_chats_as_the_engine_chats(engine, server):
    m = [dict(role='user', content='The capital of France?')]
    there = Endpoint(f'{server.url}/v1').chat(m, max_tokens=10, temperature=0)
    assert {k: there[k] for k in ('role', 'content')} == engine.chat(m, max_tokens=10, temperature=0)


def test_endpoint_says_what_is_wrong(server):
    with pytest.raises(EndpointError, match='maximum context length'): Endpoint(f'{server.url}/v1').generate(['word ' * 600], Sampling())
    with pytest.raises(EndpointError, match='Is the server running'): Endpoint('http://127.0.0.1:9/v1')


def test_ids_and_text_are_the_same_prompt(engine, client):
    ids = tokenizer().encode(PROMPTS[0])
    ask = lambda p: client.completions.create(model='tiny', prompt=p, max_tokens=8, temperature=0).choices[0].text
    assert ask(PROMPTS[0]) == ask(ids)


def test_echo_scores_the_prompt_and_sums_to_its_likelihood(engine, client):
    r = client.completions.create(model='tiny', prompt='one two three', max_tokens=4, temperature=0, echo=True, logprobs=2).choices[0]
    n = len(tokenizer().encode('one two three'))
    assert r.text.startswith('one two three') and r.logprobs.token_logprobs[0] is None and len(r.logprobs.tokens) == n + 4
    assert ''.join(r.logprobs.tokens)[:13] == 'one two three' and r.logprobs.text_offset[:2] == [0, len(r.logprobs.tokens[0])]
    alone = client.completions.create(model='tiny', prompt='one two three', max_tokens=0, echo=True, logprobs=2).choices[0]
    assert alone.logprobs.token_logprobs[1:] == pytest.approx(r.logprobs.token_logprobs[1:n], abs=1e-4)


def test_seeds_make_sampling_repeatable(client):
    ask = lambda seed: [c.text for c in client.completions.create(model='tiny', prompt='one', max_tokens=12, temperature=1, n=3, seed=seed).choices]
    assert ask(1) == ask(1) != ask(2) and len(set(ask(1))) == 3


def test_32_clients_get_what_each_would_get_alone(engine, client):
    ask = lambda i: ''.join(c.choices[0].text for c in client.completions.create(model='tiny', prompt=f'{PROMPTS[i % 4]} {i}', max_tokens=10, temperature=0, stream=True) if c.choices)
    with ThreadPoolExecutor(32) as pool: together = list(pool.map(ask, range(32)))
    assert together == [c.text for c in engine.generate([f'{PROMPTS[i % 4]} {i}' for i in range(32)], Sampling(max_tokens=10))]
    idle(engine)


def test_a_client_who_leaves_frees_the_cache(engine, client):
    for _ in range(4):
        s = client.completions.create(model='tiny', prompt='word ' * 100, max_tokens=380, stream=True, extra_body=dict(ignore_eos=True))
        next(iter(s)); s.close()
    idle(engine)


def test_embeddings_in_both_encodings(client):
    a, b = (client.embeddings.create(model='tiny', input=['one two', 'word'], encoding_format=f) for f in ('float', 'base64'))
    assert len(a.data[0].embedding) == 32 and sum(x * x for x in a.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert a.data[1].embedding == pytest.approx(client.embeddings.create(model='tiny', input='word').data[0].embedding, abs=1e-6)
    assert isinstance(b.data[0].embedding, str)


def test_bench_counts_and_measures(server):
    r = bench(BenchSettings(server.url, requests=12, rate=200., prompt_tokens=8, output_tokens=6, vocabulary=300))
    assert (r['completed'], r['failed'], r['unfinished'], r['total_input_tokens'], r['total_output_tokens']) == (12, 0, 0, 96, 72)
    assert r['output_throughput'] == pytest.approx(72 / r['duration']) and 0 < r['median_itl_ms'] <= r['p99_itl_ms'] and r['median_ttft_ms'] <= r['p99_ttft_ms']


def test_bench_is_bounded_and_reports_failures(server):
    r = bench(BenchSettings(server.url, requests=50, rate=1., seconds=.5, prompt_tokens=4, output_tokens=2, vocabulary=300))
    assert r['duration'] < 2 and r['unfinished'] > 40
    r = bench(BenchSettings(server.url, requests=2, prompt_tokens=600, vocabulary=300))
    assert r['failed'] == 2 and 'maximum context length' in r['errors'][0]


# ---- processes

def start(*args, **kw): return subprocess.Popen([LABKIT, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, **kw)


def serving(model_dir):
    p = start('serve', model_dir, '--port', '0')
    for line in p.stdout:
        if 'chat page' in line: return p, line.split()[-1].rstrip('/')
    raise AssertionError(p.stderr.read())


@pytest.mark.parametrize('sig, status', [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_streams_and_the_process(model_dir, sig, status):
    p, url = serving(model_dir)
    try:
        with httpx.stream('POST', f'{url}/v1/completions', json=dict(prompt='one', max_tokens=400, stream=True, ignore_eos=True), timeout=30, trust_env=False) as r:
            lines = r.iter_lines(); next(lines)
            p.send_signal(sig); t = time.time()
            rest = list(lines)
        out, err = p.communicate(timeout=15)
        assert p.returncode == status and 'Traceback' not in err and time.time() - t < 10
        assert rest[-2] == 'data: [DONE]' or rest[-1] == 'data: [DONE]'
    finally: p.kill()


def test_a_port_in_use_is_one_line_and_exit_2(model_dir):
    with socket.create_server(('127.0.0.1', 0)) as s:
        p = start('serve', model_dir, '--port', s.getsockname()[1])
        out, err = p.communicate(timeout=60)
    assert p.returncode == 2 and '--port' in err and len(err.strip().splitlines()) == 1


def test_a_model_that_is_not_there_is_exit_2(tmp_path):
    p = start('serve', tmp_path/'nothing', '--port', '0')
    out, err = p.communicate(timeout=60)
    assert p.returncode == 2 and 'nothing' in err and 'Traceback' not in err


def test_chat_prompt_with_the_embedded_model_says_paris():
    p = start('chat', '--prompt', 'What is the capital of France?')
    out, err = p.communicate(timeout=240)
    assert p.returncode == 0 and 'Paris' in out, err


class Terminal:
    "A program on a pseudo-terminal"
    def __init__(self, *args):
        self.pid, self.fd = pty.fork()
        if self.pid == 0: os.execve(LABKIT, [str(LABKIT), *map(str, args)], ENV)
        self.seen, self.decoder = '', codecs.getincrementaldecoder('utf-8')('replace') # a read may end inside a character
    def until(self, text, seconds=60):
        end = time.time() + seconds
        while text not in self.seen:
            assert time.time() < end, self.seen
            if select.select([self.fd], [], [], .2)[0]: self.seen += self.decoder.decode(os.read(self.fd, 4096))
    def interrupt(self):
        "Ctrl-C; a terminal then drops output that is on its way, the prompt perhaps, so ask for another one"
        self.type('\x03')
        for _ in range(60):
            os.write(self.fd, b'\n')
            try: return self.until('> ', 1)
            except AssertionError: continue
        raise AssertionError(f'no prompt after Ctrl-C: {self.seen!r}')
    def type(self, text): self.seen = ''; os.write(self.fd, text.encode())
    def status(self, seconds=20):
        end = time.time() + seconds
        while not (got := os.waitpid(self.pid, os.WNOHANG))[0]:
            assert time.time() < end, 'it has not ended'
            time.sleep(.05)
        self.pid = None
        return os.waitstatus_to_exitcode(got[1])
    def close(self):
        if self.pid: os.kill(self.pid, signal.SIGKILL); os.waitpid(self.pid, 0)
        os.close(self.fd)


def test_the_console_in_a_terminal(model_dir):
    t = Terminal('chat', model_dir, '--max-tokens', 400)
    try:
        t.until('> ')
        t.type('/help\n'); t.until('/reset'); t.until('> ')
        t.type('"""\none\ntwo\n"""\n'); t.until('… '); time.sleep(.5)
        t.interrupt()                                                  # Ctrl-C: the reply or the empty line, never the program
        t.type('/reset\n'); t.until('a new conversation\r\n> ')
        t.type('/nope\n'); t.until('lists them\r\n> ')
        t.type('\x03'); t.until('leaves)\r\n> ')
        t.type('\x04')
        assert t.status() == 0
    finally: t.close()


def test_ctrl_c_stops_a_reply_between_two_tokens(model_dir):
    code = f'''
import signal, sys, threading, time
from labkit.core.lm import Sampling
from labkit.serve.console import Conversation, noticing_interrupt, say
from labkit.inference.engine import Engine, EngineSettings
talk = Conversation(Engine.open({str(model_dir)!r}, settings=EngineSettings(backend='torch')), params=Sampling(max_tokens=450, ignore_eos=True))
n = 0
def write(t):
    global n; n += 1
    if n == 5: signal.raise_signal(signal.SIGINT)
with noticing_interrupt() as pressed: assert say(talk.reply("one"), write, pressed) is False
assert n == 5 and not talk.engine.has_work and talk.engine.stats()["cache_blocks_used"] == 0
assert [m["role"] for m in talk.messages] == ["user", "assistant"]
try:
    with noticing_interrupt() as pressed:
        signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt: print("twice is meant")
'''
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=ENV, timeout=120)
    assert p.stdout.strip() == 'twice is meant', p.stderr
