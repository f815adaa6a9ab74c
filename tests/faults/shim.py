"""A shim between a process and its disk, compiled where the tests run (disk_shim.c)."""

from __future__ import annotations

import errno
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.case import CannotBeDone

if TYPE_CHECKING:
    from collections.abc import Mapping

_SOURCE = Path(__file__).with_name("disk_shim.c")
_PLACES = {"spool": "/spool/", "ledger": "ledger.sqlite3"}
"""A part of the paths of their files."""


@dataclass(frozen=True, slots=True)
class Shim:
    """The compiled shim, and its files."""

    library: Path
    control: Path
    record: Path

    @classmethod
    def built(cls, folder: Path) -> Shim:
        """Compile it into ``folder``.

        Raises:
            CannotBeDone: there is no C compiler.
        """
        compiler = shutil.which("cc")
        if compiler is None:
            raise CannotBeDone("there is no C compiler (apt: gcc)")
        shim = cls(folder / "disk_shim.so", folder / "control", folder / "record")
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", shim.library, _SOURCE, "-ldl", "-lpthread"]
        subprocess.run(command, check=True, capture_output=True)
        return shim

    def environment(self, root: Path, *, is_recorded: bool = False) -> Mapping[str, str]:
        """Of a process whose files below ``root`` it is to fail, or to record."""
        which = {"FAULTS_RECORD": str(self.record)} if is_recorded else {"FAULTS_CONTROL": str(self.control)}
        return {"LD_PRELOAD": str(self.library), "FAULTS_ROOT": str(root), **which}

    def fail(self, where: str, operation: str, error: str) -> None:
        """From now on, ``operation`` (write, read, fsync, rename, or open of a new file) fails in spool or ledger."""
        new = self.control.with_suffix(".new")
        new.write_text(f"{_PLACES[where]} {operation} {getattr(errno, error)}")
        new.rename(self.control)

    def recover(self) -> None:
        """Nothing fails any more."""
        with suppress(FileNotFoundError):
            self.control.unlink()

    def injected(self) -> int:
        """How many operations failed."""
        count = self.control.with_name(f"{self.control.name}.count")
        return count.stat().st_size if count.exists() else 0
