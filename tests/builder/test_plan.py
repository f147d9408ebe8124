import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtsparse.builder.plan import PlanHeader, check_matches, read_header
from trtsparse.errors import PlanError


def header(tag=b"vtrt", *, layout=0, nbytes=28, version=(1, 7, 1, 116)):
    return struct.pack("<4sIQQ4B", tag, layout, 2, nbytes, *version)


byte = st.integers(0, 255)


@given(st.tuples(byte, byte, byte, byte), st.sampled_from([(b"ftrt", "tensorrt"), (b"vtrt", "tensorrt_rtx")]))
def test_version_and_flavour_are_read_from_any_header(version, flavour):
    found = read_header(header(flavour[0], version=version))
    assert (found.flavour, found.version) == (flavour[1], version)


def test_only_rtx_headers_state_a_size():
    assert read_header(header(b"vtrt")).nbytes == 28
    assert read_header(header(b"ftrt")).nbytes is None


def test_a_header_says_its_name():
    assert str(read_header(header(b"ftrt", version=(10, 13, 3, 9)))) == "TensorRT 10.13.3.9"


def test_a_file_is_read_like_bytes(tmp_path):
    path = tmp_path / "model.plan"
    path.write_bytes(header(nbytes=30) + b"xx")
    assert read_header(path) == read_header(path.read_bytes()) == PlanHeader("tensorrt_rtx", (1, 7, 1, 116), 30)


@pytest.mark.parametrize(
    ("content", "looks_like"),
    [
        (b"", "an empty file"),
        (b"\0" * 64, "zeros"),
        (b"\x7fELF\x02", "a shared library"),
        (b"PK\x03\x04....", "a zip archive, such as a PyTorch checkpoint"),
        (json.dumps({"a": 1}).encode(), "JSON text"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer: the file itself was not fetched"),
        (b"\xde\xad\xbe\xef", "bytes that begin with de ad be ef"),
    ],
)
def test_what_is_no_plan_is_named(tmp_path, content, looks_like):
    path = tmp_path / "thing"
    path.write_bytes(content)
    with pytest.raises(PlanError) as error:
        read_header(path)
    assert str(error.value) == (
        "not a TensorRT plan\n"
        f"  where: {path}\n"
        f"  got: {looks_like}\n"
        "  expected: a file that begins with 'ftrt' (TensorRT) or 'vtrt' (TensorRT-RTX)\n"
        "  to fix: give the engine file that a build wrote"
    )


def test_an_onnx_model_is_recognised(relu):
    with pytest.raises(PlanError, match="got: an ONNX model: build it first"):
        read_header(relu.SerializeToString())


def test_a_header_cut_short_is_truncated():
    with pytest.raises(PlanError) as error:
        read_header(header()[:20])
    assert str(error.value) == (
        "the plan is truncated\n"
        "  where: bytes\n"
        "  got: 20 bytes\n"
        "  expected: at least 28 bytes\n"
        "  to fix: copy the file again, or build the model again"
    )


def test_a_plan_shorter_than_its_header_says_is_truncated(tmp_path):
    path = tmp_path / "model.plan"
    path.write_bytes(header(nbytes=1000))
    with pytest.raises(PlanError) as error:
        read_header(path)
    assert str(error.value) == (
        "the plan is truncated\n"
        f"  where: {path}\n"
        "  got: 28 bytes\n"
        "  expected: 1000 bytes, the size in its header\n"
        "  to fix: copy the file again, or build the model again"
    )


def test_another_layout_is_refused():
    with pytest.raises(PlanError) as error:
        read_header(header(b"ftrt", layout=239))
    assert str(error.value) == (
        "a plan of an unknown layout\n"
        "  where: bytes\n"
        "  got: layout 239\n"
        "  expected: layout 0, which TensorRT 8.6 and later write\n"
        "  to fix: build the model again"
    )


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(PlanError) as error:
        read_header(tmp_path / "none.plan")
    assert str(error.value) == f"there is no such plan\n  where: {tmp_path / 'none.plan'}"
    with pytest.raises(PlanError) as error:
        read_header(tmp_path)
    assert str(error.value) == f"the plan cannot be read\n  where: {tmp_path}\n  got: Is a directory"


def test_a_plan_of_the_other_flavour_names_both():
    with pytest.raises(PlanError) as error:
        check_matches(read_header(header()), "tensorrt", (10, 13, 3, 9), where="model.plan")
    assert str(error.value) == (
        "the plan is for TensorRT-RTX, but TensorRT is installed\n"
        "  where: model.plan\n"
        "  got: a plan of TensorRT-RTX 1.7.1.116\n"
        "  expected: a plan of TensorRT 10.13.3.9\n"
        "  to fix: build the model again here, or load the plan where TensorRT-RTX 1.7.1.116 is installed"
    )


def test_a_plan_of_another_version_names_both():
    with pytest.raises(PlanError) as error:
        check_matches(read_header(header(b"ftrt", version=(10, 9, 0, 34))), "tensorrt", (10, 13, 3, 9))
    assert str(error.value) == (
        "the plan was built by another version of TensorRT\n"
        "  got: a plan of TensorRT 10.9.0.34\n"
        "  expected: a plan of TensorRT 10.13.3.9, which is installed\n"
        "  to fix: build the model again here, or install TensorRT 10.9.0.34"
    )


def test_a_shorter_version_matches_as_far_as_it_goes():
    check_matches(read_header(header(b"ftrt", version=(8, 6, 1, 6))), "tensorrt", (8, 6, 1))


@pytest.mark.parametrize(
    ("version", "fits"), [((10, 9, 0, 34), True), ((10, 14, 0, 1), False), ((9, 3, 0, 1), False)]
)
def test_a_version_compatible_plan_fits_newer_libraries_of_its_major_version(version, fits):
    found = read_header(header(b"ftrt", version=version))
    if fits:
        check_matches(found, "tensorrt", (10, 13, 3, 9), compatible=True)
    else:
        with pytest.raises(PlanError, match="another version"):
            check_matches(found, "tensorrt", (10, 13, 3, 9), compatible=True)
