"""Personal data masked on one core: labkit (e-mail, phone, identity number, card, IPv4 and IPv6) against datatrove's PIIFormatter (e-mail and public IPv4).

Both run in this process, alternating, on the same documents: the text files of the packages installed here. labkit does more kinds in the time that is compared.
What the two find is compared, too: e-mail addresses and IPv4 addresses, and how many of datatrove's labkit finds, where it differs it is addresses at example.com and the like, git@… and version numbers.
Prints the rates, the ratio with its spread and the agreement; the last line is JSON.
"""
import os
for name in ('OMP_NUM_THREADS', 'NUMBA_NUM_THREADS'): os.environ[name] = '1' # one core for both
import argparse, datetime, json, platform, statistics, time
from importlib.metadata import version
from pathlib import Path
from datatrove.pipeline.formatters import PIIFormatter
from labkit.core.files import replacing
from labkit.corpus.extract import Unreadable, read_file
from labkit.corpus.privacy import find_pii, mask
from labkit.corpus.sources import environment_files

BAR = 3.

def documents(n: int) -> list[str]:
    out = []
    for f in environment_files():
        if len(out) == n: break
        if f.kind not in ('text', 'markdown', 'rst') or f.bytes > 100_000: continue
        try: out.append(read_file(f).text)
        except Unreadable: continue
    return out

def seconds(f, docs: list[str]) -> float:
    start = time.process_time()
    for d in docs: f(d)
    return time.process_time() - start

def agreement(peer: PIIFormatter, docs: list[str]) -> dict:
    "Items that datatrove replaces, and how many of them labkit finds in part at least"
    theirs = both = ours = 0
    for d in docs:
        mine = [p for p in find_pii(d) if p.kind == 'email' or p.kind == 'ip' and '.' in p.text]
        spans = [m.span() for r in (peer.emails_replacer, peer.ip_replacer) for m in r.regex.finditer(d) if not r.validator or r.validator(m.group())]
        theirs += len(spans); ours += len(mine); both += sum(any(p.start < b and a < p.end for p in mine) for a, b in spans)
    return dict(datatrove=theirs, labkit=ours, found_by_both=both)

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--documents', type=int, default=1500, help='text files that are read')
    ap.add_argument('--rounds', type=int, default=5, help='times that each is run')
    ap.add_argument('--out', default=str(Path(__file__).parent/'results'/'corpus_privacy.json'), help='where the figures go')
    a = ap.parse_args()
    docs, peer = documents(a.documents), PIIFormatter()
    mb = sum(len(d.encode()) for d in docs) / 1e6
    mask('warm'), peer.format('warm')
    rounds = [(seconds(peer.format, docs), seconds(mask, docs)) for _ in range(a.rounds)]
    ratios = sorted(p / l for p, l in rounds)
    found = agreement(peer, docs)
    print(f"{mb:.1f} MB: datatrove {mb / statistics.median(p for p, _ in rounds):.1f} MB/s, labkit {mb / statistics.median(l for _, l in rounds):.1f} MB/s, ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); found: {found}")
    value = statistics.median(ratios)
    row = dict(claim='personal data masked, speed on one core', value=round(value, 2), unit='x datatrove', bar=BAR, holds=value >= BAR, spread=[round(ratios[0], 2), round(ratios[-1], 2)])
    with replacing(a.out) as f:
        json.dump(dict(row, megabytes=round(mb, 2), mb_s=dict(datatrove=mb / statistics.median(p for p, _ in rounds), labkit=mb / statistics.median(l for _, l in rounds)), found=found,
                       versions={k: version(k) for k in ('datatrove',)}, machine=f'{platform.machine()}, {os.cpu_count()} cores', date=datetime.date.today().isoformat()), f, indent=1); f.write('\n')
    print(json.dumps(row))

if __name__ == '__main__': main()
