"""The commands, thin: one module per group. Tables for people, ``--json`` for programs, exit codes for both.

Exit codes: 0 done, 1 something is wrong (said on stderr), 2 the command was called wrongly, 3 a check found a problem.

A module of this room imports at its top what ``--help`` needs, and everything else inside the command: ``--help`` loads
neither torch nor highdicom nor numpy.
"""

from dicom_node.cli.root import main

__all__ = ["main"]
