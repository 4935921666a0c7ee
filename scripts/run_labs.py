"Run every lab in a fresh process and print a table: seconds, peak memory, number of checks"
import argparse, json, os, re, subprocess, sys, tempfile, time
from pathlib import Path

root = Path(__file__).resolve().parents[1]
MAX_S, MAX_GB = 120, 3
_check = re.compile(r'^\s*(assert\b|test_\w+\(|expect_fail\(|exercises\.\w+\(|with expect_fail)', re.M)

def labs(only: str) -> list[Path]:
    found = sorted(p for p in root.glob('nbs/**/*.ipynb') if '.ipynb_checkpoints' not in p.parts)
    return [p for p in found if re.search(only, str(p.relative_to(root)))]

def n_checks(nb: Path) -> int:
    cells = json.loads(nb.read_text())['cells']
    return sum(len(_check.findall(''.join(c['source']))) for c in cells if c['cell_type'] == 'code')

def run(nb: Path, cache: str, save: bool) -> tuple[float, float, str]:
    "Seconds, peak memory of the largest process in GB, and the error if it failed"
    env = os.environ | {'LABKIT_QUIET': '1', 'PYTHONWARNINGS': 'ignore', 'MPLBACKEND': 'agg', 'OMP_WAIT_POLICY': 'PASSIVE'} | ({'NUMBA_CACHE_DIR': cache} if cache else {})
    t0 = time.time()
    with tempfile.TemporaryFile('w+') as log:
        p = subprocess.Popen([Path(sys.executable).parent/'nbdev-test', str(nb), '--n-workers', '0', '--cell-timeout', '600', *(['--save'] if save else [])], cwd=root, stdout=log, stderr=log, env=env)
        _, status, use = os.wait4(p.pid, 0)
        log.seek(0); err = log.read() if status else ''
    return time.time() - t0, use.ru_maxrss/2**20, err

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--cold', action='store_true', help=f'empty caches, and fail a lab over {MAX_S} s or {MAX_GB} GB')
    ap.add_argument('--save', action='store_true', help='store the outputs in the notebooks')
    ap.add_argument('--only', default='', help='regular expression on the path')
    a, rows, bad = ap.parse_args(), [], []
    print(f"{'lab':44} {'seconds':>8} {'GB':>6} {'checks':>7}")
    for nb in labs(a.only):
        with tempfile.TemporaryDirectory() as cache: s, gb, err = run(nb, cache if a.cold else '', a.save)
        n, name = n_checks(nb), str(nb.relative_to(root/'nbs'))
        over = a.cold and (s > MAX_S or gb > MAX_GB)
        print(f"{name:44} {s:8.1f} {gb:6.2f} {n:7d}{'  FAILED' if err else '  OVER' if over else ''}", flush=True)
        if err: print(err[-6000:], flush=True)
        if err or over: bad.append(name)
        rows.append((s, gb, n))
    if not rows: sys.exit(f'no lab matches {a.only!r}')
    print(f"{f'{len(rows)} labs':44} {sum(r[0] for r in rows):8.1f} {max(r[1] for r in rows):6.2f} {sum(r[2] for r in rows):7d}")
    if bad: sys.exit('failed: ' + ', '.join(bad))
