"What a reader of the notebooks would trip over"
import json, re
from pathlib import Path
import pytest, yaml

ROOT = Path(__file__).resolve().parents[1]
LABS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
def cells(nb): return json.loads(nb.read_text())['cells']
def source(c): return ''.join(c['source'])

@pytest.mark.parametrize('nb', LABS, ids=lambda p: str(p.relative_to(ROOT/'nbs')))
def test_notebook(nb):
    cs = cells(nb)
    assert cs[0]['cell_type'] == 'markdown' and source(cs[0]).startswith('# '), 'the first cell is the title'
    assert re.search(r'^> \S', '\n'.join(source(c) for c in cs[:2]), re.M), 'a one-line summary stands under the title'
    outputs = [o for c in cs if c['cell_type'] == 'code' for o in c['outputs']]
    assert not any(o['output_type'] == 'error' for o in outputs), 'a saved error'
    assert not re.search(r'"[^"]*(/tmp/|/root/|/home/|/work/|site-packages)', json.dumps(outputs)), 'a path of one machine in a saved output'
    assert not any(re.search(r'^expect_fail\(', source(c), re.M) for c in cs), '`expect_fail` is a context manager: use `with`'
    assert json.loads(nb.read_text())['metadata'].get('kernelspec', {}).get('name') == 'python3'

@pytest.mark.parametrize('nb', [p for p in LABS if p.parent.name != 'nbs'], ids=lambda p: str(p.relative_to(ROOT/'nbs')))
def test_outputs_are_saved(nb):
    run = [c for c in cells(nb) if c['cell_type'] == 'code' and '#| export' not in source(c)]
    assert not run or sum(bool(c['outputs']) for c in run) >= len(run) / 6 or len(run) < 6, 'run it with nbdev-test --save'

def test_the_sidebar_lists_every_lab():
    text = (ROOT/'_quarto.yml').read_text()
    yaml.safe_load(text)
    missing = [str(p.relative_to(ROOT)) for p in LABS if str(p.relative_to(ROOT)) not in text]
    assert not missing, f'not in _quarto.yml: {missing}'
    assert not [l for l in re.findall(r'nbs/[^*\s]+\.ipynb', text) if not (ROOT/l).is_file()]

def test_every_solution_has_its_check():
    for nb in (ROOT/'nbs'/'solutions').glob('*.ipynb'):
        assert any('assert exercises.' in source(c) for c in cells(nb)), nb.name

@pytest.mark.parametrize('nb', LABS, ids=lambda p: str(p.relative_to(ROOT/'nbs')))
def test_no_cell_is_exported_twice(nb):
    exported = [source(c) for c in cells(nb) if c['cell_type'] == 'code' and re.search(r'^#\| export', source(c), re.M)]
    assert len(exported) == len(set(exported)), [s[:60] for s in exported if exported.count(s) > 1]

@pytest.mark.parametrize('nb', LABS, ids=lambda p: str(p.relative_to(ROOT/'nbs')))
def test_the_title_cell_holds_nothing_else(nb):
    "nbdev makes the page's header of title and summary and drops what else stands in that cell"
    lines = source(cells(nb)[0]).strip().splitlines()
    assert all(l.startswith(('# ', '>')) or not l.strip() for l in lines), lines
