"""What people give a session first: it takes that, or says what to give, on the CPU and the GPU in the same words."""

import asyncio

import ml_dtypes
import numpy as np
import pytest
from onnx import parser

from tests.doubles import installed
from tests.doubles.cuda import current
from tests.doubles.device_engine import engine_on_memory
from tests.doubles.gpu import built
from trtsparse.builder.engine import BuiltEngine
from trtsparse.errors import ConfigError, DtypeError, FeedError
from trtsparse.runtime.options import SessionOptions
from trtsparse.runtime.session import Session

HEADER = '<ir_version: 8, opset_import: ["": 17]> '
MODEL = parser.parse_model(
    HEADER + "g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) { y = Add(x, x) z = Relu(x) }"
)
X = np.ones((3, 4), np.float32)


@pytest.fixture(params=["cpu", "gpu"])
def session(request):
    if request.param == "cpu":
        with Session(MODEL, threads=1) as opened:
            yield opened
    else:
        with current("late") as cuda, Session(engine_on_memory(cuda)(MODEL), cuda=cuda) as opened:
            yield opened


def refused(kind, call, *args, **options):
    """The text of the error."""
    with pytest.raises(kind) as caught:
        call(*args, **options)
    assert type(caught.value) is kind
    return str(caught.value)


@pytest.mark.parametrize("feeds", [[X], X, None])
def test_inputs_without_names_are_refused(session, feeds):
    for call in (session.run, session.submit, lambda given: asyncio.run(session.arun(given))):
        assert refused(FeedError, call, feeds) == (
            "arrays are given by name\n"
            f"  got: {type(feeds).__name__}\n"
            "  expected: 'x' float32 (n, 4)\n"
            "  to fix: {'x': array}"
        )


def test_outputs_without_names_are_refused(session):
    target = np.empty_like(X)
    text = (
        "arrays are given by name\n"
        "  got: list\n"
        "  expected: 'y' float32 (n, 4); 'z' float32 (n, 4)\n"
        "  to fix: {'y': array}"
    )
    assert refused(FeedError, session.run_into, {"x": X}, [target]) == text
    assert refused(FeedError, session.submit, {"x": X}, into=[target]) == text


def test_numbers_are_no_names(session):
    assert refused(FeedError, session.run, {0: X}) == (
        "the model has no such input\n  got: 0\n  expected: 'x' float32 (n, 4)"
    )
    assert refused(ConfigError, session.run, {"x": X}, outputs=[0]) == (
        "the model has no such output\n  where: outputs\n  got: 0\n  expected: 'y', 'z'"
    )


def test_asked_for_no_outputs_it_returns_none_and_checks_the_inputs(session):
    for call in (
        lambda feeds: session.run(feeds, outputs=[]),
        lambda feeds: session.run_into(feeds, {}),
        lambda feeds: session.submit(feeds, into={}).result(),
    ):
        assert call({"x": X}) == {}
        with pytest.raises(DtypeError):
            call({"x": X.astype(np.float64)})


def test_submit_refuses_an_unknown_place_as_run_does(session):
    text = refused(ConfigError, session.run, {"x": X}, to="gpu")
    assert refused(ConfigError, session.submit, {"x": X}, to="gpu") == text
    assert text.startswith("outputs cannot go there\n  where: to\n  got: 'gpu'\n")


def test_names_of_outputs_beside_arrays_to_fill_are_refused(session):
    assert refused(ConfigError, session.submit, {"x": X}, into={"y": np.empty_like(X)}, outputs=["z"]) == (
        "the arrays to fill name the outputs\n  where: outputs\n  got: ['z']\n  to fix: leave outputs out"
    )


class Exporter:
    """An array in host memory with DLPack alone, as of JAX; ``error`` is what its library says instead."""

    def __init__(self, tensor, error=None):
        self.tensor, self.error, self.shape = tensor, error, tuple(tensor.shape)

    def __dlpack__(self, **_options):
        if self.error:
            raise self.error
        return self.tensor.__dlpack__()

    def __dlpack_device__(self):
        return 1, 0


