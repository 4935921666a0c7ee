"Products of packed matrices against numpy; test_cpu.py also runs this file in a process that pretends to be another processor"
import sys
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from numba import njit
from labkit.inference import cpu_linear as cpu

ROWS, COLUMNS, MOST = 32, 96, 19

@njit
def round_rows(x, out):
    for b in range(len(x)): cpu.round_row((x[b].ctypes.data, x.shape[1] // 32, out[b].ctypes.data))

def matrix(fmt, seed=0):
    "A packed matrix, and its numbers (rows, columns)"
    w = np.random.default_rng(seed).standard_normal((ROWS, COLUMNS), dtype=np.float32)
    if fmt == 'f32': return cpu.Packed('f32', w, COLUMNS), w
    if fmt == 'w4':
        q = np.random.default_rng(seed).integers(0, 16, (ROWS, 3, 32), dtype=np.uint8)
        meta = np.random.default_rng(1).standard_normal((ROWS, 3, 2), dtype=np.float32)
        data = np.concatenate([meta.view(np.uint8), q[..., :16] | q[..., 16:] << 4], -1).reshape(ROWS, -1)
        return cpu.Packed('w4', data, COLUMNS), (q * meta[..., :1] + meta[..., 1:]).reshape(ROWS, -1)
    blocks = quantize(w, Kind[fmt.upper()])
    return cpu.Packed(fmt, blocks, COLUMNS), dequantize(blocks, Kind[fmt.upper()])

def product(p, x):
    data, = cpu.interleaved([p])
    room, out = np.zeros((len(x), COLUMNS * 11 // 32), np.float32), np.zeros((len(x), ROWS), np.float32)
    round_rows(x, room)
    a = x if p.format == 'f32' else room
    cpu.matmul(np.array(p.describe(data)), 0, ROWS, a.ctypes.data, a.strides[0], out.ctypes.data, out.strides[0], len(x))
    return out

def activations(n=MOST):
    "Numbers that rounding to 8 bits does not change: integers up to 127, in blocks scaled by powers of two"
    rng = np.random.default_rng(2)
    q = rng.integers(-127, 128, (n, COLUMNS // 32, 32)).astype(np.float32)
    q[..., 0] = 127
    return (q * 2.0 ** rng.integers(-3, 4, (n, COLUMNS // 32, 1)).astype(np.float32)).reshape(n, COLUMNS)

def check(fmt):
    p, w = matrix(fmt)
    x = activations()
    y = product(p, x)
    np.testing.assert_allclose(y, x.astype(np.float64) @ w.T.astype(np.float64), rtol=1e-5, atol=2e-2 if fmt == 'w4' else 1e-2)
    for n in (1, 3, 4, 8, 13): assert (product(p, x[:n].copy()) == y[:n]).all(), f'{fmt}: a batch of {n} changes the sums'

if __name__ == '__main__':
    print('LANES', cpu.LANES, 'vnni' if 'avx512vnni' in cpu.FEATURES or 'avxvnni' in cpu.FEATURES else 'avx2' if 'avx2' in cpu.FEATURES else 'plain')
    for fmt in sys.argv[1:]: check(fmt)
