"Build the site: notebooks -> nbdev (`_proc/`) -> Quarto, or smalldocs where Quarto is absent -> `_docs/`"
import os, re, shutil, subprocess, sys, tarfile, time
from pathlib import Path
from fastcore.script import call_parse
from nbdev.config import get_config
from nbdev.doclinks import _build_modidx
from nbdev.serve import proc_nbs
from smalldocs import layout, site
from smalldocs.config import load

cfg = get_config()
root, proc, out = cfg.config_path, cfg.config_path/'_proc', cfg.doc_path
vendor = root/'.cache'/'vendor'
packages = dict(katex='0.16.47', mermaid='11.17.2')
skip = r'^[_.]|^(labkit|tests|scripts|benchmarks|runs|data_samples|node_modules|build|dist|.*\.egg-info)$'

font_import = re.compile(r'@import\s*(?:url\()?\s*["\']?https://fonts\.googleapis[^"\')]*["\']?\s*\)?\s*;') # its address has semicolons of its own

class NbSite(site.Site):
    "A smalldocs site that knows what nbdev relies on: `output-file`, and links by the public URL"
    def read(self, src):
        p = super().read(src)
        if f := p.front.get('output-file'): p.out = p.out.with_name(f)
        return p
    def find_page(self, target): return super().find_page(target) or next((p for p in self.pages.values() if p.out == target), None)
    def resolve(self, href, page, record=True):
        if cfg.doc_url and href.startswith(cfg.doc_url): href = '/' + href[len(cfg.doc_url):].lstrip('/')
        return super().resolve(href, page, record)
    def warn(self, msg):
        if not msg.endswith('output-file is not read by smalldocs'): super().warn(msg)

def fetch(name: str, version: str):
    "One JavaScript package from npm, without maps and types"
    subprocess.run(['npm', 'pack', f'{name}@{version}', '--silent'], cwd=vendor, check=True, stdout=subprocess.DEVNULL)
    keep = lambda o: o.name.startswith('package/dist') and not o.name.endswith(('.map', '.ts')) and (name == 'katex' or 'esm.min' in o.name)
    with tarfile.open(vendor/f'{name}-{version}.tgz') as t: t.extractall(vendor/name, [o for o in t if keep(o)], filter='data')

def fetch_libraries() -> bool:
    "KaTeX and mermaid, once, so that the site needs no CDN; False where npm can't bring them"
    vendor.mkdir(parents=True, exist_ok=True)
    try:
        for name, version in packages.items():
            if not (vendor/name).exists(): fetch(name, version)
    except (OSError, subprocess.CalledProcessError) as e:
        print(f'formulas and diagrams will load from a CDN: npm could not bring {name} ({e})'); return False
    return True

def localise(page: Path, libs: Path):
    "Point a page at its own copies of the libraries, and at no font server"
    rel = './' + os.path.relpath(libs, page.parent)
    s = page.read_text().replace(layout.KATEX, f'{rel}/katex').replace(layout.MERMAID, f'{rel}/mermaid/mermaid.esm.min.mjs')
    s = s.replace("theme:document.documentElement.classList.contains('quarto-dark')?'dark':'default'", "theme:'neutral'")
    page.write_text(re.sub(r'<link[^>]+fonts\.(googleapis|gstatic)\.com[^>]*>', '', s))

def render_smalldocs():
    (s := NbSite(load(proc), quiet=True)).build()
    if fetch_libraries():
        libs = s.out/'site_libs'
        for name in packages: shutil.copytree(vendor/name/'package'/'dist', libs/name, dirs_exist_ok=True)
        for f in s.out.rglob('*.html'): localise(f, libs)
        for f in s.out.rglob('*.css'): f.write_text(font_import.sub('', f.read_text()))
    if bad := [w for w in s.warnings if 'ignored' not in w]: sys.exit('\n'.join(bad))

@call_parse
def main(renderer:str='auto', # auto, quarto or smalldocs
         n_workers:int=0,     # Worker processes (0: serial)
         force:bool=False):   # Process every notebook again
    t0 = time.time()
    _build_modidx()
    proc_nbs(n_workers=n_workers, force=force, skip_folder_re=skip)
    t1 = time.time()
    if renderer == 'auto': renderer = 'quarto' if shutil.which('quarto') else 'smalldocs'
    if renderer == 'quarto': subprocess.run(['quarto', 'render', '.', '--output-dir', out.name], cwd=proc, check=True)
    else: render_smalldocs()
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(proc/out.name, out)
    if not (out/'index.html').exists(): (out/'index.html').write_text('<!doctype html><title>labkit</title><meta http-equiv="refresh" content="0; url=nbs/index.html">')
    print(f'{renderer}: nbdev {t1-t0:.1f} s, render {time.time()-t1:.1f} s, {len(list(out.rglob("*.html")))} pages -> {out.relative_to(root)}/')
