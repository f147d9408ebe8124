import asyncio
import sys
import threading

import numpy as np
import pytest
from onnx import parser

import models
from models import packaged
from tests.doubles.bindings import installed_bindings, make_runtime
from tests.doubles.cuda import MemoryCuda
from trtsparse.engines.base import TensorSpec
from trtsparse.errors import (
    ConfigError,
    DeviceError,
    DtypeError,
    EngineError,
    FeedError,
    MissingDependencyError,
    ShapeError,
)
from trtsparse.runtime.options import SessionOptions
from trtsparse.runtime.session import Session

MODEL = parser.parse_model(
    '<ir_version: 8, opset_import: ["": 17]>'
    "g (float[n, 4] x, float[n, 4] z) => (float[n, 4] total, float[n, 4] difference)"
    "{ total = Add(x, z) difference = Sub(x, z) }"
)
PLAN = b"vtrt" + bytes(12) + (28).to_bytes(8, "little") + bytes([1, 7, 1, 116])  # its header


def feed(value=1.0):
    return {"x": np.full((2, 4), value, np.float32), "z": np.ones((2, 4), np.float32)}


@pytest.fixture
def session():
    with Session(MODEL, threads=1) as opened:
        yield opened


def test_it_knows_its_inputs_and_outputs(session):
    assert session.inputs[0] == TensorSpec("x", np.dtype("float32"), ("n", 4))
    assert [spec.name for spec in session.outputs] == ["total", "difference"]


def test_it_runs_and_names_the_outputs(session):
    found = session.run(feed(3))
    assert {name: float(array[0, 0]) for name, array in found.items()} == {"total": 4, "difference": 2}


def test_only_the_outputs_asked_for_are_returned(session):
    assert list(session.run(feed(), outputs=["difference"])) == ["difference"]


def test_an_unknown_output_is_refused(session):
    with pytest.raises(ConfigError) as caught:
        session.run(feed(), outputs=["totl"])
    assert str(caught.value) == (
        "the model has no such output\n"
        "  where: outputs\n"
        "  got: 'totl'\n"
        "  expected: 'total', 'difference'\n"
        "  to fix: did you mean 'total'?"
    )


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"y": np.zeros((2, 4), np.float32)}, FeedError),
        ({"x": np.zeros((2, 4))}, DtypeError),
        ({"x": [[1.0] * 4] * 2}, DtypeError),
        ({"x": np.zeros((2, 5), np.float32)}, ShapeError),
        ({"x": np.zeros((3, 4), np.float32)}, ShapeError),
    ],
)
def test_wrong_inputs_are_refused_before_anything_runs(session, change, error):
    with pytest.raises(error):
        session.run({**feed(), **change})


def test_arrays_need_not_be_contiguous(session):
    wide = np.arange(16, dtype=np.float32).reshape(4, 4)
    found = session.run({"x": wide.T[::2], "z": np.broadcast_to(np.float32(1), (2, 4))})
    np.testing.assert_array_equal(found["total"], wide.T[::2] + 1)


def test_results_belong_to_the_caller(session):
    first = session.run(feed(1))["total"]
    session.run(feed(5))
    assert first[0, 0] == 2


def test_closing_twice_is_harmless_and_running_afterwards_is_not():
    session = Session(MODEL)
    assert repr(session).startswith("<Session of ModelProto in ONNX Runtime")
    session.close()
    session.close()
    assert session.closed
    assert repr(session).endswith(", closed>")
    with pytest.raises(EngineError) as caught:
        session.run(feed())
    assert str(caught.value).startswith("the session is closed\n  where: ModelProto in ONNX Runtime")
    assert str(caught.value).endswith("  to fix: open another one")


def test_leaving_the_block_closes():
    with Session(MODEL) as session:
        assert not session.closed
    assert session.closed


class Doubler:
    """An engine that is not ONNX Runtime."""

    name = "doubler"
    description = "doubles"
    inputs = (TensorSpec("x", np.dtype("float32"), (2,)),)
    outputs = (TensorSpec("y", np.dtype("float32"), (2,)),)
    closed = 0

    def run(self, feeds, *, outputs=None):
        assert outputs is None
        return {"y": feeds["x"] * 2}

    def close(self):
        self.closed += 1


