"""The documents agree with the code."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel

from dicom_node.cli import main
from dicom_node.errors import ConfigurationError
from dicom_node.settings import (
    CompletionSettings,
    DestinationSettings,
    NnunetModelSettings,
    Settings,
    SourceSettings,
    load_settings,
)

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
]
NODE_YAML = ROOT / "config" / "node.yaml"


def keys_of(content, prefix=""):
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict) and prefix.count(".") == 0 and key not in {"models", "destinations"}:
            yield from keys_of(value, f"{prefix}{key}.")


def fields_of(model: type[BaseModel], prefix=""):
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields_of(field.annotation, f"{prefix}{name}.")


def test_node_yaml_contains_every_key_and_no_other():
    content = yaml.safe_load(NODE_YAML.read_text())
    assert set(keys_of(content)) == set(fields_of(Settings))


def test_node_yaml_states_the_defaults():
    content = yaml.safe_load(NODE_YAML.read_text())
    content["rules_file"] = Path(content["rules_file"])
    written = Settings(**{key: value for key, value in content.items() if key != "models"})
    assert written == Settings(rules_file=written.rules_file)


@pytest.mark.parametrize(
    ("heading", "model"),
    [("sources", SourceSettings), ("destinations", DestinationSettings), ("models", NnunetModelSettings)],
)
def test_node_yaml_shows_every_key_of_its_lists(heading, model):
    text = NODE_YAML.read_text().replace("# ", "").replace("#   ", "")
    part = text[text.index(f"{heading}:") :]
    for name in model.model_fields:
        assert re.search(rf"\b{name}:", part), f"{heading}: {name} is not shown in node.yaml"


def test_unknown_key_is_refused_by_name(tmp_path):
    file = tmp_path / "node.yaml"
    file.write_text("node: {ae_tilte: X}\n")
    with pytest.raises(ConfigurationError, match=r"node\.ae_tilte"):
        load_settings(file)


def test_environment_overrides_one_key_of_the_file(monkeypatch):
    monkeypatch.setenv("DICOM_NODE__COMPLETION__REGULAR_QUIET_S", "9")
    settings = load_settings(NODE_YAML)
    assert settings.completion == CompletionSettings(regular_quiet_s=9)


def calls_in(text: str) -> list[list[str]]:
    """Every dicom-node command, without that word: from lines of code blocks and code spans that begin with it."""
    blocks = re.findall(r"^ *```[a-z]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    program = re.compile(r"^\s*(?:sudo -u \S+ )?(?:\S*/bin/)?dicom-node (.+)")
    found = [program.match(candidate) for candidate in (*lines, *spans)]
    return [shlex.split(match[1].replace("…", "PLACE"), comments=True) for match in found if match]


def unknown_word(call: list[str]) -> str | None:
    """The first command or option of ``call`` that does not exist."""
    words, command = list(call), main
    while words and isinstance(command, click.Group):
        word = words.pop(0)
        if word in ("--config", "--help", "--version"):
            words = words[1:]
        elif word in command.commands:
            command = command.commands[word]
        else:
            return word
    known = {"--help", *(option for parameter in command.params for option in parameter.opts)}
    return next((word for word in words if word.startswith("--") and word not in known), None)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_options_named_in_the_documents_exist(document):
    wrong = {" ".join(call): unknown_word(call) for call in calls_in(document.read_text(encoding="utf-8"))}
    assert {call: word for call, word in wrong.items() if word} == {}


def test_a_command_or_option_that_does_not_exist_is_found():
    text = "`dicom-node segmnt x` and\n\n```\nsudo -u a dicom-node --config b segment c --modle d  # e\n```\n"
    assert sorted(map(unknown_word, calls_in(text))) == ["--modle", "segmnt"]


def anchors_of(document: Path) -> set[str]:
    """The fragments that GitHub generates for a document's headings."""
    headings = re.findall(r"^#+ +(.+?) *$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_existing_files_and_headings(document):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, fragment = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), link
        assert not fragment or fragment in anchors_of(path), link


def test_the_index_links_to_every_page():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+\.md)", index.read_text())}
    pages = set((ROOT / "docs").rglob("*.md")) - {index}
    assert sorted(pages - linked) == []


def commands_of(group: click.Group, before: str = "") -> set[str]:
    """Every command that does something: `models install`, not `models`."""
    found: set[str] = set()
    for name, command in group.commands.items():
        words = f"{before}{name}"
        found |= commands_of(command, f"{words} ") if isinstance(command, click.Group) else {words}
    return found


def test_the_index_lists_every_command_once():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"`dicom-node ([a-z -]+)`", index)
    assert sorted(listed) == sorted(commands_of(main))


def test_every_command_has_a_help_text():
    for name, command in main.commands.items():
        assert command.help, name
    assert CliRunner().invoke(main, ["--help"]).exit_code == 0


def test_make_targets_named_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text())) <= targets


def test_no_image_data_is_in_the_repository():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    assert [name for name in listed if re.search(r"\.(dcm|nii|nii\.gz|ima|nrrd|mha)$", name)] == []


def test_cited_documents_are_in_the_repository():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    names = {Path(name).name for name in listed} | {"statement.md"}  # written by a test of `conformance --out`
    unknown = {
        f"{file}: {cited}"
        for file in listed
        if file.endswith((".py", ".md", ".yaml", ".toml", ".sh"))
        for cited in re.findall(r"\b([\w-]+\.md)\b", (ROOT / file).read_text(encoding="utf-8"))
        if cited not in names
    }
    assert sorted(unknown) == []


def test_configuration_page_lists_every_section():
    page = (ROOT / "docs" / "operators" / "configuration.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE)) == set(Settings.model_fields)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_repository_paths_named_in_the_documents_exist(document):
    named = re.findall(r"`((?:dicom_node|inference|tests|benchmarks|deploy|docs)/[\w./-]*)`", document.read_text())
    assert [place for place in named if not (ROOT / place).exists()] == []
