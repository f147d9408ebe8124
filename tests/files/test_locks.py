"""One holder at a time, whatever happens to the file and in the block."""

import errno
import os
import sys
import threading
import types

import pytest

from trtsparse.errors import OutputError
from trtsparse.files import atomic
from trtsparse.files.locks import locked


def enter(path):
    """A thread that waits for the lock, and an event that is set once it has it."""
    entered = threading.Event()

    def work():
        with locked(path, "the file"):
            entered.set()

    thread = threading.Thread(target=work)
    thread.start()
    return thread, entered


def test_a_second_holder_waits_until_the_block_ends(tmp_path):
    with locked(tmp_path / "file", "the file"):
        thread, entered = enter(tmp_path / "file")
        assert not entered.wait(0.1)
    assert entered.wait(10)
    thread.join()


def test_the_lock_holds_while_the_file_is_replaced(tmp_path):
    with locked(tmp_path / "file", "the file"):
        atomic.write(tmp_path / "file", "new")
        thread, entered = enter(tmp_path / "file")
        assert not entered.wait(0.1)
    assert entered.wait(10)
    thread.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "file.lock"]


def test_files_of_other_names_are_not_waited_for(tmp_path):
    with locked(tmp_path / "a", "the file"), locked(str(tmp_path / "b"), "the file"):
        pass


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_error_in_the_block_goes_through_and_frees_the_lock(tmp_path, error):
    with pytest.raises(type(error)) as caught, locked(tmp_path / "file", "the file"):
        raise error
    assert caught.value is error
    thread, entered = enter(tmp_path / "file")
    assert entered.wait(10)
    thread.join()


def test_a_lock_in_a_missing_folder_is_an_output_error(tmp_path):
    lock = tmp_path / "none" / "file.lock"
    with pytest.raises(OutputError) as caught, locked(tmp_path / "none" / "file", "the file"):
        pytest.fail("the lock was not refused")
    assert str(caught.value) == f"cannot lock the file\n  where: {lock}\n  got: No such file or directory"


def test_a_file_system_without_locks_is_an_output_error_and_leaks_nothing(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    closed = []
    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr("os.close", lambda handle, close=os.close: (closed.append(handle), close(handle)))
    with pytest.raises(OutputError) as caught, locked(tmp_path / "file", "the file"):
        pytest.fail("the lock was not refused")
    assert str(caught.value) == (
        f"cannot lock the file\n  where: {tmp_path / 'file.lock'}\n  got: No locks available"
    )
    assert len(closed) == 1


def test_windows_locks_with_its_own_call(tmp_path, monkeypatch):
    calls = []
    fake = types.SimpleNamespace(LK_LOCK=1, locking=lambda handle, mode, nbytes: calls.append((handle, mode, nbytes)))
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    with locked(tmp_path / "file", "the file"):
        ((handle, *how),) = calls
        assert os.fstat(handle).st_ino == (tmp_path / "file.lock").stat().st_ino
    assert how == [fake.LK_LOCK, 1]
