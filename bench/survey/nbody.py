# nbody.py STEPS: floating point in an interpreter
import sys
from math import sqrt

bodies = [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 39.47], [4.84, -1.16, -0.10, 0.6, 2.81, -0.02, 0.037],
          [8.34, 4.12, -0.4, -1.01, 1.82, 0.008, 0.011], [12.89, -15.11, -0.22, 1.08, 0.86, -0.01, 0.0017]]
for _ in range(int(sys.argv[1])):
    for i, a in enumerate(bodies):
        for b in bodies[i + 1:]:
            dx, dy, dz = a[0] - b[0], a[1] - b[1], a[2] - b[2]
            d = dx * dx + dy * dy + dz * dz
            mag = 0.001 / (d * sqrt(d))
            for k, v in enumerate((dx, dy, dz)):
                a[3 + k] -= v * b[6] * mag
                b[3 + k] += v * a[6] * mag
    for a in bodies:
        for k in range(3):
            a[k] += 0.001 * a[3 + k]
print(" ".join(f"{x:.17g}" for a in bodies for x in a))
