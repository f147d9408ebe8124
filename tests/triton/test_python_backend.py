"""The model class of the Python backend, with a stand-in for what Triton gives it; test_served has the real thing."""

import importlib.util
import json
import sys
import types

import ml_dtypes
import numpy as np
import pytest

from tests.triton.samples import every_type, from_text, integer_layer, weights_of
from trtsparse import Session
from trtsparse.runtime.dlpack import make_capsule, read_capsule
from trtsparse.runtime.memory import host_view
from trtsparse.triton import python_backend
from trtsparse.triton.export import _TEMPLATE


class Tensor:
    """triton_python_backend_utils.Tensor: numpy arrays, and DLPack capsules for BF16."""

    def __init__(self, name, array):
        assert array.dtype.name != "bfloat16"
        self.name, self.array = name, array

    def as_numpy(self):
        if self.array.dtype.name == "bfloat16":
            raise TypeError("Tensor dtype is BF16 and cannot be converted to NumPy.")
        return self.array

    def to_dlpack(self):
        array = self.array
        return make_capsule(array.ctypes.data, array.shape, array.dtype, device=(1, 0), owner=array)

    @classmethod
    def from_dlpack(cls, name, capsule):
        tensor = cls(name, np.zeros(0))
        taken = read_capsule(capsule)
        tensor.array = host_view(taken.address, taken.shape, taken.dtype).copy()
        return tensor


class TritonError(Exception):
    INTERNAL, INVALID_ARG = "internal", "invalid"

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


class Request:
    def __init__(self, feeds, wanted):
        self.tensors = {}
        for name, array in feeds.items():
            self.tensors[name] = Tensor(name, np.zeros(0))
            self.tensors[name].array = array
        self.wanted = wanted

    def requested_output_names(self):
        return self.wanted


class Response:
    def __init__(self, tensors=(), error=None):
        self.error = error
        self.outputs = {tensor.name: tensor.array for tensor in tensors}