def test_an_array_that_its_library_does_not_export_is_refused_in_its_words(session):
    exporter = Exporter(X, BufferError("Can't export tensors that require gradient, use tensor.detach()"))
    first, *_, last = refused(FeedError, session.run, {"x": exporter}).splitlines()
    assert first == "an array is not exported by its library"
    assert last == "  got: Exporter: Can't export tensors that require gradient, use tensor.detach()"


def test_the_input_that_cannot_be_read_on_the_cpu_is_named():
    with Session(MODEL, threads=1) as session:
        assert refused(FeedError, session.run, {"x": Exporter(X, RuntimeError("it was deleted"))}) == (
            "an array is not exported by its library\n  where: input 'x'\n  got: Exporter: it was deleted"
        )


def test_bfloat16_of_another_library_is_seen_as_what_it_is(session):
    torch = pytest.importorskip("torch")
    for value in (torch.ones(3, 4).bfloat16(), Exporter(torch.ones(3, 4).bfloat16())):
        assert refused(DtypeError, session.run, {"x": value}) == (
            "an array has the wrong data type\n"
            "  where: input 'x'\n"
            "  got: bfloat16\n"
            "  expected: float32\n"
            '  to fix: array.astype("float32")'
        )


def test_tensors_of_pytorch_are_read_with_their_sign_and_with_gradients(session):
    torch = pytest.importorskip("torch")
    negated = torch.complex(torch.ones(3, 4), torch.ones(3, 4)).conj().imag
    assert negated.is_neg()
    assert session.run({"x": negated})["y"].tolist() == [[-2] * 4] * 3
    assert session.submit({"x": negated}).result()["y"].tolist() == [[-2] * 4] * 3
    assert session.run({"x": torch.ones(3, 4, requires_grad=True)})["y"].tolist() == [[2] * 4] * 3


def test_models_of_bfloat16_take_arrays_of_numpy_and_of_pytorch():
    model = parser.parse_model(HEADER + "g (bfloat16[n, 4] x) => (bfloat16[n, 4] y) { y = Identity(x) }")
    x = np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16)
    with Session(model, threads=1) as session:
        for found in (session.run({"x": x}), session.submit({"x": x}).result()):
            assert found["y"].dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(found["y"], x)
        target = np.empty_like(x)
        session.run_into({"x": x}, {"y": target})
        np.testing.assert_array_equal(target, x)
        torch = pytest.importorskip("torch")
        np.testing.assert_array_equal(session.run({"x": torch.arange(12).reshape(3, 4).bfloat16()})["y"], x)


def test_strings_that_are_none_are_refused():
    model = parser.parse_model(HEADER + "g (string[n] x) => (string[n] y) { y = Identity(x) }")
    with Session(model, threads=1) as session:
        assert session.run({"x": np.array(["cat", "é"], object)})["y"].tolist() == ["cat", "é"]
        assert refused(DtypeError, session.run, {"x": np.array([b"cat"], object)}) == (
            "an array of strings has something else in it\n"
            "  where: input 'x'\n"
            "  got: bytes b'cat'\n"
            "  expected: str\n"
            "  to fix: np.char.decode(array.astype(bytes))"
        )


def test_options_are_of_their_class():
    assert refused(ConfigError, Session, MODEL, options={"contexts": 2}) == (
        "not options of a session\n  where: options\n  got: dict\n  expected: SessionOptions(...)"
    )
    with Session(MODEL, threads=1, options=SessionOptions(contexts=np.int64(3))) as session:
        assert session.contexts == 3


def test_what_build_returned_is_a_plan():
    with current("late") as cuda, installed("10.13.3") as trt:
        trt.submit = cuda.submit
        shapes = {"x": ((1, 4), (3, 4), (8, 4))}
        made = BuiltEngine(built(trt, MODEL, shapes), report=None)
        with Session(made, cuda=cuda) as session:
            assert session.run({"x": X})["y"].tolist() == [[2] * 4] * 3
