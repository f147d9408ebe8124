"""Repositories of TensorRT plans and ONNX models on the real server, which has neither backend.

The strict server reads and checks every configuration before it looks for the backend. With `stand_in.py` in the
backend's place, requests, batches, warm-up and statistics are Triton's own; what the plan would compute is not.
"""

import contextlib
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import models
from tests.triton.samples import infer_once, integer_layer, small_models, weights_of
from tests.triton.server import TritonServer
from trtsparse import Profile
from trtsparse.triton.checks import check_model
from trtsparse.triton.export import export_triton
from trtsparse.triton.options import InstanceGroup, TritonOptions
from trtsparse.triton.protobuf import parse_config

grpc = pytest.importorskip("tritonclient.grpc")
from google.protobuf import json_format  # noqa: E402 - after the check that it is there
from tritonclient.utils import InferenceServerException  # noqa: E402

pytestmark = pytest.mark.slow
STRICT = ("--model-control-mode=explicit", "--disable-auto-complete-config")
LAYER = "x:1x64:4x64:16x64"
NO_BACKEND = "unable to find backend library for backend '{}'"
SMALL = {
    "resnext50": (
        {"width": 8, "image_size": 32, "groups": 2, "num_classes": 8},
        "input:1x3x32x32:2x3x32x32:4x3x32x32",
    ),
    "bert-base": ({"layers": 1, "hidden": 16, "heads": 2, "intermediate": 32, "vocabulary": 64}, None),
    "vit-base": ({"layers": 1, "hidden": 16, "heads": 2, "intermediate": 32, "image_size": 32}, None),
    "llm-block": ({"hidden": 16, "intermediate": 32}, None),
    "mlp": ({"widths": (8, 4), "batch": 3}, None),
}


def on_any_device(config):
    """KIND_GPU is refused before anything else where there is no GPU."""
    return config.replace("KIND_GPU", "KIND_MODEL")


def load(client, made):
    """Load a model as it is, but for the kind of its instances."""
    config = parse_config(on_any_device(made.config), where=made.name)
    client.load_model(made.name, config=json_format.MessageToJson(config, preserving_proto_field_name=True))


def generated(folder):
    """Small networks of every generator, with a profile where the batch or sequence is dynamic."""
    for name, (options, shapes) in SMALL.items():
        yield name, models.get(name, folder=folder, **options), () if shapes is None else (Profile.parse(shapes),)


def every_export(folder, repository, built):
    """Exports of all kinds, each under the backend that the real server would need."""
    batches = "".join(f"{name}:1x2:4x2:8x2," for name in ("a", "b")).rstrip(",")
    plan = built(integer_layer(), LAYER)
    two = built(integer_layer(), "x:1x64:1x64:1x64", "x:8x64:16x64:32x64")
    everything = TritonOptions(
        cuda_graphs=True,
        warmup="zeros",
        response_cache=True,
        version_policy="all",
        instances=[InstanceGroup.parse("2")],
    )
    yield export_triton(plan, repository, name="plan", options=everything)
    yield export_triton(plan, repository, name="plan", options=everything)
    yield export_triton(two, repository, name="profiles", options=TritonOptions(version_policy="specific:1"))
    yield export_triton(built(small_models()["two"], batches), repository, name="two-plan")
    yield export_triton(
        built(small_models()["fixed"]), repository, name="fixed-plan", options=TritonOptions(warmup="random")
    )
    yield export_triton(built(small_models()["items"], "x:1:4:8"), repository, name="items-plan")
    for name, model in small_models().items():
        yield export_triton(model, repository, name=name, options=TritonOptions(parameters={"intra_op": "1"}))
    for name in ("magika", "ppocr-det", "ppocr-rec"):
        yield export_triton(models.get(name), repository, name=name)
    for name, model, profiles in generated(folder):
        yield export_triton(model, repository, name=name, profiles=profiles)