def test_any_engine_can_be_given_and_is_closed_once():
    engine = Doubler()
    with Session(engine) as session:
        assert session.run({"x": np.float32([1, 2])})["y"].tolist() == [2, 4]
        session.close()
    assert engine.closed == 1


def test_threads_may_share_a_session(session):
    wrong = []

    def work(value):
        results = [session.run(feed(value))["total"][0, 0] for _ in range(50)]
        wrong.extend(result for result in results if result != value + 1)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_closing_while_others_run_ends_in_results_or_a_clear_error():
    session = Session(MODEL, threads=1)
    unexpected = []

    def work():
        try:
            while True:
                session.run(feed())
        except EngineError as error:
            if "closed" not in str(error):
                unexpected.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    session.close()
    for thread in threads:
        thread.join(timeout=10)
    assert unexpected == []
    assert not any(thread.is_alive() for thread in threads)


def test_magika_tells_python_from_markdown(tmp_path):
    files = {
        "python": "import os\n\n\ndef main() -> None:\n    print(os.environ)\n\n\nif os.name:\n    main()\n",
        "markdown": "# Title\n\nSome *text* with a [link](https://example.org).\n\n- one\n- two\n\n## More\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with Session(models.get("magika")) as session:
        scores = session.run({"bytes": packaged.magika_features([tmp_path / name for name in files])})["target_label"]
    assert [packaged.magika_labels()[i] for i in scores.argmax(1)] == list(files)


def test_arrays_of_the_caller_are_filled(session):
    total = np.zeros((2, 4), np.float32)
    assert session.run_into(feed(3), {"total": total}) == {"total": total}
    assert (total == 4).all()
    for wrong, error in (
        (np.zeros((2, 5), np.float32), ShapeError),
        (np.zeros((2, 4), np.float64), DtypeError),
        ([0.0], ConfigError),
    ):
        with pytest.raises(error) as caught:
            session.run_into(feed(), {"total": wrong})
        assert caught.value.where == "output 'total'"
    with pytest.raises(ConfigError, match="the model has no such output"):
        session.run_into(feed(), {"totl": total})


@pytest.mark.parametrize(
    ("target", "kind", "text"),
    [
        (np.zeros((2, 4)), DtypeError, "cannot fill an array\n{}\n  got: float64\n  expected: float32"),
        (np.zeros((2, 5), "f4"), ShapeError, "cannot fill an array\n{}\n  got: (2, 5)\n  expected: (2, 4)"),
        ([0.0], ConfigError, "the array cannot be written to\n{}\n  got: list"),
        (np.broadcast_to(np.float32(0), (2, 4)), ConfigError, "the array cannot be written to\n{}\n  got: ndarray"),
    ],
    ids=["type", "shape", "list", "read-only"],
)
def test_an_array_that_cannot_be_filled_is_refused(session, target, kind, text):
    with pytest.raises(kind) as caught:
        session.run_into(feed(), {"total": target})
    assert str(caught.value) == text.format("  where: output 'total'")


def test_submitted_requests_run_side_by_side_and_come_back_with_their_results():
    with Session(MODEL, threads=1, options=SessionOptions(contexts=3)) as session:
        assert session.contexts == 3
        given = [feed(value) for value in range(20)]
        requests = [session.submit(feeds) for feeds in given]
        for feeds in given:
            feeds["x"][:] = np.nan  # copied when it was submitted
        for value, request in enumerate(requests):
            assert request.result(timeout=10)["total"][0, 0] == value + 1
            assert request.done()
            assert request.exception() is None
        assert list(session.submit(feed(), outputs=["difference"]).result()) == ["difference"]
        with pytest.raises(ShapeError):
            session.submit({**feed(), "x": np.zeros((2, 5), np.float32)})


def test_results_of_submitted_requests_outlive_the_session():
    session = Session(MODEL, threads=1)
    requests = [session.submit(feed(value)) for value in range(4)]
    session.close()
    assert [request.result()["total"][0, 0] for request in requests] == [1, 2, 3, 4]
    with pytest.raises(EngineError, match="the session is closed"):
        session.submit(feed())


def test_asyncio_runs_requests_side_by_side(session):
    async def work():
        found = await asyncio.gather(*(session.arun(feed(value), outputs=["total"]) for value in range(6)))
        awaited = await session.submit(feed(9))
        return [outputs["total"][0, 0] for outputs in (*found, awaited)]

    assert asyncio.run(work()) == [1, 2, 3, 4, 5, 6, 10]


def test_a_session_that_is_closed_while_a_coroutine_is_about_to_run_says_so():
    session = Session(MODEL, threads=1)

    class Closing:
        """A lock; who lets it go first finds the session closed."""

        def __init__(self):
            self.lock, self.is_first = threading.Lock(), True

        def __enter__(self):
            self.lock.acquire()

        def __exit__(self, *_error):
            self.lock.release()
            if self.is_first:
                self.is_first = False
                session.close()

    session._lock = Closing()
    try:
        found = asyncio.run(session.arun(feed()))
    except EngineError as error:
        assert "closed" in str(error)  # noqa: PT017 - both ends are right
    else:
        assert found["total"][0, 0] == 2
    assert session.closed


class OtherLibrary:
    """An array with DLPack alone."""

    def __init__(self, values):
        self._values = values

    def __dlpack__(self, **options):
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self):
        return 1, 0


