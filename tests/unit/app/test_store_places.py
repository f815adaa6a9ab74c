"""The ledger is in the data folder, whatever the folder's name."""

import stat

import pytest

from dicom_node.app.stores import open_store
from dicom_node.settings import NodeSettings, Settings


@pytest.mark.parametrize("name", ["data", "of node? 1", "a?mode=ro", "a#b", "a%41", "Röntgen & co", "a:b@c"])
def test_ledger_is_the_file_named_in_the_settings(name, tmp_path):
    settings = Settings(node=NodeSettings(data_folder=tmp_path / name))
    _, ledger = open_store(settings)
    ledger.close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert settings.ledger_file.stat().st_size > 0
    assert stat.S_IMODE(settings.ledger_file.stat().st_mode) == 0o600
