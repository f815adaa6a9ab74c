"""Limits on the cost of reading or decoding a series, from the declared sizes and before anything is allocated."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from dicom_node.reconstruct import ReconstructionLimits
from dicom_node.standard.attributes import text
from dicom_node.work.memory import machine_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydicom import Dataset

_MIB = 2**20
_LONGEST_NUMBER = 12
"""Characters of an Integer String (PS3.5 table 6.2-1)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one call of the child: additional memory, CPU seconds, seconds."""

    memory_bytes: int
    cpu_s: float
    wall_s: float

    def to_json(self) -> dict[str, float]:
        """The fields by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits from declared sizes, sufficient on a machine five times slower than usual.

    A header takes 1 ms and 60 KiB, a series at the limits of :mod:`dicom_node.standard.headers` 30 s and 1.5 GiB. A
    voxel takes 0.1 us of the slowest decoder (JPEG 2000) and up to 12 bytes: int16, float32 where values are not
    integers, and the same again for a tilted gantry. With the disk and other processes it may take four times as long.
    """

    headers_bytes: int = 2048 * _MIB
    headers_s: float = 60.0
    header_s: float = 0.02
    decoder_bytes: int = 1024 * _MIB
    voxel_bytes: int = 16
    decoding_s: float = 60.0
    voxel_s: float = 5e-7
    wall_factor: float = 4.0

    def of_headers(self, files: int) -> Limits:
        """Limits for reading the headers of this many files."""
        cpu_s = self.headers_s + self.header_s * files
        return Limits(self.headers_bytes, cpu_s, self.wall_factor * cpu_s)

    def of_pixels(self, voxels: int) -> Limits:
        """Limits for reconstructing this many voxels; never more than half of this machine's memory."""
        bounded = min(voxels, ReconstructionLimits().maximum_voxels)  # more are refused before they are decoded
        memory_bytes = min(self.decoder_bytes + self.voxel_bytes * bounded, machine_bytes() // 2)
        cpu_s = self.decoding_s + self.voxel_s * bounded
        return Limits(memory_bytes, cpu_s, self.wall_factor * cpu_s)

    def of_content(self) -> Limits:
        """Limits for decoding a file of unknown size frame by frame."""
        cpu_s = 5 * self.decoding_s
        return Limits(self.decoder_bytes, cpu_s, self.wall_factor * cpu_s)


def declared_voxels(headers: Iterable[Dataset]) -> int:
    """The sum of Rows x Columns x Number of Frames; a header without them is refused before decoding."""
    return sum(
        _number(header, "Rows") * _number(header, "Columns") * (_number(header, "NumberOfFrames") or 1)
        for header in headers
    )


def _number(header: Dataset, keyword: str) -> int:
    stated = text(header, keyword)
    return int(stated) if stated.isdecimal() and len(stated) <= _LONGEST_NUMBER else 0