def test_arrays_of_other_libraries_are_read(session):
    feeds = {name: OtherLibrary(values) for name, values in feed(5).items()}
    assert session.run(feeds)["total"][0, 0] == 6


@pytest.mark.parametrize(
    ("options", "where"),
    [({"to": "device"}, "to"), ({"stream": 5}, "stream"), ({"stream": 5, "to": "device"}, "stream")],
)
def test_what_only_a_gpu_can_do_is_refused(session, options, where):
    with pytest.raises(ConfigError) as caught:
        session.run(feed(), **options)
    assert str(caught.value) == (
        "this engine works in host memory\n"
        f"  where: {where}\n"
        f"  got: {session.engine.description}\n"
        "  to fix: leave stream and to='device' out, or open a plan on a GPU"
    )


@pytest.mark.parametrize("options", [{"to": "gpu"}, {"to": "host", "stream": 1}])
def test_an_unknown_place_is_refused(session, options):
    with pytest.raises(ConfigError) as caught:
        session.run(feed(), **options)
    assert str(caught.value) == (
        "outputs cannot go there\n"
        "  where: to\n"
        f"  got: {options['to']!r}\n"
        "  expected: 'device' with stream, else also 'host'"
    )


@pytest.mark.parametrize(("options", "where"), [({"device": 0}, "device"), ({"cuda": "pycuda"}, "cuda")])
def test_an_onnx_model_has_no_gpu(options, where):
    with pytest.raises(ConfigError) as caught:
        Session(MODEL, **options)
    assert str(caught.value) == (
        f"an ONNX model is executed on the CPU\n  where: {where}\n"
        "  to fix: build a plan of it for the GPU, take engine='cusparselt', or leave the option out"
    )


@pytest.mark.parametrize(("source", "engine"), [(PLAN, "auto"), (PLAN, "tensorrt"), (MODEL, "cusparselt")])
def test_what_a_gpu_executes_has_no_cpu_threads(source, engine):
    with pytest.raises(ConfigError) as caught:
        Session(source, engine=engine, threads=2)
    assert str(caught.value) == (
        "this is executed by a GPU, without threads of the CPU\n  where: threads\n  got: 2\n  to fix: leave it out"
    )


def test_a_plan_on_a_machine_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr("trtsparse.runtime.session.count_gpus", lambda: 0)
    for modules in ({"runtime": None, "pycuda": None}, {"runtime": make_runtime(MemoryCuda(), gpus=0)}):
        with installed_bindings(**modules), pytest.raises(DeviceError) as caught:
            Session(PLAN)
        assert str(caught.value) == (
            "a plan is executed by the library that built it, on an NVIDIA GPU\n"
            "  where: bytes\n"
            "  got: no GPU that CUDA can use\n"
            "  expected: TensorRT-RTX 1.7.1.116 and a GPU that the plan was built for\n"
            "  to fix: run the ONNX model that the plan was built from on the CPU"
        )


