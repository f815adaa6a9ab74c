"""Work on many subjects in several processes, which end with the process that started them."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TYPE_CHECKING, TypeVar

from dicom_node.errors import WorkerLost
from dicom_node.work.lifetime import die_with
from inference.nnunet.machine import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_processes(
    work: Callable[[_Item], _Result], items: Sequence[_Item], processes: int
) -> Iterator[tuple[_Item, _Result]]:
    """Yield each item with ``work(item)``, as they finish; 0 processes: one per core, 1: in this process.

    ``work`` must be a module-level function, or a partial of one. An exception in it ends all work.

    Raises:
        WorkerLost: a process ended before its item was finished.
    """
    count = min(processes or usable_cores(), len(items))
    if count <= 1:
        for item in items:
            yield item, work(item)
        return
    # spawned: a fork would copy locks that other threads of this process hold
    context = get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=die_with, initargs=(os.getpid(),)) as pool:
        futures = {pool.submit(work, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise WorkerLost(
                "a process was killed from outside, perhaps for lack of memory; finished work is kept: run the "
                "command again with fewer --processes"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
