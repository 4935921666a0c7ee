"What a rank can do wrong, for test_rank_faults.py"
import os, sys, time
import torch
from labkit.pretrain.parallel import process_group

def hang(who: int, patience: float):
    "rank `who` never comes to the sum"
    with process_group(patience=patience) as group:
        if group.rank == who: time.sleep(600)
        return group.sum(1.)

def leave_early(patience: float):
    "rank 0 is at the end, rank 1 is not"
    with process_group(patience=patience) as group:
        if group.rank == 1: time.sleep(600)

def never_join(patience: float):
    "rank 1 does not even begin"
    if os.environ['RANK'] == '1': time.sleep(600)
    with process_group(patience=patience): pass

def die(how: str):
    "rank 1 ends in the middle of a sum"
    with process_group(patience=30) as group:
        group.sum(1.)
        if group.rank == 1:
            if how == 'exit': sys.exit(3)
            if how == 'abort': os.abort()
            raise ValueError('not this time')
        return group.sum(1.)

def die_at_start():
    if os.environ['RANK'] == '1': raise ValueError('no start')
    with process_group(patience=30): pass

def use_gpus():
    torch.cuda.device_count = lambda: 1
    with process_group('cuda'): pass

def twice():
    "a group inside a group, and two after it, to each of which one rank comes late: the other must not take the addresses of the group before for its"
    with process_group(patience=15) as a:
        with process_group() as b: sums = [b.sum(1.)[0]]
        sums += a.sum(2.)
    for late in range(2):
        if int(os.environ['RANK']) == late: time.sleep(.5)
        with process_group(patience=15) as c: sums += c.sum(3.)
    return sums
