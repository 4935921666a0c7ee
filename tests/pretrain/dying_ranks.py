"Looks at the held-out text that end badly, for test_restarts.py"
import os, signal
from pathlib import Path

def die_once(model, step: int):
    "The first time that a process of this run comes to the fifth step, it is killed"
    mark = Path(os.environ['LABKIT_TEST_MARK'])
    if step == 5 and not mark.exists(): mark.touch(); os.kill(os.getpid(), signal.SIGKILL)

def die_always(model, step: int): os.kill(os.getpid(), signal.SIGKILL)