def test_a_strict_server_reads_every_configuration(environment, built, tmp_path):
    for package in ("magika", "rapidocr"):
        pytest.importorskip(package)
    made = list(every_export(tmp_path / "models", tmp_path / "repository", built))
    with TritonServer(environment, tmp_path / "repository", tmp_path / "log", *STRICT) as server:
        for one in made:
            assert check_model(one.folder.parent) == ()
            with grpc.InferenceServerClient(server.grpc) as client, pytest.raises(InferenceServerException) as caught:
                load(client, one)
            assert NO_BACKEND.format(one.backend) in caught.value.message(), one.name
    assert {one.backend for one in made} == {"tensorrt", "onnxruntime"}


@contextlib.contextmanager
def standing_in(environment, repository, folder, *arguments):
    """The server with the stand-in as its TensorRT backend, and a client."""
    backends = folder / "backends"
    (backends / "tensorrt").mkdir(parents=True)
    (backends / "python").symlink_to(environment.backends / "python")
    shutil.copy(__file__.replace("test_plans_on_server", "stand_in"), backends / "tensorrt" / "model.py")
    with (
        TritonServer(environment, repository, folder / "log", *STRICT, *arguments, backends=backends) as server,
        grpc.InferenceServerClient(server.grpc) as client,
    ):
        yield server, client


def test_a_repository_of_plans_is_described_warmed_up_and_batched(environment, built, tmp_path):
    repository = tmp_path / "repository"
    options = TritonOptions(warmup="zeros", queue_delay_us=300_000, preferred_batch_sizes=(4,), response_cache=True)
    made = export_triton(built(integer_layer(), LAYER), repository, name="layer", options=options)
    (made.folder / "model.plan").write_bytes(integer_layer().SerializeToString())
    cache = (f"--cache-directory={environment.triton / 'caches'}", "--cache-config=local,size=1048576")
    with standing_in(environment, repository, tmp_path, *cache) as (server, client):
        load(client, made)
        warm = [line.rpartition("layer: ")[2].rstrip('"') for line in server.log.splitlines() if "stand-in: " in line]
        assert warm == [f"{size} requests, x [{size}, 64]" for size in (1, 4, 16)]
        (described,) = client.get_model_metadata("layer", as_json=True)["inputs"]
        assert described == {"name": "x", "datatype": "FP32", "shape": ["-1", "64"]}
        feeds = [{"x": np.full((1, 64), index, np.float32)} for index in range(4)]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda feed: infer_once(server.grpc, "layer", feed)["y"], feeds))
        for feed, answer in zip(feeds, answers, strict=True):
            np.testing.assert_array_equal(answer, feed["x"] @ weights_of(integer_layer()))
        np.testing.assert_array_equal(infer_once(server.grpc, "layer", feeds[1])["y"], answers[1])
        (stats,) = client.get_inference_statistics("layer").model_stats
        batches = {batch.batch_size: batch.compute_infer.count for batch in stats.batch_stats}
        assert batches == {1: 1, 4: 2, 16: 1}  # one each to warm up, and one of four requests
        assert stats.inference_stats.cache_hit.count == 1  # the fifth was known
        with pytest.raises(InferenceServerException, match="batch-size must be <= 16"):
            infer_once(server.grpc, "layer", {"x": np.zeros((17, 64), np.float32)})


def edited(old, new):
    """An edit of the configuration's text that does happen."""

    def edit(folder):
        path = folder / "config.pbtxt"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return edit


def without_tensors(folder):
    path = folder / "config.pbtxt"
    text = path.read_text()
    path.write_text(text[: text.index("input {")] + text[text.index("instance_group") :])


