import dataclasses
import math
import re

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest

from models import bert, llm, mlp, resnext, vit
from models._registry import RECIPES, Generated
from trtsparse.errors import ConfigError

LENGTHS = {"N": 3, "S": 5}


def run(model, feeds):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)


def random_feeds(model, seed=0):
    random = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [LENGTHS.get(dim.dim_param, dim.dim_value) for dim in tensor.shape.dim]
        integers = tensor.elem_type == onnx.TensorProto.INT64
        feeds[value.name] = (
            random.integers(0, 2, shape) if integers else random.standard_normal(shape, dtype=np.float32)
        )
    return feeds


def as_stored(recipe):
    """The recipe's weights as a checkpoint holds them."""
    stored = {}
    for weight in recipe.graph()._weights.values():
        values = weight.generate(recipe.seed)
        stored[weight.name] = np.ascontiguousarray(values.T) if weight.transposed else values
    return stored


def test_every_generator_has_a_tiny_size(tiny_options):
    assert set(tiny_options) == {name for name, entry in RECIPES.items() if isinstance(entry, Generated)}


def test_a_model_passes_the_checker_and_every_shape_is_inferred(tiny):
    model = tiny.model()
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    known = {value.name for value in (*inferred.graph.value_info, *inferred.graph.output)}
    assert known == {name for node in model.graph.node for name in node.output}
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)


def test_an_output_is_finite_of_sane_size_and_depends_on_the_input(tiny):
    model = tiny.model()
    (output,) = run(model, random_feeds(model))
    (other,) = run(model, random_feeds(model, seed=1))
    declared = model.graph.output[0].type.tensor_type.shape.dim
    assert output.shape == tuple(LENGTHS.get(dim.dim_param, dim.dim_value) for dim in declared)
    assert np.isfinite(output).all()
    assert 0.1 < output.std() < 5
    assert (output - other).std() > 0.1 * output.std()


def test_fixed_lengths_give_the_same_output_as_symbolic_ones(tiny):
    lengths = {"batch": 3, "sequence": 5}
    fixed = dataclasses.replace(tiny, **{name: n for name, n in lengths.items() if hasattr(tiny, name)}).model()
    feeds = random_feeds(tiny.model())
    dims = [dim for value in (*fixed.graph.input, *fixed.graph.output) for dim in value.type.tensor_type.shape.dim]
    assert all(dim.HasField("dim_value") for dim in dims)
    np.testing.assert_allclose(run(fixed, feeds)[0], run(tiny.model(), feeds)[0], atol=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_gives_others(tiny):
    data = tiny.model().SerializeToString()
    assert data == tiny.model().SerializeToString()
    assert data != dataclasses.replace(tiny, seed=1).model().SerializeToString()


def test_node_names_are_unique(tiny):
    names = [node.name for node in tiny.model().graph.node]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("resnext101", {}, 88_791_336),  # torchvision's resnext101_32x8d
        ("resnext50", {"width_per_group": 4}, 25_028_904),  # torchvision's resnext50_32x4d
        ("vit-base", {}, 86_567_656),  # torchvision's vit_b_16
        ("vit-h", {}, 632_045_800),  # torchvision's vit_h_14 at 224 pixels
        ("bert-base", {}, 109_482_240 - (768 + 1) * 768),  # Hugging Face's BertModel less its pooler
        ("bert-large", {}, 335_141_888 - (1024 + 1) * 1024),
        ("llm-block", {}, 3 * 4096 * 14336 + 4096),  # gate, up and down of Llama 3 8B, and the RMSNorm before
        ("mlp", {}, 1025 * 4096 + 4097 * 4096 + 4097 * 1000),
    ],
)
def test_parameters_are_as_many_as_published(name, options, parameters):
    assert RECIPES[name].make(**options).graph().parameters == parameters


def test_parameters_are_counted_as_they_are_written(tiny):
    sizes = {t.name: int(np.prod(t.dims)) for t in tiny.model().graph.initializer}
    graph = tiny.graph()
    trained = {name for name, weight in graph._weights.items() if weight.trained}
    assert {name for name in sizes if "running_" in name}.isdisjoint(trained)
    assert graph.parameters == sum(sizes[name] for name in trained)


