"""Saving models: every byte, whole or not at all, and never over what belongs to another one."""

import threading

import onnx
import pytest
from onnx import helper, numpy_helper

from tests.files.external import contents, three
from tests.helpers import arrays, model, random, save_external, tensor
from trtsparse.errors import OutputError
from trtsparse.files.model import OnnxModel


def test_saving_copies_every_byte(external, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    OnnxModel.open(external).save(target / "copy.onnx")
    found = contents(target)
    found["model.onnx"] = found.pop("copy.onnx")
    assert found == contents(external.parent)


def test_saving_beside_the_source_gives_data_files_new_names(external):
    before = contents(external.parent)
    saved = OnnxModel.open(external).save(external.parent / "copy.onnx")
    after = contents(external.parent)
    assert {name: after[name] for name in before} == before
    assert sorted(set(after) - set(before)) == ["copy.onnx", "copy.onnx.1.data", "copy.onnx.data"]
    assert arrays(saved)["w2"].tobytes() == random(8, 8, seed=2).tobytes()
    proto = onnx.load(external.parent / "copy.onnx", load_external_data=False)
    locations = [entry.value for t in proto.graph.initializer for entry in t.external_data if entry.key == "location"]
    assert locations == ["copy.onnx.data", "copy.onnx.1.data", "copy.onnx.data"]


def test_a_new_name_is_never_one_that_the_model_uses(tmp_path):
    path = save_external(three(), tmp_path / "model.onnx", w1="copy.onnx.data", w2="other.bin")
    before = contents(tmp_path)
    saved = OnnxModel.open(path).save(tmp_path / "copy.onnx")
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert arrays(saved)["w1"].tobytes() == random(8, 8, seed=1).tobytes()
    assert arrays(saved)["w2"].tobytes() == random(8, 8, seed=2).tobytes()


def test_a_copy_in_memory_saved_beside_its_source_leaves_the_source_alone(external):
    before = contents(external.parent)
    with OnnxModel.open(external).copying(None) as copy:
        ref = next(iter(copy.refs()))
        with copy.edit(ref) as values:
            values[...] = 0
    copy.save(external.parent / "copy.onnx")
    after = contents(external.parent)
    assert {name: after[name] for name in before} == before
    assert not arrays(OnnxModel.open(external.parent / "copy.onnx"))["w1"].any()


def test_the_models_own_data_file_is_never_replaced_by_the_model(external):
    before = contents(external.parent)
    target = external.parent / "one.bin"
    with pytest.raises(OutputError) as caught:
        OnnxModel.open(external).save(target)
    assert str(caught.value) == (
        f"the output would replace the model's own data file\n  where: {target}\n"
        "  to fix: give another path, or the model's own to replace both"
    )
    assert contents(external.parent) == before


@pytest.fixture
def two(tmp_path):
    """Models of two folders whose data files have the same name, as exporters give it."""
    paths = []
    for i, name in enumerate(("bert", "vit")):
        (tmp_path / name).mkdir()
        weights = tensor("w", random(8, 8, seed=i))
        proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [weights])
        paths.append(save_external(proto, tmp_path / name / "model.onnx", w="model.onnx_data"))
    (tmp_path / "out").mkdir()
    return paths


def weight(path):
    return arrays(OnnxModel.open(path))["w"].tobytes()


def test_the_data_file_of_another_model_beside_the_target_stays(two, tmp_path):
    bert, vit, out = *two, tmp_path / "out"
    for source in two:
        OnnxModel.open(source).save(out / f"{source.parent.name}.onnx")
    assert (weight(out / "bert.onnx"), weight(out / "vit.onnx")) == (weight(bert), weight(vit))
    assert sorted(contents(out)) == ["bert.onnx", "model.onnx_data", "vit.onnx", "vit.onnx.data"]


