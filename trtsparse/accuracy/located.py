"""A model whose skeleton tells where every tensor's bytes are, small vectors too, so that any can be changed."""

from __future__ import annotations

import onnx

from trtsparse.files.copies import load
from trtsparse.files.model import OnnxModel
from trtsparse.files.protobuf import LENGTH, Buffer, encode_field, fields, rewrite_tensors

__all__ = ["located"]

_PAYLOADS = {4: "float_data", 5: "int32_data", 7: "int64_data", 9: "raw_data", 10: "double_data", 11: "uint64_data"}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def located(model: OnnxModel) -> OnnxModel:
    """The same model, opened so that `OnnxModel.ref` answers for every tensor.

    Example:
        >>> from onnx import helper, numpy_helper
        >>> import numpy as np
        >>> b = numpy_helper.from_array(np.float32([1, 2]), "b")
        >>> x, y = (helper.make_tensor_value_info(name, 1, [2]) for name in "xy")
        >>> graph = helper.make_graph([helper.make_node("Add", ["x", "b"], ["y"])], "g", [x], [y], [b])
        >>> model = OnnxModel.open(helper.make_model(graph))
        >>> [opened.ref(opened.proto.graph.initializer[0]) is None for opened in (model, located(model))]
        [True, False]
    """
    proto = onnx.ModelProto.FromString(rewrite_tensors(bytes(load(model.files[""])), _note))
    return OnnxModel(model.files, name=model.name, folder=model.folder, proto=proto)


def _note(data: Buffer, start: int, end: int) -> bytes | None:
    """The tensor with a note in place of its data, as `trtsparse.files.tensor.strip` leaves one in large tensors."""
    payloads = [part for part in fields(data, start, end) if part.number in _PAYLOADS and part.end > part.start]
    if len(payloads) != 1 or payloads[0].wire != LENGTH:
        return None
    payload = payloads[0]
    place = f"{_PAYLOADS[payload.number]}:{payload.start}:{payload.end - payload.start}"
    entry = encode_field(1, b"trtsparse") + encode_field(2, place.encode())
    rest = bytes(data[start : payload.tag]) + bytes(data[payload.end : end])
    external = encode_field(_EXTERNAL_DATA, entry) + encode_field(_DATA_LOCATION, onnx.TensorProto.EXTERNAL)
    return rest + external
