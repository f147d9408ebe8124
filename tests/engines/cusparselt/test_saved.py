"""Saved engines: written whole, read back equal, refused when they were changed."""

import dataclasses
import json
import mmap
import zipfile

import numpy as np
import onnx
import onnx.parser
import pytest

import models
from tests.helpers import arrays
from trtsparse.engines.cusparselt.saved import SCHEMA, Saved, is_saved, read_saved, write_saved
from trtsparse.errors import OutputError, PlanError
from trtsparse.files.model import OnnxModel
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.result import Kernel

GEMM, FITS = Gemm(8, 16, 32), True
SPARSE = Kernel("sparse", "config 3", {"config": 3}, 0.5, 0.4, 0.6, 0.001, 0.004)
DENSE = Kernel(
    "dense", "0", {"data": "00", "fast_accumulation": False, "workspace_nbytes": 4}, 0.7, 0.6, 0.8, 0.0, 0.004
)


@pytest.fixture
def saved():
    model = OnnxModel.open(models.get("mlp", widths=(64, 32)))
    kernels = {GEMM.key: SPARSE, Gemm(1, 16, 32).key: DENSE, Gemm(2, 16, 32).key: None}
    return Saved(model, "fp16", kernels, {"w": b"12345", "v": b""}, {"gpu": "H100", "cusparselt": "0.8.0"})


def test_what_was_saved_is_read_back(saved, tmp_path):
    path = write_saved(tmp_path / "mlp.trtsparse", saved)
    assert is_saved(path)
    found = read_saved(path)
    assert (found.precision, found.kernels, found.weights, found.made_on) == (
        "fp16", saved.kernels, saved.weights, saved.made_on,
    )  # fmt: skip
    before, after = arrays(saved.model), arrays(found.model)
    assert list(before) == list(after)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)
    assert [file.name for file in tmp_path.iterdir()] == ["mlp.trtsparse"]


@pytest.mark.parametrize("name", ["compiled", "use_sparse"])
@pytest.mark.parametrize("value", [False, True])
def test_how_the_engine_was_made_is_read_back(saved, tmp_path, name, value):
    path = write_saved(tmp_path / "mlp.trtsparse", dataclasses.replace(saved, **{name: value}))
    assert getattr(read_saved(path), name) is value


def test_external_data_are_saved_too(tmp_path):
    proto = OnnxModel.open(models.get("mlp", widths=(64, 32))).load()
    onnx.save(
        OnnxModel.open(models.get("mlp", widths=(64, 32))).load(),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=16,
    )
    model = OnnxModel.open(tmp_path / "m.onnx")
    path = write_saved(tmp_path / "m.trtsparse", Saved(model, "bf16", {}, {}, {}))
    (tmp_path / "m.onnx").unlink()
    (tmp_path / "m.data").unlink()
    for name, values in arrays(read_saved(path).model).items():
        np.testing.assert_array_equal(values, arrays(proto)[name])


def test_a_changed_member_is_refused(saved, tmp_path):
    path = write_saved(tmp_path / "mlp.trtsparse", saved)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**members, "weights/0.bin": b"12346"}.items():
            archive.writestr(name, data)
    with pytest.raises(PlanError) as caught:
        read_saved(path)
    assert str(caught.value).startswith(
        f"a saved engine was changed after it was written\n  where: {path}: weights/0.bin\n  got: SHA-256 "
    )
    assert str(caught.value).endswith("\n  to fix: save it again")


def test_external_data_of_no_bytes_are_saved(tmp_path):
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[n] x) => (float[m] y) { y = Concat <axis = 0> (x, w) }'
    )
    weight = onnx.TensorProto(name="w", dims=[0], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="m.data")
    proto.graph.initializer.append(weight)
    onnx.save(proto, tmp_path / "m.onnx")
    (tmp_path / "m.data").touch()
    path = write_saved(tmp_path / "m.trtsparse", Saved(OnnxModel.open(tmp_path / "m.onnx"), "bf16", {}, {}, {}))
    assert arrays(read_saved(path).model)["w"].shape == (0,)


def test_weights_stay_in_the_file(saved, tmp_path):
    found = read_saved(write_saved(tmp_path / "mlp.trtsparse", saved))
    assert {type(found.weights["w"].obj), type(found.model.files[""].obj)} == {mmap.mmap}


def test_an_engine_is_saved_over_the_file_it_was_read_from(saved, tmp_path):
    path = write_saved(tmp_path / "mlp.trtsparse", saved)
    write_saved(path, read_saved(path))
    found = read_saved(path)
    assert (found.weights, found.kernels) == (saved.weights, saved.kernels)
    assert bytes(found.model.files[""]) == saved.model.path.read_bytes()


def test_members_that_another_program_compressed_are_read(saved, tmp_path):
    path = write_saved(tmp_path / "mlp.trtsparse", saved)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert read_saved(path).weights == saved.weights


@pytest.mark.parametrize("place", [0, 1 << 24, -1])
def test_a_changed_byte_of_a_large_member_is_damage(saved, tmp_path, place):
    large = bytes((1 << 24) + 5)
    path = write_saved(tmp_path / "mlp.trtsparse", dataclasses.replace(saved, weights={"w": large}))
    assert read_saved(path).weights == {"w": large}
    data = bytearray(path.read_bytes())
    start = data.index(large)
    data[start + place % len(large)] = 1
    path.write_bytes(data)
    with pytest.raises(PlanError) as caught:
        read_saved(path)
    assert str(caught.value) == (
        f"a saved engine is damaged\n  where: {path}\n"
        "  got: BadZipFile: Bad CRC-32 for file 'weights/0.bin'\n  to fix: save it again"
    )


def test_a_damaged_header_is_damage(saved, tmp_path):
    path = write_saved(tmp_path / "mlp.trtsparse", saved)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"weights/0.bin", b"weights/7.bin", 1))
    with pytest.raises(PlanError) as caught:
        read_saved(path)
    assert str(caught.value) == (
        f"a saved engine is damaged\n  where: {path}\n"
        "  got: BadZipFile: File name in directory 'weights/0.bin' and header b'weights/7.bin' differ.\n"
        "  to fix: save it again"
    )


def test_a_later_form_is_refused(tmp_path):
    path = tmp_path / "later.trtsparse"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", json.dumps({"schema": "trtsparse.cusparselt/999"}))
    with pytest.raises(PlanError) as caught:
        read_saved(path)
    assert str(caught.value) == (
        f"a saved engine has another form\n  where: {path}\n  got: trtsparse.cusparselt/999\n"
        f"  expected: {SCHEMA}\n  to fix: save it with this version of trtsparse"
    )


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_a_truncated_file_is_damaged(saved, tmp_path, share):
    path = write_saved(tmp_path / "mlp.trtsparse", saved)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert is_saved(path)
    with pytest.raises(PlanError, match="a saved engine is damaged"):
        read_saved(path)


def test_other_files_are_not_saved_engines(tmp_path):
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a", "b")
    assert not is_saved(other)
    assert not is_saved(tmp_path / "nothing")
    assert not is_saved(models.get("mlp"))


def test_nothing_is_left_when_it_cannot_be_written(saved, tmp_path):
    with pytest.raises(OutputError):
        write_saved(tmp_path / "no folder" / "mlp.trtsparse", saved)
    assert list(tmp_path.iterdir()) == []
