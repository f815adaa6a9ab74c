"""``dicom-node`` itself: its options and its commands."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from dicom_node import __version__
from dicom_node.app.places import DEFAULT_CONFIGURATION
from dicom_node.cli.cohort import cohort
from dicom_node.cli.compare import compare
from dicom_node.cli.config import config
from dicom_node.cli.conformance import conformance
from dicom_node.cli.constancy import constancy
from dicom_node.cli.context import Context, RootGroup, is_given
from dicom_node.cli.dataset import dataset
from dicom_node.cli.demo import demo
from dicom_node.cli.evaluate import evaluate
from dicom_node.cli.ledger import ledger
from dicom_node.cli.look import check, job, jobs, retry, status
from dicom_node.cli.models import models
from dicom_node.cli.phantoms import phantom
from dicom_node.cli.rules import rules
from dicom_node.cli.run import listen, serve, work
from dicom_node.cli.segment import segment
from dicom_node.cli.train import train
from dicom_node.log import configure_logging


@click.group(cls=RootGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dicom-node")
@click.option(
    "--config",
    "configuration",
    envvar="DICOM_NODE_CONFIG",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_CONFIGURATION,
    show_default=True,
    show_envvar=True,
    help="The node's configuration file. `dicom-node config init` writes one.",
)
@click.pass_context
def main(ctx: click.Context, configuration: Path) -> None:
    """A DICOM node that segments CT: C-STORE in, DICOM SEG and TID 1500 SR out.

    Research software, not a medical device.
    """
    ctx.obj = Context(configuration, given=is_given(ctx, "configuration"))
    # stdout is for the output (tables, JSON); `serve`, `listen` and `work` send their log there themselves
    configure_logging(ctx.invoked_subcommand or "", sys.stderr, logging.WARNING)


for _command in (
    *(serve, listen, work),
    *(status, jobs, job, retry, check, ledger),
    *(config, rules, segment, models, conformance),
    *(phantom, demo, evaluate, compare, constancy, train),
    *(cohort, dataset),
):
    main.add_command(_command)
