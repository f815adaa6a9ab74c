#!/usr/bin/env bash
# scipy 1.17.1: ndimage.zoom, with which CT pipelines resample, on a volume of air (-1000 HU everywhere).
#
# Guess: a constant stays that constant. A cubic spline of -1000 differs from it by rounding, so that `astype(int)` may
#        give -999 in a few voxels; and only where a kernel meets the border could anything else happen.
# Seen: two things. (1) With the default mode, the last plane is 0 HU, which is water, for sizes such as 32 -> 16:
#       zoom computes its step as (n - 1) / (m - 1), and where (n - 1) / (m - 1) * (m - 1) exceeds n - 1 by rounding
#       the last sample lies outside the image. Of all pairs of 20 to 599 voxels at eight common factors 2.3 % are such;
#       every one of them gave 0 in orders 0, 1 and 3 alike. mode="nearest" gives none.
#       (2) In double precision a third to a half of all voxels of a cubic zoom lie above -1000 by 1e-12 and become -999
#       when truncated. With float32 or int16 input none does: the output is rounded to that type first.
#
# Exits non-zero if any of this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet scipy==1.17.1 numpy==2.3.5
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import scipy
from scipy import ndimage

print(f"scipy {scipy.__version__}, numpy {np.__version__}")
FACTORS = (0.4, 0.5, 0.52083, 0.65, 2 / 3, 1 / 3, 1.5, 2.0)
pairs = [(n, factor, round(n * factor)) for n in range(20, 600) for factor in FACTORS]
outside = [(n, factor) for n, factor, m in pairs if (n - 1) / (m - 1) * (m - 1) > n - 1]
print(f"last sample outside the image: {len(outside)} of {len(pairs)} pairs ({100 * len(outside) / len(pairs):.1f} %)")
assert 0.015 < len(outside) / len(pairs) < 0.03
for order in (0, 1, 3):
    last = {float(ndimage.zoom(np.full(n, -1000.0), factor, order=order)[-1]) for n, factor in outside}
    kept = {round(float(ndimage.zoom(np.full(n, -1000.0), factor, order=order, mode="nearest")[-1]), 6) for n, factor in outside}
    print(f"order {order}: last voxel {last}; with mode='nearest' {kept}")
    assert last == {0.0}
    assert kept == {-1000.0}
inside = [pair[:2] for pair in pairs if pair[:2] not in outside]
assert all(abs(ndimage.zoom(np.full(n, -1000.0), factor, order=1)[-1] + 1000) < 1e-6 for n, factor in inside[::7])

air = np.full((24, 40, 30), -1000.0)
for factors in ((1 / 3, 0.5, 2 / 3), (2 / 3, 0.5, 1 / 3), (1.5, 1.5, 1.5)):
    truncated = ndimage.zoom(air, factors, order=3, mode="nearest").astype(np.int16)
    share = float((truncated != -1000).mean())
    narrow = [ndimage.zoom(air.astype(kind), factors, order=3, mode="nearest") for kind in (np.float32, np.int16)]
    changed = [int((each.astype(np.int16) != -1000).sum()) for each in narrow]
    print(f"cubic, float64, {factors}: {100 * share:.0f} % become {sorted(set(truncated.ravel().tolist()))}; float32 and int16: {changed}")
    assert 0.2 < share < 0.7
    assert set(truncated.ravel().tolist()) == {-1000, -999}
    assert changed == [0, 0]
PYTHON
