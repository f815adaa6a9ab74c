"""Classifies errors of torch, CUDA and OpenVINO by their messages, and names the one of arithmetic that overflowed."""

from __future__ import annotations

import re


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

_WHERE = re.compile(r"Exception from \S+:\d+:|Check '.*' failed at \S+:\d+:|While validating node ")
"""OpenVINO 2026's lines before the reason."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is a failed allocation of torch, CUDA, cuBLAS or cuDNN, going by its message."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in message for words in _ALLOCATION_FAILED)


def reason_of(error: BaseException) -> str:
    """The line of an error's message that gives the reason, at most 200 characters.

    That is the first one, but for OpenVINO's: these begin with where in its source code the error was raised, passed on
    and checked, and which node of the network was being validated.
    """
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if not _WHERE.match(line)), lines[0])[:200]
