"README.md from nbs/index.ipynb: its Markdown, its code with the saved text outputs, and links that work from the root"
import json, re
from pathlib import Path

root = Path(__file__).resolve().parents[1]
_link = re.compile(r'(\]\()(?!https?:|#|/|mailto:)([^)]+\))')

def text(s) -> str: return ''.join(s)

def output(o: dict) -> str:
    if o['output_type'] == 'stream': return text(o['text'])
    return text(o.get('data', {}).get('text/plain', ''))

def relink(md: str) -> str:
    "Links in the notebook are relative to nbs/; in the README they start at the root"
    fix = lambda m: m[1] + (m[2][3:] if m[2].startswith('../') else 'nbs/' + m[2])
    return _link.sub(fix, md)

def render(cell: dict) -> str:
    src = text(cell['source'])
    if cell['cell_type'] == 'markdown': return relink(src)
    if src.startswith('#| hide'): return ''
    lang = 'sh' if src.startswith(('!', '%%bash')) else 'python'
    src = re.sub(r'^#\|.*\n?', '', re.sub(r'^(%%bash\n|!)', '', src, flags=re.M), flags=re.M)
    out = ''.join(output(o) for o in cell['outputs']).rstrip()
    return f'```{lang}\n{src}\n```' + (f'\n\n```\n{out}\n```' if out else '')

if __name__ == '__main__':
    nb = json.loads((root/'nbs/index.ipynb').read_text())
    parts = [p for c in nb['cells'] if (p := render(c).strip())]
    (root/'README.md').write_text('<!-- Made from nbs/index.ipynb by `make export`: edit that -->\n\n' + '\n\n'.join(parts) + '\n')
