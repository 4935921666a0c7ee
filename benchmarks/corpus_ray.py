"""The rule chain on Ray Data: two workers against one, over the same documents of this environment.

The tasks (batches of texts) travel through Ray's object store and come back as counts. Ray is started once for each number of
workers, compiled code and imports are warmed up first, the two alternate; the standard library's way with two processes stands
beside them. The last line is JSON.
"""
import argparse, datetime, json, platform, statistics, time
from pathlib import Path
from labkit.core.files import replacing
from labkit.corpus.executor import OneProcess, Processes, RayCluster, judge_many
from labkit.corpus.extract import Unreadable, read_file
from labkit.corpus.sources import environment_files, select_files

BAR = 1.7

def batches(mb: float, size: int) -> list[list[str]]:
    "Texts of the environment, in batches of about `size` characters"
    out, n = [[]], 0
    for f in select_files(environment_files(), max_files=10**6, max_mb=mb).files:
        try: text = read_file(f).text
        except Unreadable: continue
        if n > size: out.append([]); n = 0
        out[-1].append(text); n += len(text)
    return out

def seconds(ex, tasks) -> tuple[float, int]:
    t = time.perf_counter()
    kept = sum(k for _, k in ex.map(judge_many, tasks))
    return time.perf_counter() - t, kept

def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--mb', type=float, default=120, help='megabytes of text')
    p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'corpus_ray.json')
    a = p.parse_args()
    tasks = batches(a.mb, 2_000_000)
    chars = sum(len(t) for b in tasks for t in b)
    print(f'{len(tasks)} batches, {chars / 1e6:.0f} million characters')
    times, kept = {'ray 1': [], 'ray 2': [], 'processes 2': [], 'one': []}, set()
    for _ in range(a.repeats):
        for name, ex in {'ray 1': RayCluster(1), 'ray 2': RayCluster(2), 'processes 2': Processes(2), 'one': OneProcess()}.items():
            with ex:
                seconds(ex, tasks[:4])
                s, k = seconds(ex, tasks)
            times[name].append(s); kept.add(k)
    assert len(kept) == 1, f'the executors disagree: {kept}'
    ratios = [x / y for x, y in zip(times['ray 1'], times['ray 2'])]
    m = statistics.median
    for name, t in times.items(): print(f'{name:12}{m(t):7.2f} s ({min(t):.2f}–{max(t):.2f})  {chars / 1e6 / m(t):6.1f} million characters/s')
    result = dict(claim='two Ray workers against one on the rule chain', value=m(ratios), unit='x one Ray worker', bar=BAR, holds=m(ratios) >= BAR, spread=[min(ratios), max(ratios)],
                  times=times, characters=chars, documents_kept=kept.pop(), limit=2.0, machine=f'{platform.machine()}, 2 cores', date=str(datetime.date.today()))
    with replacing(a.out) as f: json.dump(result, f, indent=1)
    print(json.dumps(result))
    return 0

if __name__ == '__main__': raise SystemExit(main())
