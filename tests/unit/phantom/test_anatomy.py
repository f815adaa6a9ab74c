"""The tables of the reference adult: a fault in one is an error that names the line."""

import pytest

from inference.phantom import anatomy
from inference.phantom.anatomy import FieldExtent, read_table
from inference.types import InvalidValueError

HEAD = "field_of_view,bottom_mm,top_mm,half_width_mm"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["field_of_view,bottom_mm,top_mm"], "has the columns"),
        ([], "has the columns None"),
        ([HEAD, "chest,300,,200"], "test.csv:2: top_mm is '', expected a number"),
        ([HEAD, "chest,300,nan,200"], "test.csv:2: top_mm is 'nan'"),
        ([HEAD, "chest,300,625"], "test.csv:2: half_width_mm is None"),
        ([HEAD, "chest,300,625,200,1"], "test.csv:2 has more than 4 entries"),
        ([HEAD, ",300,625,200"], "test.csv:2: field_of_view is '', expected a name"),
        ([HEAD, "chest,300,625,200", "chest,300,625,200"], "two equal rows"),
    ],
)
def test_invalid_table_is_refused(lines, reason):
    with pytest.raises(InvalidValueError, match=reason):
        read_table(lines, "test.csv", FieldExtent)


def test_rows_are_read_as_written():
    assert read_table([HEAD, "chest,300,625.5,200"], "test.csv", FieldExtent) == (
        FieldExtent("chest", 300, 625.5, 200),
    )


def test_pairs_are_mirrored_and_single_organs_are_not():
    left, right = (anatomy.course("iliac_vein", sign) for sign in (1.0, -1.0))
    assert (left[0] == right[0]).all()  # where both veins meet
    assert (left[-1, 0], right[-1, 0]) == (66, -66)
    assert (left[:, 1:] == right[:, 1:]).all()
    wing, spleen = anatomy.shapes()["iliac_wing"], anatomy.shapes()["spleen"]
    assert wing.turn_deg(-1.0) == (-wing.yaw_deg, wing.pitch_deg, -wing.roll_deg)
    assert spleen.turn_deg(-1.0) == spleen.turn_deg(1.0)


def test_unknown_name_is_an_error():
    for look_up in (anatomy.course, anatomy.radii, anatomy.trunk, lambda name: anatomy.profile_at(name, 0.0)):
        with pytest.raises(KeyError, match="tail"):
            look_up("tail")
