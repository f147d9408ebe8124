"""Layers of PyTorch with the weights of an ONNX model, found by the names that the generators in ``models/`` use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from trtsparse.files.model import OnnxModel

Source = str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel


class Weights:
    """The initializers of a model and the nodes that read them.

    Args:
        source: The model, in float32.
    """

    def __init__(self, source: Source) -> None:
        self.model = OnnxModel.open(source)
        graph = self.model.proto.graph
        self._protos = {proto.name: proto for proto in graph.initializer}
        self._readers = {name: node for node in graph.node for name in node.input if name in self._protos}
        self.inputs = tuple(value.name for value in graph.input if value.name not in self._protos)

    def __contains__(self, name: str) -> bool:
        return name in self._protos

    def array(self, name: str) -> np.ndarray:
        """A copy of a weight."""
        return np.array(self.model.array(self._protos[name]))

    def tensor(self, name: str) -> torch.Tensor:
        """A copy of a weight."""
        return torch.from_numpy(self.array(name))

    def parameter(self, name: str) -> nn.Parameter:
        """A copy of a weight, which is not trained."""
        return nn.Parameter(self.tensor(name), requires_grad=False)

    def attribute(self, name: str, attribute: str, default: Any = None) -> Any:
        """What the node that reads a weight has as an attribute."""
        for found in self._readers[name].attribute:
            if found.name == attribute:
                return onnx.helper.get_attribute_value(found)
        return default

    def count(self, pattern: str) -> int:
        """How many numbers, from 0 on, a name with ``{}`` exists for."""
        count = 0
        while pattern.format(count) in self:
            count += 1
        return count

    def linear(self, *names: str) -> nn.Linear:
        """One Linear of one or several weights that are applied to the same value, stacked in this order.

        Args:
            names: Of the weights, such as "a.weight"; "a.bias" belongs to it if it is there.
        """
        weight = torch.cat([self._rows(name) for name in names])
        biases = [name.removesuffix("weight") + "bias" for name in names]
        with_bias = biases[0] in self
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=with_bias, device="meta")
        layer.weight = _fixed(weight)
        if with_bias:
            layer.bias = _fixed(torch.cat([self.tensor(name) for name in biases]))
        return layer

    def _rows(self, name: str) -> torch.Tensor:
        """A weight as (N, K), whichever way the node takes it."""
        stored = self.tensor(name)
        is_rows = self._readers[name].op_type == "Gemm" and self.attribute(name, "transB", 0)
        return stored if is_rows else stored.T.contiguous()

    def layer_norm(self, at: str) -> nn.LayerNorm:
        """LayerNorm over the last axis."""
        weight = self.tensor(f"{at}.weight")
        layer = nn.LayerNorm(len(weight), eps=self.attribute(f"{at}.weight", "epsilon", 1e-5), device="meta")
        layer.weight, layer.bias = _fixed(weight), self.parameter(f"{at}.bias")
        return layer

    def embedding(self, name: str) -> nn.Embedding:
        """A table of vectors."""
        return nn.Embedding.from_pretrained(self.tensor(name))

    def conv(self, at: str, *, norm: str | None = None) -> nn.Conv2d:
        """A convolution, with the BatchNormalization ``norm`` after it folded in."""
        weight = self.tensor(f"{at}.weight")
        bias = self.tensor(f"{at}.bias") if f"{at}.bias" in self else torch.zeros(len(weight))
        if norm is not None:
            weight, bias = self._folded(weight, bias, norm)
        groups = self.attribute(f"{at}.weight", "group", 1)
        layer = nn.Conv2d(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=tuple(self.attribute(f"{at}.weight", "strides", (1, 1))),
            padding=tuple(self.attribute(f"{at}.weight", "pads", (0, 0, 0, 0))[:2]),
            groups=groups,
            device="meta",
        )
        layer.weight, layer.bias = _fixed(weight), _fixed(bias)
        return layer

    def _folded(self, weight: torch.Tensor, bias: torch.Tensor, norm: str) -> tuple[torch.Tensor, torch.Tensor]:
        gain, shift, mean, variance = (
            self.tensor(f"{norm}.{part}").double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gain / (variance + self.attribute(f"{norm}.weight", "epsilon", 1e-5)).sqrt()
        folded = weight.double() * scale.view(-1, 1, 1, 1)
        return folded.float(), (shift + (bias.double() - mean) * scale).float()

    def blocks(self, pattern: str) -> Iterator[str]:
        """Where each of a row of equal modules is.

        Args:
            pattern: A weight that each has, with ``{}`` for its number, such as "layer.{}/dense.weight"; what is
                before the slash is the module.
        """
        for number in range(self.count(pattern.replace("/", "."))):
            yield pattern.partition("/")[0].format(number)


def _fixed(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
