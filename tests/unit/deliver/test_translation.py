"""What a failed association means for a delivery: retry later, or refuse for a person to look at."""

import pytest

from dicom_node.deliver.scu import translated
from dicom_node.errors import (
    AssociationRejected,
    ConnectionLost,
    DeliveryDelayed,
    DeliveryRefused,
    NetworkError,
    NotSendable,
    ProtocolFault,
)

MEANINGS = {
    ConnectionLost: [(ConnectionLost("away"), DeliveryDelayed)],
    ProtocolFault: [(ProtocolFault(6, "no DICOM"), DeliveryDelayed)],
    AssociationRejected: [
        (AssociationRejected("busy", permanent=False), DeliveryDelayed),
        (AssociationRejected("unknown", permanent=True), DeliveryRefused),
    ],
    NotSendable: [(NotSendable("no context"), DeliveryRefused)],
}


@pytest.mark.parametrize("kind", NetworkError.__subclasses__())
def test_every_network_error_is_translated(kind):
    for error, meaning in MEANINGS[kind]:
        delivery = translated(error)
        assert type(delivery) is meaning
        assert str(delivery) == str(error)
