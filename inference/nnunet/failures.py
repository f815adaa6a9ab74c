"""What an error of torch, CUDA or OpenVINO says."""

from __future__ import annotations

_ALLOCATION_FAILED = (
    "out of memory",
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_host_allocation_failed",
    "unable to find an engine to execute this computation",  # cuDNN, when no plan's workspace fits
    "can't allocate memory",  # torch's allocator of CPU memory
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory could not be allocated, in the words of torch, CUDA, cuBLAS or cuDNN."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in message for words in _ALLOCATION_FAILED)


def first_line(error: BaseException) -> str:
    """The first line of what an error says: the rest of OpenVINO's are lines of its own code."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
