import json

import numpy as np
import pytest
from onnx import parser

import models
from trtsparse.errors import ConfigError, DtypeError, FeedError
from trtsparse.precision.feeds import FileFeeds, check_feeds, random_feeds, read_feeds

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
ONE = parser.parse_model(HEAD + "g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")
TWO = parser.parse_model(
    HEAD + "g (float[n, len] x, int32[n, len] ids, bool[n] m) => (float[n, len] y) { y = Identity(x) }"
)


def test_random_feeds_have_the_right_names_types_and_shapes():
    (feed,) = random_feeds(TWO)
    assert {name: (array.dtype.name, array.shape) for name, array in feed.items()} == {
        "x": ("float32", (1, 16)),
        "ids": ("int32", (1, 16)),
        "m": ("bool", (1,)),
    }
    assert set(np.unique(feed["ids"])) <= {0, 1}


def test_a_random_scalar_is_an_array():
    scalars = parser.parse_model(HEAD + "g (bool c, int64 n, float x) => (float y) { y = Neg(x) }")
    assert {name: (array.dtype.name, array.shape) for name, array in random_feeds(scalars)[0].items()} == {
        "c": ("bool", ()),
        "n": ("int64", ()),
        "x": ("float32", ()),
    }
    check_feeds(scalars, random_feeds(scalars))


def test_equal_seeds_give_equal_arrays_and_feeds_differ():
    first, second = random_feeds(ONE, seed=3, count=2)
    (again,) = random_feeds(ONE, seed=3)
    assert np.array_equal(first["x"], again["x"])
    assert not np.array_equal(first["x"], second["x"])


def test_an_image_of_unknown_size_is_224_pixels_wide():
    assert random_feeds(models.get("ppocr-det"))[0]["x"].shape == (1, 3, 224, 224)
    assert random_feeds(models.get("ppocr-rec"))[0]["x"].shape == (1, 3, 48, 224)


def test_a_given_shape_also_sets_dims_of_the_same_name():
    (feed,) = random_feeds(TWO, shapes={"x": (3, 5)})
    assert feed["ids"].shape == (3, 5)
    assert feed["m"].shape == (3,)


def test_a_shape_for_an_unknown_input_is_refused():
    with pytest.raises(ConfigError) as caught:
        random_feeds(ONE, shapes={"X": (1, 4)})
    assert str(caught.value) == "the model has no such input\n  where: shapes\n  got: 'X'\n  expected: 'x'"


def test_a_shape_that_contradicts_the_model_is_refused():
    with pytest.raises(ConfigError) as caught:
        random_feeds(ONE, shapes={"x": (1, 5)})
    assert str(caught.value) == (
        "a shape contradicts the model\n  where: shapes\n  got: x: (1, 5)\n  expected: x: (n, 4)"
    )


def test_two_sizes_for_dims_of_one_name_are_refused():
    with pytest.raises(ConfigError) as caught:
        random_feeds(TWO, shapes={"x": (3, 5), "m": (4,)})
    assert str(caught.value) == (
        "two dims of the same name have different sizes\n  where: shapes, input 'm', dim 0 ('n')\n  got: 4\n"
        "  expected: 3, as in input 'x', dim 0"
    )


def test_an_input_of_unknown_rank_needs_a_shape():
    proto = parser.parse_model(HEAD + "g (float[4] x) => (float y) { y = Relu(x) }")
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ConfigError) as caught:
        random_feeds(proto)
    assert str(caught.value) == (
        "the model does not say how many dims an input has\n"
        "  where: input 'x'\n"
        "  to fix: give it: shapes={'x': (1, ...)}"
    )
    assert random_feeds(proto, shapes={"x": (2, 2)})[0]["x"].shape == (2, 2)


def test_a_wrong_feed_is_named_by_its_number():
    good = {"x": np.zeros((1, 4), np.float32)}
    check_feeds(ONE, [good, good])
    with pytest.raises(DtypeError) as caught:
        check_feeds(ONE, [good, {"x": np.zeros((1, 4), np.float16)}])
    assert str(caught.value) == (
        "an array has the wrong data type\n"
        "  where: feed 1, input 'x'\n"
        "  got: float16\n"
        "  expected: float32\n"
        '  to fix: array.astype("float32")'
    )


def test_no_feeds_are_refused():
    with pytest.raises(FeedError) as caught:
        check_feeds(ONE, [])
    assert str(caught.value) == "there are no feeds"


