"""A reader of a repository sees a whole model or version, or none; what fails leaves nothing behind."""

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from trtsparse.errors import OutputError
from trtsparse.triton import repository
from trtsparse.triton.repository import add_model, add_version, replace_version

NAMES = ("model.py", "model.plan", "model.plan.json")


def writing(content):
    """Writes a version of three files, slowly enough to be seen."""

    def write(folder):
        for name in NAMES:
            with (folder / name).open("w") as file:
                file.write(content[: len(content) // 2])
                file.flush()
                file.write(content[len(content) // 2 :])

    return write


def listed(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@contextlib.contextmanager
def watched(folder, look):
    """Calls ``look`` all the time in another thread, as a server does that polls; what it raises is raised here."""
    done, seen = threading.Event(), []

    def watch():
        while not done.is_set():
            seen.append(look(folder))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield seen
        finally:
            done.set()
        watching.result()


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def whole_versions(folder):
    """What Triton would find in a model's folder; each version must be whole and of one piece."""
    found = {}
    for name in names(folder):
        if name.isdecimal():
            contents = {(folder / name / file).read_text() for file in NAMES}
            assert len(contents) == 1
            found[name] = contents.pop()
    return found


def test_a_model_appears_whole(tmp_path):
    place = tmp_path / "repository" / "m"
    with watched(place, lambda folder: (whole_versions(folder), (folder / "config.pbtxt").exists())) as seen:
        add_model(place, 3, "config", writing("one" * 1000))
        while not seen or not seen[-1][1]:
            pass
    assert all(versions == {} or config for versions, config in seen[:-1])
    assert listed(place) == ["3", *(f"3/{name}" for name in sorted(NAMES)), "config.pbtxt"]
    assert listed(tmp_path) == ["repository", "repository/m", *(f"repository/m/{name}" for name in listed(place))]


def test_versions_appear_whole_one_after_another(tmp_path):
    place = tmp_path / "m"
    add_model(place, 1, "old", writing("1" * 1000))
    with watched(place, whole_versions) as seen:
        for number in range(2, 12):
            assert add_version(place, None, None, writing(str(number) * 1000)) == number
    assert all({"1"} <= versions.keys() for versions in seen)
    assert (place / "config.pbtxt").read_text() == "old"
    assert add_version(place, 20, "new", writing("20")) == 20
    assert (place / "config.pbtxt").read_text() == "new"
    assert names(place) == sorted(["config.pbtxt", *(str(number) for number in (*range(1, 12), 20))])


def test_a_version_is_replaced_in_one_step(tmp_path):
    place = tmp_path / "m"
    add_model(place, 1, "config", writing("0" * 1000))
    with watched(place, lambda folder: (folder / "1").is_dir()) as seen:
        for number in range(50):
            replace_version(place, 1, None, writing(str(number) * 1000))
    assert seen
    assert all(seen)
    assert whole_versions(place) == {"1": "49" * 1000}
    assert names(place) == ["1", "config.pbtxt"]


def test_a_version_is_replaced_where_the_system_cannot_swap(tmp_path, monkeypatch):
    monkeypatch.setattr(repository.ctypes, "CDLL", lambda *_, **__: object())
    place = tmp_path / "m"
    add_model(place, 1, "config", writing("old"))
    replace_version(place, 1, "new", writing("new"))
    assert whole_versions(place) == {"1": "new"}
    assert names(place) == ["1", "config.pbtxt"]
    assert (place / "config.pbtxt").read_text() == "new"


def test_two_exports_at_once_get_two_numbers(tmp_path):
    place = tmp_path / "m"
    add_model(place, 1, "config", writing("1"))
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda n: add_version(place, None, None, writing(str(n))), range(24)))
    assert sorted(numbers) == list(range(2, 26))


def test_two_exports_of_one_number_leave_the_first(tmp_path):
    place = tmp_path / "m"
    add_model(place, 1, "config", writing("first"))
    with pytest.raises(OutputError) as caught:
        add_version(place, 1, None, writing("second"))
    assert str(caught.value) == (
        f"cannot write the model into the repository\n  where: {place}\n  got: Directory not empty\n"
        "  to fix: give a repository in a writable place with enough space"
    )
    assert whole_versions(place) == {"1": "first"}


@pytest.mark.parametrize(
    "change",
    [
        lambda place, write: add_model(place.parent / "other", 1, "config", write),
        lambda place, write: add_version(place, None, "new", write),
        lambda place, write: replace_version(place, 1, "new", write),
    ],
    ids=["model", "version", "replacement"],
)
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"]
)
def test_what_fails_leaves_everything_as_it_was(tmp_path, change, error):
    place = tmp_path / "repository" / "m"
    add_model(place, 1, "config", writing("1"))
    before = listed(tmp_path)

    def failing(folder):
        (folder / "model.plan").write_text("half")
        raise error

    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        change(place, failing)
    if isinstance(error, OSError):
        assert "got: No space left on device" in str(caught.value)
    assert listed(tmp_path) == before
    assert (place / "config.pbtxt").read_text() == "config"


def test_a_repository_that_was_made_for_nothing_is_removed(tmp_path):
    def failing(_folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError):
        add_model(tmp_path / "new" / "repository" / "m", 1, "config", failing)
    assert listed(tmp_path) == []


def test_a_new_model_is_prepared_inside_the_repository_where_it_cannot_be_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(repository.os, "access", lambda *_: False)
    place = tmp_path / "repository" / "m"
    seen = []
    write = writing("1")

    def looking(folder):
        seen.append((folder.parent.parent, (folder.parent / "config.pbtxt").read_text()))
        write(folder)

    add_model(place, 1, "config", looking)
    assert seen == [(tmp_path / "repository", "config")]  # its name is in the configuration: Triton refuses it
    assert names(tmp_path / "repository") == ["m"]


def test_files_are_readable_as_the_umask_says(tmp_path):
    old = os.umask(0o022)
    try:
        add_model(tmp_path / "m", 1, "config", writing("1"))
    finally:
        os.umask(old)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "m" / "1").stat().st_mode & 0o777 == 0o755
