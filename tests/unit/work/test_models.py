"""A model's name in results, its requirements and the models it depends on, from its files alone."""

import json
import shutil
from dataclasses import replace

import pytest

from dicom_node.errors import ConfigurationError
from dicom_node.settings import NnunetModelSettings, TissueModelSettings, WorkSettings
from dicom_node.work.models import (
    describe_model,
    estimated_bytes,
    load_segmenter,
    minimum_extent,
)
from inference.errors import ModelDigestError, ModelPackageError
from inference.models.package import Crop, manifest_digest, read_package
from inference.nnunet.contract import EngineOptions
from inference.nnunet.cropped import CroppedSegmenter
from inference.opening import models_of, open_segmenter
from inference.types import MinimumExtent
from tests.support.nnunet_models import write_model, write_package

WORK = WorkSettings(threads=1)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """``plain``; ``inner`` in a crop by ``plain``; ``innermost`` in a crop by ``inner``."""
    folder = tmp_path_factory.mktemp("models")
    write_package(folder, write_model(folder / "a", names=("liver",)), name="plain", minimum_slices=9)
    crop = Crop("plain", ("liver",), (10.0, 10.0, 10.0))
    b = write_model(folder / "b", names=("spleen",))
    write_package(folder, b, name="inner", crop=crop, minimum_slices=4, minimum_extent_mm=50.0)
    second = replace(crop, model="inner", structures=("spleen",))
    write_package(folder, write_model(folder / "c", names=("aorta",)), name="innermost", crop=second)
    return folder


def settings(library, name, **options):
    return NnunetModelSettings(kind="nnunet", package=library / name, **options)


def test_every_option_that_changes_the_labels_has_its_own_identity(library):
    plain = settings(library, "plain")
    answers = [
        (plain, WORK),
        (settings(library, "plain", answer="parity"), WORK),
        (settings(library, "plain", body_crop=False), WORK),
        (plain, WORK.model_copy(update={"precision": "float32"})),
        (plain, WORK.model_copy(update={"backend": "torch"})),
    ]
    identities = [describe_model("m", *one) for one in answers]
    assert len({identity.version for identity in identities}) == len(answers)
    assert {identity.digest for identity in identities} == {read_package(library / "plain").identity.digest}
    assert identities[0] == read_package(library / "plain").identity
    # in parity there is no body crop to choose
    without = settings(library, "plain", answer="parity", body_crop=False)
    assert describe_model("m", without, WORK) == identities[1]


def test_cropping_model_names_the_models_it_crops_by(library, tmp_path):
    inner, innermost = (describe_model("m", settings(library, name), WORK) for name in ("inner", "innermost"))
    plain = read_package(library / "plain").identity
    assert inner.version == f"1 in plain 1 {plain.digest[:12]}"
    assert innermost.version == f"1 in inner 1 {inner.digest[:12]} in plain 1 {plain.digest[:12]}"
    copy = shutil.copytree(library, tmp_path / "copy")
    shutil.rmtree(copy / "plain")
    other = write_model(tmp_path / "other", names=("liver", "brain"))
    write_package(copy, other, name="plain")
    assert describe_model("m", settings(copy, "inner"), WORK).digest == inner.digest
    assert describe_model("m", settings(copy, "inner"), WORK) != inner


def test_nested_crop_is_opened_as_nested(library):
    opened = load_segmenter("m", settings(library, "innermost"), WORK)
    assert isinstance(opened, CroppedSegmenter)
    assert isinstance(opened._first, CroppedSegmenter)
    assert opened.identity == describe_model("m", settings(library, "innermost"), WORK)


def test_model_used_for_cropping_counts_and_must_exist(library, tmp_path):
    sizes = {name: sum(f.stat().st_size for f in (library / name).glob("*.safetensors")) for name in ("plain", "inner")}
    bare = estimated_bytes(TissueModelSettings(kind="tissue"))
    assert estimated_bytes(settings(library, "inner")) == bare + 2 * sum(sizes.values())
    assert minimum_extent("m", settings(library, "inner")) == MinimumExtent(slices=9, extent_mm=50.0)
    shutil.copytree(library / "inner", tmp_path / "inner")
    lonely = settings(tmp_path, "inner")
    with pytest.raises(ConfigurationError, match=r"inner crops to structures of plain: .* has no model named"):
        describe_model("m", lonely, WORK)
    assert estimated_bytes(lonely) == bare


def test_models_that_crop_by_each_other_are_refused_as_a_cycle(library, tmp_path):
    copy = shutil.copytree(library, tmp_path / "copy")
    manifest = copy / "plain" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["crop"] = {"model": "inner", "structures": ["spleen"], "margin_xyz_mm": [1, 1, 1]}
    manifest.write_text(json.dumps(content | {"digest": manifest_digest(content)}))
    with pytest.raises(ModelPackageError, match="plain crops to structures of inner, which in turn"):
        models_of(read_package(copy / "inner"))


def test_weights_replaced_between_check_and_use_are_not_used(library, tmp_path):
    package = read_package(shutil.copytree(library / "plain", tmp_path / "plain"))
    other = write_package(tmp_path / "other", write_model(tmp_path / "o", names=("spleen",)), name="plain")
    for file in other.folder.iterdir():
        shutil.copy(file, package.folder / file.name)
    with pytest.raises(ModelDigestError, match="was changed after its SHA-256 was checked"):
        open_segmenter(package, EngineOptions(threads=1))