def arrays(count):
    return [np.full((1, 4), i, np.float32) for i in range(count)]


def values_of(feeds):
    return [{name: float(array.flat[0]) for name, array in feed.items()} for feed in feeds]


def test_a_folder_of_npz_files_is_read_in_the_order_of_names(tmp_path):
    for i, array in enumerate(arrays(3)):
        np.savez(tmp_path / f"{i}.npz", x=array, z=array + 10)
    feeds = read_feeds(tmp_path)
    assert len(feeds) == 3
    assert values_of(feeds) == [{"x": i, "z": i + 10} for i in range(3)]
    assert values_of(feeds[1:]) == [{"x": 1, "z": 11}, {"x": 2, "z": 12}]


def test_a_folder_for_each_input_is_matched_by_file_names(tmp_path):
    for name, offset in (("x", 0), ("z", 10)):
        (tmp_path / name).mkdir()
        for i, array in enumerate(arrays(2)):
            np.save(tmp_path / name / f"{i}.npy", array + offset)
    assert values_of(read_feeds(tmp_path)) == [{"x": 0, "z": 10}, {"x": 1, "z": 11}]


def test_inputs_with_different_files_are_refused(tmp_path):
    for name, count in (("x", 1), ("z", 2)):
        (tmp_path / name).mkdir()
        for i, array in enumerate(arrays(count)):
            np.save(tmp_path / name / f"{i}.npy", array)
    with pytest.raises(FeedError) as caught:
        read_feeds(tmp_path)
    assert str(caught.value) == (
        "two inputs have different files\n"
        f"  where: {tmp_path}\n"
        "  got: z: 2 files (0.npy, 1.npy)\n"
        "  expected: as in x: 1 files (0.npy)"
    )


def test_a_folder_of_npy_files_is_for_the_single_input(tmp_path):
    for i, array in enumerate(arrays(2)):
        np.save(tmp_path / f"{i}.npy", array)
    assert values_of(read_feeds(tmp_path, input_name="x")) == [{"x": 0}, {"x": 1}]
    with pytest.raises(FeedError) as caught:
        read_feeds(tmp_path)
    assert str(caught.value) == (
        "it is not clear which input a .npy file is for\n"
        f"  where: {tmp_path / '0.npy'}\n"
        "  to fix: put the files into one folder for each input, <input>/*.npy, or write .npz files"
    )


def test_a_single_file_is_one_feed(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 4)))
    assert len(read_feeds(tmp_path / "a.npz")) == 1


def test_an_iterator_is_read_once_and_kept():
    feeds = read_feeds(iter([{"x": np.zeros(1)}]))
    assert len(feeds) == 1


def test_a_missing_path_is_told(tmp_path):
    path = tmp_path / "nowhere"
    with pytest.raises(FeedError) as caught:
        read_feeds(path)
    assert str(caught.value) == (
        f"there is no such file or folder\n  where: {path}\n  expected: a folder of .npz or .npy files"
    )


def test_a_folder_without_arrays_is_told(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(FeedError) as caught:
        read_feeds(tmp_path)
    assert str(caught.value) == (
        "the folder holds no arrays\n"
        f"  where: {tmp_path}\n"
        "  expected: *.npz, or <input>/*.npy, or *.npy for a single input"
    )


def test_another_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({}))
    with pytest.raises(FeedError) as caught:
        read_feeds(path)
    assert str(caught.value) == f"not a file of arrays\n  where: {path}\n  expected: a .npz or .npy file"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"garbage"])
def test_a_damaged_file_is_told_when_it_is_read(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    feeds = read_feeds(path)
    with pytest.raises(FeedError, match="the arrays cannot be read"):
        feeds[0]


def test_pickled_objects_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(FeedError, match="cannot be read"):
        FileFeeds([{"x": tmp_path / "x.npy"}])[0]


def test_an_archive_is_not_for_one_input(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros(2), z=np.zeros(3))
    with pytest.raises(FeedError) as caught:
        FileFeeds([{"x": path}])[0]
    assert str(caught.value) == (
        f"a file with several named arrays is given for one input\n  where: input 'x', {path}\n  got: 'x', 'z'\n"
        "  expected: a .npy file\n"
        '  to fix: give a .npz file for all inputs: {"": path}, or read_feeds(path)'
    )
