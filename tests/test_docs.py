"The site: it builds, and every internal link and anchor resolves"
import re, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
import pytest

ROOT = Path(__file__).resolve().parents[1]

@pytest.fixture(scope='session')
def site():
    p = subprocess.run([sys.executable, 'scripts/build_docs.py', '--force'], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 0, p.stdout + p.stderr
    assert 'warning' not in (p.stdout + p.stderr).lower(), p.stdout + p.stderr
    return ROOT/'_docs'

class Page(HTMLParser):
    def __init__(self, path):
        super().__init__(); self.ids, self.links, self.remote = set(), [], []
        self.feed(path.read_text())
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'): self.ids.add(a['id'])
        if tag == 'a' and a.get('name'): self.ids.add(a['name'])
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        if tag == 'script' and a.get('type') == 'module': self.remote.append('a module, which browsers refuse over file://')
        if tag in ('img', 'script') and a.get('src') or tag == 'link' and a.get('rel') == 'stylesheet':
            src = a.get('src') or a.get('href')
            (self.remote if src.startswith(('http:', 'https:', '//')) else self.links).append(src)

def broken(site: Path) -> list[str]:
    pages = {p.resolve(): Page(p) for p in site.rglob('*.html') if 'site_libs' not in p.parts}
    bad = []
    for path, page in pages.items():
        for link in page.links:
            u = urlsplit(link)
            if u.scheme or u.netloc or link.startswith('data:'): continue
            target = (path.parent/unquote(u.path)).resolve() if u.path else path
            if target.is_dir(): target /= 'index.html'
            if not target.exists(): bad.append(f'{path.relative_to(site)}: {link}')
            elif u.fragment and target in pages and unquote(u.fragment) not in pages[target].ids: bad.append(f'{path.relative_to(site)}: no such anchor: {link}')
    return bad

def test_internal_links_resolve(site):
    assert not (bad := broken(site.resolve())), '\n'.join(bad)

def test_no_link_stands_on_a_page_as_it_was_written(site):
    "A link around the name of a function becomes two"
    assert not (bad := [p.name for p in site.rglob('*.html') if re.search(r'\]\([\w/.]*\.ipynb', p.read_text())]), bad

def test_pages_need_no_other_server(site):
    for p in site.rglob('*.html'):
        if 'site_libs' not in p.parts: assert not (remote := Page(p).remote), (p, remote)
    assert 'fonts.googleapis' not in ''.join(p.read_text() for p in site.rglob('*.html'))

def test_the_api_is_documented(site):
    "A public function stands on its page with its parameters"
    text = (site/'nbs'/'0_start'/'device.html')
    text = next(site.rglob('*device*.html')).read_text()
    assert 'pick_device' in text and 'device and dtype as the settings ask for them' in text