@pytest.fixture
def utils(monkeypatch):
    warned = []
    module = types.SimpleNamespace(
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=Response,
        TritonModelException=type("TritonModelException", (Exception,), {}),
        Logger=types.SimpleNamespace(log_info=lambda _text: None, log_warn=warned.append),
        warned=warned,
        get_input_tensor_by_name=lambda request, name: request.tensors.get(name),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    return module


def arguments(folder, *, max_batch_size=8, kind="CPU", **parameters):
    config = {
        "max_batch_size": max_batch_size,
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }
    return {
        "model_config": json.dumps(config),
        "model_repository": str(folder),
        "model_version": "1",
        "model_instance_kind": kind,
        "model_instance_device_id": "0",
        "model_name": "m",
    }


@pytest.fixture
def opened(utils, tmp_path):  # noqa: ARG001 - what the model class imports
    """Makes an initialised model; all are closed in the end."""
    made = []

    def make(proto, **options):
        folder = tmp_path / str(len(made))
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.onnx").write_bytes(proto.SerializeToString())
        model = python_backend.TritonPythonModel()
        model.initialize(arguments(folder, threads="1", **options))
        model.runs = count_runs(model)
        made.append(model)
        return model

    yield make
    for model in made:
        model.finalize()


def count_runs(model):
    """Has the session note the batch of every execution."""
    run, batches = model._session.run, []

    def noting(feeds, **options):
        first = next(iter(feeds.values()))
        batches.append((first.shape[0] if first.ndim else 0, options["outputs"]))
        return run(feeds, **options)

    model._session.run = noting
    return batches


def rows(count, seed=0):
    return np.random.default_rng(seed).integers(-9, 10, (count, 64)).astype(np.float32)


def test_requests_of_one_shape_are_one_execution(opened):
    model = opened(integer_layer())
    inputs = [rows(count, count) for count in (1, 3, 2)]
    responses = model.execute([Request({"x": x}, ["y"]) for x in inputs])
    assert model.runs == [(6, None)]
    for x, response in zip(inputs, responses, strict=True):
        np.testing.assert_array_equal(response.outputs["y"], x @ weights_of(integer_layer()))


def test_requests_whose_shapes_differ_are_executed_one_by_one(opened):
    model = opened(from_text("g (float[n, s] x) => (float[n, s] y) { y = Add(x, x) }"))
    inputs = [np.full((1, width), index, np.float32) for index, width in enumerate((2, 3, 2, 3, 3))]
    responses = model.execute([Request({"x": x}, ["y"]) for x in inputs])
    assert model.runs == [(1, None)] * 5
    for x, response in zip(inputs, responses, strict=True):
        np.testing.assert_array_equal(response.outputs["y"], x + x)


def test_requests_without_batches_are_executed_one_by_one(opened):
    model = opened(from_text("g (float[2, 2] x) => (float[2, 2] y) { y = Add(x, x) }"), max_batch_size=0)
    responses = model.execute([Request({"x": np.full((2, 2), index, np.float32)}, ["y"]) for index in range(3)])
    assert [response.outputs["y"][0, 0] for response in responses] == [0, 2, 4]
    assert len(model.runs) == 3


def test_only_outputs_that_a_request_wants_are_computed_and_returned(opened):
    model = opened(every_type("FP32", "INT8", "BOOL"))
    feeds = {"iFP32": np.ones((1, 2), np.float32), "iINT8": np.ones((1, 2), np.int8), "iBOOL": np.ones((1, 2), bool)}
    responses = model.execute([Request(feeds, ["oINT8"]), Request(feeds, ["oFP32", "oINT8"])])
    assert model.runs == [(2, ["oFP32", "oINT8"])]
    assert [response.outputs.keys() for response in responses] == [{"oINT8"}, {"oFP32", "oINT8"}]


def test_a_request_that_fails_is_the_only_one(opened, utils):
    model = opened(from_text("g (int64[n] i) => (float[n] y) <float[2] t = {1, 2}> { y = Gather(t, i) }"))
    responses = model.execute([Request({"i": np.array([index])}, ["y"]) for index in (1, 9, 0)])
    assert [len(response.outputs) for response in responses] == [1, 0, 1]
    assert responses[1].error.code == TritonError.INTERNAL
    assert "ONNX Runtime failed while running the model" in str(responses[1].error)
    assert [batch for batch, _ in model.runs] == [3, 1, 1, 1]
    (text,) = utils.warned
    assert text.startswith("m: 3 requests failed together and are executed one by one: ONNX Runtime failed")


def test_a_clients_mistake_is_told_apart_from_a_failure(opened):
    model = opened(from_text("g (float[n, s] a, float[n, s] b) => (float[n, s] y) { y = Add(a, b) }"))
    good, bad = ({"a": np.ones((1, 2), np.float32), "b": np.ones((1, width), np.float32)} for width in (2, 3))
    first, second, third = model.execute([Request(feeds, ["y"]) for feeds in (good, bad, {"a": good["a"]})])
    assert first.error is None
    assert second.error.code == third.error.code == TritonError.INVALID_ARG
    assert str(second.error).startswith("two dims of the same name have different sizes")
    assert str(third.error) == "an input is missing\n  expected: 'b'"


def test_an_output_without_the_batch_is_never_split(opened):
    """Each request is executed alone, and gets what belongs to it."""
    model = opened(
        from_text("g (float[n, 2] x) => (float[k, 2] y) { y = ReduceSum<keepdims = 1, noop_with_empty_axes = 0>(x) }")
    )
    inputs = [np.full((1, 2), index, np.float32) for index in range(3)]
    responses = model.execute([Request({"x": x}, ["y"]) for x in inputs])
    assert [response.outputs["y"].tolist() for response in responses] == [[[0]], [[2]], [[4]]]
    assert [batch for batch, _ in model.runs] == [3, 1, 1, 1]


def test_bfloat16_passes_through_dlpack(opened):
    model = opened(every_type("BF16"))
    model._session.run = lambda feeds, **_: {"oBF16": feeds["iBF16"]}
    inputs = [np.array([[index, -1.5]], ml_dtypes.bfloat16) for index in range(3)]
    responses = model.execute([Request({"iBF16": x}, ["oBF16"]) for x in inputs])
    for x, response in zip(inputs, responses, strict=True):
        assert response.outputs["oBF16"].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(response.outputs["oBF16"], x)


def test_scalars_are_one_element_outside_and_none_inside(opened):
    model = opened(from_text("g (float s) => (float y) { y = Add(s, s) }"), max_batch_size=0)
    (response,) = model.execute([Request({"s": np.array([2], np.float32)}, ["y"])])
    assert response.outputs["y"].tolist() == [4]


def test_a_model_that_cannot_be_opened_says_why(utils, tmp_path):
    (tmp_path / "1").mkdir()
    model = python_backend.TritonPythonModel()
    with pytest.raises(utils.TritonModelException) as caught:
        model.initialize(arguments(tmp_path))
    assert str(caught.value) == (
        f"m: there is no model\n  where: {tmp_path}/1\n  expected: model.plan or model.trtsparse or model.onnx"
    )
    (tmp_path / "1" / "model.onnx").write_bytes(integer_layer().SerializeToString())
    for parameters in ({"engine": "nothing"}, {"threads": "0"}, {"threads": "many"}):
        with pytest.raises(utils.TritonModelException, match=r"^m: "):
            model.initialize(arguments(tmp_path, **parameters))


def test_a_numpy_that_the_backend_cannot_read_is_refused(utils, monkeypatch):
    """Seen with NumPy 2 and Triton 24.10: everything arrives as zeros."""
    monkeypatch.setattr(Tensor, "from_dlpack", lambda name, _capsule: Tensor(name, np.zeros(3, np.float32)))
    with pytest.raises(utils.TritonModelException) as caught:
        python_backend.TritonPythonModel().initialize({})
    assert str(caught.value) == (
        "Triton's Python backend cannot read the arrays of the NumPy that is installed\n"
        f"  got: NumPy {np.__version__}; [1.0, 2.0, 3.0] arrived as [0.0, 0.0, 0.0]\n"
        "  to fix: pip install 'numpy<2' in the Python that the backend uses, or use Triton 24.11 or later"
    )


@pytest.mark.parametrize(("kind", "device"), [("GPU", 3), ("CPU", None)])
def test_a_plan_goes_to_the_gpu_of_its_instance(utils, tmp_path, monkeypatch, kind, device):  # noqa: ARG001
    asked = {}

    def session(path, **options):
        asked.update(options, name=path.name)
        return Session(integer_layer(), threads=1)

    monkeypatch.setattr(python_backend, "Session", session)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.plan").write_bytes(b"")
    model = python_backend.TritonPythonModel()
    model.initialize({**arguments(tmp_path, kind=kind), "model_instance_device_id": "3"})
    model.finalize()
    assert asked == {"name": "model.plan", "engine": "auto", "threads": None, "device": device}


def test_the_template_says_what_is_missing_where_trtsparse_is_not_installed(monkeypatch):
    spec = importlib.util.spec_from_file_location("model", _TEMPLATE)
    monkeypatch.setitem(sys.modules, "trtsparse.triton.python_backend", None)
    with pytest.raises(ImportError, match="the Python of Triton's Python backend cannot import trtsparse: "):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    monkeypatch.undo()
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TritonPythonModel is python_backend.TritonPythonModel
