"""The supported transfer syntaxes preserve every value."""

from dicom_node.standard.transfer_syntaxes import decodable


def test_no_lossy_deflated_or_big_endian_syntax_is_supported():
    lossy_or_worse = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"}
    lossy_or_worse |= {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 93, 203)}
    assert not decodable() & lossy_or_worse
    assert decodable() >= {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"}