def test_data_files_of_the_replaced_model_are_replaced_too(two, tmp_path):
    bert, vit, out = *two, tmp_path / "out"
    for target in ("a.onnx", "b.onnx", "a.onnx", "b.onnx"):
        OnnxModel.open(bert).save(out / target)
    OnnxModel.open(vit).save(out / "b.onnx")
    assert (weight(out / "a.onnx"), weight(out / "b.onnx")) == (weight(bert), weight(vit))
    assert sorted(contents(out)) == ["a.onnx", "b.onnx", "b.onnx.data", "model.onnx_data"]


def test_a_file_that_is_no_models_stays(two, tmp_path):
    out = tmp_path / "out"
    others = {"bert.onnx.data": b"old", "model.onnx_data": b"other"}
    for name, data in others.items():
        (out / name).write_bytes(data)
    (out / "bert.onnx").write_bytes(b"not a model")
    OnnxModel.open(two[0]).save(out / "bert.onnx")
    assert weight(out / "bert.onnx") == weight(two[0])
    assert {name: data for name, data in contents(out).items() if name in others} == others
    assert (out / "bert.onnx.1.data").exists()


def test_a_link_in_the_data_files_place_stays(two, tmp_path):
    link = tmp_path / "out/model.onnx_data"
    link.symlink_to("not-there")
    OnnxModel.open(two[0]).save(tmp_path / "out/bert.onnx")
    assert weight(tmp_path / "out/bert.onnx") == weight(two[0])
    assert link.is_symlink()


def test_a_model_may_be_called_as_its_data_file_was(two, tmp_path):
    OnnxModel.open(two[0]).save(tmp_path / "out/model.onnx_data")
    assert weight(tmp_path / "out/model.onnx_data") == weight(two[0])
    assert sorted(contents(tmp_path / "out")) == ["model.onnx_data", "model.onnx_data.data"]


def test_a_target_that_shares_the_sources_data_gets_its_own(two):
    bert, _ = two
    sibling = bert.with_name("sparse.onnx")
    sibling.write_bytes(bert.read_bytes())
    before = (bert.parent / "model.onnx_data").read_bytes()
    with OnnxModel.open(bert).copying(sibling) as copy, copy.edit(next(copy.refs())) as values:
        values[...] = 0
    assert (bert.parent / "model.onnx_data").read_bytes() == before
    assert not any(weight(sibling))


def test_a_model_that_replaces_itself_keeps_the_names_of_its_data_files(external):
    before = contents(external.parent)
    with OnnxModel.open(external).copying(external) as copy, copy.edit(next(copy.refs())) as values:
        values[...] = 0
    assert sorted(contents(external.parent)) == sorted(before)
    assert not arrays(OnnxModel.open(external))["w1"].any()


def test_a_link_to_the_model_is_replaced_without_the_data_of_others(two, tmp_path):
    bert, _ = two
    link = tmp_path / "out/link.onnx"
    link.symlink_to(bert)
    (tmp_path / "out/model.onnx_data").write_bytes(b"other")
    OnnxModel.open(bert).save(link)
    assert weight(link) == weight(bert)
    assert (tmp_path / "out/model.onnx_data").read_bytes() == b"other"


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_link_beside_the_model_is_replaced_without_its_data(two, link):
    bert, _ = two
    other, before = bert.with_name("other.onnx"), weight(bert)
    getattr(other, link)(bert)
    with OnnxModel.open(bert).copying(other) as copy, copy.edit(next(copy.refs())) as values:
        values[...] = 0
    assert weight(bert) == before
    assert not any(weight(other))


@pytest.mark.parametrize("name", ["there/../model.onnx", "linked/model.onnx"])
def test_a_model_under_another_path_is_replaced_with_its_data(two, name):
    folder = two[0].parent
    (folder / "there").mkdir()
    (folder / "linked").symlink_to(folder)
    with OnnxModel.open(two[0]).copying(folder / name) as copy, copy.edit(next(copy.refs())) as values:
        values[...] = 0
    assert not any(weight(two[0]))
    assert sorted(path.name for path in folder.iterdir()) == ["linked", "model.onnx", "model.onnx_data", "there"]


