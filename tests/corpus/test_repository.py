"Repositories: components as networkx finds them, an order that honours imports, targets of imports, one document."
import random
import networkx as nx, pytest
from hypothesis import given, settings, strategies as st
from labkit.corpus.documents import Document
from labkit.corpus.repository import Graph, components, concatenate, forwards, import_graph, imports, order_files, section

GRAPHS = st.integers(1, 14).flatmap(lambda n: st.lists(st.sets(st.integers(0, n - 1), max_size=4).map(sorted), min_size=n, max_size=n))
NAMES = st.text('abc_/', min_size=1, max_size=6)

def graph(needs): return Graph([f'{i:02d}.py' for i in range(len(needs))], [[w for w in ws if w != i] for i, ws in enumerate(needs)])
def docs(files): return [Document(t, p, source='repo') for p, t in files.items()]
def edges(files, **kw):
    g = import_graph(docs(files), **kw)
    return {(g.paths[i], g.paths[j]) for i, js in enumerate(g.needs) for j in js}

@settings(max_examples=200, deadline=None)
@given(GRAPHS)
def test_components_as_networkx(needs):
    g = nx.DiGraph([(i, j) for i, js in enumerate(needs) for j in js]); g.add_nodes_from(range(len(needs)))
    found = components(needs)
    assert sorted(found) == sorted(sorted(c) for c in nx.strongly_connected_components(g))
    at = {v: k for k, c in enumerate(found) for v in c}
    assert all(at[j] <= at[i] for i, js in enumerate(needs) for j in js), 'a component comes after those that it points to'

@settings(max_examples=200, deadline=None)
@given(GRAPHS)
def test_order_honours_imports_between_components(needs):
    g = graph(needs)
    order = order_files(g)
    assert sorted(order) == list(range(len(needs)))
    of = {v: k for k, c in enumerate(components(g.needs)) for v in c}
    assert all(of[v] == of[w] for v, w in forwards(g, order)), 'only imports inside a loop may point forwards'

@settings(max_examples=100, deadline=None)
@given(GRAPHS, st.randoms(use_true_random=False))
def test_late_imports_give_way(needs, rnd):
    g = graph(needs)
    late = [{w for w in ws if rnd.random() < .5} for ws in g.needs]
    strict = [[w for w in ws if w not in l] for ws, l in zip(g.needs, late)]
    g = Graph(g.paths, g.needs, late)
    of = {v: k for k, c in enumerate(components(strict)) for v in c}
    assert all(of[v] == of[w] for v, w in forwards(g, order_files(g)) if w not in late[v])

def test_ties_and_loops():
    order = lambda needs, paths: [paths[i] for i in order_files(Graph(paths, needs))]
    assert order([[], [], []], ['a/long.py', 'b.py', 'c.py']) == ['b.py', 'c.py', 'a/long.py'], 'the shorter path first, then the alphabet'
    assert order([[1], [2], [0]], ['a.py', 'b.py', 'c.py']) == ['a.py', 'c.py', 'b.py'], 'a loop starts with the alphabetically first file'
    assert order([], []) == [] and order([[]], ['x.py']) == ['x.py']

def test_deep_graphs_do_not_overflow():
    n = 20_000
    assert len(components([[i + 1] for i in range(n - 1)] + [[]])) == n
    assert len(order_files(graph([[i + 1] for i in range(n - 1)] + [[0]]))) == n

@pytest.mark.parametrize('line,want', [('import os, sys as s', [('os', ''), ('sys', '')]), ('from . import a as b', [('.', 'a')]), ('from ..x.y import (a,\n  b as c, # why\n)', [('..x.y', 'a'), ('..x.y', 'b')]),
    ('from x import a, \\\n  b', [('x', 'a'), ('x', 'b')]), ('from x import *', [('x', '*')]), ('"""\nimport no\n"""\nimport yes', [('yes', '')]), ('x = 1 # import no', []), ('important = 1', []), ('from x import a; y = 1', [('x', 'a')])])
