"""An embedded archive for machines without Orthanc: accepts every Storage SOP Class and keeps files in a folder.

It runs in its own process (``python -m dicom_node.demo.archive``), so that the node talks to a peer over TCP as it
would to a PACS. It is not a PACS: it has no index, no queries and no access control, and listens on loopback only.
"""

from __future__ import annotations

import signal
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import click
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made by the library at import

if TYPE_CHECKING:
    from types import FrameType

    from pynetdicom.events import Event

_SUCCESS = 0x0000
_OUT_OF_RESOURCES = 0xA700


def serve(folder: Path, ae_title: str, port: int) -> None:
    """Store what arrives on ``127.0.0.1:port`` in ``folder``, until SIGTERM or SIGINT."""
    folder.mkdir(parents=True, exist_ok=True)

    def store(event: Event) -> int:
        temporary = folder / f".{uuid.uuid4().hex}"
        try:
            temporary.write_bytes(event.encoded_dataset())
            temporary.rename(temporary.with_name(f"{temporary.name[1:]}.dcm"))
        except OSError:
            temporary.unlink(missing_ok=True)
            return _OUT_OF_RESOURCES
        return _SUCCESS

    entity = AE(ae_title)
    entity.maximum_pdu_size = 131072
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax or "", ALL_TRANSFER_SYNTAXES)
    entity.add_supported_context(Verification)
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    if server is None:
        raise click.ClickException(f"can't listen on port {port}")

    def stop(_: int, __: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        signal.pause()
    finally:
        server.shutdown()


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.option("--ae-title", required=True)
@click.option("--port", type=int, required=True)
def main(folder: Path, ae_title: str, port: int) -> None:
    """Run the embedded archive."""
    serve(folder, ae_title, port)


if __name__ == "__main__":
    main()
