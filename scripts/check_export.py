"Fail if labkit/ or README.md is not what the notebooks export, or a notebook is not clean"
import hashlib, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]

def state() -> dict[str, str]:
    files = [*root.glob('labkit/**/*.py'), *root.glob('nbs/**/*.ipynb'), root/'README.md']
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if '.ipynb_checkpoints' not in f.parts}

def run(*cmd): subprocess.run(cmd, cwd=root, check=True, stdout=subprocess.DEVNULL)

if __name__ == '__main__':
    before = state()
    bin = Path(sys.executable).parent
    run(bin/'nbdev-export'); run(bin/'nbdev-clean'); run(sys.executable, 'scripts/make_readme.py')
    after = state()
    changed = sorted(k for k in before | after if before.get(k) != after.get(k))
    if changed: sys.exit('not what the notebooks export (now mended; look and commit):\n  ' + '\n  '.join(changed))
    print(f'export is clean: {len(after)} files')