@pytest.mark.slow
def test_activations_neither_vanish_nor_explode_through_all_of_resnext101():
    model = resnext.make(depth=101, image_size=96)
    norms = [node.output[0] for node in model.graph.node if node.op_type == "BatchNormalization"]
    for name in norms:
        model.graph.output.add(name=name)
    logits, *activations = run(model, random_feeds(model))
    assert len(activations) == 104
    for name, values in zip(norms, activations, strict=True):
        gain = 0.5 if ".bn3/" in name else 1
        assert 0.5 < values.std() / gain < 2, name
    assert 0.2 < logits.std() < 5
    assert logits.std(axis=0).mean() > 0.1 * logits.std()


def test_bert_ignores_what_the_mask_hides():
    model = bert.make(layers=1, hidden=16, heads=2, intermediate=32, vocabulary=50, mask=True)
    ids = np.array([[7, 8, 9, 10]])
    feeds = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": np.array([[1, 1, 1, 0]])}
    (hidden,) = run(model, feeds)
    (changed,) = run(model, {**feeds, "input_ids": np.array([[7, 8, 9, 33]])})
    np.testing.assert_array_equal(hidden[:, :3], changed[:, :3])
    assert not np.array_equal(hidden[:, 3], changed[:, 3])


def test_bert_computes_what_its_definition_says():
    recipe = bert.Bert(layers=1, hidden=8, heads=2, intermediate=16, vocabulary=20)
    w = {name: values.astype(np.float64) for name, values in as_stored(recipe).items()}
    ids, types = np.array([[3, 1, 4]]), np.array([[0, 0, 1]])

    def norm(x, at):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * w[f"{at}.weight"] + w[f"{at}.bias"]

    def dense(x, at):
        return x @ w[f"{at}.weight"].T + w[f"{at}.bias"]

    def heads(x):
        return x.reshape(1, 3, 2, 4).transpose(0, 2, 1, 3)

    table = "embeddings.{}_embeddings.weight".format
    x = norm(w[table("word")][ids] + w[table("token_type")][types] + w[table("position")][:3], "embeddings.LayerNorm")
    at = "encoder.layer.0"
    q, k, v = (heads(dense(x, f"{at}.attention.self.{part}")) for part in ("query", "key", "value"))
    scores = np.exp(q @ k.transpose(0, 1, 3, 2) / 2)
    mixed = (scores / scores.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(1, 3, 8)
    x = norm(x + dense(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
    inner = dense(x, f"{at}.intermediate.dense")
    erf = np.vectorize(math.erf)
    inner = 0.5 * inner * (1 + erf(inner / np.sqrt(2)))
    x = norm(x + dense(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    (output,) = run(recipe.model(), {"input_ids": ids, "token_type_ids": types})
    np.testing.assert_allclose(output, x, atol=1e-5)


def test_an_llm_block_computes_what_its_definition_says():
    recipe = llm.LLMBlock(hidden=8, intermediate=16)
    w = {name: values.astype(np.float64) for name, values in as_stored(recipe).items()}
    x = np.random.default_rng(0).standard_normal((1, 3, 8), dtype=np.float32)
    normal = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)
    normal = normal * w["model.layers.0.post_attention_layernorm.weight"]
    gate = normal @ w["model.layers.0.mlp.gate_proj.weight"].T
    up = normal @ w["model.layers.0.mlp.up_proj.weight"].T
    expected = x + (gate / (1 + np.exp(-gate)) * up) @ w["model.layers.0.mlp.down_proj.weight"].T
    (output,) = run(recipe.model(), {"hidden_states": x})
    np.testing.assert_allclose(output, expected, atol=1e-5)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_weights_read_from_a_file_give_the_generated_model(tiny, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    save(path, as_stored(tiny))
    assert dataclasses.replace(tiny, weights=path, seed=5).model() == tiny.model()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_become_float32(tmp_path, dtype):
    stored = {name: values.astype(dtype) for name, values in as_stored(mlp.MLP(widths=(8, 4))).items()}
    save(tmp_path / "half.safetensors", stored)
    model = mlp.make(widths=(8, 4), weights=tmp_path / "half.safetensors")
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, stored[tensor.name].astype(np.float32))


def test_bert_reads_files_with_a_prefix_and_the_old_names_of_layer_norms(tmp_path):
    recipe = bert.Bert(layers=1, hidden=16, heads=2, intermediate=32, vocabulary=50)
    old = {
        "bert."
        + re.sub(r"LayerNorm\.bias", "LayerNorm.beta", re.sub(r"LayerNorm\.weight", "LayerNorm.gamma", name)): v
        for name, v in as_stored(recipe).items()
    }
    assert "bert.encoder.layer.0.output.LayerNorm.gamma" in old
    save(tmp_path / "old.npz", old)
    assert dataclasses.replace(recipe, weights=tmp_path / "old.npz").model() == recipe.model()


def save(path, tensors):
    if path.suffix == ".npz":
        np.savez(path, **tensors)
    else:
        from safetensors.numpy import save_file

        save_file(tensors, path)


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (
            resnext.make,
            {"depth": 34},
            "an option is wrong\n  where: recipe 'resnext', depth\n  got: 34\n  expected: 50 or 101",
        ),
        (
            resnext.make,
            {"width": 4},
            "an option is wrong\n  where: recipe 'resnext', width\n  got: 4\n  expected: at least 8",
        ),
        (
            bert.make,
            {"hidden": 10, "heads": 3},
            "an option is wrong\n  where: recipe 'bert', heads\n  got: 3\n  expected: a divisor of hidden, 10",
        ),
        (
            bert.make,
            {"sequence": 513},
            "an option is wrong\n  where: recipe 'bert', sequence\n  got: 513\n  expected: at most 512",
        ),
        (
            bert.make,
            {"mask": 1},
            "an option is wrong\n  where: recipe 'bert', mask\n  got: 1\n  expected: True or False",
        ),
        (
            vit.make,
            {"hidden": 10, "heads": 3},
            "an option is wrong\n  where: recipe 'vit', heads\n  got: 3\n  expected: a divisor of hidden, 10",
        ),
        (
            vit.make,
            {"patch": 15},
            "an option is wrong\n  where: recipe 'vit', patch\n  got: 15\n  expected: a divisor of image_size, 224",
        ),
        (
            llm.make,
            {"blocks": 0},
            "an option is wrong\n  where: recipe 'llm', blocks\n  got: 0\n  expected: a positive integer",
        ),
        (
            llm.make,
            {"batch": "two words"},
            (
                "an option is wrong\n  where: recipe 'llm', batch\n  got: 'two words'\n"
                "  expected: a positive integer, or a name for a length known later"
            ),
        ),
        (
            mlp.make,
            {"widths": [3]},
            (
                "an option is wrong\n  where: recipe 'mlp', widths\n  got: [3]\n"
                "  expected: two or more positive integers, as in 784,512,10"
            ),
        ),
        (
            mlp.make,
            {"seed": -1},
            "an option is wrong\n  where: recipe 'mlp', seed\n  got: -1\n  expected: an integer from 0 on",
        ),
        (
            mlp.make,
            {"weights": 3},
            (
                "an option is wrong\n  where: recipe 'mlp', weights\n  got: 3\n"
                "  expected: the path of a .safetensors or .npz file"
            ),
        ),
        (
            mlp.make,
            {"width": 3},
            (
                "the recipe 'mlp' has no such option\n  got: 'width'\n  expected: batch, seed, weights, widths\n"
                "  to fix: did you mean 'widths'?"
            ),
        ),
    ],
)
def test_a_wrong_option_is_named_with_what_is_expected(make, options, text):
    with pytest.raises(ConfigError) as caught:
        make(**options)
    assert str(caught.value) == text


@pytest.mark.parametrize("value", [2.5, True, None, "", "1e3", float("nan"), float("inf")])
def test_a_count_is_a_positive_integer_and_nothing_else(value):
    with pytest.raises(ConfigError, match=r"expected: a positive integer$"):
        llm.LLMBlock(blocks=value)


def test_any_integer_from_0_on_is_a_seed():
    seeds = (0, 2**64 + 1, np.int64(7), "12")
    assert [mlp.MLP(seed=seed).seed for seed in seeds] == [0, 2**64 + 1, 7, 12]
