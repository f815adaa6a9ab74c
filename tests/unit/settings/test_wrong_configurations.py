"""The errors of invalid configurations: the files next to this one contain each case with the exact lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.errors import ConfigurationError
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import DestinationSettings, Settings, TissueModelSettings, load_settings

HERE = Path(__file__).parent
SETTINGS = Settings(
    models={"tissue": TissueModelSettings(kind="tissue")},
    destinations={"pacs": DestinationSettings(host="10.0.0.1", port=104, ae_title="PACS")},
)


def cases(file):
    """One case per heading ``### NAME``: the lines below it, and the expected lines after ``=>``."""
    for case in (HERE / file).read_text(encoding="utf-8").split("\n### ")[1:]:
        name, *lines = case.rstrip("\n").split("\n")
        written = "".join(f"{line}\n" for line in lines if not line.startswith("=> "))
        yield pytest.param(written, [line[3:] for line in lines if line.startswith("=> ")], id=name)


NODE, RULES, ENVIRONMENT = map(list, map(cases, ("wrong_node.txt", "wrong_rules.txt", "wrong_environment.txt")))


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refusal(load, *arguments):
    with pytest.raises(ConfigurationError) as refused:
        load(*arguments)
    return str(refused.value).split("\n")


def written(name, text):
    Path(name).write_text(text, encoding="utf-8")
    return Path(name)


@pytest.mark.parametrize(("text", "said"), NODE)
def test_node_yaml(text, said):
    assert refusal(load_settings, written("node.yaml", text)) == said


@pytest.mark.parametrize(("text", "said"), RULES)
def test_rules_yaml(text, said):
    assert refusal(load_rules, written("rules.yaml", text), SETTINGS) == said


@pytest.mark.parametrize(("variables", "said"), ENVIRONMENT)
def test_environment(variables, said, monkeypatch):
    for line in variables.splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    assert refusal(load_settings, written("node.yaml", "sources: [{ae_title: CT1}]\n")) == said


def test_no_case_is_lost():
    assert len([*NODE, *RULES, *ENVIRONMENT]) >= 70
    assert all(case.values[1] for case in [*NODE, *RULES, *ENVIRONMENT])


SECRET = "S3cr3t"
URL = f"postgresql+psycopg://node:{SECRET}@db/ledger"


@pytest.mark.parametrize(
    "text",
    [
        f"ledger_ulr: {URL}\n",
        f"node: {URL}\n",
        f"node: {{station_name: {URL}}}\n",
        f"node: {{data_folder: 1, ledger_url: {URL}}}\n",
        f"ledger_url: [{URL}]\n",
        f"ledger_url: {SECRET}\n",
        f"ledger_url: {{{SECRET}: {SECRET}}}\n",
        f"ledger_url: {URL}\nledger_url: {URL}\n",
        f"{{ledger_url={URL}}}\n",
        f"ledger_url: '{URL}\n",
        f"ledger_url: [{URL}\n",
        f"ledger_url: %{SECRET}\n",
        f"ledger_url: *{SECRET}\n",
        f"ledger_url: !{SECRET} x\n",
        f"ledger_url: !{SECRET}!x y\n",
        f'ledger_url: "\\{SECRET}"\n',
        f"ledger_url: &a x: {SECRET}\n",
        f"%{SECRET} x\n---\n%{SECRET}\n",
        f"{URL}\n",
        f"sources: [{{ae_title: {URL}}}]\n",
        f"sources: [{{ae_title: A, addresses: [{URL}], count_host: {URL}, services: [{URL}]}}]\n",
        f"models: {{a: {{kind: {URL}}}}}\n",
        f"alarms: {{webhook_url: {SECRET}}}\n",
        f"alarms: {{webhook_url: https://node:{SECRET}@host/}}\n",
        f"alarms: {{webhook_url: [https://host/{SECRET}]}}\n",
        f"alarms: {{webhook_url: https://host:{SECRET}/}}\n",
        f"work: {{device: {URL}, preload: [{URL}], threads: {URL}}}\n",
    ],
)
def test_no_message_shows_a_password(text):
    assert SECRET not in "\n".join(refusal(load_settings, written("node.yaml", text)))


def test_a_variable_overrides_the_file_and_needs_quotes_only_as_the_file_does(monkeypatch):
    file = written(
        "node.yaml", "node: {ae_title: A, port: 1}\ndestinations:\n  PACS: {host: a, port: 1, ae_title: P}\n"
    )
    for name, value in {
        "NODE__AE_TITLE": "0815",
        "node__port": "104",
        "DESTINATIONS__PACS__HOST": "pacs.example",
        "MODELS__TISSUE": "{kind: tissue}",
        "WORK__PRELOAD": '["tissue"]',
        "LEDGER_URL": "postgresql://db: 5/x#y",
    }.items():
        monkeypatch.setenv(f"DICOM_NODE__{name}", value)
    settings = load_settings(file)
    assert (settings.node.ae_title, settings.node.port) == ("0815", 104)
    assert settings.destinations["PACS"] == DestinationSettings(host="pacs.example", port=1, ae_title="P")
    assert settings.work.preload == ("tissue",)
    assert settings.ledger_url == "postgresql://db: 5/x#y"
