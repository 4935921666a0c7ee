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
katex = '0.16.47'
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

def fetch_katex() -> bool:
    "KaTeX from npm, without maps and types, once, so that the site needs no CDN; False where npm can't bring it"
    if (vendor/'katex').exists(): return True
    vendor.mkdir(parents=True, exist_ok=True)
    try: subprocess.run(['npm', 'pack', f'katex@{katex}', '--silent'], cwd=vendor, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as e:
        print(f'formulas will load from a CDN: npm could not bring KaTeX ({e})'); return False
    keep = lambda o: o.name.startswith('package/dist') and not o.name.endswith(('.map', '.ts'))
    with tarfile.open(vendor/f'katex-{katex}.tgz') as t: t.extractall(vendor/'katex', [o for o in t if keep(o)], filter='data')
    return True

def localise(page: Path, libs: Path):
    "Point a page at its own copy of KaTeX, and at no font server"
    s = page.read_text().replace(layout.KATEX, f'./{os.path.relpath(libs, page.parent)}/katex')
    page.write_text(re.sub(r'<link[^>]+fonts\.(googleapis|gstatic)\.com[^>]*>', '', s))

def render_smalldocs():
    (s := NbSite(load(proc), quiet=True)).build()
    if fetch_katex():
        libs = s.out/'site_libs'
        shutil.copytree(vendor/'katex'/'package'/'dist', libs/'katex', dirs_exist_ok=True)
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
