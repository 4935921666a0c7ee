"Run every lab in a fresh process and print a table: seconds, peak memory, number of checks"
import argparse, json, os, re, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
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

def run(nb: Path, cache: str, save: bool, threads: int) -> tuple[float, float, str]:
    "Seconds, peak memory of the largest process in GB, and the error if it failed"
    env = os.environ | {'LABKIT_QUIET': '1', 'PYTHONWARNINGS': 'ignore', 'MPLBACKEND': 'agg', 'OMP_WAIT_POLICY': 'PASSIVE', 'OMP_NUM_THREADS': str(threads)} | ({'NUMBA_CACHE_DIR': cache} if cache else {})
    t0 = time.time()
    with tempfile.TemporaryFile('w+') as log:
        p = subprocess.Popen([Path(sys.executable).parent/'nbdev-test', str(nb), '--n-workers', '0', '--cell-timeout', '600', *(['--save'] if save else [])], cwd=root, stdout=log, stderr=log, env=env)
        _, status, use = os.wait4(p.pid, 0)
        seconds = time.time() - t0
        log.seek(0); err = log.read() if status else ''
    if save: subprocess.run([Path(sys.executable).parent/'nbdev-clean', '--fname', nb], cwd=root, check=True) # outputs stay; times and counters go
    return seconds, use.ru_maxrss/2**20, err

def lab(nb: Path, a: argparse.Namespace) -> tuple[str, float, float, int, str]:
    "Run one lab and say how it went, in one line: name, seconds, GB, checks, what is wrong"
    with tempfile.TemporaryDirectory() as cache: s, gb, err = run(nb, cache if a.cold else '', a.save, max(1, len(os.sched_getaffinity(0)) // a.jobs))
    name, n = str(nb.relative_to(root/'nbs')), n_checks(nb)
    wrong = 'FAILED' if err else 'OVER' if a.cold and (s > MAX_S or gb > MAX_GB) else ''
    print(f'{name:44} {s:8.1f} {gb:6.2f} {n:7d}  {wrong}'.rstrip() + (f'\n{err[-6000:]}' if err else ''), flush=True)
    return name, s, gb, n, wrong

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--cold', action='store_true', help=f'empty caches, and fail a lab over {MAX_S} s or {MAX_GB} GB')
    ap.add_argument('--save', action='store_true', help='store the outputs in the notebooks')
    ap.add_argument('--only', default='', help='regular expression on the path')
    ap.add_argument('--jobs', type=int, default=1, help='labs at the same time (their seconds then mean little)')
    a = ap.parse_args()
    if not (todo := labs(a.only)): sys.exit(f'no lab matches {a.only!r}')
    print(f"{'lab':44} {'seconds':>8} {'GB':>6} {'checks':>7}")
    with ThreadPoolExecutor(a.jobs) as pool: rows = list(pool.map(lambda nb: lab(nb, a), todo))
    print(f"{f'{len(rows)} labs':44} {sum(r[1] for r in rows):8.1f} {max(r[2] for r in rows):6.2f} {sum(r[3] for r in rows):7d}")
    if bad := [r[0] for r in rows if r[4]]: sys.exit('failed: ' + ', '.join(bad))
