"""The commands: thin, one module per group. Tables for people, ``--json`` for programs, exit codes for both.

Exit codes: 0 success, 1 an error (reported on stderr), 2 wrong usage, 3 a check found a problem. ``ledger check``
has its own: 1 a violation, 2 not readable.

Each module imports at its top only what ``--help`` needs, and everything else inside the command: ``--help`` loads
neither torch nor highdicom nor numpy.
"""

from dicom_node.cli.root import main

__all__ = ["main"]
