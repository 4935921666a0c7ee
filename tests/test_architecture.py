"Data flows one way: a stage imports only from stages before it, and `import labkit` stays light"
import ast, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = ('core', 'corpus', 'model', 'pretrain', 'finetune', 'inference', 'serve', 'evaluate', 'agents', 'chain', 'cli')
NEVER = {'evaluate': {'inference', 'serve'}, 'agents': {'inference', 'serve'}}
FILES = sorted(p for p in (ROOT/'labkit').rglob('*.py') if p.name != '_modidx.py')

def stage(path: Path) -> str: return path.relative_to(ROOT/'labkit').parts[0].removesuffix('.py')

def targets(path: Path) -> set[str]:
    "Stages that a module imports, wherever the import stands"
    package, found = path.relative_to(ROOT).with_suffix('').parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import): found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(package[:len(package) - node.level + 1]) if node.level else ''
            name = '.'.join(filter(None, (base, node.module)))
            found |= {name, *(f'{name}.{a.name}' for a in node.names)}
    return {n.split('.')[1] for n in found if n.startswith('labkit.')}

@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_backwards(path):
    mine = stage(path)
    if mine == '__init__': return
    for other in targets(path) & set(ORDER):
        assert ORDER.index(other) <= ORDER.index(mine), f'{path}: {mine} imports {other}, which comes after it'
        assert other not in NEVER.get(mine, ()), f'{path}: {mine} takes an LM and never imports {other}'

def test_import_is_light():
    code = "import sys, labkit; print([m for m in ('torch', 'numpy', 'matplotlib', 'transformers', 'fastapi', 'numba') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'

def test_the_engine_on_a_cpu_needs_no_gpu_packages():
    "triton takes .4 s and 66 MB to import; numba, llguidance, transformers and others wait for who uses them"
    code = "import sys, labkit.inference.engine; print([m for m in ('triton', 'numba', 'llguidance', 'transformers', 'matplotlib', 'gguf', 'tokenizers', 'scipy', 'tyro', 'jinja2', 'torch._dynamo') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'

def _is_kernel(n) -> bool: return any(ast.unparse(d).startswith('triton.jit') for d in n.decorator_list)

def test_no_function_is_long():
    "No function over 50 lines outside kernels"
    long = []
    for p in FILES:
        if 'kernels' in p.name: continue
        for n in ast.walk(ast.parse(p.read_text())):
            if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_kernel(n) and n.end_lineno - n.lineno + 1 > 50: long.append(f'{p.name}:{n.lineno} {n.name}')
    assert not long

ENGINE = 'cache quantize sampling gpu_sampling prefix scheduler stream runner kernels attention linear gpu_runner speculate grammar request backend engine'

def test_the_engine_can_be_read_in_an_afternoon():
    "From a prompt to its tokens on a GPU, with 4-bit weights, guesses and grammars; no module is longer than a lab can explain"
    lines = {p.stem: len(p.read_text().splitlines()) for p in (ROOT/'labkit/inference').glob('*.py')}
    assert sum(lines[m] for m in ENGINE.split()) <= 4000
    assert not {m: n for m, n in lines.items() if n > 400}
