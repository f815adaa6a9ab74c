"""The digest of a source covers every file that is read, and nothing else."""

from __future__ import annotations

import pytest

from dicom_node.age_study.sources import read_source
from dicom_node.cohort.pseudonym import Pseudonyms
from dicom_node.cohort.subject import Dates
from dicom_node.cohort.table import CohortTable, Origin
from dicom_node.errors import ConfigurationError
from tests.support.cohort_tables import row, written


def test_a_cohort_with_another_part_or_another_reason_has_another_digest(tmp_path):
    pseudonyms = Pseudonyms.of_key(bytes(range(32)))
    table = CohortTable(tmp_path)
    table.open_for(pseudonyms, Dates.NONE)
    first, second = (tmp_path / "measurements" / f"{pseudonyms.uid(uid)}.parquet" for uid in "12")
    written(first, [row("a")])
    digests = [read_source(tmp_path).digest()]
    written(second, [row("b")])
    digests.append(read_source(tmp_path).digest())
    table.write_reason(pseudonyms.uid("9"), "s", pseudonyms.uid("9"), Origin.COMPUTED, "refused", "4 slices")
    digests.append(read_source(tmp_path).digest())
    assert len(set(digests)) == 3
    (tmp_path / "notes.txt").write_text("")
    assert read_source(tmp_path).digest() == digests[-1]


@pytest.mark.parametrize("file", ["meta.csv", "truth.csv"])
def test_both_files_of_a_phantom_cohort_count(tmp_path, file):
    (tmp_path / "meta.csv").write_text("image_id;age;gender\ns1;40;f\n")
    (tmp_path / "truth.csv").write_text("image_id,structure,volume_ml,mean_hu,truncated\ns1,liver,40,40,False\n")
    before = read_source(tmp_path).digest()
    changed = tmp_path / file
    changed.write_text(changed.read_text().replace("40", "41"))
    assert read_source(tmp_path).digest() != before


def test_the_names_of_files_do_not_count_but_their_content_does(tmp_path):
    one, other = (written(tmp_path / name, [row(name)]) for name in ("a.parquet", "b.parquet"))
    before = read_source(tmp_path).digest()
    one.rename(tmp_path / "z.parquet")
    source = read_source(tmp_path)
    assert source.digest() == before
    assert read_source(other).digest() != before
    other.unlink()
    with pytest.raises(ConfigurationError, match=r"b\.parquet can't be read: No such file"):
        source.digest()
