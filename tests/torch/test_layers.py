"""Layers are known by their class or by one that it inherits from, and judged as the walk over ONNX judges them."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from trtsparse.errors import ConfigError
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.pattern import TWO_FOUR, Pattern
from trtsparse.sparsity.weights import find_sites
from trtsparse.torch.layers import find_weights


def found(module, **options):
    options.setdefault("pattern", TWO_FOUR)
    return {weight.name: (weight.axes, weight.reason) for weight in find_weights(module, **options)}


class MyLinear(nn.Linear):
    """A layer of somebody's own, as most frameworks have."""


class MyAttention(nn.MultiheadAttention):
    """Likewise."""


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(8, 3), {"weight": ((1,), "")}),
        (MyLinear(8, 3), {"weight": ((1,), "")}),
        (nn.Conv1d(8, 3, 5), {"weight": ((1,), "")}),
        (nn.Conv2d(8, 3, (1, 5)), {"weight": ((1,), "")}),
        (nn.Conv3d(8, 3, 2), {"weight": ((1,), "")}),
        (nn.MultiheadAttention(8, 2), {"in_proj_weight": ((1,), ""), "out_proj.weight": ((1,), "")}),
        (MyAttention(8, 2), {"in_proj_weight": ((1,), ""), "out_proj.weight": ((1,), "")}),
        (
            nn.MultiheadAttention(8, 2, kdim=12, vdim=6),
            {
                "q_proj_weight": ((1,), ""),
                "k_proj_weight": ((1,), ""),
                "v_proj_weight": ((1,), "reduction of 6 is not a multiple of 4"),
                "out_proj.weight": ((1,), ""),
            },
        ),
        (nn.Linear(8, 0), {"weight": ((1,), "empty weight: dims [0, 8]")}),
        (nn.Linear(8, 8, device="meta"), {"weight": ((1,), "no values yet: the weight is on the meta device")}),
        (nn.LazyLinear(8), {"weight": ((), "no values yet: run the model once first")}),
        (nn.Linear(8, 8).double(), {"weight": ((1,), "data type float64: Sparse Tensor Cores do not take it")}),
        (
            nn.Conv2d(8, 8, 3, groups=2),
            {"weight": ((1,), "grouped convolution (group = 2): TensorRT never uses sparse kernels")},
        ),
        (
            nn.ConvTranspose2d(8, 8, 3),
            {"weight": ((), "ConvTranspose: TensorRT is not known to use sparse kernels for it")},
        ),
        (
            nn.GRU(8, 8),
            {
                f"weight_{side}_l0": ((), "GRU: TensorRT has no sparse kernels for recurrent layers")
                for side in ("ih", "hh")
            },
        ),
        (
            nn.LSTMCell(8, 8),
            {
                f"weight_{side}": ((), "LSTMCell: TensorRT has no sparse kernels for recurrent layers")
                for side in ("ih", "hh")
            },
        ),
        (nn.Embedding(8, 8), {"weight": ((), "Embedding: rows are looked up, no matrix product")}),
        (nn.Bilinear(8, 8, 8), {"weight": ((), "Bilinear is not known to multiply by it: `layers` can say so")}),
        (nn.LayerNorm(8), {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_each_layers_weights_are_found_with_axis_or_reason(layer, expected):
    assert found(layer) == expected


def test_half_precision_weights_are_eligible_if_their_length_allows():
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        assert found(nn.Linear(8, 2).to(dtype)) == {"weight": ((1,), "")}
        assert found(nn.Linear(6, 2).to(dtype)) == {"weight": ((1,), "reduction of 6 is not a multiple of 4")}
    assert found(nn.Linear(6, 2), pattern=Pattern(1, 2)) == {"weight": ((1,), "")}


class Branches(nn.Module):
    """Each layer on an input of its own."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *inputs):
        return [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]


def test_an_ineligible_layer_has_the_reason_that_the_walk_over_its_onnx_file_gives(tmp_path):
    layers = [
        nn.Conv2d(8, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 8, 3),
        nn.Conv1d(6, 8, 1), nn.Conv3d(8, 4, 1), nn.Linear(8, 8), nn.Linear(6, 8), nn.Linear(8, 6),
        nn.Linear(8, 8).double(),
    ]  # fmt: skip
    channels = [layer.weight.shape[1] * getattr(layer, "groups", 1) for layer in layers]
    shapes = [(1, n) + (3,) * (layer.weight.ndim - 2) for n, layer in zip(channels, layers, strict=True)]
    inputs = tuple(torch.ones(shape, dtype=layer.weight.dtype) for layer, shape in zip(layers, shapes, strict=True))
    model = Branches(layers).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, tmp_path / "model.onnx", dynamo=False)
    sites = find_sites(OnnxModel.open(tmp_path / "model.onnx"))
    weights = find_weights(model, pattern=TWO_FOUR)
    assert [(site.eligible, site.reason) for site in sites] == [(not w.reason, w.reason) for w in weights]
    assert [site.shape[site.axis] for site in sites if site.eligible] == [
        w.shape[w.axes[0]] for w in weights if not w.reason
    ]


def test_parametrised_weights_are_found_under_their_short_name():
    assert found(parametrizations.weight_norm(nn.Linear(8, 4))) == {"weight": ((1,), "")}
    assert found(parametrizations.spectral_norm(nn.Conv2d(8, 4, 3))) == {"weight": ((1,), "")}
    weight = find_weights(parametrizations.orthogonal(MyLinear(8, 4)), pattern=TWO_FOUR)[0]
    assert (weight.kind, weight.shape, weight.layer) == ("MyLinear", (4, 8), "")


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_hooks_that_compute_a_weight_are_seen():
    assert found(torch.nn.utils.weight_norm(nn.Conv1d(8, 4, 3))) == {"weight_v": ((1,), "")}
    reason = "a hook computes the weight from weight_orig: remove the hook, or use torch.nn.utils.parametrize"
    assert found(prune.random_unstructured(nn.Linear(8, 4), "weight", 0.5)) == {"weight_orig": ((), reason)}
    assert found(torch.nn.utils.spectral_norm(nn.Linear(8, 4))) == {"weight_orig": ((), reason)}


class Transposed(nn.Module):
    """As transformers' Conv1D: (inputs, outputs)."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(8, 3))


class MyTransposed(Transposed):
    """Inherits what was said of its base."""


def test_layers_of_ones_own_are_named_by_class_and_attribute():
    reason = "MyTransposed is not known to multiply by it: `layers` can say so"
    assert found(MyTransposed()) == {"matrix": ((), reason)}
    assert found(MyTransposed(), layers={Transposed: {"matrix": 0}}) == {"matrix": ((0,), "")}
    assert found(MyTransposed(), layers={Transposed: {"matrix": -2}}) == {"matrix": ((0,), "")}
    skipped = {MyLinear: {}}
    assert found(MyLinear(8, 8), layers=skipped)["weight"][1].startswith("MyLinear is not known")
    assert found(nn.Linear(8, 8), layers=skipped) == {"weight": ((1,), "")}


def test_a_transposable_mask_needs_both_lengths():
    assert found(nn.Linear(8, 12), transposable=True) == {"weight": ((1, 0), "")}
    reason = "3 outputs are not a multiple of 4: no transposable mask"
    assert found(nn.Conv2d(8, 3, 1), transposable=True) == {"weight": ((1, 0), reason)}
    reason = "reduction of 6 is not a multiple of 4"
    assert found(nn.Linear(6, 8), transposable=True) == {"weight": ((1, 0), reason)}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({Transposed: {"weight": 0}}, "the layer has no such weight\n  where: layers, Transposed\n  got: weight"),
        (
            {Transposed: {"matrix": 2}},
            "the weight has no such axis\n  where: layers, Transposed, matrix\n  got: 2\n  expected: one of 2 axes",
        ),
    ],
)
def test_a_wrong_description_of_a_layer_is_refused(layers, message):
    with pytest.raises(ConfigError) as caught:
        found(Transposed(), layers=layers)
    assert str(caught.value) == message
