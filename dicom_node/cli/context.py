"""What all commands share: the configuration, and the way an error of the node ends a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dicom_node.errors import DicomNodeError

if TYPE_CHECKING:
    from pathlib import Path

    from dicom_node.settings import Settings
    from dicom_node.store.ledger import Ledger

PROBLEM_FOUND = 3
"""Exit code of a check that found a problem."""


class Context:
    """The configuration file of one call, read when a command needs it.

    Libraries are imported inside the methods, so that ``--help`` loads none of them.
    """

    def __init__(self, config: Path, *, given: bool) -> None:
        self.config = config
        self.given = given
        """Whether the file was named, on the command line or in the environment."""

    def settings(self) -> Settings:
        """The settings in the configuration file.

        Raises:
            ConfigurationError: the file is missing or wrong.
        """
        from dicom_node.settings import load_settings  # noqa: PLC0415

        return load_settings(self.config)

    def models_folder(self) -> Path:
        """Where models are installed; see :func:`dicom_node.app.places.models_folder`.

        Raises:
            ConfigurationError: the configuration can't be used.
        """
        from dicom_node.app.places import models_folder  # noqa: PLC0415

        return models_folder(self.config if self.given else None)

    def ledger(self) -> Ledger:
        """The ledger of the configured node, with its schema up to date."""
        from dicom_node.app.stores import open_store  # noqa: PLC0415

        return open_store(self.settings())[1]


class RootGroup(click.Group):
    """Turns an error of the node into one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the requested command."""
        try:
            return super().invoke(ctx)
        except DicomNodeError as error:
            raise click.ClickException(str(error)) from error


def is_given(ctx: click.Context, option: str) -> bool:
    """Whether this option of ``dicom-node`` itself was given, on the command line or in the environment."""
    return ctx.find_root().get_parameter_source(option) is not ParameterSource.DEFAULT
