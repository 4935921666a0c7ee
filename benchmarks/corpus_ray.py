"""The rule chain on Ray: two workers against one, over the same documents of this environment.

The documents lie in one JSONL file; a task is a range of its bytes, which a worker reads and holds against all rules. Ray is started
anew for each number of workers, compiled code and imports are warmed up first, the two alternate; one process and two processes
without Ray stand beside them. The last line is JSON.
"""
import argparse, datetime, json, platform, statistics, tempfile, time
from pathlib import Path
from labkit.core.files import replacing
from labkit.corpus.documents import write_documents
from labkit.corpus.executor import OneProcess, Processes, RayCluster, judge_lines
from labkit.corpus.extract import Unreadable, read_file
from labkit.corpus.sources import environment_files, select_files

BAR = 1.7

def documents(mb: float):
    "Texts of the environment"
    for f in select_files(environment_files(), max_files=10**6, max_mb=mb, docstrings=0).files:
        try: yield read_file(f)
        except Unreadable: pass

def seconds(ex, tasks) -> tuple[float, int]:
    t = time.perf_counter()
    kept = sum(k for _, k in ex.map(judge_lines, tasks))
    return time.perf_counter() - t, kept

def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--mb', type=float, default=300, help='megabytes of text')
    p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'corpus_ray.json')
    a = p.parse_args()
    times, kept = {'ray 1': [], 'ray 2': [], 'processes 2': [], 'one': []}, set()
    with tempfile.TemporaryDirectory() as d:
        write_documents(path := Path(d)/'documents.jsonl', documents(a.mb))
        mb = path.stat().st_size / 1e6
        tasks = [(str(path), at, at + 4_000_000) for at in range(0, path.stat().st_size, 4_000_000)]
        for _ in range(a.repeats):
            for name, ex in {'ray 1': RayCluster(1), 'ray 2': RayCluster(2), 'processes 2': Processes(2), 'one': OneProcess()}.items():
                with ex:
                    seconds(ex, tasks[:4])
                    s, k = seconds(ex, tasks)
                times[name].append(s); kept.add(k)
    assert len(kept) == 1, f'the executors disagree: {kept}'
    ratios = [x / y for x, y in zip(times['ray 1'], times['ray 2'])]
    m = statistics.median
    for name, t in times.items(): print(f'{name:12}{m(t):7.2f} s ({min(t):.2f}–{max(t):.2f})  {mb / m(t):6.1f} MB/s')
    result = dict(claim='two Ray workers against one on the rule chain', value=m(ratios), unit='x one Ray worker', bar=BAR, holds=m(ratios) >= BAR, spread=[min(ratios), max(ratios)],
                  times=times, megabytes=mb, documents_kept=kept.pop(), limit=2.0, machine=f'{platform.machine()}, 2 cores', date=str(datetime.date.today()))
    with replacing(a.out) as f: json.dump(result, f, indent=1)
    print(json.dumps(result))
    return 0

if __name__ == '__main__': raise SystemExit(main())
