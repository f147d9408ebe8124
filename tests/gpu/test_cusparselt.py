"""The cusparselt engine on a real GPU: values against ONNX Runtime, through sessions and by itself."""

import numpy as np
import onnx
import pytest
from onnx import helper

import models
from tests.gpu.conftest import gpu_world
from tests.helpers import model as model_of
from tests.helpers import tensor
from trtsparse.engines.cusparselt.attention import Attention
from trtsparse.engines.cusparselt.engine import CusparseltEngine
from trtsparse.engines.cusparselt.products import Products
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
from trtsparse.precision.feeds import random_feeds
from trtsparse.runtime.options import SessionOptions
from trtsparse.runtime.session import Session
from trtsparse.sparsity.prune import prune
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.result import Kernel

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu
SMALL = {"layers": 2, "hidden": 256, "heads": 4, "intermediate": 512}
CASES = [
    ("mlp", {"widths": (256, 512, 64)}, {"input": (24, 256)}),
    ("llm-block", {"hidden": 256, "intermediate": 512}, None),
    ("bert-base", {**SMALL, "vocabulary": 99}, {"input_ids": (8, 32)}),
    ("bert-base", {**SMALL, "vocabulary": 99, "mask": True}, None),
    ("vit-base", {**SMALL, "image_size": 64, "num_classes": 16}, None),
    ("resnext50", {"width": 16, "image_size": 64, "num_classes": 16}, None),
]


@pytest.fixture(autouse=True)
def _gpu():
    """Skips where there is none."""
    gpu_world("cuda-python")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch was built without CUDA")


def session(engine, **options):
    return Session(engine, cuda=gpu_world("cuda-python").cuda, options=SessionOptions(**options))


def sparse_kernel(gemm: Gemm, fits: bool):  # noqa: FBT001 - as the engine calls it
    """The library's first configuration, whether it is fast or not; it has none for a few rows, nor with a GELU."""
    possible = fits and gemm.m >= 16 and gemm.activation != "gelu"
    return Kernel("sparse", "config 0", {"config": 0}, 1, 1, 1, 0, 0) if possible else None


def close(found, right, tolerance):
    scale = max(float(np.abs(right).max()), 1e-2)
    assert float(np.abs(found - right).max()) <= tolerance * scale


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(("name", "options", "shapes"), CASES)
def test_models_give_what_onnx_runtime_gives_within_sixteen_bits(name, options, shapes, precision):
    model = prune(models.get(name, **options)).model
    engine = CusparseltEngine(model, precision=precision, choose=sparse_kernel)
    with session(engine) as opened:
        for feeds in random_feeds(model, shapes=shapes, count=3):
            right = OnnxRuntimeEngine(model).run(feeds)
            for _ in range(3):
                found = opened.run(feeds)
                for output, values in right.items():
                    close(found[output], values, 0.02 if precision == "fp16" else 0.1)
    assert any(used.kernel is not None for used in engine.used)
    assert any(used.gemm.has_addend for used in engine.used) == (name == "resnext50")


@pytest.mark.parametrize(("name", "options", "shapes"), CASES)
def test_a_compiled_model_gives_the_same(name, options, shapes):
    model = prune(models.get(name, **options)).model
    engine = CusparseltEngine(model, compiled=True, choose=sparse_kernel)
    with session(engine) as opened:
        for feeds in random_feeds(model, shapes=shapes, count=2):
            found = opened.run(feeds)
            for output, values in OnnxRuntimeEngine(model).run(feeds).items():
                close(found[output], values, 0.1)
    assert any(used.kernel is not None for used in engine.used)


def test_a_saved_engine_remembers_that_it_is_compiled_and_asks_about_unknown_products(tmp_path):
    model = prune(models.get("mlp", widths=(256, 512, 64))).model
    with session(CusparseltEngine(model, compiled=True, choose=sparse_kernel)) as opened:
        opened.run(random_feeds(model, shapes={"input": (16, 256)})[0])
        opened.engine.save(tmp_path / "mlp.trtsparse")
    engine = CusparseltEngine(tmp_path / "mlp.trtsparse")
    assert engine.compiled
    with session(engine) as opened:
        for rows in (16, 32):
            feeds = random_feeds(model, shapes={"input": (rows, 256)})[0]
            for output, values in opened.run(feeds).items():
                close(values, OnnxRuntimeEngine(model).run(feeds)[output], 0.1)
    assert all(used.kernel is not None for used in engine.used if used.gemm.m == 32)