def test_a_data_file_reached_through_a_linked_folder_too_loses_nothing_in_place(tmp_path):
    (tmp_path / "linked").symlink_to("sub")
    path = two_spellings(tmp_path, "linked/w.bin")
    with OnnxModel.open(path).copying(path) as copy:
        for ref in copy.refs():
            with copy.edit(ref) as values:
                values[...] = 0
    found = arrays(OnnxModel.open(path))
    assert not found["w1"].any()
    assert not found["w2"].any()


def test_models_saved_at_once_into_one_folder_keep_apart(two, tmp_path):
    failures = []

    def save(i, source, barrier):
        target = tmp_path / f"out/{i}.onnx"
        try:
            barrier.wait()
            OnnxModel.open(source).save(target)
        except Exception as error:  # noqa: BLE001  # told by the test
            failures.append(error)

    for _ in range(10):
        barrier = threading.Barrier(4)
        sources = dict(enumerate([*two, *two]))
        threads = [threading.Thread(target=save, args=(i, source, barrier)) for i, source in sources.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert all(weight(tmp_path / f"out/{i}.onnx") == weight(source) for i, source in sources.items())
        for path in (tmp_path / "out").iterdir():
            path.unlink()


def test_an_error_while_copying_leaves_the_old_model_and_its_data(two, tmp_path):
    out = tmp_path / "out"
    OnnxModel.open(two[0]).save(out / "bert.onnx")
    before = contents(out)

    def fail(target):
        with OnnxModel.open(two[1]).copying(target) as copy, copy.edit(next(copy.refs())):
            raise ZeroDivisionError

    for name in ("bert.onnx", "vit.onnx"):
        with pytest.raises(ZeroDivisionError):
            fail(out / name)
    assert contents(out) == before


def two_spellings(folder, other):
    """A model whose weights w1 and w2 are in one file under two names."""
    path = save_external(three(), folder / "model.onnx", w1="sub/w.bin", w2="sub/w.bin")
    proto = onnx.load(path, load_external_data=False)
    entry = next(entry for entry in proto.graph.initializer[1].external_data if entry.key == "location")
    entry.value = other
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("other", ["./sub/w.bin", "sub//w.bin", "sub/./w.bin"])
@pytest.mark.parametrize("beside", [True, False])
def test_a_data_file_with_two_spellings_is_one_file(tmp_path, other, beside):
    (tmp_path / "to").mkdir()
    path = two_spellings(tmp_path, other)
    opened = OnnxModel.open(path)
    assert opened.external_files() == (tmp_path / "sub/w.bin",)
    target = tmp_path / "copy.onnx" if beside else tmp_path / "to/copy.onnx"
    with opened.copying(target) as copy:
        for ref in copy.refs():
            with copy.edit(ref) as values:
                values[...] = 0
    assert not any(values.any() for values in arrays(OnnxModel.open(target)).values())
    assert not any(numpy_helper.to_array(t).any() for t in onnx.load(target).graph.initializer)
    assert arrays(OnnxModel.open(path))["w2"].tobytes() == random(8, 8, seed=2).tobytes()


def test_an_error_while_copying_leaves_nothing(external, tmp_path):
    target = tmp_path / "target"
    target.mkdir()

    def fail():
        with OnnxModel.open(external).copying(target / "copy.onnx"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(target.iterdir()) == []


def test_a_missing_output_folder_is_not_made(external, tmp_path):
    with pytest.raises(OutputError):
        OnnxModel.open(external).save(tmp_path / "no/such/copy.onnx")
    assert not (tmp_path / "no").exists()


def test_a_subfolder_that_cannot_be_made_is_an_output_error(external, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "sub").write_text("a file")
    with pytest.raises(OutputError):
        OnnxModel.open(external).save(target / "copy.onnx")
    assert contents(target) == {"sub": b"a file"}
