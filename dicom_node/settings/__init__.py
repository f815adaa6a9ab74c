"""Settings: node.yaml and the environment, read once and frozen; each package gets only its own part."""

from dicom_node.settings.models import (
    AeTitle,
    AlarmSettings,
    CompletionSettings,
    DeliverySettings,
    DestinationSettings,
    ModelSettings,
    NnunetModelSettings,
    NodeSettings,
    OperateSettings,
    Port,
    ReceiveSettings,
    Seconds,
    Settings,
    SourceSettings,
    TissueModelSettings,
    WorkSettings,
)
from dicom_node.settings.node_file import load_settings

__all__ = [
    "AeTitle",
    "AlarmSettings",
    "CompletionSettings",
    "DeliverySettings",
    "DestinationSettings",
    "ModelSettings",
    "NnunetModelSettings",
    "NodeSettings",
    "OperateSettings",
    "Port",
    "ReceiveSettings",
    "Seconds",
    "Settings",
    "SourceSettings",
    "TissueModelSettings",
    "WorkSettings",
    "load_settings",
]