@pytest.mark.parametrize(
    ("package", "name", "shapes"),
    [("magika", "magika", {"bytes": (4, 2048)}), ("rapidocr", "ppocr-rec", None), ("rapidocr", "ppocr-det", None)],
)
def test_real_networks_run_with_sparse_kernels_where_they_fit(package, name, shapes):
    pytest.importorskip(package)
    model = prune(models.get(name)).model
    engine = CusparseltEngine(model, precision="fp16", choose=sparse_kernel)
    feeds = random_feeds(model, shapes=shapes)[0]
    right = OnnxRuntimeEngine(model).run(feeds)
    with session(engine) as opened:
        for output, values in opened.run(feeds).items():
            close(values, right[output], 0.05)
    assert any(used.kernel is not None for used in engine.used)


def test_a_saved_engine_gives_the_same_without_choosing_again(tmp_path):
    model = prune(models.get("bert-base", **SMALL, vocabulary=99)).model
    feeds = random_feeds(model, shapes={"input_ids": (4, 16)})[0]
    engine = CusparseltEngine(model, precision="fp16", choose=sparse_kernel)
    with session(engine) as opened:
        before = opened.run(feeds)
        engine.save(tmp_path / "bert.trtsparse")
    with session(CusparseltEngine(tmp_path / "bert.trtsparse")) as opened:
        after = opened.run(feeds)
        assert opened.engine.precision == "fp16"
        assert [used.kernel for used in opened.engine.used] == [used.kernel for used in engine.used]
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


def test_shapes_come_and_go_and_requests_overlap():
    model = prune(models.get("bert-base", **SMALL, vocabulary=99)).model
    reference = OnnxRuntimeEngine(model)
    with session(CusparseltEngine(model, precision="fp16", choose=sparse_kernel), contexts=3) as opened:
        feeds = [random_feeds(model, shapes={"input_ids": (1 + i % 4, 8 + i % 5)}, seed=i)[0] for i in range(40)]
        requests = [opened.submit(feed) for feed in feeds]
        for feed, request in zip(feeds, requests, strict=True):
            found = request.result()
            for output, values in reference.run(feed).items():
                close(found[output], values, 0.02)


@pytest.mark.parametrize("compiled", [False, True])
def test_values_are_right_wherever_they_are(compiled):
    """Addresses that come again are captured, others are copied; all of them in any order."""
    model = prune(models.get("mlp", widths=(256, 512, 64))).model
    context = CusparseltEngine(model, compiled=compiled, choose=sparse_kernel).create_context(
        profile=0, stream=0, own_scratch=True
    )
    reference, rng = OnnxRuntimeEngine(model), np.random.default_rng(0)
    rows = {name: 16 * (1 + place % 2) for place, name in enumerate("abcdefg")}
    inputs = {name: torch.empty(count, 256, device="cuda") for name, count in rows.items()}
    outputs = {name: torch.empty(count, 64, device="cuda") for name, count in rows.items()}
    for name in "aaabbbacacbdebfgfgfgabcabcdeag":
        values = rng.standard_normal((rows[name], 256)).astype(np.float32)
        inputs[name].copy_(torch.from_numpy(values))
        outputs[name].fill_(float("nan"))
        context.set_inputs({"input": values.shape}, {})
        context.set_address("input", inputs[name].data_ptr())
        context.set_address("output", outputs[name].data_ptr())
        context.execute(torch.cuda.default_stream().cuda_stream)
        close(outputs[name].cpu().numpy(), reference.run({"input": values})["output"], 0.1)
    context.close()