def test_a_plan_that_became_a_model_while_it_was_opened_is_refused(tmp_path):
    path = tmp_path / "m.plan"
    path.write_bytes(PLAN)

    class Slow(MemoryCuda):
        def enter(self):
            super().enter()
            path.write_bytes(MODEL.SerializeToString())  # somebody replaces the file meanwhile

    with pytest.raises(EngineError) as caught:
        Session(path, cuda=Slow())
    with Session(path) as model:
        where = model.engine.description
    assert where.startswith(f"{path} in ONNX Runtime ")
    assert str(caught.value) == f"the engine for plans does not execute on a GPU\n  where: {where}"


def test_the_cusparselt_engine_says_that_there_is_no_gpu_before_it_asks_for_packages(monkeypatch):
    monkeypatch.setattr("trtsparse.engines.count_gpus", lambda: 0)
    for modules in ({"runtime": None, "pycuda": None}, {"runtime": make_runtime(MemoryCuda(), gpus=0)}):
        with installed_bindings(**modules), pytest.raises(DeviceError) as caught:
            Session(MODEL, engine="cusparselt")
        assert str(caught.value) == (
            "there is no GPU to run the engine on\n"
            "  where: engine='cusparselt'\n"
            "  got: no GPU that CUDA can use\n"
            "  expected: an NVIDIA GPU of compute capability 8.0 (Ampere) or newer\n"
            "  to fix: run it on a machine with an NVIDIA GPU, or the ONNX model with engine='onnxruntime'"
        )


def test_the_cusparselt_engine_asks_for_all_its_packages_in_one_line(monkeypatch):
    monkeypatch.setattr("trtsparse.engines.count_gpus", lambda: 1)
    monkeypatch.setitem(sys.modules, "torch", None)
    for modules, first in (
        ({"runtime": None, "pycuda": None}, "cuda-python is not installed"),
        ({"runtime": make_runtime(MemoryCuda())}, "PyTorch is not installed"),
    ):
        with installed_bindings(**modules), pytest.raises(MissingDependencyError) as caught:
            Session(MODEL, engine="cusparselt")
        assert str(caught.value) == (
            "the cusparselt engine needs PyTorch and Python's packages for CUDA\n"
            f"  where: {first}\n"
            "  to fix: pip install 'trtsparse[cuda,torch]'"
        )


def test_a_binding_that_was_named_is_asked_for_by_its_name(monkeypatch):
    monkeypatch.setattr("trtsparse.engines.count_gpus", lambda: 1)
    with installed_bindings(runtime=None, pycuda=None), pytest.raises(MissingDependencyError) as caught:
        Session(MODEL, engine="cusparselt", cuda="pycuda")
    assert caught.value.fix == "pip install 'trtsparse[pycuda]'"


def test_sessions_share_an_engine_and_the_last_one_closes_it():
    engine = Doubler()
    first, second = Session(engine), Session(engine)
    assert first.engine is engine
    first.close()
    first.close()
    assert engine.closed == 0
    assert second.run({"x": np.float32([1, 2])})["y"].tolist() == [2, 4]
    second.close()
    assert engine.closed == 1


def test_host_arrays_and_memory_are_there_on_the_cpu_too(session):
    array = session.host_array([2, 4], "float32")
    assert (array.shape, array.dtype) == ((2, 4), np.float32)
    assert session.memory == {}
    assert session.contexts_replaced == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contexts": 0}, "an option must be positive\n  where: contexts\n  got: 0"),
        ({"graph_limit": -1}, "an option must be positive\n  where: graph_limit\n  got: -1"),
        ({"device_limit_nbytes": 0}, "an option must be positive\n  where: device_limit_nbytes\n  got: 0"),
        ({"contexts": "2"}, "an option must be a whole number\n  where: contexts\n  got: '2'"),
        ({"contexts": 1.5}, "an option must be a whole number\n  where: contexts\n  got: 1.5"),
        ({"contexts": None}, "an option must be a whole number\n  where: contexts\n  got: None"),
        ({"unfit": "cast"}, "unfit has no such value\n  where: unfit\n  got: 'cast'\n  expected: 'copy', 'refuse'"),
        (
            {"scratch": "mine"},
            "scratch has no such value\n  where: scratch\n  got: 'mine'\n  expected: 'context', 'pool', 'shared'",
        ),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError) as caught:
        SessionOptions(**options)
    assert str(caught.value) == message