SILENT = None
"""Triton loads the model as if nothing were wrong."""
FAULTS = {
    "enum": (
        edited("TYPE_FP32", "FP32"),
        (
            "the model's configuration cannot be read\n  where: {config}, line 12\n"
            "  got: '  data_type: FP32': Enum type \"inference.DataType\" has no value named FP32.\n"
            "  to fix: did you mean 'TYPE_FP32'?"
        ),
        "failed to read text proto from",
    ),
    "field": (
        edited("dims:", "dimz:"),
        (
            "the model's configuration cannot be read\n  where: {config}, line 13\n"
            '  got: Message type "inference.ModelInput" has no field named "dimz".\n  to fix: did you mean \'dims\'?'
        ),
        "failed to read text proto from",
    ),
    "name": (
        edited('name: "name"', 'name: "other"'),
        "the model's name is not that of its folder\n  where: {config}\n  got: 'other'\n  expected: 'name'",
        "directory name must equal model name",
    ),
    "platform": (
        edited('platform: "tensorrt_plan"', 'platform: "tensorrt-plan"'),
        (
            "no such platform\n  where: {config}\n  got: 'tensorrt-plan'\n  expected: tensorrt_plan, "
            "onnxruntime_onnx, pytorch_libtorch, torch_aoti, tensorflow_graphdef, tensorflow_savedmodel, ensemble\n"
            "  to fix: did you mean 'tensorrt_plan'?"
        ),
        "unexpected 'platform' and 'backend' pair, got:tensorrt-plan, tensorrt",
    ),
    "preferred": (
        edited("preferred_batch_size: 16", "preferred_batch_size: 17"),
        (
            "a preferred batch is out of range\n  where: {config}, dynamic_batching\n  got: 17\n"
            "  expected: 1 to max_batch_size, which is 16"
        ),
        "dynamic batching preferred size must be <= max batch size",
    ),
    "negative": (
        edited("max_batch_size: 16", "max_batch_size: -1"),
        "max_batch_size is negative\n  where: {config}\n  got: -1\n  to fix: 0 is no batching",
        "'max_batch_size' must be non-negative value",
    ),
    "versions": (
        lambda folder: shutil.rmtree(folder / "1"),
        "there is no version\n  where: {folder}\n  expected: a folder such as {folder}/1",
        "at least one version must be available",
    ),
    "dims": (
        edited("  dims: 64\n", ""),
        "dims are missing\n  where: {config}, input 'x'\n  expected: such as dims: [ 3, -1 ]; [ 1 ] for a scalar",
        "must specify 'dims'",
    ),
    "type": (
        edited("  data_type: TYPE_FP32\n", ""),
        "data_type is missing\n  where: {config}, input 'x'\n  expected: such as TYPE_FP32",
        "must specify 'data_type'",
    ),
    "zero": (
        edited("dims: 64", "dims: 0"),
        "a dim is out of range\n  where: {config}, input 'x'\n  got: 0\n  expected: at least 1, or -1 if it varies",
        "dimension must be integer >= 1",
    ),
    "reshape": (
        edited("dims: 64", "dims: 64 reshape { shape: [ 7 ] }"),
        (
            "reshape has another number of elements than dims\n  where: {config}, input 'x'\n  got: [7]\n"
            "  expected: as many as [64] has, with the varying dims in the same places"
        ),
        "has different size for dims and reshape",
    ),
    "duplicate": (
        edited("output {", 'input { name: "x" data_type: TYPE_FP32 dims: 64 }\noutput {'),
        "an input is listed more than once\n  where: {config}\n  got: 'x', 2 times",
        SILENT,
    ),
    "plan": (
        lambda folder: (folder / "1" / "model.plan").unlink(),
        "the model's file is missing\n  where: {folder}/1\n  expected: model.plan",
        SILENT,
    ),
    "tensors": (
        without_tensors,
        (
            "there is no input\n  where: {config}\n  to fix: list every input of the model\n"
            "there is no output\n  where: {config}\n  to fix: list every output of the model"
        ),
        SILENT,
    ),
}


def test_every_fault_that_triton_finds_or_misses_is_found_before(environment, built, tmp_path):
    repository = tmp_path / "repository"
    plan = built(integer_layer(), LAYER)
    for name, (break_it, ours, _) in FAULTS.items():
        folder = export_triton(plan, repository, name=name).folder.parent
        (folder / "config.pbtxt").write_text(on_any_device((folder / "config.pbtxt").read_text()))
        assert check_model(folder) == ()
        break_it(folder)
        expected = ours.format(config=folder / "config.pbtxt", folder=folder)
        assert "\n".join(map(str, check_model(folder))) == expected
    for path in repository.glob("*/1/model.plan"):
        path.write_bytes(integer_layer().SerializeToString())
    with standing_in(environment, repository, tmp_path) as (server, client):
        for name, (_, _, theirs) in FAULTS.items():
            if theirs is SILENT:
                client.load_model(name)
                continue
            with pytest.raises(InferenceServerException):
                client.load_model(name)
            assert theirs in server.log.splitlines()[-1] + server.log.splitlines()[-2], name
