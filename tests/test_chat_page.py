"The chat page in a real browser, driven over Chromium's debugging pipe; skipped where there is no Chromium."
import base64, contextlib, itertools, json, os, shutil, subprocess, time
import pytest
from labkit.serve.http import serve_in_thread
from scripted_engine import ScriptedEngine

CHROMIUM = next((p for n in ('chromium', 'chromium-browser', 'google-chrome') if (p := shutil.which(n))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium here')
FLAGS = '--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync --no-proxy-server --disable-dev-shm-usage --remote-debugging-pipe'.split()


class Browser:
    "One page; commands of the DevTools protocol as JSON ended by a zero byte, on file descriptors 3 and 4"
    def __init__(self, profile, lang='en-US', size=(1100, 820)):
        r3, w3 = os.pipe(); r4, w4 = os.pipe()
        def fds(): os.dup2(r3, 103); os.dup2(w4, 104); os.dup2(103, 3); os.dup2(104, 4)
        self.process = subprocess.Popen([CHROMIUM, *FLAGS, f'--user-data-dir={profile}', f'--accept-lang={lang}', f'--window-size={size[0]},{size[1]}', 'about:blank'],
                                        preexec_fn=fds, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(r3); os.close(w4)
        self.out, self.inp, self.ids, self.events, self.session, self.size = os.fdopen(w3, 'wb', 0), os.fdopen(r4, 'rb', 0), itertools.count(1), [], None, size
        self.rest = b''
        target = next(t for t in self.call('Target.getTargets')['targetInfos'] if t['type'] == 'page')
        self.session = self.call('Target.attachToTarget', targetId=target['targetId'], flatten=True)['sessionId']
        for d in ('Page', 'Runtime', 'Network', 'Log'): self.call(f'{d}.enable')

    def _message(self):
        while b'\0' not in self.rest:
            new = os.read(self.inp.fileno(), 65536)
            assert new, 'the browser has gone'
            self.rest += new
        m, self.rest = self.rest.split(b'\0', 1)
        return json.loads(m)

    def call(self, method, **params):
        id = next(self.ids)
        self.out.write(json.dumps(dict(id=id, method=method, params=params, **({'sessionId': self.session} if self.session else {}))).encode() + b'\0')
        while (m := self._message()).get('id') != id: self.events.append(m)
        assert 'error' not in m, m
        return m['result']

    def js(self, code):
        r = self.call('Runtime.evaluate', expression=code, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in r, r
        return r['result'].get('value')

    def until(self, code, seconds=20):
        end = time.time() + seconds
        while not (v := self.js(code)):
            assert time.time() < end, f'not within {seconds} s: {code}'
            time.sleep(.05)
        return v

    def open(self, url, ready="document.readyState == 'complete' && !!model"):
        self.call('Page.navigate', url=url); self.until(ready)

    def type(self, text): self.js('$("say").focus()'); self.call('Input.insertText', text=text)

    def press(self, key, code):
        for kind in ('keyDown', 'keyUp'): self.call('Input.dispatchKeyEvent', type=kind, key=key, code=key, windowsVirtualKeyCode=code, text='\r' if key == 'Enter' and kind == 'keyDown' else '')

    def screenshot(self, path):
        with open(path, 'wb') as f: f.write(base64.b64decode(self.call('Page.captureScreenshot', format='png')['data']))

    def close(self):
        with contextlib.suppress(AssertionError, OSError): self.call('Browser.close')
        self.process.wait(10); self.out.close(); self.inp.close()


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    b = Browser(tmp_path_factory.mktemp('profile'))
    yield b
    b.close()


@pytest.fixture
def engine(): return ScriptedEngine(delay=.01)


@pytest.fixture
def page(browser, engine):
    with serve_in_thread(engine) as server:
        browser.events.clear()
        browser.call('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value='light')])
        browser.open(server.url)
        browser.js('localStorage.clear()'); browser.open(server.url)
        yield browser
        problems = [e for e in browser.events if e.get('method') == 'Runtime.exceptionThrown' or e.get('method') == 'Log.entryAdded' and e['params']['entry']['level'] == 'error']
        assert not problems, problems
        asked = [e['params']['request']['url'] for e in browser.events if e.get('method') == 'Network.requestWillBeSent']
        assert all(u.startswith((server.url, 'data:', 'about:')) for u in asked), asked


idle = "!running && document.querySelectorAll('.turn.assistant').length"
last = "[...document.querySelectorAll('.turn.assistant .said')].at(-1)"


def test_a_conversation_streams_and_shows_its_speed(page, engine):
    engine.script = 'The **capital** of France is Paris. 你好 🌍'
    page.type('What is the capital of France?'); page.press('Enter', 13)
    page.until("running && document.querySelector('.assistant .said').textContent.length > 3")    # text is there while the reply still runs
    page.until(idle)
    assert page.js(f'{last}.innerHTML') == '<p>The <strong>capital</strong> of France is Paris. 你好 🌍</p>'
    assert 'tok/s' in page.js("document.querySelector('.foot').textContent")
    assert page.js("$('model').textContent") == engine.model_name


def test_the_second_turn_sends_the_first(page, engine):
    for t in ('one', 'two'): page.type(t); page.press('Enter', 13); page.until('!!running'); page.until(idle)
    assert engine.prompts[-1].count('<|im_start|>user') == 2 and 'one' in engine.prompts[-1]


def test_the_stop_button_ends_the_sequence_on_the_server(page, engine):
    engine.script = 'word ' * 2000
    page.type('Go on'); page.press('Enter', 13)
    page.until("document.querySelector('.assistant .said')?.textContent.length > 10")
    assert engine.running == 1
    page.js("$('go').click()"); page.until('!running')
    end = time.time() + 5
    while engine.running: assert time.time() < end; time.sleep(.02)
    assert engine.aborted == 1 and 'stopped' in page.js("document.querySelector('.foot').textContent")


def test_what_a_model_writes_is_never_html(page, engine):
    engine.script = '<img src=x onerror="window.hacked=1"> <script>window.hacked=1</script> [x](javascript:alert(1)) `<b>` ```\n<i>*a*</i>\n```'
    page.type('x'); page.press('Enter', 13); page.until('!!running'); page.until(idle)
    assert page.js('window.hacked') is None
    assert page.js(f"{last}.querySelectorAll('img,script,b,i,a').length") == 0
    assert page.js(f"{last}.querySelector('pre code').textContent") == '<i>*a*</i>'


def test_settings_are_sent_and_kept(page, engine):
    page.js("$('system').value = 'Be brief.'; $('max_tokens').value = 7; $('panel').dispatchEvent(new Event('input'))")
    page.js('location.reload()'); time.sleep(.2); page.until("document.readyState == 'complete' && !!model")
    engine.script = 'word ' * 50
    page.type('x'); page.press('Enter', 13); page.until('!!running'); page.until(idle)
    assert 'Be brief.' in engine.prompts[-1] and engine.last_params.max_tokens == 7
    assert 'cut at the limit' in page.js("document.querySelector('.foot').textContent")


def test_an_error_is_shown(page, engine):
    page.js("$('max_tokens').value = 100000; $('panel').dispatchEvent(new Event('input'))")
    page.type('x'); page.press('Enter', 13)
    assert 'maximum context length' in page.until("document.querySelector('.error')?.textContent")
    page.events[:] = [e for e in page.events if e.get('method') != 'Log.entryAdded']    # the browser logs the 400 itself


def test_light_and_dark(page):
    colour = 'getComputedStyle(document.body).backgroundColor'
    light = page.js(colour)
    page.js("$('theme').click()")
    assert page.js(colour) != light
    page.js("$('theme').click()")
    assert page.js(colour) == light


def test_chinese_readers_read_chinese(page, tmp_path):
    other = Browser(tmp_path, lang='zh-CN')
    try:
        other.open(page.js('location.href'))
        assert other.js("$('hello').textContent").startswith('想聊点什么') and other.js("$('go').title") == '发送'
    finally: other.close()


def test_a_new_conversation_forgets(page, engine):
    page.type('remember me'); page.press('Enter', 13); page.until('!!running'); page.until(idle)
    page.js("$('fresh').click()")
    assert page.js("document.querySelectorAll('.turn').length") == 0 and page.js("!$('hello').hidden")
