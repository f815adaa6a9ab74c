"""``dicom-node rules explain``: apply the rules to a series in a folder or in the spool."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicom_node.app.stores import open_store
from dicom_node.errors import ConfigurationError
from dicom_node.route.rules import decide, explain
from dicom_node.route.rules_file import load_rules
from dicom_node.standard.files import read_headers, read_series_folder
from dicom_node.types import Series

if TYPE_CHECKING:
    from dicom_node.settings import Settings


def explain_rules(settings: Settings, series: str) -> list[dict[str, Any]]:
    """Explain why ``series`` would or would not run: a folder of DICOM files, or the UID of a series in the spool.

    Raises:
        ConfigurationError: it is neither a folder with DICOM files nor known to the ledger.
    """
    rules = load_rules(settings.rules_file, settings)
    folder = Path(series)
    found = read_series_folder(folder) if folder.is_dir() else (_received_series(settings, series),)
    if not found:
        raise ConfigurationError(f"{folder} contains no DICOM instance that can be read")
    return [
        {
            "series_instance_uid": one.series_instance_uid,
            "instances": len(one.instances),
            "notes": list(one.notes),
            "conditions": [asdict(row) for row in explain(one, rules)],
            "decisions": [
                {
                    "rule": decision.rule,
                    "model": decision.model,
                    "destinations": list(decision.destinations),
                    "reason": decision.reason,
                }
                for decision in decide(one, rules)
            ],
        }
        for one in found
    ]


def _received_series(settings: Settings, series_instance_uid: str) -> Series:
    spool, ledger = open_store(settings)
    try:
        names, sending_ae = ledger.arrivals.current_instances(series_instance_uid)
    finally:
        ledger.close()
    if not names:
        raise ConfigurationError(f"{series_instance_uid} is neither a folder nor a series that this node has stored")
    instances = read_headers(spool.path(name) for name in names)
    study_instance_uid = str(instances[0].header.get("StudyInstanceUID", ""))
    return Series(series_instance_uid, study_instance_uid, instances, sending_ae)
