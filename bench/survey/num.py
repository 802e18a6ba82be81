# num.py SIZE linalg|ufunc|int|sort|fft: numpy's loops, dispatched by what CPUID offers
import sys
import zlib
import numpy as np

n, what = int(sys.argv[1]), sys.argv[2]
r = np.random.RandomState(7)


def show(*arrays):
    for a in arrays:
        a = np.asarray(a)
        print(a.dtype, a.shape, zlib.crc32(np.ascontiguousarray(a).tobytes()), a.ravel()[:3])


if what == "linalg":
    a, b = r.rand(n, n), r.rand(n, n)
    show(a @ b, (a.astype("f4") @ b.astype("f4")), np.linalg.solve(a, b[0]), np.linalg.det(a / 4), np.linalg.svd(a[:64, :64])[1])
elif what == "ufunc":
    for t in ("f4", "f8"):
        x = (r.rand(n * 1000) * 20 + 0.01).astype(t)
        show(np.exp(-x), np.log(x), np.sin(x), np.cos(x), np.tanh(x), np.sqrt(x), x ** 1.5, np.arctan2(x, x[::-1]), np.floor(x), x.cumsum(),
             np.maximum(x, x[::-1]), np.where(x > 3, x, -x), x.astype("i4"), x.astype("f2"), np.isfinite(1 / (x - x[3])), x.sum(), x.std(), np.cbrt(x),
             np.expm1(x / 9), np.log1p(x), np.arcsinh(x), np.fmod(x, 0.7), x.astype("c16") * (1 + 2j))
elif what == "int":
    for t in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"):
        x = r.randint(1, 120, n * 1000).astype(t)
        y = r.randint(1, 120, n * 1000).astype(t)
        show(x + y, x * y, x // y, x % y, x << (y & 7), x & y, x ^ y, ~x, x == y, x < y, np.minimum(x, y), x.sum(), x.cumsum(), np.bitwise_or.reduce(x),
             np.packbits(x > y), np.bincount(x.astype("i8")), np.convolve(x[:500], y[:100]), x.argmax(), np.gcd(x, y), x[::3].copy(), np.take(x, y.astype("i8")),
             np.add.at(y, x[:100].astype("i8"), 1) or y)
elif what == "sort":
    for t in ("i2", "i4", "i8", "f4", "f8"):
        x = (r.rand(n * 1000) * 30000).astype(t)
        show(np.sort(x), np.argsort(x, kind="stable"), np.partition(x, 100)[100], np.unique(x)[:50], np.searchsorted(np.sort(x), x[:1000]), np.median(x))
elif what == "fft":
    x = r.rand(n * 1000)
    show(np.fft.fft(x), np.fft.rfft(x), np.fft.ifft(x).real, np.histogram(x, 37)[0], np.interp(x[:999], np.arange(10) / 10, np.arange(10.0)))
