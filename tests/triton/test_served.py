"""What `export_triton` wrote, served through a session by the real Triton server on this CPU."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

import models
from tests.triton.samples import (
    DTYPES,
    every_type,
    from_text,
    infer,
    infer_once,
    integer_layer,
    small_models,
    weights_of,
)
from tests.triton.server import TritonServer
from trtsparse import OnnxModel, Profile, Session, prune
from trtsparse.engines.cusparselt.saved import Saved, write_saved
from trtsparse.triton.export import export_triton
from trtsparse.triton.options import InstanceGroup, TritonOptions

grpc = pytest.importorskip("tritonclient.grpc")
http = pytest.importorskip("tritonclient.http")
from tritonclient.utils import InferenceServerException  # noqa: E402 - after the checks that it is there

pytestmark = pytest.mark.slow
LAYER = Profile.parse("x:1x64:4x64:16x64")
ECHO = """
import importlib
from trtsparse.triton.python_backend import TritonPythonModel as Served

class TritonPythonModel(Served):
    def initialize(self, args):
        super().initialize(args)
        self._session.run = self.echo

    def echo(self, feeds, *, outputs):
        assert all(array.dtype.name == "bfloat16" for array in feeds.values())
        return {"o" + name[1:]: array for name, array in feeds.items()}


"""
"""A session on a CPU has no BF16, a session on a GPU has: what Triton hands over and takes back is the same."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Every model of the repository, by name: what is exported, its profiles, its options."""
    pytest.importorskip("magika")
    pruned = tmp_path_factory.mktemp("models") / "magika.onnx"
    prune(models.get("magika"), output=pruned)
    found = {name: (model, (), {}) for name, model in small_models().items()}
    found["types"] = (every_type(*(DTYPES.keys() - {"BF16"})), (), {})
    found["magika"] = (pruned, (Profile.parse("bytes:1x2048:8x2048:32x2048"),), {"warmup": "random"})
    found["layer"] = (integer_layer(), (LAYER,), {"queue_delay_us": 3000, "warmup": "zeros"})
    found["lookup"] = (found["lookup"][0], (), {"queue_delay_us": 200_000, "preferred_batch_sizes": (4,)})
    found["items"] = (found["items"][0], (), {"instances": [InstanceGroup(2)], "parameters": {"threads": "1"}})
    return found


def export(model, repository, name, *profiles, **options):
    return export_triton(
        model, repository, name=name, profiles=profiles, options=TritonOptions(backend="python", **options)
    )


@pytest.fixture(scope="module")
def repository(environment, sources, tmp_path_factory):  # noqa: ARG001 - nothing to export for without a server
    folder = tmp_path_factory.mktemp("served") / "repository"
    for name, (model, profiles, options) in sources.items():
        export(model, folder, name, *profiles, **options)
    return folder


