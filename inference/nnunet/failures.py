"""Classifies errors of torch, CUDA and OpenVINO by their messages, and names the one of arithmetic that overflowed."""

from __future__ import annotations


class NotFiniteError(ArithmeticError):
    """The values of a network are not all finite numbers: its arithmetic overflowed, and no label can be trusted."""

    def __init__(self) -> None:
        super().__init__("the network gives infinities or NaN")


_ALLOCATION_FAILED = (
    "out of memory",
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_host_allocation_failed",
    "unable to find an engine to execute this computation",  # cuDNN, when the workspace of no plan fits
    "can't allocate memory",  # torch's CPU allocator
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is a failed allocation of torch, CUDA, cuBLAS or cuDNN, going by its message."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in message for words in _ALLOCATION_FAILED)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; OpenVINO's messages go on with lines of its source code."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
