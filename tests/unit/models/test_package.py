"""An installed package is read without trust in the disk: within limits, with closed schemas, and checked by digest."""

import contextlib
import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.errors import ModelDigestError, ModelPackageError
from inference.models.package import Crop, check_digest, manifest_digest, manifest_text, read_package
from tests.support.nnunet_models import plans, write_model, write_package

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    models = [
        write_model(folder / "a", names=("liver", "spleen"), folds=(0, 1)),
        write_model(folder / "b", names=("aorta",), described=plans(network="ResidualEncoderUNet", axes=(2, 0, 1))),
    ]
    crop = Crop("total_6mm", ("liver",), (20.0, 20.0, 10.0))
    return write_package(folder / "library", *models, crop=crop, minimum_slices=12, minimum_extent_mm=25.0)


@pytest.fixture
def copied(package, tmp_path):
    return Path(shutil.copytree(package.folder, tmp_path / "copy"))


def rewrite(folder, change):
    """Change the manifest and update its digest to match, as an attacker would."""
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    content["digest"] = manifest_digest(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def test_package_read_equals_package_installed(package):
    assert read_package(package.folder) == package
    assert package.names_by_label == {1: "spleen", 5: "liver", 52: "aorta"}
    assert (package.minimum_slices, package.minimum_extent_mm) == (12, 25.0)
    assert package.crop == Crop("total_6mm", ("liver",), (20.0, 20.0, 10.0))
    first, second = package.parts
    assert (first.names_by_channel, second.names_by_channel) == ({1: "liver", 2: "spleen"}, {1: "aorta"})
    assert (second.axes, second.architecture.network) == ((2, 0, 1), "ResidualEncoderUNet")
    assert package.identity.intended_use == "Research use only - not for clinical use"


def test_reading_needs_no_torch(package):
    program = (
        "import sys; from pathlib import Path; from inference.models.package import read_package;"
        f"read_package(Path({str(package.folder)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_digest_depends_on_the_model_and_not_on_its_origin(package, copied):
    rewrite(copied, lambda c: c.update(source="a stick"))
    assert read_package(copied).identity == package.identity
    rewrite(copied, lambda c: c.update(intended_use="Liver volumetry"))
    assert read_package(copied).identity.digest != package.identity.digest


def test_only_the_approved_digest_is_accepted(package):
    check_digest(package.identity, None)
    check_digest(package.identity, package.identity.digest.upper())
    with pytest.raises(ModelDigestError, match=package.identity.digest):
        check_digest(package.identity, "0" * 64)


def test_one_changed_byte_of_the_weights_is_detected(copied):
    path = copied / "part1_fold_1.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelDigestError, match=r"part1_fold_1\.safetensors has the SHA-256"):
        read_package(copied)
    path.write_bytes(content[:-1])
    with pytest.raises(ModelDigestError, match="bytes, but"):
        read_package(copied, check_weights=False)


def test_missing_or_linked_weights_are_named(copied, package):
    path = copied / "part2_fold_0.safetensors"
    path.unlink()
    with pytest.raises(ModelPackageError, match=r"part2_fold_0\.safetensors: No such file"):
        read_package(copied)
    path.symlink_to(package.folder / path.name)
    with pytest.raises(ModelDigestError, match="is a link"):
        read_package(copied)
    with pytest.raises(ModelPackageError, match=r"manifest\.json: No such file"):
        read_package(copied / "nowhere")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.update(format=2), "format"),
        (lambda c: c.update(extra=1), "unknown keys.*extra"),
        (lambda c: c.pop("licence"), "missing keys.*licence"),
        (lambda c: c["parts"][0].update(extra=1), "extra"),
        (lambda c: c["parts"][0]["weights"][0].update(file="../part1_fold_0.safetensors"), "weights file"),
        (lambda c: c["parts"][0]["weights"][0].update(file="/etc/passwd"), "weights file"),
        (lambda c: c["parts"][0]["weights"][0].update(file=".."), "weights file"),
        (lambda c: c["parts"][0]["weights"][1].update(file="part1_fold_0.safetensors"), "share a name"),
        (lambda c: c["parts"][0]["weights"][0].update(bytes=10**13), "bytes of"),
        (lambda c: c["parts"][0]["weights"].clear(), "1 to 10 entries"),
        (lambda c: c["parts"][0]["architecture"].update(network="os.system"), "network"),
        (lambda c: c["parts"][0]["architecture"].update(features_per_stage=[10**9, 8]), "features_per_stage"),
        (lambda c: c["parts"][0]["architecture"].update(norm_eps=float("nan")), "norm_eps"),
        (lambda c: c["parts"][0]["architecture"]["kernel_sizes"].__setitem__(1, [3, 4, 3]), "must be odd"),
        (lambda c: c["parts"][0]["architecture"]["strides"].__setitem__(0, [1, 1, 2]), "keep the resolution"),
        (lambda c: c["parts"][0]["architecture"]["strides"].__setitem__(1, [3, 2, 2]), "multiple"),
        (lambda c: c["parts"][0].update(patch_size=[33, 32, 32]), "multiple"),
        (lambda c: c["parts"][0].update(spacing_mm=[0, 1, 1]), "spacing_mm"),
        (lambda c: c["parts"][0].update(axes=[0, 1, 1]), "permutation of 0, 1, 2"),
        (lambda c: c["parts"][0]["normalisation"].update(sd_hu=0), "divides by 0: not valid"),
        (lambda c: c["parts"][0].update(names_by_channel={"1": "liver", "3": "spleen"}), "without gap"),
        (lambda c: c["parts"][0].update(names_by_channel={"01": "liver", "2": "spleen"}), "'01'"),
        (lambda c: c["labels"].update({"7": "flux_capacitor"}), "flux_capacitor"),
        (lambda c: c["labels"].update({"7": "brain"}), "disagree about brain"),
        (lambda c: c.update(auxiliary=["brain"]), "disagree about brain"),
        (lambda c: c.update(auxiliary=["liver"]), "disagree about liver"),
        (lambda c: c.update(auxiliary=[]), "auxiliary"),
        (lambda c: c.update(auxiliary=["flux_capacitor"]), "flux_capacitor"),
        (lambda c: c.update(orientation="SPL"), "orientation must be one of"),
        (lambda c: c.update(orientation=["LPS"]), "orientation"),
        (lambda c: c["parts"][0].update(mirroring_axes=[3]), "mirroring_axes must be a whole number from 0 to 2"),
        (lambda c: c["parts"][0].update(mirroring_axes=[1, 0]), "must ascend"),
        (lambda c: c["parts"][0].update(mirroring_axes=[]), "mirroring_axes"),
        (lambda c: c["labels"].update({"256": "brain"}), "255"),
        (lambda c: c.update(window_step=0), "window_step"),
        (lambda c: c.update(resampling="linear"), "resampling"),
        (lambda c: c["crop"].update(model="../total"), "crop.model"),
        (lambda c: c["crop"].update(structures=["nose_hair"]), "nose_hair"),
        (lambda c: c["crop"].update(margin_xyz_mm=[1, 2]), "three numbers"),
        (lambda c: c.update(intended_use="two\nlines"), "intended_use"),
        (lambda c: c.update(name=".hidden"), "name"),
    ],
)
def test_invalid_manifest_is_refused_by_name(copied, change, reason):
    rewrite(copied, change)
    with pytest.raises(ModelPackageError, match=reason):
        read_package(copied)


