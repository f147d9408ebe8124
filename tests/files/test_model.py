"""Opening and reading models, embedded and external."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.files.external import contents, three
from tests.helpers import arrays, matmul, model, point_to, random, save_external, tensor
from trtsparse.errors import ExternalDataError, ModelError, ModelNotFoundError
from trtsparse.files.model import OnnxModel


def test_a_model_opens_from_a_path_bytes_or_a_proto(tmp_path):
    proto = matmul(random(8, 4))
    data = proto.SerializeToString()
    (tmp_path / "model.onnx").write_bytes(data)
    for source in (tmp_path / "model.onnx", str(tmp_path / "model.onnx"), data, bytearray(data), proto):
        opened = OnnxModel.open(source)
        assert arrays(opened)["w"].tobytes() == random(8, 4).tobytes()
        assert opened.load().SerializeToString() == data
        assert OnnxModel.open(opened) is opened
    assert OnnxModel.open(proto).name == "ModelProto"
    assert OnnxModel.open(tmp_path / "model.onnx").path == tmp_path / "model.onnx"
    assert OnnxModel.open(data).path is None


def test_the_skeleton_holds_everything_but_the_weights():
    opened = OnnxModel.open(matmul(random(8, 4)))
    (initializer,) = opened.proto.graph.initializer
    assert (initializer.name, list(initializer.dims), initializer.raw_data) == ("w", [8, 4], b"")
    assert opened.proto.graph.node[0].op_type == "MatMul"


def test_arrays_are_read_only():
    opened = OnnxModel.open(matmul(random(8, 4)))
    values = opened.read(opened.ref(opened.proto.graph.initializer[0]))
    with pytest.raises(ValueError, match="read-only"):
        values[0, 0] = 1


def test_arrays_live_longer_than_the_model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(matmul(random(8, 4)).SerializeToString())
    opened = OnnxModel.open(path)
    values = opened.read(opened.ref(opened.proto.graph.initializer[0]))
    del opened
    path.unlink()
    assert np.array_equal(values, random(8, 4))


def test_reading_is_thread_safe(external):
    opened = OnnxModel.open(external)
    refs = list(opened.refs())
    expected = [opened.read(ref).tobytes() for ref in refs]
    failures = []

    def read():
        for _ in range(50):
            failures.extend(
                ref for ref, data in zip(refs, expected, strict=True) if opened.read(ref).tobytes() != data
            )

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_external_weights_are_read_from_their_files(external):
    opened = OnnxModel.open(external)
    assert {name: value.tobytes() for name, value in arrays(opened).items()} == {
        name: value.tobytes() for name, value in arrays(three()).items()
    }
    assert opened.external_files() == (external.parent / "one.bin", external.parent / "sub/two.bin")


def test_weights_saved_by_onnx_are_read(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(three(), path, save_as_external_data=True, location="all.data", size_threshold=0)
    assert arrays(OnnxModel.open(path))["w3"].tobytes() == random(8, 8, seed=3).tobytes()


def test_offsets_and_lengths_may_be_left_out(tmp_path):
    proto = matmul(random(8, 4))
    (tmp_path / "w.bin").write_bytes(proto.graph.initializer[0].raw_data)
    point_to(proto.graph.initializer[0], location="w.bin")
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert arrays(OnnxModel.open(tmp_path / "model.onnx"))["w"].tobytes() == random(8, 4).tobytes()


@pytest.mark.parametrize("offset", [1, 3, 4095, 4097])
def test_offsets_may_be_unaligned(tmp_path, offset):
    proto = matmul(random(8, 4))
    (tmp_path / "w.bin").write_bytes(b"\xff" * offset + proto.graph.initializer[0].raw_data)
    point_to(proto.graph.initializer[0], location="w.bin", offset=offset, length=128)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert arrays(OnnxModel.open(tmp_path / "model.onnx"))["w"].tobytes() == random(8, 4).tobytes()


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("missing.onnx", ModelNotFoundError, "there is no such file\n  where: {path}"),
        ("file/below.onnx", ModelNotFoundError, "there is no such file\n  where: {path}"),
        ("nul\0.onnx", ModelNotFoundError, "there is no such file\n  where: {path}"),
        ("folder", ModelError, "the path is a folder, not an ONNX file\n  where: {path}"),
        ("empty.onnx", ModelError, "the file is empty\n  where: {path}"),
        ("n" * 300, ModelError, "the file cannot be read\n  where: {path}\n  got: File name too long"),
        ("pipe", ModelError, "the path is a pipe or device, not an ONNX file\n  where: {path}"),
    ],
)
def test_paths_that_hold_no_model(tmp_path, path, error, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty.onnx").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error) as caught:
        OnnxModel.open(tmp_path / path)
    assert type(caught.value) is error
    assert str(caught.value) == message.format(path=tmp_path / path)


def test_a_missing_model_is_a_file_not_found_error_too():
    with pytest.raises(FileNotFoundError):
        OnnxModel.open("missing.onnx")


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"ftrt", "a plan of TensorRT"),
        (b"vtrt", "a plan of TensorRT-RTX"),
        (b"PK\x03\x04", "a zip archive, such as a saved engine of cuSPARSELt"),
    ],
)
@pytest.mark.parametrize("rest", [b"", bytes(100)], ids=["alone", "and more"])
def test_what_was_made_from_a_model_is_called_by_its_name(tmp_path, head, what, rest):
    path = tmp_path / "model.onnx"
    path.write_bytes(head + rest)
    for source, where in ((path, path), (head + rest, "bytes")):
        with pytest.raises(ModelError) as caught:
            OnnxModel.open(source)
        assert str(caught.value) == (
            f"this is {what}, not an ONNX model\n  where: {where}\n  to fix: give the ONNX model it was made from"
        )


EXPORT = "export the PyTorch model to ONNX first: torch.onnx.export"
ANOTHER = "give a file written by an ONNX exporter"


@pytest.mark.parametrize(
    ("head", "what", "fix"),
    [
        (b"PK\x03\x04" + bytes(26) + b"archive/data.pkl", "a zip archive, such as a checkpoint of PyTorch", EXPORT),
        (b"PK\x03\x04" + bytes(26) + b"model/data/0", "a zip archive, such as a checkpoint of PyTorch", EXPORT),
        (b"\x80\x02\x8a\nl\xfc", "a pickle, such as an old checkpoint of PyTorch", EXPORT),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer", "fetch the file itself: git lfs pull"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image", ANOTHER),
        (b"\xff\xd8\xff\xe0", "a JPEG image", ANOTHER),
        (b"\x7fELF\x02", "a program or shared library", ANOTHER),
        (b"\x89HDF\r\n", "an HDF5 file", ANOTHER),
        (b"\x1f\x8b\x08", "a gzip archive", "unpack it"),
        (b'{"a": 1}', "JSON text", ANOTHER),
        (b"<!DOCTYPE html>", "XML or HTML text", ANOTHER),
    ],
)
def test_another_file_is_called_what_it_looks_like(head, what, fix):
    for data in (head, head + bytes(300)):
        with pytest.raises(ModelError) as caught:
            OnnxModel.open(data)
        assert str(caught.value) == f"this is {what}, not an ONNX model\n  where: bytes\n  to fix: {fix}"


@pytest.mark.parametrize("kind", ["no nodes", "no opset", "no graph", "nothing"])
def test_protobuf_that_is_no_model_is_refused(kind):
    proto = matmul(random(8, 4))
    if kind == "no nodes":
        del proto.graph.node[:]
    elif kind == "no opset":
        del proto.opset_import[:]
    elif kind == "no graph":
        proto.ClearField("graph")
    with pytest.raises(ModelError) as caught:
        OnnxModel.open(b"" if kind == "nothing" else proto.SerializeToString())
    assert str(caught.value) == (
        "not an ONNX model\n  where: bytes\n  got: no graph with nodes and opset imports\n"
        "  to fix: give a file written by an ONNX exporter"
    )


def test_graphs_nested_without_end_are_refused():
    from trtsparse.files.protobuf import encode_field

    graph = b""
    for _ in range(2000):
        graph = encode_field(1, encode_field(5, encode_field(6, graph)))
    with pytest.raises(ModelError) as caught:
        OnnxModel.open(encode_field(7, graph))
    assert str(caught.value) == "the model's graphs are nested too deeply\n  where: bytes"


def external_case(folder, **entries):
    proto = matmul(random(8, 4))
    data = proto.graph.initializer[0].raw_data
    for place in (folder / "model", folder):
        place.mkdir(exist_ok=True)
        (place / "w.bin").write_bytes(data)
        (place / "short.bin").write_bytes(data[:100])
    (folder / "model/link.bin").symlink_to(folder / "w.bin")
    (folder / "model/inner.bin").symlink_to(folder / "model/w.bin")
    (folder / "model/sub").mkdir()
    point_to(proto.graph.initializer[0], **entries)
    path = folder / "model/model.onnx"
    path.write_bytes(proto.SerializeToString())
    opened = OnnxModel.open(path)
    return opened, lambda: opened.array(opened.proto.graph.initializer[0])


OUTSIDE = (
    "external data lies outside the model's folder\n  where: file {location!r} of {model}\n  got: {shown}\n"
    "  expected: a relative path below the model's folder, not through a symbolic link that leaves it\n"
    "  to fix: move the data file beside the model and save the model again"
)


@pytest.mark.parametrize(
    "location", ["../w.bin", "sub/../w.bin", "/etc/passwd", "link.bin", "", "..", "sub/../../w.bin"]
)
def test_external_data_outside_the_folder_are_refused(tmp_path, location):
    opened, read = external_case(tmp_path, location=location)
    with pytest.raises(ExternalDataError) as caught:
        read()
    shown = location or "an empty location"
    assert str(caught.value) == OUTSIDE.format(location=location, model=opened.name, shown=shown)


def test_a_symbolic_link_inside_the_folder_is_followed(tmp_path):
    _, read = external_case(tmp_path, location="inner.bin")
    assert np.array_equal(read(), random(8, 4))


def cache_of_links(folder):
    """A model and its data file, both links into a folder of blobs, as a cache of downloads keeps them."""
    snapshot, blobs = folder / "snapshots/rev/onnx", folder / "blobs"
    for place in (snapshot, blobs):
        place.mkdir(parents=True)
    path = save_external(matmul(random(8, 4)), blobs / "model.onnx", w="model.onnx_data")
    for name, blob in ((path.name, "a"), ("model.onnx_data", "b")):
        (blobs / name).rename(blobs / blob)
        (snapshot / name).symlink_to(f"../../../blobs/{blob}")
    return snapshot / path.name


def test_links_to_a_model_and_data_files_beside_it_are_followed(tmp_path):
    path = cache_of_links(tmp_path)
    opened = OnnxModel.open(path)
    assert arrays(opened)["w"].tobytes() == random(8, 4).tobytes()
    blobs = contents(tmp_path / "blobs")
    with opened.copying(path) as copy, copy.edit(next(copy.refs())) as values:
        values[...] = 0
    assert not arrays(OnnxModel.open(path))["w"].any()
    assert contents(tmp_path / "blobs") == blobs


def test_a_link_of_such_a_cache_that_leaves_it_is_refused(tmp_path):
    path = cache_of_links(tmp_path)
    (tmp_path / "secret").write_bytes(bytes(128))
    link = path.with_name("model.onnx_data")
    link.unlink()
    link.symlink_to(tmp_path / "secret")
    opened = OnnxModel.open(path)
    with pytest.raises(ExternalDataError) as caught:
        arrays(opened)
    assert str(caught.value) == OUTSIDE.format(location=link.name, model=path, shown=link.name)


@pytest.mark.parametrize("location", ["no.bin", "sub", "w.bin/below", "."])
def test_external_data_that_are_missing_are_named(tmp_path, location):
    opened, read = external_case(tmp_path, location=location)
    with pytest.raises(ExternalDataError) as caught:
        read()
    assert str(caught.value) == (
        f"an external data file is missing\n  where: file {location!r} of {opened.name}\n"
        f"  got: {opened.folder / location}\n  to fix: copy the data file beside the model"
    )


@pytest.mark.parametrize(
    ("location", "offset", "available", "needed"),
    [("short.bin", 0, 100, 128), ("w.bin", 1, 128, 129), ("w.bin", 2**62, 128, 2**62 + 128)],
)
def test_external_data_that_are_too_short_are_named(tmp_path, location, offset, available, needed):
    opened, read = external_case(tmp_path, location=location, offset=offset, length=128)
    with pytest.raises(ExternalDataError) as caught:
        read()
    assert str(caught.value) == (
        f"an external data file is too short\n  where: tensor 'w' in {opened.name}, file {location!r}\n"
        f"  got: {available} bytes\n  expected: at least {needed} bytes\n"
        "  to fix: copy or export the model's data file again"
    )


@pytest.mark.parametrize("entries", [{"offset": "x"}, {"length": "1.5"}, {"offset": "9" * 5000}])
def test_external_offsets_that_are_no_numbers_are_refused(tmp_path, entries):
    _, read = external_case(tmp_path, location="w.bin", **entries)
    with pytest.raises(ExternalDataError, match=r"^external data has a bad offset or length"):
        read()


@pytest.mark.parametrize("entries", [{"offset": -8}, {"length": -128}])
def test_negative_offsets_and_lengths_are_refused(tmp_path, entries):
    _, read = external_case(tmp_path, location="w.bin", **entries)
    with pytest.raises(ExternalDataError, match=r"^an external data file is too short"):
        read()


def test_a_length_that_is_not_the_tensors_is_refused(tmp_path):
    _, read = external_case(tmp_path, location="w.bin", length=100)
    with pytest.raises(ModelError, match=r"^a tensor's dims and data disagree"):
        read()


@pytest.mark.parametrize("location", ["a\0b", "n" * 300])
def test_external_names_that_no_file_can_have_are_refused(tmp_path, location):
    _, read = external_case(tmp_path, location=location)
    with pytest.raises(ExternalDataError) as caught:
        read()
    assert caught.value.what == "external data has a name that no file can have"


def test_external_names_that_are_not_text_are_refused(tmp_path):
    opened, _ = external_case(tmp_path, location="w.bin")
    data = opened.path.read_bytes().replace(b"w.bin", b"w\xff\xfein")
    opened.path.write_bytes(data)
    damaged = OnnxModel.open(opened.path)
    with pytest.raises(ExternalDataError, match=r"^an external data file is missing"):
        damaged.array(damaged.proto.graph.initializer[0])


def test_a_model_in_memory_has_no_external_files():
    proto = matmul(random(8, 4))
    point_to(proto.graph.initializer[0], location="w.bin")
    opened = OnnxModel.open(proto)
    with pytest.raises(ExternalDataError) as caught:
        opened.array(opened.proto.graph.initializer[0])
    assert str(caught.value) == (
        "the model's weights are in a file that cannot be found from a model in memory\n"
        "  where: file 'w.bin' of ModelProto\n  to fix: give the model's path instead, or load it with its data"
    )


def test_external_tensors_of_a_functions_defaults_are_copied_too(tmp_path):
    default = tensor("d", random(8, 8))
    point_to(default, location="default.bin", length=256)
    node = helper.make_node("Constant", [], ["w"])
    node.attribute.add(name="value", ref_attr_name="weights", type=onnx.AttributeProto.TENSOR)
    function = helper.make_function(
        "local",
        "F",
        ["a"],
        ["b"],
        [node, helper.make_node("MatMul", ["a", "w"], ["b"])],
        [helper.make_opsetid("", 21)],
        attribute_protos=[helper.make_attribute("weights", default)],
    )
    (tmp_path / "default.bin").write_bytes(random(8, 8).tobytes())
    proto = model([helper.make_node("F", ["x"], ["y"], domain="local")], functions=[function])
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "to").mkdir()
    saved = OnnxModel.open(tmp_path / "model.onnx").save(tmp_path / "to/copy.onnx")
    loaded = saved.load().functions[0].attribute_proto[0].t
    assert numpy_helper.to_array(loaded).tobytes() == random(8, 8).tobytes()


PEAK = """
import resource, sys, time
from trtsparse.sparsity.validate import validate
begin = time.perf_counter()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = validate(sys.argv[1])
print(report.compliant, report.by_parameters.total, time.perf_counter() - begin)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_weights_larger_than_memory_allows_are_judged_piece_by_piece(tmp_path):
    size, count = 1 << 28, 3  # three times one GiB of float32, all zeros: a file with holes
    nodes, names = [], ["x", "a", "b", "y"]
    initializers = []
    for i in range(count):
        nodes.append(helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]))
        initializers.append(onnx.TensorProto(name=f"w{i}", data_type=1, dims=[1 << 14, 1 << 14]))
        point_to(initializers[-1], location="zeros.bin", offset=4 * size * i, length=4 * size)
    with (tmp_path / "zeros.bin").open("wb") as file:
        file.truncate(4 * size * count)
    proto = model(nodes, initializers, inputs={"x": [1, 1 << 14]})
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    begin = time.perf_counter()
    OnnxModel.open(tmp_path / "model.onnx")
    assert time.perf_counter() - begin < 0.1
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "model.onnx")], capture_output=True, text=True, check=True
    )
    (compliant, parameters, _), (before, peak) = (line.split() for line in done.stdout.splitlines())
    assert (compliant, int(parameters)) == ("True", size * count)
    mapped = 1 << 20  # KiB: pages of one mapped tensor at a time count as resident, and may be dropped at any moment
    assert int(peak) - int(before) < mapped + (200 << 10)