@pytest.fixture(scope="module")
def server(environment, repository, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "server.log"
    control = ("--model-control-mode=explicit", "--load-model=*", "--exit-on-error=false")
    with TritonServer(environment, repository, log, *control) as running:
        yield running


@pytest.fixture(params=[http, grpc], ids=["http", "grpc"])
def client(request, server):
    """One of Triton's clients, closed in the end: the server waits for open connections when it stops."""
    address = server.http if request.param is http else server.grpc
    with request.param.InferenceServerClient(address) as opened:
        yield opened


@pytest.fixture
def control(server):
    """A client for what does not differ between the two."""
    with grpc.InferenceServerClient(server.grpc) as opened:
        yield opened


def test_every_model_is_ready_and_described_as_its_session_is(control, sources):
    for name, (model, _, _) in sources.items():
        assert control.is_model_ready(name)
        described = control.get_model_metadata(name)
        with Session(model) as session:
            assert [tensor.name for tensor in described.inputs] == [spec.name for spec in session.inputs]
            assert [tensor.name for tensor in described.outputs] == [spec.name for spec in session.outputs]


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_a_pruned_network_answers_as_its_session_does(client, sources, batch):
    feeds = {"bytes": np.random.default_rng(batch).integers(0, 257, (batch, 2048)).astype(np.int32)}
    with Session(sources["magika"][0]) as session:
        expected = session.run(feeds)
    got = infer(client, "magika", feeds)
    assert got.keys() == expected.keys()
    np.testing.assert_array_equal(got["target_label"], expected["target_label"])


def test_every_data_type_arrives_and_returns_unchanged(client):
    values = np.array([[1, 0], [3, 5], [7, 9]])
    feeds = {f"i{name}": values.astype(dtype) for name, (_, dtype) in DTYPES.items() if name != "BF16"}
    got = infer(client, "types", feeds)
    assert len(got) == len(feeds)
    for name, array in feeds.items():
        assert got[f"o{name[1:]}"].dtype == array.dtype
        np.testing.assert_array_equal(got[f"o{name[1:]}"], array)


def test_bfloat16_arrives_and_returns_unchanged(client, repository):
    made = export(every_type("BF16"), repository, f"bf16-{type(client).__module__.split('.')[1]}")
    (made.folder / "model.py").write_text(ECHO)
    client.load_model(made.name)
    array = np.array([[1, -2.5], [3, 1e30]], ml_dtypes.bfloat16)
    got = infer(client, made.name, {"iBF16": array})["oBF16"]
    np.testing.assert_array_equal(got.astype(np.float32), array.astype(np.float32))
    client.unload_model(made.name)


def test_scalars_are_served_as_one_element(client):
    got = infer(client, "scalars", {"x": np.array([1, 2, 3], np.float32), "s": np.array([2], np.float32)})
    assert got["y"].tolist() == [2, 4, 6]
    assert (got["total"].shape, got["total"].tolist()) == ((1,), [12])


def test_items_without_dims_of_their_own_are_batched(client):
    got = infer(client, "items", {"x": np.array([[1], [2], [3]])})
    assert (got["y"].shape, got["y"].tolist()) == ((3, 1), [[2], [4], [6]])


def test_a_model_without_a_batch_dim_takes_its_own_shapes(client):
    got = infer(client, "fixed", {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})
    assert got["y"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_only_the_outputs_that_were_asked_for_are_returned(client):
    feeds = {f"i{name}": np.ones((1, 2), dtype) for name, (_, dtype) in DTYPES.items() if name != "BF16"}
    assert infer(client, "types", feeds, outputs=["oINT64", "oFP16"]).keys() == {"oINT64", "oFP16"}


@pytest.mark.parametrize(
    ("name", "feeds", "text"),
    [
        ("layer", {"z": np.ones((1, 64), np.float32)}, "unexpected inference input 'z' for model 'layer'"),
        ("layer", {}, "expected 1 inputs but got 0 inputs for model 'layer'"),
        ("layer", {"x": np.ones((1, 63), np.float32)}, "unexpected shape for input 'x' for model 'layer'"),
        ("layer", {"x": np.ones((17, 64), np.float32)}, "batch-size must be <= 16"),
        ("layer", {"x": np.ones((1, 64), np.float16)}, "inference input 'x' data-type is 'FP16', but model"),
        ("missing", {"x": np.ones((1, 64), np.float32)}, "unknown model"),
        (
            "two",
            {"a": np.ones((1, 2), np.float32), "b": np.ones((1, 3), np.float32)},
            (
                "two dims of the same name have different sizes\n  where: input 'b', dim 1 ('s')\n  got: 3\n"
                "  expected: 2, as in input 'a', dim 1"
            ),
        ),
    ],
)
def test_a_wrong_request_is_refused_with_a_readable_text_and_the_server_lives_on(client, name, feeds, text):
    with pytest.raises(InferenceServerException) as caught:
        infer(client, name, feeds)
    assert text in caught.value.message()
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND", "400", "404")
    assert infer(client, "layer", {"x": np.zeros((1, 64), np.float32)})["y"].shape == (1, 16)


def test_an_output_that_does_not_exist_is_refused(client):
    with pytest.raises(InferenceServerException, match="unexpected inference output 'z' for model 'layer'"):
        infer(client, "layer", {"x": np.zeros((1, 64), np.float32)}, outputs=["z"])


def test_a_request_that_fails_takes_no_other_with_it(server, control):
    """The four are executed as one batch, which fails; each is then executed alone."""
    with ThreadPoolExecutor(4) as pool:
        answers = [
            pool.submit(infer_once, server.grpc, "lookup", {"i": np.array([[index]])}) for index in (0, 1, 99, 3)
        ]
    assert [answers[place].result()["y"].tolist() for place in (0, 1, 3)] == [[[1]], [[2]], [[4]]]
    with pytest.raises(InferenceServerException, match="ONNX Runtime failed while running the model") as caught:
        answers[2].result()
    assert "indices element out of data bounds, idx=99" in caught.value.message()
    (stats,) = control.get_inference_statistics("lookup").model_stats
    assert [batch.batch_size for batch in stats.batch_stats] == [4]


def test_requests_that_would_see_each_other_in_a_batch_are_executed_alone(server, control, repository):
    """Each row against each row: put together, every answer would have columns of the other requests."""
    model = from_text("g (float[n, 4] x) => (float[n, n] y) { t = Transpose(x) y = MatMul(x, t) }")
    control.load_model(export(model, repository, "similarity").name)
    feeds = [(factor * np.eye(2, 4)).astype(np.float32) for factor in (1, 10, 3, 7)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda x: infer_once(server.grpc, "similarity", {"x": x})["y"], feeds))
    for x, y in zip(feeds, answers, strict=True):
        np.testing.assert_array_equal(y, x @ x.T)
    control.unload_model("similarity")


WEIGHTS = {seed: weights_of(integer_layer(seed)) for seed in (0, 1)}


def hammer(library, address, name, *, requests=10**9, until=None):
    """Send requests one after another, each checked; returns how many, and which weights answered."""
    rng = np.random.default_rng(threading.get_ident())
    sent, seen = 0, set()
    with library.InferenceServerClient(address) as opened:
        while sent < requests and not (until is not None and until.is_set()):
            x = rng.integers(-99, 100, (rng.integers(1, 4), 64)).astype(np.float32)
            y = infer(opened, name, {"x": x})["y"]
            answered = {seed for seed, w in WEIGHTS.items() if np.array_equal(y, x @ w)}
            assert answered, "an answer to another request"
            seen |= answered
            sent += 1
    return sent, seen


def success(client, name):
    """(requests, executions, items) so far."""
    (stats,) = client.get_inference_statistics(name).model_stats
    return stats.inference_stats.success.count, stats.execution_count, stats.inference_count


def test_two_thousand_requests_of_sixteen_clients_are_batched_and_none_is_lost_or_mixed_up(server, control):
    before = success(control, "layer")
    jobs = [(grpc, server.grpc), (http, server.http)] * 8
    with ThreadPoolExecutor(16) as pool:
        sent = list(pool.map(lambda job: hammer(*job, "layer", requests=125), jobs))
    requests, executions, items = np.subtract(success(control, "layer"), before)
    assert sent == [(125, {0})] * 16
    assert requests == 2000
    assert executions < requests < items


def test_another_version_is_loaded_while_requests_go_on(server, control, repository):
    export(integer_layer(), repository, "growing", LAYER)
    control.load_model("growing")
    done = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        try:
            workers = [pool.submit(hammer, grpc, server.grpc, "growing", until=done) for _ in range(4)]
            time.sleep(0.3)
            made = export(integer_layer(1), repository, "growing", LAYER)
            control.load_model("growing")
            time.sleep(0.3)
        finally:
            done.set()
    results = [worker.result() for worker in workers]
    assert made.version == 2
    assert all(sent > 10 and seen == {0, 1} for sent, seen in results)
    assert control.is_model_ready("growing", "2")
    x = np.ones((1, 64), np.float32)
    np.testing.assert_array_equal(infer_once(server.grpc, "growing", {"x": x})["y"], x @ WEIGHTS[1])


def test_a_plan_that_cannot_run_here_says_why_and_the_server_lives_on(server, control, repository, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from trtsparse import BuildConfig, build

    relu = from_text("g (float[4] x) => (float[4] y) { y = Relu(x) }")
    made = export_triton(build(relu, BuildConfig(flavour="tensorrt_rtx")).save(tmp_path / "rtx.plan"), repository)
    assert made.backend == "python"
    (repository / "rtx" / "config.pbtxt").write_text(made.config.replace("KIND_GPU", "KIND_CPU"))
    with pytest.raises(InferenceServerException) as caught:
        control.load_model("rtx")
    assert "rtx: a plan is executed by the library that built it, on an NVIDIA GPU" in caught.value.message()
    assert infer_once(server.grpc, "layer", {"x": np.zeros((1, 64), np.float32)})["y"].shape == (1, 16)


def test_a_saved_engine_that_cannot_run_here_says_why(control, repository, tmp_path):
    saved = Saved(OnnxModel.open(integer_layer()), "bf16", {}, {}, {})
    made = export_triton(write_saved(tmp_path / "kernels.trtsparse", saved), repository)
    (repository / "kernels" / "config.pbtxt").write_text(made.config.replace("KIND_GPU", "KIND_CPU"))
    with pytest.raises(InferenceServerException, match=r"kernels: .*[Tt]orch"):
        control.load_model("kernels")


def test_requests_in_flight_are_answered_after_sigterm(environment, tmp_path):
    export(models.get("magika"), tmp_path / "repository", "slow", max_batch_size=16)
    feeds = {"bytes": np.random.default_rng(0).integers(0, 257, (16, 2048)).astype(np.int32)}
    with TritonServer(environment, tmp_path / "repository", tmp_path / "log") as running:
        infer_once(running.grpc, "slow", feeds)
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(infer_once, running.grpc, "slow", feeds) for _ in range(8)]
            while sum(answer.done() for answer in answers) < 2:
                time.sleep(0.001)
            running.terminate()
            done_before = sum(answer.done() for answer in answers)
            results = [answer.result(timeout=30)["target_label"] for answer in answers]
        assert done_before < 8
        assert running.wait() == 0
    for result in results:
        np.testing.assert_array_equal(result, results[0])
