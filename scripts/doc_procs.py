"What nbdev does to a notebook when it becomes a page (named in pyproject.toml; used by build_docs.py alone)"
import re
from fastcore.docments import DocmentTbl
from nbdev.showdoc import BasicMarkdownRenderer

_alert = re.compile(r'^> \[!(NOTE|TIP|IMPORTANT|WARNING|CAUTION)\][ \t]*(.*)\n((?:>.*(?:\n|$))*)', flags=re.M)
_comment = re.compile(r'(,?)[ \t]*# [^\n]*')
_signature = re.compile(r'(```python\n)(.*?)(\n```)', flags=re.S)

def alerts(cell):
    "A GitHub alert (`> [!TIP]`) becomes a Quarto callout"
    if cell.cell_type == 'markdown': cell.source = _alert.sub(_callout, cell.source)

def _callout(m) -> str:
    body = re.sub(r'^> ?', '', m[3], flags=re.M).rstrip()
    title = f'## {m[2]}\n' if m[2] else ''
    return f'::: {{.callout-{m[1].lower()}}}\n{title}{body}\n:::\n'

class TableRenderer(BasicMarkdownRenderer):
    "`show_doc` as a signature, the docstring and a table of parameters"
    def _repr_markdown_(self):
        doc, table = super()._repr_markdown_(), DocmentTbl(self.sym)._repr_markdown_()
        if isinstance(self.sym, type): doc = doc.replace('```python\ndef ', '```python\nclass ', 1)
        if not table: return doc
        bare = lambda m: m[1] + _comment.sub(r'\1', m[2]) + m[3]
        return f'{_signature.sub(bare, doc, count=1)}\n\n{table}'
