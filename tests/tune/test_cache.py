import json
import multiprocessing
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tune import results
from trtsparse.errors import OutputError
from trtsparse.tune.cache import SCHEMA, Cache, CacheWarning, default_path
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.lessons import Lessons

LEARNED = st.dictionaries(results.texts, results.lessons, max_size=2)
H100 = {"gpu": "NVIDIA H100", "driver": "580.1", "cusparselt": "0.8.0"}


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "folder" / "tune.json")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(results.facts, st.lists(results.results, max_size=3), LEARNED), max_size=4))
def test_what_was_added_is_found_under_its_device(tmp_path, additions):
    path = tmp_path / "tune.json"
    path.unlink(missing_ok=True)
    cache, wanted = Cache(path), {}
    for facts, added, lessons in additions:
        cache.add(facts, added, lessons)
        known = wanted.setdefault(tuple(sorted(facts.items())), ({}, {}))
        known[0].update({result.gemm: result for result in added})
        for types, learned in lessons.items():
            known[1].setdefault(types, Lessons()).merge(learned)
    for key, (found, learned) in wanted.items():
        known = cache.load(dict(key))
        assert known.results == found
        assert known.lessons == learned


def test_an_empty_cache_needs_no_file(cache):
    assert cache.load(H100).results == {}
    assert not cache.path.parent.exists()


def test_another_driver_or_library_is_another_device(cache):
    cache.add(H100, [results.result(Gemm(8, 8, 8))])
    assert Gemm(8, 8, 8) in cache.load(H100).results
    assert cache.load({**H100, "cusparselt": "0.8.1"}).results == {}
    assert cache.load({**H100, "driver": "590.1"}).results == {}


def test_a_newer_result_takes_the_place_of_an_older_one(cache):
    cache.add(H100, [results.result(Gemm(8, 8, 8), 2.0)])
    cache.add(H100, [results.result(Gemm(8, 8, 8), 4.0)])
    assert cache.load(H100).results[Gemm(8, 8, 8)].dense.ms == 4.0


def test_the_file_has_a_schema_and_one_product_a_line(cache):
    cache.add(H100, [results.result(Gemm(8 * at, 8, 8)) for at in (1, 2)], {"bf16->bf16": Lessons({"k": "w"}, {"f"})})
    text = cache.path.read_text()
    document = json.loads(text)
    assert document["schema"] == SCHEMA == "trtsparse.tune-cache/2"
    assert document["devices"][0]["facts"] == H100
    assert document["devices"][0]["lessons"] == {"bf16->bf16": {"killers": {"k": "w"}, "refused": ["f"]}}
    assert [line.startswith('{"gemm": ') for line in text.splitlines()].count(True) == 2


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        (b"{", "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"\xff\xfe\x00", None),
        (b"[]", "TypeError: list indices must be integers or slices, not str"),
        (b'{"schema": "trtsparse.tune-cache/0", "devices": []}', "its schema is 'trtsparse.tune-cache/0'"),
        (b'{"schema": "trtsparse.tune-cache/2"}', "KeyError: 'devices'"),
        (b'{"schema": "trtsparse.tune-cache/2", "devices": [1]}', "TypeError: 'int' object is not subscriptable"),
        (
            b'{"schema": "trtsparse.tune-cache/2", "devices": [{"facts": 0, "results": [{"gemm": {"m": 0}}]}]}',
            "AttributeError: 'int' object has no attribute 'items'",
        ),
        (b"[" * 100_000, None),
    ],
)
def test_a_damaged_file_is_told_and_written_anew(cache, content, what):
    cache.path.parent.mkdir()
    cache.path.write_bytes(content)
    with pytest.warns(CacheWarning) as told:
        assert cache.load(H100).results == {}
    text = str(told[0].message)
    assert text.startswith(f"the cache {cache.path} is damaged or of another version (")
    assert text.endswith("): it is ignored and written anew")
    assert what is None or f"({what})" in text
    assert told[0].filename == __file__
    with pytest.warns(CacheWarning):
        cache.add(H100, [results.result(Gemm(8, 8, 8))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(cache.load(H100).results) == {Gemm(8, 8, 8)}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_that_was_cut_off_or_changed_never_raises(tmp_path, data):
    cache = Cache(tmp_path / "tune.json")
    cache.path.unlink(missing_ok=True)
    cache.add(H100, [results.result(Gemm(8, 8, 8))])
    content = bytearray(cache.path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:at]
    else:
        content[at] = data.draw(st.integers(0, 255))
    cache.path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        cache.load(H100)
        cache.add(H100, [results.result(Gemm(16, 8, 8))])
    assert Gemm(16, 8, 8) in cache.load(H100).results


def add_some(path, number):
    cache = Cache(path)
    for at in range(5):
        cache.add(H100, [results.result(Gemm(number + 1, at + 1, 8))])


def test_processes_that_write_at_the_same_time_lose_nothing(cache):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_some, args=(cache.path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(cache.load(H100).results) == 15
    assert sorted(path.name for path in cache.path.parent.iterdir()) == ["tune.json", "tune.json.lock"]


def test_the_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == Cache().path == tmp_path / "trtsparse" / "tune.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path / "home")
    assert default_path() == tmp_path / "home" / ".cache" / "trtsparse" / "tune.json"


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "tune.json")
    with pytest.raises(OutputError) as caught:
        cache.add(H100, [])
    assert str(caught.value) == (f"cannot make the cache folder\n  where: {tmp_path / 'file'}\n  got: File exists")


def test_a_cache_that_cannot_be_locked_is_an_output_error(tmp_path):
    lock = tmp_path / "tune.json.lock"
    lock.mkdir()
    with pytest.raises(OutputError) as caught:
        Cache(tmp_path / "tune.json").add(H100, [])
    assert str(caught.value) == f"cannot lock the cache\n  where: {lock}\n  got: Is a directory"


def test_a_cache_that_is_a_folder_counts_as_empty(tmp_path):
    with pytest.warns(CacheWarning, match=r"the cache .* cannot be read: Is a directory"):
        assert Cache(tmp_path).load(H100).results == {}