@pytest.mark.parametrize(("tokens", "width", "masked"), [(384, 64, False), (257, 80, False), (128, 64, True)])
def test_attention_is_the_fastest_that_is_right(tokens, width, masked):
    owner = Products(torch.device("cuda"), None, lambda _gemm, _fits: None)
    made = [torch.randn(4, tokens, 8, width, device="cuda").bfloat16().transpose(1, 2) for _ in range(3)]
    mask = torch.zeros(4, 1, tokens, tokens, device="cuda").bfloat16() if masked else None
    if masked:
        mask[:, :, :, tokens // 2 :] = -30000.0
    found = Attention(owner)(*made, mask, scale=0.1)
    wide = [tensor.double() for tensor in made]
    scores = wide[0] @ wide[1].transpose(-1, -2) * 0.1 + (0 if mask is None else mask.double())
    right = scores.softmax(-1) @ wide[2]
    assert float((found.double() - right).norm() / right.norm()) < 0.02
    assert masked or len(owner.passes) > 1  # there was a choice


def test_graphs_of_a_context_share_memory():
    model, rows = models.get("mlp", widths=(1024, 16384, 1024)), 4096
    context = CusparseltEngine(model, choose=lambda _gemm, _fits: None).create_context(
        profile=0, stream=0, own_scratch=True
    )
    context.set_inputs({"input": (rows, 1024)}, {})
    places = [(torch.ones(rows, 1024, device="cuda"), torch.empty(rows, 1024, device="cuda")) for _ in range(4)]
    taken = []
    for fed, filled in places:
        context.set_address("input", fed.data_ptr())
        context.set_address("output", filled.data_ptr())
        for _ in range(3):
            context.execute(torch.cuda.default_stream().cuda_stream)
        torch.cuda.synchronize()
        taken.append(torch.cuda.memory_reserved())
    assert taken[-1] - taken[0] < rows * 16384 * 2  # what is between the products, once
    context.close()


def test_an_execution_can_be_timed_step_by_step():
    engine = CusparseltEngine(models.get("mlp", widths=(256, 512, 512, 64)))
    context = engine.create_context(profile=0, stream=0, own_scratch=True)
    shapes = {"input": (32, 256), **context.set_inputs({"input": (32, 256)}, {})}
    arrays = {name: torch.zeros(shape, device="cuda") for name, shape in shapes.items()}
    for name, array in arrays.items():
        context.set_address(name, array.data_ptr())
    times = context.execute_profiled(torch.cuda.current_stream().cuda_stream)
    assert len(times) == 3
    assert all(ms > 0 for _, ms in times)
    context.close()
    engine.close()


def test_work_on_the_default_stream_is_ordered_with_other_work_there():
    model = models.get("mlp", widths=(1024, 4096, 4096, 64))
    context = CusparseltEngine(model, choose=lambda _gemm, _fits: None).create_context(
        profile=0, stream=0, own_scratch=True
    )
    shape = context.set_inputs({"input": (8192, 1024)}, {})["output"]
    fed, found = torch.empty(8192, 1024, device="cuda"), torch.empty(shape, device="cuda")
    context.set_address("input", fed.data_ptr())
    context.set_address("output", found.data_ptr())
    sums = []
    for value in (0.5, 1.0, -2.0):
        fed.fill_(value)
        context.execute(torch.cuda.default_stream().cuda_stream)
        sums.append(found.clone())
        fed.zero_()
    context.execute(torch.cuda.default_stream().cuda_stream)
    for early in sums:
        assert float((early - found).abs().max()) > 0
    context.close()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("what", ["positions", "resize", "backwards", "shapes alone"])
def test_what_no_product_computes_is_captured_and_right(what, compiled):
    """Replays run no Python: what a graph reads must be on the GPU, and stay."""
    node, int64 = helper.make_node, onnx.TensorProto.INT64
    inverse = (1 / 10000 ** (np.arange(0, 64, 2) / 64)).astype(np.float32)
    steps = {
        "positions": [
            node("Cast", ["ids"], ["f"], to=onnx.TensorProto.FLOAT), node("Unsqueeze", ["f", "last"], ["u"]),
            node("Mul", ["u", "inverse"], ["a"]), node("Cos", ["a"], ["y"]),
        ],
        "resize": [node(
            "Resize", ["x", "", "scales"], ["y"], nearest_mode="floor", coordinate_transformation_mode="asymmetric"
        )],
        "backwards": [node("Slice", ["x", "last", "first", "axes", "last"], ["y"])],
        "shapes alone": [
            node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["s"], ["z"]), node("Identity", ["z"], ["y"])
        ],
    }[what]  # fmt: skip
    constants = [
        tensor("inverse", inverse), tensor("last", np.array([-1])), tensor("first", np.array([-(2**31)])),
        tensor("axes", np.array([3])), tensor("scales", np.float32([1, 1, 1.7, 0.6])),
    ]  # fmt: skip
    source = model_of(steps, constants, inputs={"ids": [1, 2048]} if what == "positions" else {"x": [1, 2, 9, 12]})
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 2, 9, 12)).astype(np.float32)}
    if what == "positions":
        source.graph.input[0].type.tensor_type.elem_type = int64
        feeds = {"ids": np.arange(2048)[None]}
    right = OnnxRuntimeEngine(source).run(feeds)["y"]
    with session(CusparseltEngine(source, compiled=compiled)) as opened:
        for _ in range(4):
            np.testing.assert_allclose(opened.run(feeds)["y"], right, atol=1e-4 if what == "positions" else 0.02)
