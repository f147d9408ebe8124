"""The model class of Triton's Python backend that runs a `trtsparse.Session`; `model_template.py` imports it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trtsparse.engines import TensorSpec
from trtsparse.errors import EngineError, FeedError, ModelError
from trtsparse.runtime.dlpack import make_capsule, read_capsule
from trtsparse.runtime.memory import host_view
from trtsparse.runtime.session import Session

__all__ = ["TritonPythonModel"]

_FILES = ("model.plan", "model.trtsparse", "model.onnx")
_CPU = (1, 0)  # DLPack's


class TritonPythonModel:
    """What Triton calls. One instance is one process with one session; calls come one after another."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the session.

        Args:
            args: Triton's: the model's configuration, its folder and version, and where this instance is to run.

        Raises:
            TritonModelException: It cannot be opened, or NumPy does not go with the backend; the server shows the
                message and does not load the model.
        """
        self._utils: Any = importlib.import_module("triton_python_backend_utils")
        _check_numpy(self._utils)
        self._name = args["model_name"]
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        self._batched = config["max_batch_size"] > 0
        folder = Path(args["model_repository"]) / args["model_version"]
        on_gpu = args["model_instance_kind"] == "GPU"
        try:
            self._session = _open(
                folder, parameters, device=int(args["model_instance_device_id"]) if on_gpu else None
            )
        except Exception as error:
            raise self._utils.TritonModelException(f"{self._name}: {error}") from error
        self._input_names = [spec.name for spec in self._session.inputs]
        self._readers = [_reader(spec, self._utils) for spec in self._session.inputs]
        self._names = [spec.name for spec in self._session.outputs]
        self._writers = {spec.name: _writer(spec, self._utils) for spec in self._session.outputs}
        self._utils.Logger.log_info(f"{self._name}: {self._session!r}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests; those that Triton has put together in one execution.

        Args:
            requests: Of Triton's batcher, or one.

        Returns:
            A response each, in the same order.
        """
        if self._batched and len(requests) > 1:
            try:
                return self._answer_together(requests)
            except Exception as error:  # noqa: BLE001 - one of them is at fault: executed alone, the others are not
                text = f"{len(requests)} requests failed together and are executed one by one: {error}"
                self._utils.Logger.log_warn(f"{self._name}: {text}")
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Close the session."""
        self._session.close()

    def _answer_together(self, requests: Sequence[Any]) -> list[Any]:
        columns = [[read(request) for request in requests] for read in self._readers]
        joined = [np.concatenate(column) for column in columns]
        wanted = [self._wanted(request) for request in requests]
        results = self._run(joined, {name for names in wanted for name in names})
        for name, array in results.items():
            if len(array) != len(joined[0]):
                raise EngineError("an output's first dim is not the batch", where=f"output {name!r}", got=array.shape)
        responses, start = [], 0
        for array, names in zip(columns[0], wanted, strict=True):
            end = start + len(array)
            tensors = [self._writers[name](results[name][start:end]) for name in names]
            responses.append(self._utils.InferenceResponse(tensors))
            start = end
        return responses

    def _answer(self, request: Any) -> Any:
        try:
            names = self._wanted(request)
            results = self._run([read(request) for read in self._readers], set(names))
            return self._utils.InferenceResponse([self._writers[name](results[name]) for name in names])
        except Exception as error:  # noqa: BLE001 - whatever it is, only this request fails and the server lives on
            return self._failure(error)

    def _wanted(self, request: Any) -> Sequence[str]:
        """Names of outputs; with only one there is no question."""
        names: Sequence[str] = request.requested_output_names() if len(self._names) > 1 else self._names
        return names

    def _run(self, arrays: Sequence[np.ndarray], wanted: set[str]) -> dict[str, np.ndarray]:
        feeds = dict(zip(self._input_names, arrays, strict=True))
        return self._session.run(feeds, outputs=sorted(wanted) if len(wanted) < len(self._names) else None)

    def _failure(self, error: Exception) -> Any:
        """A response that says what happened; the client's own mistakes are told apart from failures."""
        code = self._utils.TritonError
        kind = code.INVALID_ARG if isinstance(error, FeedError) else code.INTERNAL
        return self._utils.InferenceResponse(error=self._utils.TritonError(str(error), kind))


def _reader(spec: TensorSpec, utils: Any) -> Callable[[Any], np.ndarray]:
    """What gets an input out of a request, as an array for the session."""
    name, find = spec.name, utils.get_input_tensor_by_name

    def read(request: Any) -> np.ndarray:
        tensor = find(request, name)
        if tensor is None:
            raise FeedError("an input is missing", expected=repr(name))
        array: np.ndarray = tensor.as_numpy()
        return array

    def read_bfloat16(request: Any) -> np.ndarray:  # numpy lacks the type, so Triton gives it as DLPack only
        taken = read_capsule(find(request, name).to_dlpack())
        array: np.ndarray = host_view(taken.address, taken.shape, taken.dtype).copy()
        return array

    chosen = read_bfloat16 if spec.dtype.name == "bfloat16" else read
    return (lambda request: chosen(request).reshape(())) if spec.shape == () else chosen  # Triton has no scalars


def _writer(spec: TensorSpec, utils: Any) -> Callable[[np.ndarray], Any]:
    """What makes Triton's tensor of an array of the session."""
    name, make = spec.name, utils.Tensor

    def write(array: np.ndarray) -> Any:
        return make(name, array)

    def write_bfloat16(array: np.ndarray) -> Any:
        whole = np.ascontiguousarray(array)
        capsule = make_capsule(whole.ctypes.data, whole.shape, whole.dtype, device=_CPU, owner=whole)
        return make.from_dlpack(name, capsule)

    chosen = write_bfloat16 if spec.dtype.name == "bfloat16" else write
    return (lambda array: chosen(array.reshape(1))) if spec.shape == () else chosen


def _check_numpy(utils: Any) -> None:
    """Refuse a NumPy that this build of the backend cannot read: tensors would arrive as zeros, without any error."""
    array = np.arange(1, 4, dtype=np.float32)
    capsule = make_capsule(array.ctypes.data, array.shape, array.dtype, device=_CPU, owner=array)
    seen = utils.Tensor.from_dlpack("probe", capsule).as_numpy()
    if not np.array_equal(seen, array):
        error = EngineError(
            "Triton's Python backend cannot read the arrays of the NumPy that is installed",
            got=f"NumPy {np.__version__}; {array.tolist()} arrived as {seen.tolist()}",
            fix="pip install 'numpy<2' in the Python that the backend uses, or use Triton 24.11 or later",
        )
        raise utils.TritonModelException(str(error))


def _open(folder: Path, parameters: Mapping[str, str], *, device: int | None) -> Session:
    found = [folder / name for name in _FILES if (folder / name).is_file()]
    if not found:
        raise ModelError("there is no model", where=folder, expected=" or ".join(_FILES))
    engine = parameters.get("engine", "auto")
    if found[0].suffix == ".trtsparse" or engine == "cusparselt":
        from trtsparse.engines.cusparselt.engine import CusparseltEngine

        return Session(CusparseltEngine(found[0], device=device or 0))
    threads = parameters.get("threads")
    return Session(
        found[0],
        engine=engine,
        threads=None if threads is None else int(threads),
        device=device if found[0].suffix == ".plan" else None,
    )
