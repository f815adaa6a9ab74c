"""Help is fast: no command's help loads an engine, a DICOM library or numpy."""

import subprocess
import sys

import click
import pytest

from dicom_node.cli import main

HEAVY = {
    *("torch", "openvino", "nnunetv2", "scipy", "numpy", "SimpleITK", "skimage", "matplotlib"),
    *("highdicom", "pydicom", "pynetdicom", "sqlalchemy", "alembic", "pydantic", "yaml"),
}


def commands(group: click.Group, path: tuple[str, ...] = ()):
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_no_help_loads_a_slow_library():
    shown = [[], *(list(path) for path, _ in commands(main))]
    program = (
        "import sys; from dicom_node.cli import main\n"
        f"for path in {shown!r}: main([*path, '--help'], standalone_mode=False)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert done.stdout.count("Usage: ") == len(shown)


@pytest.mark.parametrize("path", [path for path, _ in commands(main)], ids=" ".join)
def test_every_command_and_option_has_help(path):
    command = dict(commands(main))[path]
    assert command.help
    unexplained = [
        option.name
        for option in command.params
        if isinstance(option, click.Option) and not option.help and not option.show_default
    ]
    assert unexplained in ([], ["out"])


def test_training_without_its_extra_says_what_to_install():
    given = ["train", ".", "--configuration", __file__, "--work", "work"]
    program = f"import sys; sys.modules['nnunetv2'] = None; from dicom_node.cli import main; main({given!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: training requires nnU-Net: pip install 'dicom-node[train]'\n"
