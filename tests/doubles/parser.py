"""The ONNX parser."""

from __future__ import annotations

import stat
import weakref
from pathlib import Path
from typing import Any

import onnx

from tests.doubles import importer
from tests.doubles.classes import Field
from tests.doubles.messages import emit

EXPLICIT = (
    'Assertion failed: !_importer_ctx.network()->hasImplicitBatchDimension() && "This version of the ONNX parser '
    "only supports TensorRT INetworkDefinitions with an explicit batch dimension. Please ensure the network was "
    'created using the EXPLICIT_BATCH NetworkDefinitionCreationFlag."'
)


class ParserError:
    """One error, told by methods."""

    def code(self: Any) -> Any:
        return self._lib.enum("ErrorCode", self._.problem.code)

    def desc(self: Any) -> str:
        return self._.problem.desc

    def file(self: Any) -> str:
        return self._.problem.file

    def func(self: Any) -> str:
        return self._.problem.func

    def line(self: Any) -> int:
        return self._.problem.line

    def node(self: Any) -> int:
        return self._.problem.node

    def node_name(self: Any) -> str:
        return self._.problem.node_name

    def node_operator(self: Any) -> str:
        return self._.problem.operator

    def local_function_stack(self: Any) -> list[str]:
        return []

    def local_function_stack_size(self: Any) -> int:
        return 0

    def __str__(self: Any) -> str:
        return told(self._.problem)


def told(problem: importer.Problem) -> str:
    """A problem in one line, as `str(error)` and the log have it."""
    said = f"({problem.func}): {problem.code}: {problem.desc}"
    if problem.func == "deserializeOnnxModel":
        return said
    return f"In node {problem.node} with name: {problem.node_name} and operator: {problem.operator} {said}"


