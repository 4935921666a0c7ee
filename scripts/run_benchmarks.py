"Run every benchmark of a kind and print one line each: gpu, whose names end so or begin with serve_, or cpu, all others"
import json, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]

def line(script: Path) -> tuple[bool, str]:
    "Whether the claim holds, and the line to print; a benchmark's last line is one JSON object"
    p = subprocess.run([sys.executable, script], cwd=root, stdout=subprocess.PIPE, text=True)
    if p.returncode: return False, f'{script.name}: failed with exit status {p.returncode}'
    r = json.loads(p.stdout.strip().splitlines()[-1])
    if 'bar' not in r: return True, f"{script.name}: {r['claim']}: {r['value']:.3g} {r['unit']} (no bar)"
    return r['holds'], f"{script.name}: {r['claim']}: {r['value']:.3g} {r['unit']} (bar {r['bar']}): {'holds' if r['holds'] else 'MISSED'}"

if __name__ == '__main__':
    kind = sys.argv[1] if len(sys.argv) > 1 else 'cpu'
    if kind not in ('cpu', 'gpu'): sys.exit(f'{kind}: expected cpu or gpu')
    needs_gpu = lambda p: p.stem.endswith('_gpu') or p.stem.startswith('serve_')
    scripts = sorted(p for p in (root/'benchmarks').glob('*.py') if needs_gpu(p) == (kind == 'gpu'))
    results = [(print(text, flush=True), ok)[1] for ok, text in map(line, scripts)]
    sys.exit(0 if all(results) else 1)
