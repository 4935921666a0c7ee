"Write requirements.lock: every distribution of this environment, pinned, but the project itself and what is installed without its dependencies"
import importlib.metadata as md, re, tomllib
from packaging.specifiers import SpecifierSet
from pathlib import Path

root = Path(__file__).resolve().parents[1]
apart = {'labkit', 'pip'} | {re.split('[=<>]', l)[0].lower() for f in ('nodeps', 'bench') for l in (root/f'requirements-{f}.lock').read_text().split()}
head = '# Every package of the project\'s environment, pinned; made by `make lock`.\n# No hashes: torch comes as a CPU or a CUDA build, as the machine offers it.\n'

def pins() -> list[str]:
    found = {d.metadata['Name'].lower().replace('_', '-'): d.version.split('+')[0] for d in md.distributions()}
    return [f'{n}=={v}' for n, v in sorted(found.items()) if n not in apart]

def too_new() -> list[str]:
    "Distributions that the oldest Python of the project cannot install"
    oldest = tomllib.loads((root/'pyproject.toml').read_text())['project']['requires-python'].removeprefix('>=') + '.0'
    return [f"{d.metadata['Name']} {d.version} needs Python {r}" for d in md.distributions() if (r := d.metadata['Requires-Python']) and oldest not in SpecifierSet(r)]

if __name__ == '__main__':
    if odd := too_new(): raise SystemExit('not locked; install older versions of these first:\n' + '\n'.join(odd))
    (root/'requirements.lock').write_text(head + '\n'.join(pins()) + '\n')