class OnnxParser:
    """Fills a network from ONNX. It does not keep the network alive, as the real one does not."""

    num_errors = property(lambda self: len(self._.problems))
    num_subgraphs = property(lambda self: self._.subgraphs)
    __enter__ = lambda self: self  # noqa: E731
    __exit__ = lambda *_args: None  # noqa: E731

    def _init(self: Any, network: Any, logger: Any) -> None:
        self._.network = weakref.ref(network)
        self._.logger = logger
        self._.problems = []
        self._.subgraphs = 0
        self._.flags = 1 << int(self._lib.enum("OnnxParserFlag", "NATIVE_INSTANCENORM"))

    flags = Field("int")

    def set_flag(self: Any, flag: Any) -> None:
        self._.flags |= 1 << int(flag)

    def clear_flag(self: Any, flag: Any) -> None:
        self._.flags &= ~(1 << int(flag))

    def get_flag(self: Any, flag: Any) -> bool:
        return bool(self._.flags >> int(flag) & 1)

    def _target(self: Any) -> Any:
        network = self._.network()
        if network is None:
            raise RuntimeError(
                "double: the parser's network was collected; the real parser kills the process here. "
                "Keep a reference to the network while the parser lives."
            )
        return network

    def parse(self: Any, model: Any, path: str | None = None) -> bool:
        return self._parse(bytes(model), path)

    def parse_from_file(self: Any, model: str) -> bool:
        self._target()
        path = Path(model)
        if not path.exists() or not stat.S_ISREG(path.stat().st_mode):
            text = (
                "Assertion failed: stat(onnxModelFile, &sb) == 0 && S_ISREG(sb.st_mode): "
                f"Input file cannot be found, or is not a regular file: {model}"
            )
            return self._refuse(importer.Problem("INVALID_VALUE", text, "parseFromFile", "ModelImporter.cpp", 1422))
        return self._parse(path.read_bytes(), model)

    def _parse(self: Any, data: bytes, path: str | None) -> bool:
        network = self._target()
        if network.num_layers:
            text = "ModelImporter.cpp:1170: Parse was called with a non-empty network definition"
            emit(self._lib, self._.logger, "ERROR", text)
            return False
        model = importer.read(data)
        if model is None:
            return self._refuse(importer.unreadable())
        self._banner(model, path)
        if network._.implicit_batch:
            return self._refuse(importer.Problem("INVALID_VALUE", EXPLICIT, "importModel", "ModelImporter.cpp", 0))
        imported = importer.import_model(model, Path(path).parent if path else Path())
        network._take(imported)
        for problem in imported.problems:
            self._refuse(problem)
        self._warn_about_integers(imported)
        return not imported.problems

    def _refuse(self: Any, problem: importer.Problem) -> bool:
        if problem.func in ("deserializeOnnxModel", "parseFromFile"):
            emit(self._lib, self._.logger, "ERROR", told(problem))
        else:
            lines = list(problem.log)
            if problem.node >= 0:
                lines += [
                    f'ModelImporter.cpp:140: While parsing node number {problem.node} [{problem.operator} -> "..."]:',
                    f"ModelImporter.cpp:142: --- Begin node ---\nNode name: {problem.node_name}\n",
                    "ModelImporter.cpp:143: --- End node ---",
                ]
            code = int(self._lib.enum("ErrorCode", problem.code))
            head = f"ModelImporter.cpp:151: ERROR: {problem.file}:{problem.line} In function {problem.func}:"
            for line in [*lines, f"{head}\n[{code}] {problem.desc}"]:
                emit(self._lib, self._.logger, "ERROR", line)
        self._.problems.append(problem)
        return False

    def _banner(self: Any, model: onnx.ModelProto, path: str | None) -> None:
        ir = model.ir_version
        opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        rule = "-" * 64
        lines = [
            f"ONNX IR version:  {ir >> 16 & 255}.{ir >> 8 & 255}.{ir & 255}", f"Opset version:    {opset}",
            f"Producer name:    {model.producer_name}", f"Producer version: {model.producer_version}",
            f"Domain:           {model.domain}", f"Model version:    {model.model_version}",
            f"Doc string:       {model.doc_string}",
        ]  # fmt: skip
        named = [f"Input filename:   {path}"] if path else []
        for line in [rule, *named, *lines, rule]:
            emit(self._lib, self._.logger, "INFO", line)

    def _warn_about_integers(self: Any, imported: importer.Imported) -> None:
        if not self._lib.has("DataType", "INT64"):
            if any(info.dtype == "INT64" for info in imported.tensors.values()):
                emit(self._lib, self._.logger, "WARNING", (
                    "onnx2trt_utils.cpp:374: Your ONNX model has been generated with INT64 weights, while TensorRT "
                    "does not natively support INT64. Attempting to cast down to INT32."
                ))  # fmt: skip
            return
        for role, tensors, line in (("input", imported.inputs, 1071), ("output", imported.outputs, 1303)):
            for info in tensors:
                if info.dtype == "INT64":
                    text = f"ModelImporter.cpp:{line}: Make sure {role} {info.name} has Int64 binding."
                    emit(self._lib, self._.logger, "WARNING", text)

    def get_error(self: Any, index: int) -> Any:
        if 0 <= index < len(self._.problems):
            return self._lib.new("ParserError", problem=self._.problems[index])
        size, unsigned = len(self._.problems), index % 2**64
        text = f"vector::_M_range_check: __n (which is {unsigned}) >= this->size() (which is {size})"
        emit(self._lib, self._.logger, "ERROR", text)
        self._.problems.append(importer.Problem("INTERNAL_ERROR", text, "", "", 0))
        return None

    def clear_errors(self: Any) -> None:
        self._.problems.clear()

    def supports_operator(self: Any, op_name: str) -> bool:
        return onnx.defs.has(op_name, "") and op_name not in importer.UNSUPPORTED

    def supports_model_v2(self: Any, model: Any, path: str | None = None) -> bool:
        read = importer.read(bytes(model))
        if read is None:
            return self._refuse(importer.unreadable())
        imported = importer.import_model(read, Path(path).parent if path else Path())
        self._.problems += imported.problems
        self._.subgraphs = int(not imported.problems)
        return not imported.problems

    def supports_model(self: Any, model: Any, path: str | None = None) -> tuple[bool, list[Any]]:
        read = importer.read(bytes(model))
        if read is None:
            self._refuse(importer.unreadable())
            return False, []
        imported = importer.import_model(read, Path(path).parent if path else Path())
        return not imported.problems, [(list(range(len(read.graph.node))), not imported.problems)]

    def get_used_vc_plugin_libraries(self: Any) -> list[str]:
        return []