def test_python_imports(line, want): assert [(i.module, i.name) for i in imports('x.py', line)] == want

def test_late_imports():
    assert [i.late for i in imports('x.py', 'import a\nif x:\n    import b\ndef f():\n\tfrom c import d')] == [False, True, True]

@settings(max_examples=80, deadline=None)
@given(st.sampled_from(['x.py', 'x.c', 'x.ts', 'x.go']), st.text(max_size=200) | st.lists(st.sampled_from(['import a', 'from . import', '"""', "'''", '#include "', '/*', '\\', '(', '\n', "require('./x"]), max_size=20).map(' '.join))
def test_any_text_is_read(path, text): imports(path, text)

def test_python_targets():
    files = {'src/p/__init__.py': 'from .core import run, Thing as T', 'src/p/core.py': '', 'src/p/sub/__init__.py': 'from ..core import run', 'src/p/sub/x.py': 'from p import run\nfrom .. import core\nimport p.core', 'app.py': 'from p.sub import run\nimport p.nothing.at_all\nimport os'}
    assert ('src/p/sub/x.py', 'src/p/core.py') in edges(files) and ('src/p/sub/x.py', 'src/p/__init__.py') not in edges(files)
    assert ('app.py', 'src/p/core.py') in edges(files), 'through two __init__ files'
    assert ('src/p/sub/x.py', 'src/p/__init__.py') in edges(files, follow=False)
    assert all(a != b for a, b in edges(files))

def test_names_that_go_round_in_circles():
    assert edges({'p/__init__.py': 'from .q import x', 'p/q/__init__.py': 'from .. import x', 'a.py': 'from p import x'})

def test_c_targets():
    files = {'lib/tree.h': '', 'inc/deep/er/tree.h': '', 'lib/tree.c': '#include "tree.h"\n/* #include "no.h" */', 'main.c': '#include <deep/er/tree.h>\n#include <stdio.h>\n#include "../up.h"', 'other.c': '#include "tree.h"', 'no.h': ''}
    assert edges(files) == {('lib/tree.c', 'lib/tree.h'), ('main.c', 'inc/deep/er/tree.h'), ('other.c', 'lib/tree.h')}, 'beside the file first, else the shorter path'

def test_javascript_targets():
    files = {'a.ts': "import x from './lib'\nexport { y } from './b.js'\nimport fs from 'fs'", 'lib/index.js': "const c = require('../c.json'), d = require('../d')", 'b.ts': '', 'd.mjs': '// import "./a"', 'c.json': '{}'}
    assert edges(files) == {('a.ts', 'lib/index.js'), ('a.ts', 'b.ts'), ('lib/index.js', 'd.mjs'), ('lib/index.js', 'c.json')}

def test_documentation_goes_before_the_code_of_its_folder():
    files = {'z.py': '', 'README.md': 'top', 'p/b.py': 'from . import c', 'p/c.py': 'x', 'p/guide.rst': 'guide', 'docs/only.md': 'alone', 'z.py': 'import p.b'}
    assert concatenate(docs(files)).metadata['files'] == ['README.md', 'p/guide.rst', 'p/c.py', 'p/b.py', 'z.py', 'docs/only.md']

@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES.map(lambda s: s + '.py'), st.sampled_from(['import a', 'from . import b', 'x = 1', '````', ' \n']), max_size=6), st.randoms(use_true_random=False))
def test_one_document_whatever_the_order_of_the_files(files, rnd):
    ds = docs(files); other = list(ds); rnd.shuffle(other)
    book = concatenate(ds)
    assert book == concatenate(other)
    assert sorted(book.metadata['files']) == sorted(p for p, t in files.items() if t.strip())

def test_fences_and_indentation():
    text = section(Document('def f():\n\treturn "```"\n', 'f.py'))
    assert text == '## f.py\n\n````python\ndef f():\n\treturn "```"\n````\n'
    assert section(Document('# Title', 'a.md')) == '## a.md\n\n# Title\n'
    assert concatenate([]).text == '# \n\n'
