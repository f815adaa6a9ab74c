"""The minimum cost of a model on this machine: its multiplications, and how fast the machine multiplies.

``python benchmarks/engine_floor.py PACKAGE [--device cuda]`` prints JSON. The rate is that of one large 3 x 3 x 3
convolution of 128 channels, repeated until it gets no faster, with the same library and nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from inference.models.package import read_package
from inference.models.weights import shape_by_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.models.package import Part

CHANNELS, SIDE = 128, 48
RATE_FLOP = 2 * 27 * CHANNELS**2 * SIDE**3
REPETITIONS = 12


def window_flop(part: Part) -> int:
    """Floating point operations of all convolutions of one window; a multiplication and an addition are two."""
    design = part.architecture
    voxels, size = [], list(part.patch_size)
    for strides in design.strides:
        size = [n // step for n, step in zip(size, strides, strict=True)]
        voxels.append(math.prod(size))
    last = len(voxels) - 1
    total = 0
    for name, shape in shape_by_name(design, len(part.names_by_channel) + 1).items():
        if len(shape) != len((1, 1, *part.patch_size)):
            continue  # a bias or a normalisation
        side, kind, number, *_ = name.split(".")
        stage = int(number) if kind == "stages" and side == "encoder" else 0
        if side == "decoder" and kind != "seg_layers":
            # a transposed convolution takes every voxel of the stage below once
            stage = last - int(number) - (kind == "stages")
        total += 2 * math.prod(shape) * voxels[stage]
    return total


def cpu_rate(precision: str) -> float:
    """FLOP/s of OpenVINO with the convolution in ``f32`` or ``bf16``."""
    import openvino as ov  # noqa: PLC0415 - not where only torch on CUDA is measured
    from openvino import opset13 as ops  # noqa: PLC0415

    rng = np.random.default_rng(0)
    shape = (1, CHANNELS, SIDE, SIDE, SIDE)
    value = ops.parameter(shape, np.float32)
    weights = ops.constant(rng.normal(size=(CHANNELS, CHANNELS, 3, 3, 3)).astype(np.float32))
    convolution = ops.convolution(value, weights, [1] * 3, [1] * 3, [1] * 3, [1] * 3)
    model = ov.Model([ops.reduce_mean(convolution, np.array([2, 3, 4]), keep_dims=False)], [value])
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1})
    request = compiled.create_infer_request()
    data = ov.Tensor(rng.normal(size=shape).astype(np.float32))
    return best_rate(lambda: request.infer({0: data}))


def cuda_rate(precision: str) -> float:
    """FLOP/s of torch with the convolution in ``float16``, ``bfloat16`` or ``float32``."""
    import torch  # noqa: PLC0415 - not where only OpenVINO is measured

    kind = getattr(torch, precision)
    torch.backends.cudnn.benchmark = True
    layer = torch.nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1).to("cuda", kind, memory_format=torch.channels_last_3d)
    value = torch.randn(1, CHANNELS, SIDE, SIDE, SIDE, device="cuda", dtype=kind)
    value = value.contiguous(memory_format=torch.channels_last_3d)

    @torch.inference_mode()
    def run() -> None:
        layer(value)
        torch.cuda.synchronize()

    return best_rate(run)


def best_rate(run: Callable[[], object]) -> float:
    run()
    fastest = math.inf
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        run()
        fastest = min(fastest, time.perf_counter() - start)
    return RATE_FLOP / fastest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, nargs="*")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        rates = {"float32": cpu_rate("f32"), "bfloat16": cpu_rate("bf16")}
    else:
        rates = {precision: cuda_rate(precision) for precision in ("float32", "bfloat16", "float16")}
    windows = {
        folder.name: {part.name: window_flop(part) for part in read_package(folder, check_weights=False).parts}
        for folder in arguments.packages
    }
    print(json.dumps({"flop_per_s": rates, "flop_per_window": windows}))


if __name__ == "__main__":
    main()
