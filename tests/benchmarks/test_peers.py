"""The PyTorch side of the end-to-end benchmark, at small sizes on the CPU."""

import contextlib
import math
import time

import numpy as np
import pytest

import models
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
from trtsparse.precision.feeds import random_feeds
from trtsparse.sparsity.prune import prune

torch = pytest.importorskip("torch")

from benchmarks.peers.execution import OutOfTime, Runnable, compile_parts, time_limit  # noqa: E402
from benchmarks.peers.linears import (  # noqa: E402
    Fp8Linear,
    Int8Linear,
    is_compliant,
    largest_inputs,
    linears,
    quantize,
    replace,
)
from benchmarks.peers.networks import MERGEABLE, network_for  # noqa: E402
from benchmarks.peers.variants import Setting, build, compiled, eager, quantized, relative_error  # noqa: E402

SMALL = {"layers": 2, "hidden": 64, "heads": 4, "intermediate": 128}
CASES = {
    "bert-base": ({**SMALL, "vocabulary": 99}, {"input_ids": (3, 16)}),
    "vit-base": ({**SMALL, "patch": 8, "image_size": 32, "num_classes": 16}, {"input": (3, 3, 32, 32)}),
    "llm-block": ({"hidden": 64, "intermediate": 96, "blocks": 2}, {"hidden_states": (2, 16, 64)}),
    "resnext50": ({"width": 16, "image_size": 64, "num_classes": 16}, {"input": (2, 3, 64, 64)}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pruned models, their inputs and what ONNX Runtime makes of them."""
    folder, found = tmp_path_factory.mktemp("models"), {}

    def get(name):
        if name not in found:
            options, shapes = CASES[name]
            model = prune(models.get(name, folder=folder, **options)).model
            (feeds,) = random_feeds(model, shapes=shapes)
            (expected,) = OnnxRuntimeEngine(model).run(feeds).values()
            found[name] = model, feeds, expected
        return found[name]

    return get


def setting(made, name):
    model, feeds, _ = made(name)
    separate = merged = network_for(name, model)
    if name in MERGEABLE:
        merged = network_for(name, model, merged=True)
    return Setting(separate, merged, tuple(torch.from_numpy(feeds[name]) for name in separate.inputs), device="cpu")


def difference(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("merged", [False, True])
def test_a_network_computes_what_onnx_runtime_does(made, name, merged):
    model, feeds, expected = made(name)
    network = network_for(name, model, merged=merged)
    with torch.no_grad():
        found = network(*(torch.from_numpy(feeds[one]) for one in network.inputs)).numpy()
    assert found.shape == expected.shape
    assert difference(found, expected) < 1e-5
    if name == "llm-block":  # most of its output is its input
        x = feeds["hidden_states"]
        assert difference(found - x, expected - x) < 1e-4


@pytest.mark.parametrize("name", MERGEABLE)
def test_merged_projections_are_fewer_linears_with_the_same_weights(made, name):
    if name not in CASES:
        pytest.skip("the same network at another size")
    model, _, _ = made(name)
    separate, merged = (network_for(name, model, merged=one) for one in (False, True))
    assert len(list(linears(merged))) < len(list(linears(separate)))
    assert sum(p.numel() for p in merged.parameters()) == sum(p.numel() for p in separate.parameters())


def test_pruned_weights_are_compliant_in_pytorch_too(made):
    model, _, _ = made("bert-base")
    assert all(is_compliant(layer.weight) for _, _, _, layer in linears(network_for("bert-base", model, merged=True)))
    assert not is_compliant(torch.ones(16, 16))
    assert not is_compliant(torch.zeros(8, 16)), "the sizes do not fit"


def test_a_model_with_a_mask_is_refused(tmp_path):
    model = models.get("bert-base", folder=tmp_path, **SMALL, vocabulary=99, mask=True)
    with pytest.raises(ValueError, match="a BERT with the inputs input_ids, token_type_ids, attention_mask"):
        network_for("bert-base", model)


def test_calibration_sees_the_largest_magnitude_of_each_input():
    layer = torch.nn.Linear(16, 32)
    network = torch.nn.Sequential(torch.nn.Identity(), layer)
    x = torch.zeros(20, 16)
    x[3, 4], x[5, 6] = 2.0, -7.0
    assert largest_inputs(network, (x,)) == {"1": 7.0}
    assert largest_inputs(network, (x[:16],)) == {}, "too few rows for an integer product"
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize(("kind", "bound"), [(Int8Linear, 0.015), (Fp8Linear, 0.06)])
def test_eight_bits_are_as_exact_as_their_steps_allow(kind, bound):
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 32).bfloat16()
    x = torch.randn(40, 64).bfloat16()
    small = kind(layer, float(x.abs().max()))
    with torch.no_grad():
        expected = torch.nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float())
        found = small(x)
    assert found.dtype == torch.bfloat16
    assert 0 < relative_error(found, expected) < bound
    assert small.weight.dtype.itemsize == 1


def test_activations_beyond_the_calibrated_range_are_clipped():
    layer = torch.nn.Linear(16, 16, bias=False)
    layer.weight.data = torch.eye(16)
    found = Int8Linear(layer, 1.0)(torch.full((20, 16), 5.0))
    assert torch.allclose(found, torch.ones(20, 16))


def test_only_linears_of_fitting_sizes_are_quantized():
    network = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Linear(32, 10))
    assert quantize(network, (torch.randn(20, 16),), Int8Linear) == 1
    assert [type(layer) for layer in network] == [Int8Linear, torch.nn.Linear]
    assert replace(network, lambda _at, _layer: None) == 0


@pytest.mark.parametrize("name", CASES)
def test_a_variant_is_compared_with_float32(made, name):
    shared = setting(made, name)
    outcome = build(lambda: eager(shared), shared.reference, bound=0.2)
    assert outcome.failure == ""
    assert 1e-4 < outcome.error < 0.1, "bfloat16 is neither exact nor wrong"
    assert outcome.to_dict()["build_s"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Int8Linear, Fp8Linear])
def test_a_quantized_network_is_compiled_and_about_right(made, kind):
    shared = setting(made, "vit-base")
    outcome = build(lambda: quantized(shared, kind, mode="default"), shared.reference, bound=0.5)
    assert outcome.failure == ""
    assert 0.005 < outcome.error < 0.3


@pytest.mark.slow
def test_equal_blocks_are_compiled_once(made):
    from torch._dynamo.utils import counters

    shared = setting(made, "vit-base")
    torch._dynamo.reset()
    counters.clear()
    outcome = build(lambda: compiled(shared, mode="default"), shared.reference, bound=0.2)
    assert outcome.failure == ""
    assert counters["stats"]["unique_graphs"] == 3, "a stem, a block, a head"


def test_blocks_are_compiled_in_groups_and_keep_their_order(made):
    model, _, _ = made("llm-block")
    network = network_for("llm-block", model)
    before = list(network.blocks)
    compile_parts(network, mode="default", group=2)
    assert [list(group) for group in network.blocks] == [before]


def test_a_wrong_result_is_no_variant():
    reference = torch.ones(4)
    wrong = Runnable(lambda: None, lambda: torch.zeros(4))
    outcome = build(lambda: wrong, reference, bound=0.2)
    assert outcome.failure == "wrong result: error 1"
    assert outcome.runnable is None
    nan = build(lambda: Runnable(lambda: None, lambda: torch.full((4,), math.nan)), reference, bound=0.2)
    assert nan.failure == "wrong result: error nan"


def test_a_failure_is_an_outcome():
    def fail():
        raise RuntimeError("no such kernel\nand a long story")

    outcome = build(fail, torch.ones(4), bound=0.2)
    assert outcome.to_dict() == {"failure": "RuntimeError: no such kernel", "build_s": outcome.build_s}


def test_building_ends_at_its_time_limit_even_where_exceptions_are_swallowed():
    def stubborn():
        with time_limit(0.05):
            while True:
                with contextlib.suppress(Exception):  # as compilers do
                    time.sleep(0.01)

    outcome = build(stubborn, torch.ones(4), bound=0.2)
    assert outcome.failure == "more than 0 s"
    with pytest.raises(OutOfTime), time_limit(0.01):
        time.sleep(1)
    with time_limit(0.05):
        pass
    time.sleep(0.1)  # nothing rings any more
