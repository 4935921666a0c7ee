"""`labkit corpus` on everything that this environment holds, and how its cost grows from 10 MB to 1 GB.

Each run is a real `labkit corpus` in a process tree of its own; its memory is the sum over the tree of what each process holds
(resident, shared pages counted in each), sampled five times a second. The first run reads the environment's own files, all of them. The growth
runs read JSONL made of the environment's texts; where more is needed than there is, a copy gets every third word
replaced, so that copies are no near-duplicates. Time and memory are of cleaning and deduplication, without tokenizer and shards. The last line is JSON.
"""
import argparse, datetime, json, platform, re, subprocess, sys, tempfile, threading, time
from pathlib import Path
import psutil
from labkit.core.files import replacing
from labkit.corpus.extract import Unreadable, read_file
from labkit.corpus.sources import environment_files

MINUTES, GIGABYTES, GROWTH = 3, 1.5, 1.1
EVERYTHING = ['--max-files', '1000000', '--max-mb', '100000', '--max-file-kb', '100000', '--docstrings', '0']

def tree_bytes(p: psutil.Process) -> int:
    total = 0
    for q in (p, *p.children(recursive=True)):
        try: total += q.memory_info().rss
        except psutil.Error: pass
    return total

def run(inputs: list[str], out: Path, *options: str) -> dict:
    "Seconds of each step and the peak memory of one `labkit corpus`"
    t = time.time()
    p = subprocess.Popen([str(Path(sys.executable).parent/'labkit'), 'corpus', *inputs, '--out', str(out), *EVERYTHING, '--tokenizer-mb', '1', *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak, process, lines = 0, psutil.Process(p.pid), []
    reader = threading.Thread(target=lambda: lines.extend(p.stdout)); reader.start()
    at = time.time()
    while p.poll() is None:
        if not (out/'documents.jsonl').exists(): peak, at = max(peak, tree_bytes(process)), time.time() # until deduplication is done
        time.sleep(.2)
    reader.join()
    if p.returncode: sys.exit(''.join(lines))
    report = json.loads((out/'report.json').read_text())
    row = dict(seconds={k: report['seconds'][k] for k in ('clean', 'dedup', 'finish')}, wall=at - t, peak_gb=peak / 1e9, mb=next(r for r in report['steps'] if r['step'] == 'extract')['bytes_in'] / 1e6,
               documents=report['steps'][1]['n_in'], kept=report['steps'][-1]['n_out'], duplicates=report['duplicates'], files=report['manifest']['files'], manifest=report['manifest']['sha256'][:16])
    print(f"{row['mb']:7.0f} MB {row['documents']:9,} documents {row['kept']:9,} kept  {sum(row['seconds'].values()):7.1f} s (wall {row['wall']:.1f} s)  {row['mb'] / sum(row['seconds'].values()):5.2f} MB/s  peak {row['peak_gb']:.2f} GB", flush=True)
    return row

def texts():
    "The environment's texts, then changed copies of them, without end"
    files = environment_files()
    for copy in range(10**6):
        for f in files:
            try: d = read_file(f)
            except Unreadable: continue
            if copy: # another word in every third place
                n = iter(range(10**9))
                d = type(d)(re.sub(r'\w+', lambda m: f'{m[0]}{copy}' if next(n) % 3 == 0 else m[0], d.text), d.id, d.source, d.language, d.metadata)
            yield dict(text=d.text, id=f'{copy}/{d.id}', source=d.source, metadata=d.metadata)

def write_inputs(folder: Path, sizes: list[int]) -> dict[int, list[str]]:
    "JSONL files of 10 MB, and for each size in MB the list of those that make it up"
    folder.mkdir(parents=True)
    paths, source = [], texts()
    while len(paths) * 10 < max(sizes):
        n = 0
        with open(folder/f'{len(paths):04d}.jsonl', 'w') as f:
            while n < 10_000_000: n += f.write(json.dumps(next(source), ensure_ascii=False).encode('utf-8', 'replace').decode() + '\n')
        paths.append(f.name)
    return {s: paths[:s // 10] for s in sizes}

def marginal(rows: list[dict]) -> list[float]:
    "Seconds that a further megabyte costs, from each size to the next; starting processes and training the models for safety and quality cost the same for every size and drop out"
    total = lambda r: sum(r['seconds'].values())
    return [(total(b) - total(a)) / (b['mb'] - a['mb']) for a, b in zip(rows, rows[1:])]

def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--sizes', default='10,30,100,300,1000', help='MB of the growth runs')
    p.add_argument('--executor', default='processes:2')
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'corpus_scale.json')
    a = p.parse_args()
    sizes = [int(s) for s in a.sizes.split(',')]
    with tempfile.TemporaryDirectory() as d:
        print('the environment:')
        env = run(['env:'], Path(d)/'env', '--executor', a.executor)
        print('growth:')
        inputs = write_inputs(Path(d)/'in', sizes)
        rows = [run(inputs[s], Path(d)/str(s), '--executor', a.executor) for s in sizes]
    growth = marginal(rows)
    minutes = env['wall'] / 60
    holds = minutes < MINUTES and env['peak_gb'] <= GIGABYTES and growth[-1] <= GROWTH * growth[0]
    print(f"environment: {minutes:.2f} minutes (bar {MINUTES}), peak {env['peak_gb']:.2f} GB (bar {GIGABYTES}); a further MB costs {', '.join(f'{1000 * g:.0f}' for g in growth)} ms from size to size (bar: the last at most {GROWTH} times the first)")
    result = dict(claim=f"{env['mb']:.0f} MB of environment cleaned and deduplicated on two cores", value=minutes, unit='minutes', bar=MINUTES, holds=holds, spread=[minutes, minutes],
                  environment=env, growth=rows, seconds_of_a_further_mb=growth, growth_bar=GROWTH, peak_gb=env['peak_gb'], peak_bar=GIGABYTES, machine=f'{platform.machine()}, 2 cores', date=str(datetime.date.today()))
    with replacing(a.out) as f: json.dump(result, f, indent=1)
    print(json.dumps(result))
    return 0

if __name__ == '__main__': raise SystemExit(main())