def test_endless_files_are_not_read(copied):
    manifest, weights = copied / "manifest.json", copied / "part1_fold_1.safetensors"
    content = manifest.read_bytes()
    for endless in (manifest, weights):
        endless.unlink()
        os.mkfifo(endless)
        with pytest.raises(ModelPackageError, match="is not a file"):
            read_package(copied)
        endless.unlink()
        manifest.write_bytes(content)
    manifest.unlink()
    manifest.symlink_to("/dev/zero")
    with pytest.raises(ModelPackageError, match="is not a file"):
        read_package(copied)


def test_network_that_normalises_a_single_voxel_is_refused(tmp_path):
    tiny = plans(patch=(8, 8, 8), features=(2, 2, 2, 2))
    with pytest.raises(ModelPackageError, match="leaves one voxel"):
        write_package(tmp_path / "library", write_model(tmp_path / "tiny", described=tiny))


def test_oversized_header_of_weights_is_not_parsed(copied):
    path = copied / "part1_fold_1.safetensors"
    header = b'{"x":' + b" " * 2**21
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    facts = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    rewrite(copied, lambda c: c["parts"][0]["weights"][1].update(facts))
    with pytest.raises(ModelPackageError, match="a header of 2097157 bytes"):
        read_package(copied)


def test_weights_replaced_after_the_check_are_detected(copied):
    package = read_package(copied)
    part, path = package.parts[0], copied / "part1_fold_1.safetensors"
    package.check_unchanged(part)
    content, before = bytearray(path.read_bytes()), path.stat()
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as an attacker would
    with pytest.raises(ModelDigestError, match=r"part1_fold_1\.safetensors was changed after"):
        package.check_unchanged(part)
    path.unlink()
    with pytest.raises(ModelPackageError, match="No such file"):
        package.check_unchanged(part)


JSON_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(0, 3), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def places(content, path=()):
    """Every path in a JSON value."""
    if path:
        yield path
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield from places(content[key], (*path, key))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_manifest_is_refused_or_equivalent(package, tmp_path, data):
    """Whatever is changed, removed or inserted: an error of ours, or the same package (except for its origin)."""
    content = json.loads((package.folder / "manifest.json").read_text())
    *parents, last = data.draw(st.sampled_from(list(places(content))))
    holder = content
    for key in parents:
        holder = holder[key]
    if data.draw(st.booleans()):
        del holder[last]
    else:
        holder[last] = data.draw(JSON_VALUES)
    folder = tmp_path / "mutated"
    if not folder.exists():
        shutil.copytree(package.folder, folder)
    (folder / "manifest.json").write_text(json.dumps(content))
    same_digest = copy.deepcopy(content)
    try:
        read = read_package(folder, check_weights=False)
    except ModelPackageError:
        pass
    else:
        assert read.identity == package.identity
        assert (read.names_by_label, read.crop) == (package.names_by_label, package.crop)
    # with a matching digest, the result is our error or a package, and never another exception
    same_digest["digest"] = manifest_digest(same_digest)
    (folder / "manifest.json").write_text(json.dumps(same_digest))
    with contextlib.suppress(ModelPackageError):
        read_package(folder, check_weights=False)


def test_text_of_a_manifest_is_the_same_on_every_machine(package):
    text = (package.folder / "manifest.json").read_text()
    content = json.loads(text)
    assert manifest_text({key: value for key, value in content.items() if key not in ("format", "digest")}) == text
