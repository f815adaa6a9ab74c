"""Only the reason of an engine's error is quoted, as it ends up in the run report and in patients' studies."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from inference.nnunet.failures import reason_of


@pytest.fixture
def compiled():
    """A network with four input values."""
    values = ops.parameter([1, 1, 4], ov.Type.f32)
    return ov.Model([ops.relu(values)], [values])


def error_of(call):
    with pytest.raises(RuntimeError) as raised:
        call()
    return raised.value


def test_openvinos_own_reason_is_quoted_without_source_locations(compiled):
    core = ov.Core()
    refused = error_of(lambda: core.compile_model(compiled, "CPU", {"INFERENCE_PRECISION_HINT": "f12"}))
    assert reason_of(refused).startswith("Wrong value f12 ")
    request = core.compile_model(compiled, "CPU").create_infer_request()
    failed = error_of(lambda: request.infer({0: np.zeros((1, 1, 5), np.float32)}))
    assert "got [1,1,5]" in reason_of(failed)


def test_reason_of_a_network_that_cannot_be_built_is_quoted():
    values = ops.parameter([1, 1, 4], ov.Type.f32)
    failed = error_of(lambda: ops.convolution(values, np.zeros((1, 2, 3), np.float32), [1], [0], [0], [1]))
    assert "does not match filter input channel count (2)" in reason_of(failed)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB\nmore", "CUDA out of memory. Tried to allocate 2 GiB"),
        ("", "RuntimeError"),
        ("Exception from src/a.cpp:1:\n\n", "Exception from src/a.cpp:1:"),
        ("x" * 300, "x" * 200),
    ],
)
def test_other_errors_are_quoted_by_their_first_line(text, reason):
    assert reason_of(RuntimeError(text)) == reason
