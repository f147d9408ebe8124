"""Files appear whole or not at all."""

import errno
import os
import stat
import threading

import pytest

from trtsparse.errors import ModelNotFoundError, OutputError
from trtsparse.files import atomic

FIX = "  to fix: give a path in an existing, writable folder with enough space"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("data", ["text: \u00e4", b"bytes", bytearray(b"array"), memoryview(b"view"), b""])
def test_data_are_written_whole(tmp_path, data):
    atomic.write(tmp_path / "file", data)
    assert contents(tmp_path) == {"file": data.encode() if isinstance(data, str) else bytes(data)}


def test_an_error_in_the_block_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("old")

    def fail():
        with atomic.replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert contents(tmp_path) == {"file": b"old"}


def test_the_old_file_stays_until_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path
    assert contents(tmp_path) == {"file": b"new"}


def test_files_that_belong_together_are_all_written_before_one_is_replaced(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("old")

    def fail():
        with atomic.replacing_all([first, second]) as (one, two):
            one.write_text("new")
            two.write_text("new")
            two.unlink()

    with pytest.raises(OutputError):
        fail()
    assert contents(tmp_path) == {"first": b"old"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (atomic.Path, "replace")), full)
    with pytest.raises(OutputError) as caught:
        atomic.write(path, "new")
    assert str(caught.value) == f"cannot write the file\n  where: {path}\n  got: No space left on device\n{FIX}"
    assert contents(tmp_path) == {"file": b"old"}


def test_a_disk_that_fills_up_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with atomic.replacing(path) as temporary:
            temporary.write_text("ha")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        fail()
    assert contents(tmp_path) == {"file": b"old"}


def test_permissions_of_the_old_file_are_kept(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o640)
    atomic.write(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_new_file_has_the_permissions_that_open_gives(tmp_path):
    with (tmp_path / "plain").open("w"):
        pass
    atomic.write(tmp_path / "file", "new")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["no/such/folder/file", "file/below", "."])
def test_a_path_that_cannot_be_written_is_an_output_error(tmp_path, name):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OutputError) as caught:
        atomic.write(tmp_path / name, "new")
    message = str(caught.value).splitlines()
    assert message[0] == "cannot write the file"
    assert message[1] == f"  where: {tmp_path / name}"
    assert message[3] == FIX
    assert contents(tmp_path) == {"file": b"old"}


def test_a_name_with_a_nul_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="a file name cannot have a NUL"):
        atomic.write(f"{tmp_path}/a\0b", "new")
    assert contents(tmp_path) == {}


def test_the_longest_name_that_a_file_can_have_is_written(tmp_path):
    atomic.write(tmp_path / ("n" * 255), "new")
    assert contents(tmp_path) == {"n" * 255: b"new"}


def test_errors_about_input_are_not_called_output_errors(tmp_path):
    def fail():
        with atomic.replacing(tmp_path / "file"):
            raise ModelNotFoundError("there is no such file", where="input.onnx")

    with pytest.raises(ModelNotFoundError):
        fail()


def test_folders_are_made_and_removed_again_after_an_error(tmp_path):
    (tmp_path / "there").mkdir()

    def fail():
        with atomic.folders([tmp_path / "there", tmp_path / "a/b", tmp_path / "a/c"], beside=tmp_path / "file"):
            assert (tmp_path / "a/b").is_dir()
            assert (tmp_path / "a/c").is_dir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_folders_below_a_file_are_an_output_error(tmp_path):
    (tmp_path / "file").write_text("old")

    def fail():
        with atomic.folders([tmp_path / "file/below"], beside=tmp_path / "file"):
            pass

    with pytest.raises(OutputError, match="cannot write the file"):
        fail()


def test_a_folder_that_another_makes_meanwhile_is_used_and_stays(tmp_path, monkeypatch):
    make = atomic.Path.mkdir

    def late(path):
        make(path)
        make(path)

    def fail():
        with atomic.folders([tmp_path / "a/b"], beside=tmp_path / "file"):
            assert (tmp_path / "a/b").is_dir()
            raise ZeroDivisionError

    monkeypatch.setattr(atomic.Path, "mkdir", late)
    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "a/b").is_dir()


def test_folders_may_be_made_at_once(tmp_path):
    failures = []

    def make(name, barrier):
        barrier.wait()
        try:
            with atomic.folders([tmp_path / name / "b/c"], beside=tmp_path / "file"):
                assert (tmp_path / name / "b/c").is_dir()
        except OutputError as error:
            failures.append(error)

    for i in range(50):
        barrier = threading.Barrier(4)
        threads = [threading.Thread(target=make, args=(str(i), barrier)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_a_free_name_is_claimed_and_given_back_after_an_error(tmp_path):
    path = tmp_path / "name"

    def fail():
        with atomic.claimed(path) as first, atomic.claimed(path) as second:
            assert (first, second) == (True, False)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert contents(tmp_path) == {}
    with atomic.claimed(path):
        pass
    assert contents(tmp_path) == {"name": b""}


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_name_that_something_has_is_not_claimed(tmp_path, kind):
    path = tmp_path / "name"
    {
        "file": lambda: path.write_text("old"),
        "folder": path.mkdir,
        "link": lambda: path.symlink_to("nothing"),
    }[kind]()

    def fail():
        with atomic.claimed(path) as free:
            assert not free
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [found.name for found in tmp_path.iterdir()] == ["name"]


def test_a_name_in_a_missing_folder_is_an_output_error(tmp_path):
    def claim():
        with atomic.claimed(tmp_path / "no/name"):
            pass

    with pytest.raises(OutputError, match="cannot write the file"):
        claim()
