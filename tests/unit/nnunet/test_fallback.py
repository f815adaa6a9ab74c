"""What is tried next when memory runs out."""

import pytest
import torch

from inference.nnunet.device.fallback import MemoryFallback, Placement
from inference.nnunet.failures import is_out_of_memory


def test_batches_are_halved_then_sums_move_to_the_host_then_the_cpu_computes():
    fallback = MemoryFallback(6)
    seen = [fallback.placement]
    notes = []
    while (note := fallback.reduce("part a", "no room")) is not None:
        notes.append(note)
        seen.append(fallback.placement)
    assert seen == [Placement("device", n) for n in (6, 3, 1)] + [Placement("host sums", 1), Placement("cpu", 1)]
    assert notes[0].text == "part a: 6 windows at a time failed (no room); continued with 3 windows at a time"
    assert notes[-1].text == "part a: sums on the host failed (no room); continued with the CPU"
    # the same sums in the same order, then sums elsewhere
    assert [note.changes_answer for note in notes] == [False, False, True, True]


def test_smaller_batches_are_not_tried_if_the_volume_itself_did_not_fit():
    fallback = MemoryFallback(8)
    assert fallback.reduce("part a", "no room", leave_device=True)
    assert fallback.placement == Placement("host sums", 1)


def test_batch_has_at_least_one_window():
    with pytest.raises(ValueError, match="not 0"):
        MemoryFallback(0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_errors_are_recognised(error, expected):
    assert is_out_of_memory(error) is expected
