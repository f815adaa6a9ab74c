"""Every tag has the value of its keyword in the data dictionary."""

from __future__ import annotations

import pytest
from pydicom.datadict import keyword_for_tag

from dicom_node.encode import tags

NAMES = [name for name in vars(tags) if name.isupper()]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "FILE_META_GROUP_LENGTH"])
def test_tag_matches_its_keyword(name: str) -> None:
    assert name.replace("_", "") == keyword_for_tag(getattr(tags, name)).removesuffix("Sequence").upper()


def test_group_length_of_the_file_meta_information() -> None:
    assert keyword_for_tag(tags.FILE_META_GROUP_LENGTH) == "FileMetaInformationGroupLength"
