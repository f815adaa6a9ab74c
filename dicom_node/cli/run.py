"""``serve``, ``listen``, ``work``: run the node."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from dicom_node.log import configure_logging

if TYPE_CHECKING:
    from dicom_node.cli.context import Context


@click.command()
@click.pass_obj
def serve(context: Context) -> None:
    """Run the whole node.

    Starts the listener and the work process, and restarts either if it dies.
    """
    from dicom_node.app.supervise import serve as run  # noqa: PLC0415

    configure_logging("serve")
    sys.exit(run(context.settings(), context.config))


@click.command()
@click.pass_obj
def listen(context: Context) -> None:
    """Run only the listener.

    It answers C-STORE and C-ECHO.
    """
    from dicom_node.app.listening import run_listener  # noqa: PLC0415

    configure_logging("listen")
    run_listener(context.settings())


@click.command()
@click.pass_obj
def work(context: Context) -> None:
    """Run everything except the listener.

    Closes complete series, applies the rules, segments, and delivers results.
    """
    from dicom_node.app.working import run_work  # noqa: PLC0415

    configure_logging("work")
    settings = context.settings()
    if settings.constancy.models:
        from dicom_node.constancy.scheduled import sweeps  # noqa: PLC0415 - phantoms need memory

        run_work(settings, sweeps)
    else:
        run_work(settings)
