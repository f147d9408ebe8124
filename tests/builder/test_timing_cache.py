import threading
import types

import pytest

from tests.doubles import installed
from trtsparse.builder import timing_cache
from trtsparse.builder.build import build
from trtsparse.builder.config import BuildConfig, BuildWarning
from trtsparse.builder.logs import Log, collecting
from trtsparse.errors import OutputError


class Cache:
    """A cache that holds a set of entries, as bytes separated by commas."""

    def __init__(self, data):
        self.entries = set(bytes(data).split(b",")) - {b""}

    def combine(self, other, *, ignore_mismatch):
        assert not ignore_mismatch
        self.entries |= other.entries
        return True

    def serialize(self):
        return b",".join(sorted(self.entries))


class Config:
    """The part of an IBuilderConfig that a timing cache needs; ``problem`` is how damage shows."""

    def __init__(self, log=None, problem=None):
        self.log, self.problem, self.cache = log, problem, None

    def create_timing_cache(self, data):
        if data.startswith(b"garbage"):
            if self.problem == "none":
                return None
            if self.problem == "raises":
                raise RuntimeError("bad cache")
            if self.problem == "warns":
                self.log.messages.append(("WARNING", "Failed to deserialize timing cache."))
        return Cache(data)

    def set_timing_cache(self, cache, *, ignore_mismatch):
        assert not ignore_mismatch
        if self.problem == "mismatch" and b"garbage" in cache.entries:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


def test_timings_survive_from_build_to_build(tmp_path):
    path = tmp_path / "t.cache"
    for kernel in (b"a", b"b"):
        config = Config()
        timing_cache.attach(config, path, Log(), pytest.fail)
        config.cache.entries.add(kernel)
        timing_cache.update(config, path, Log())
    assert path.read_bytes() == b"a,b"


def test_what_another_process_measured_meanwhile_is_kept(tmp_path):
    path = tmp_path / "t.cache"
    config = Config()
    timing_cache.attach(config, path, Log(), pytest.fail)
    config.cache.entries.add(b"mine")
    path.write_bytes(b"theirs")
    timing_cache.update(config, path, Log())
    assert path.read_bytes() == b"mine,theirs"


@pytest.mark.parametrize("problem", ["none", "raises", "warns", "mismatch"])
def test_a_damaged_cache_is_ignored_with_a_warning_and_written_anew(tmp_path, problem):
    path = tmp_path / "t.cache"
    path.write_bytes(b"garbage")
    log, warned = Log(), []
    config = Config(log, problem)
    timing_cache.attach(config, path, log, warned.append)
    assert warned == [
        f"the timing cache {path} is damaged or of another version or GPU: it is ignored and written anew"
    ]
    config.cache.entries.add(b"a")
    config.problem = "none"
    timing_cache.update(config, path, log)
    assert path.read_bytes() == b"a"


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_the_real_library_tells_garbage_from_a_cache(rtx, tmp_path):
    path = tmp_path / "t.cache"
    path.write_bytes(b"garbage" * 100)
    warned = []
    with collecting(rtx) as (logger, log):
        builder = rtx.Builder(logger)
        timing_cache.attach(builder.create_builder_config(), path, log, warned.append)
    assert len(warned) == 1


def test_writers_wait_for_each_other(tmp_path):
    path = tmp_path / "t.cache"

    def work(name):
        config = Config()
        timing_cache.attach(config, path, Log(), pytest.fail)
        config.cache.entries.add(name)
        timing_cache.update(config, path, Log())

    threads = [threading.Thread(target=work, args=(b"%d" % n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(path.read_bytes().split(b",")) == {b"%d" % n for n in range(8)}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["t.cache", "t.cache.lock"]


def test_a_cache_in_a_missing_folder_is_an_output_error(tmp_path):
    config = types.SimpleNamespace(get_timing_cache=lambda: Cache(b""))
    with pytest.raises(OutputError) as error:
        timing_cache.update(config, tmp_path / "none" / "t.cache", Log())
    lock = tmp_path / "none" / "t.cache.lock"
    assert str(error.value) == f"cannot lock the timing cache\n  where: {lock}\n  got: No such file or directory"


def test_a_build_reads_and_writes_the_file(tmp_path, relu):
    path = tmp_path / "t.cache"
    path.write_bytes(b"timings")
    with installed("10.13.3") as trt:
        build(relu, BuildConfig(timing_cache=path))
        given = [call.args for call in trt.calls if call.method == "IBuilderConfig.create_timing_cache"]
    assert given[0] == ("<7 bytes>",)
    assert path.read_bytes() == b"timings"


def test_rtx_times_nothing_and_says_so(tmp_path, relu, rtx):
    path = tmp_path / "t.cache"
    with pytest.warns(BuildWarning) as caught:
        report = build(relu, BuildConfig(timing_cache=path, flavour="tensorrt_rtx")).report
    text = f"TensorRT-RTX {rtx.__version__} times no kernels while building: the timing cache is left as it is"
    assert [str(w.message) for w in caught] == [text] == list(report.warnings)
    assert not path.exists()


def test_a_cache_that_cannot_be_written_does_not_cost_the_build(tmp_path, relu):
    path = tmp_path / "none" / "t.cache"
    with installed("10.13.3"), pytest.warns(BuildWarning) as caught:
        engine = build(relu, BuildConfig(timing_cache=path))
    text = f"the timing cache {path} was not written: No such file or directory"
    assert [str(w.message) for w in caught] == [text] == list(engine.report.warnings)
    assert engine.plan
