"""ResNeXt-50 and -101 for image classification (Xie et al., 2017), laid out and named as in torchvision.

ResNeXt-101 32x8d is the network that NVIDIA published sparse TensorRT figures for. BatchNormalization nodes are
left unfolded, as in an exported training checkpoint.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx
from onnx import TensorProto

from models._cli import main
from models._graph import Graph
from models._layers import vector
from models._recipe import COUNT, DIM, Recipe, option
from models._weights import Weight, he

__all__ = ["ResNeXt", "make"]

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_EXPANSION = 4  # a block's outputs per stage channel

# Variances of activations, for BatchNormalization statistics that fit the generated weights. With centred filters
# a He convolution doubles its input's variance; a ReLU leaves 1/2 - 1/2pi = 0.34 of a centred normal value's.
_STEM_VARIANCE = 0.5  # measured after the stem's ReLU and MaxPool
_RELU_VARIANCE = 0.34
_SUM_SHARE = 0.85  # measured share of a sum's variance that is left by the ReLU after it
_BRANCH_GAIN = 0.5  # gain of a block's last BatchNormalization: below one, as trained, so that sums stay bounded


def make(**options: Any) -> onnx.ModelProto:
    """Return a ResNeXt; the options are the fields of ``ResNeXt``.

    Args:
        options: See ``ResNeXt``.

    Returns:
        A model from "input" (N, 3, H, W) to "logits" (N, classes).

    Raises:
        ConfigError: An option is unknown or wrong.
        ModelError: The weights file is not one of this network.

    Example:
        >>> model = make(depth=50, width=8, groups=4, num_classes=10, image_size=32)
        >>> sum(node.op_type == "Conv" for node in model.graph.node)
        53
    """
    return ResNeXt.of(**options).model()


@dataclass(frozen=True, kw_only=True)
class ResNeXt(Recipe):
    """ResNeXt; weights files have torchvision's names (resnext101_32x8d, resnext50_32x4d)."""

    name: ClassVar[str] = "resnext"

    depth: int = option(50, COUNT, "number of layers: 50 or 101")
    groups: int = option(32, COUNT, "groups of the 3x3 convolutions")
    width_per_group: int = option(8, COUNT, "channels per group in the first stage; torchvision's resnext50 has 4")
    width: int = option(64, COUNT, "channels of the stem; every stage scales with it")
    num_classes: int = option(1000, COUNT, "number of classes")
    image_size: int = option(224, COUNT, "height and width of the input")
    batch: int | str = option("N", DIM, "batch size, or a name if it is known later")

    def graph(self) -> Graph:
        """Describe the network."""
        if self.depth not in _BLOCKS:
            raise self.refused("depth", got=self.depth, expected="50 or 101")
        if self._inner(0) == 0:
            raise self.refused("width", got=self.width, expected=f"at least {-(-64 // self.width_per_group)}")
        graph = Graph(f"resnext{self.depth}_{self.groups}x{self.width_per_group}d")
        side = self.image_size
        x = graph.input("input", TensorProto.FLOAT, (self.batch, 3, side, side))
        x = _Unit("conv1", "bn1", (self.width, 3, 7), stride=2, variance=1.0).add(graph, x)
        x = graph.node("Relu", x, at="relu")
        x = graph.node("MaxPool", x, at="maxpool", kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
        channels, variance = self.width, _STEM_VARIANCE
        for stage, blocks in enumerate(_BLOCKS[self.depth]):
            for block in range(blocks):
                at = f"layer{stage + 1}.{block}"
                first = block == 0
                x = self._block(graph, x, at=at, channels=channels, stage=stage, first=first, variance=variance)
                channels = self._planes(stage) * _EXPANSION
                variance = _block_variance(variance, first=first)
        x = graph.node("Flatten", graph.node("GlobalAveragePool", x, at="avgpool"), at="flatten")
        weight = graph.weight(Weight("fc.weight", (self.num_classes, channels), std=he(channels), channels=0))
        bias = graph.weight(vector("fc.bias", self.num_classes))
        logits = graph.node("Gemm", x, weight, bias, at="fc", output="logits", transB=1)
        graph.output(logits, TensorProto.FLOAT, (self.batch, self.num_classes))
        return graph

    def _planes(self, stage: int) -> int:
        return self.width << stage

    def _inner(self, stage: int) -> int:
        """Channels of the grouped convolutions of a stage."""
        return self._planes(stage) * self.width_per_group // 64 * self.groups

    def _block(
        self, graph: Graph, x: str, *, at: str, channels: int, stage: int, first: bool, variance: float
    ) -> str:
        """Add a bottleneck: 1x1, grouped 3x3, 1x1, and the sum with the input."""
        outputs, inner = self._planes(stage) * _EXPANSION, self._inner(stage)
        stride = 2 if first and stage > 0 else 1
        units = (
            _Unit(f"{at}.conv1", f"{at}.bn1", (inner, channels, 1), variance=variance),
            _Unit(f"{at}.conv2", f"{at}.bn2", (inner, inner, 3), stride=stride, groups=self.groups),
            _Unit(f"{at}.conv3", f"{at}.bn3", (outputs, inner, 1), gain=_BRANCH_GAIN),
        )
        branch = units[0].add(graph, x)
        for unit in units[1:]:
            branch = unit.add(graph, graph.node("Relu", branch, at=f"{at}.relu"))
        if first:
            shortcut = f"{at}.downsample"
            unit = _Unit(f"{shortcut}.0", f"{shortcut}.1", (outputs, channels, 1), stride=stride, variance=variance)
            x = unit.add(graph, x)
        return graph.node("Relu", graph.node("Add", branch, x, at=at), at=f"{at}.relu")


def _block_variance(variance: float, *, first: bool) -> float:
    """Return the variance after a block from that before it; a stage's first block normalises its shortcut."""
    if first:
        return _RELU_VARIANCE * (1 + _BRANCH_GAIN**2)
    return _SUM_SHARE * (variance + _BRANCH_GAIN**2)


@dataclass(frozen=True)
class _Unit:
    """A convolution without bias, and its BatchNormalization.

    ``size`` is (outputs, inputs, kernel); ``variance`` is that of the input, from which the statistics follow.
    """

    conv: str
    bn: str
    size: tuple[int, int, int]
    stride: int = 1
    groups: int = 1
    variance: float = _RELU_VARIANCE
    gain: float = 1.0

    def add(self, graph: Graph, x: str) -> str:
        outputs, inputs, kernel = self.size
        shape = (outputs, inputs // self.groups, kernel, kernel)
        fan_in = shape[1] * kernel * kernel
        x = graph.node(
            "Conv",
            x,
            graph.weight(Weight(f"{self.conv}.weight", shape, std=he(fan_in), channels=0)),
            at=self.conv,
            kernel_shape=(kernel, kernel),
            strides=(self.stride, self.stride),
            pads=(kernel // 2,) * 4,
            group=self.groups,
        )
        variance = 2 * self.variance
        weights = (
            vector(f"{self.bn}.weight", outputs, mean=self.gain, std=0.1 * self.gain),
            vector(f"{self.bn}.bias", outputs, std=0.1),
            vector(f"{self.bn}.running_mean", outputs, std=0.1 * variance**0.5, trained=False),
            vector(f"{self.bn}.running_var", outputs, mean=variance, std=0.1 * variance, trained=False),
        )
        parameters = [graph.weight(weight) for weight in weights]
        return graph.node("BatchNormalization", x, *parameters, at=self.bn, epsilon=1e-5)


if __name__ == "__main__":
    sys.exit(main(ResNeXt))
