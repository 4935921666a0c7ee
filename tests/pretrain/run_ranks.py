"What ranks do in one start for test_layouts, test_deepspeed and test_resharding: whole runs one after the other, with damage in between; small trainings of a model with a window"
import shutil
from dataclasses import replace
from pathlib import Path
from labkit.core.settings import UserError
from labkit.pretrain import worker
from labkit.pretrain.parallel import process_group
from labkit.pretrain.trainer import train_rank

def run(settings: str) -> dict:
    "The result of a run, or the sentence that it ends with"
    try: return train_rank(settings)
    except UserError as e: return dict(error=str(e))

def spoil(path: str, name: str, how: str) -> str: # the file
    "Rank 0 cuts the end off the first file of this name in a checkpoint, or removes it"
    with process_group() as group:
        file = sorted(Path(path).rglob(name))[0]
        group.barrier()
        if group.rank == 0 and how == 'gone': file.unlink()
        elif group.rank == 0: file.write_bytes(file.read_bytes()[:-100])
        group.barrier()
    return str(file)

def copy(path: str, to: str) -> None:
    with process_group() as group:
        if group.rank == 0: shutil.copytree(path, to, dirs_exist_ok=True)
        group.barrier()

def few_steps(window: int | None = None, **call) -> dict:
    "`few_steps` of the trainer's workers, with attention over a window"
    real = worker.model_config
    worker.model_config = lambda s, vocab_size: replace(real(s, vocab_size), sliding_window=window)
    try: return worker.few_steps(**call)
    finally: worker.model_config = real
