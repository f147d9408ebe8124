"""The configuration says what the model is, and what was asked for."""

import ml_dtypes
import numpy as np
import pytest

from tests.triton.samples import DTYPES, every_type, from_text, integer_layer
from trtsparse import Profile
from trtsparse.engines import TensorSpec
from trtsparse.errors import ConfigError
from trtsparse.triton.options import InstanceGroup, TritonOptions
from trtsparse.triton.source import Facts, Source, open_source

pytest.importorskip("tritonclient.grpc")
from trtsparse.triton.config import choose_backend, make_config
from trtsparse.triton.protobuf import messages, triton_type, write_config

LAYER = "x:1x64:4x64:16x64"


def configured(source, **options):
    given = TritonOptions(**options)
    return make_config(source, given, name="m", backend=choose_backend(source, given))[0]


def text(source, **options):
    return write_config(configured(source, **options)).partition("\n")[2]


@pytest.fixture(scope="module")
def plan(built):
    return open_source(built(integer_layer(), LAYER))


def test_a_plan_is_described_by_its_report(plan):
    assert text(plan) == (
        'name: "m"\nplatform: "tensorrt_plan"\nversion_policy {\n  latest {\n    num_versions: 1\n  }\n}\n'
        "max_batch_size: 16\n"
        'input {\n  name: "x"\n  data_type: TYPE_FP32\n  dims: 64\n}\n'
        'output {\n  name: "y"\n  data_type: TYPE_FP32\n  dims: 16\n}\n'
        "instance_group {\n  count: 1\n  kind: KIND_GPU\n}\n"
        "dynamic_batching {\n  preferred_batch_size: 4\n  preferred_batch_size: 16\n"
        "  max_queue_delay_microseconds: 100\n}\n"
        'backend: "tensorrt"\n'
    )


def test_an_onnx_model_goes_to_onnx_runtime_or_through_a_session():
    source = open_source(integer_layer(), profiles=[Profile.parse(LAYER)])
    direct, session = configured(source), configured(source, backend="python")
    assert (direct.platform, direct.backend) == ("onnxruntime_onnx", "onnxruntime")
    assert (session.platform, session.backend) == ("", "python")
    kinds = messages().ModelInstanceGroup
    assert (direct.instance_group[0].kind, session.instance_group[0].kind) == (kinds.KIND_AUTO, kinds.KIND_CPU)
    assert list(direct.input) == list(session.input)


def test_every_data_type_has_its_name():
    config = configured(open_source(every_type()))
    assert {e.name: messages().DataType.Name(e.data_type) for e in config.input} == {
        f"i{name}": f"TYPE_{name}" for name in DTYPES
    }


def test_a_type_that_triton_lacks_is_named():
    with pytest.raises(ConfigError) as caught:
        triton_type(np.dtype(ml_dtypes.float8_e4m3fn), "input 'x'")
    assert str(caught.value) == (
        "Triton has no such data type\n  where: input 'x'\n  got: float8_e4m3fn\n  expected: bool, uint8, uint16, "
        "uint32, uint64, int8, int16, int32, int64, float16, bfloat16, float32, float64, object\n"
        "  to fix: cast it to another type inside the model"
    )


def dims(entries):
    return {entry.name: (list(entry.dims), entry.HasField("reshape")) for entry in entries}


def test_dims_are_numbers_where_the_profile_leaves_no_choice_and_free_elsewhere():
    model = from_text("g (float[n, c, s] x) => (float[n, c, s] y) { y = Relu(x) }")
    config = configured(open_source(model, profiles=[Profile.parse("x:1x3x8:2x3x16:4x3x32")]))
    assert (dims(config.input), dims(config.output)) == ({"x": ([3, -1], False)}, {"y": ([-1, -1], False)})


def test_a_batch_of_items_without_dims_is_reshaped():
    config = configured(open_source(from_text("g (int64[n] x) => (int64[n] y) { y = Add(x, x) }")))
    assert (dims(config.input), dims(config.output)) == ({"x": ([1], True)}, {"y": ([1], True)})
    assert not config.input[0].reshape.shape


def test_a_model_without_a_batch_dim_keeps_all_its_dims():
    source = open_source(from_text("g (float[2, s] x) => (float[2, s] y) { y = Relu(x) }"))
    config = configured(source)
    assert (config.max_batch_size, dims(config.input)) == (0, {"x": ([2, -1], False)})
    assert not config.HasField("dynamic_batching")


def test_scalars_are_one_element_but_for_plans():
    scalar = from_text("g (float x) => (float y) { y = Relu(x) }")
    for backend in ("onnxruntime", "python"):
        assert dims(configured(open_source(scalar), backend=backend).input) == {"x": ([1], False)}
    spec = TensorSpec("x", np.dtype(np.float32), ())
    with pytest.raises(ConfigError) as caught:
        make_config(Source("m", "m", Facts((spec,), ())), TritonOptions(), name="m", backend="tensorrt")
    assert str(caught.value) == (
        "Triton's TensorRT backend has no scalars\n  where: input 'x'\n"
        "  to fix: use backend 'python', or export the model with a dim of one"
    )


def test_an_input_that_holds_a_shape_is_marked(built):
    model = from_text("g (float[n, 4] x, int64[2] s) => (float[a, b] y) { y = Reshape(x, s) }")
    profile = Profile.parse("x:1x4:2x4:4x4,s:1x4:2x4:4x4")
    config = configured(open_source(built(integer_layer(), LAYER).plan, model=model, profiles=[profile]))
    assert [entry.is_shape_tensor for entry in config.input] == [False, True]
    assert config.max_batch_size == 0


def test_several_profiles_are_all_used(built):
    source = open_source(built(integer_layer(), "x:1x64:1x64:1x64", "x:2x64:16x64:32x64"))
    config = configured(source)
    assert (config.max_batch_size, list(config.instance_group[0].profile)) == (32, ["0", "1"])
    assert list(config.dynamic_batching.preferred_batch_size) == [16, 32]


def test_instances_and_their_gpus(plan):
    groups = [InstanceGroup(2, (0, 1)), InstanceGroup(1, kind="gpu")]
    config = configured(plan, instances=groups)
    kind = messages().ModelInstanceGroup.KIND_GPU
    assert [(g.count, list(g.gpus), g.kind) for g in config.instance_group] == [(2, [0, 1], kind), (1, [], kind)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("latest:3", "latest {\n    num_versions: 3\n  }"), ("all", "all {\n  }"), ("specific:2,5", "specific {")],
)
def test_version_policies(plan, policy, expected):
    assert expected in text(plan, version_policy=policy)


def test_batching_as_asked(plan):
    config = configured(plan, max_batch_size=8, preferred_batch_sizes=(2, 8), queue_delay_us=250)
    assert config.max_batch_size == 8
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    assert not configured(plan, dynamic_batching=False).HasField("dynamic_batching")
    assert list(configured(plan, max_batch_size=8).dynamic_batching.preferred_batch_size) == [4]


def test_graphs_are_captured_of_the_profiles_shapes(plan):
    cuda = configured(plan, cuda_graphs=True).optimization.cuda
    assert cuda.graphs
    assert [(spec.batch_size, list(spec.input["x"].dim)) for spec in cuda.graph_spec] == [
        (1, [64]),
        (4, [64]),
        (16, [64]),
    ]


def test_graphs_without_batches_have_whole_shapes(plan):
    cuda = configured(plan, cuda_graphs=True, max_batch_size=0).optimization.cuda
    assert [(spec.batch_size, list(spec.input["x"].dim)) for spec in cuda.graph_spec] == [(0, [4, 64]), (0, [16, 64])]


@pytest.mark.parametrize(("warmup", "kind"), [("zeros", "zero_data"), ("random", "random_data")])
def test_warm_up_requests_have_the_profiles_shapes(plan, warmup, kind):
    entries = configured(plan, warmup=warmup).model_warmup
    assert [(entry.name, entry.batch_size, list(entry.inputs["x"].dims)) for entry in entries] == [
        ("batch 1 of x 64", 1, [64]),
        ("batch 4 of x 64", 4, [64]),
        ("batch 16 of x 64", 16, [64]),
    ]
    assert all(getattr(entry.inputs["x"], kind) for entry in entries)


def test_the_cache_and_parameters(plan):
    config = configured(plan, response_cache=True, parameters={"execution_context_allocation_strategy": "STATIC"})
    assert config.response_cache.enable
    assert config.parameters["execution_context_allocation_strategy"].string_value == "STATIC"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backend": "tensorrt"},
            (
                "Triton's TensorRT backend executes plans\n  where: backend\n  got: an ONNX model\n"
                "  to fix: build a plan of it first, or use backend 'onnxruntime'"
            ),
        ),
        (
            {"cuda_graphs": True},
            (
                "Triton captures CUDA graphs in its TensorRT backend only\n  where: cuda_graphs\n"
                "  got: backend 'onnxruntime'\n  to fix: leave it out"
            ),
        ),
        (
            {"cuda_graphs": True, "backend": "python"},
            (
                "Triton captures CUDA graphs in its TensorRT backend only\n  where: cuda_graphs\n"
                "  got: backend 'python'\n  to fix: leave it out; a session on a GPU uses graphs by itself"
            ),
        ),
        (
            {"backend": "python", "parameters": {"thread": "2"}},
            (
                "no such parameter\n  where: parameters\n  got: 'thread'\n"
                "  expected: engine, threads, EXECUTION_ENV_PATH\n  to fix: did you mean 'threads'?"
            ),
        ),
        (
            {"backend": "python", "parameters": {"threads": "0"}},
            "not a number of threads\n  where: parameters, 'threads'\n  got: '0'\n  expected: at least 1",
        ),
        (
            {"backend": "python", "parameters": {"engine": "bogus"}},
            (
                "no such engine\n  where: parameters, 'engine'\n  got: 'bogus'\n"
                "  expected: auto, onnxruntime, tensorrt, cusparselt"
            ),
        ),
        (
            {"backend": "python", "parameters": {"engine": "tensorrt"}},
            (
                "TensorRT executes plans\n  where: parameters, 'engine'\n"
                "  got: something that does not begin as a plan does\n  expected: a plan\n"
                "  to fix: build a plan of the model first"
            ),
        ),
        (
            {"backend": "python", "parameters": {"engine": "cusparselt", "threads": "2"}},
            (
                "the cusparselt engine is executed by a GPU, without threads of the CPU\n"
                "  where: parameters, 'threads'\n  got: '2'\n  to fix: leave it out"
            ),
        ),
        (
            {
                "backend": "python",
                "parameters": {"engine": "cusparselt"},
                "instances": [InstanceGroup(1, kind="cpu")],
            },
            (
                "the cusparselt engine is executed by a GPU\n  where: instances\n  got: kind 'cpu'\n"
                "  to fix: use 'gpu'"
            ),
        ),
        (
            {"parameters": {"threads": "2"}},
            (
                "a parameter of the Python backend\n  where: parameters\n"
                "  got: 'threads' for backend 'onnxruntime'\n  to fix: use backend 'python'"
            ),
        ),
        (
            {"preferred_batch_sizes": (4,), "max_batch_size": 0},
            (
                "there are no batches to prefer\n  where: preferred_batch_sizes\n  got: max_batch_size 0\n"
                "  to fix: leave them out"
            ),
        ),
        (
            {"preferred_batch_sizes": (4, 64)},
            (
                "a preferred batch is larger than the largest\n  where: preferred_batch_sizes\n  got: 64\n"
                "  expected: at most 32"
            ),
        ),
    ],
)
def test_options_that_do_not_go_with_a_model_are_refused(options, message):
    with pytest.raises(ConfigError) as caught:
        configured(open_source(integer_layer()), **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backend": "onnxruntime"},
            (
                "ONNX Runtime cannot execute a plan\n  where: backend\n  got: a plan of TensorRT 10.13.3.9\n"
                "  to fix: give the ONNX model that the plan was built from"
            ),
        ),
        (
            {"instances": [InstanceGroup(1, kind="cpu")]},
            "a plan is executed by a GPU\n  where: instances\n  got: kind 'cpu' or 'auto'\n  to fix: use 'gpu'",
        ),
        (
            {"backend": "python", "instances": [InstanceGroup(2, kind="cpu")]},
            "a plan is executed by a GPU\n  where: instances\n  got: kind 'cpu'\n  to fix: use 'gpu'",
        ),
        (
            {"backend": "python", "parameters": {"threads": "2"}},
            (
                "a plan is executed by a GPU, without threads of the CPU\n  where: parameters, 'threads'\n"
                "  got: '2'\n  to fix: leave it out"
            ),
        ),
        (
            {"backend": "python", "parameters": {"engine": "onnxruntime"}},
            (
                "ONNX Runtime cannot execute a plan\n  where: parameters, 'engine'\n"
                "  got: a plan of TensorRT 10.13.3.9\n  expected: an ONNX model\n"
                "  to fix: give the ONNX model that the plan was built from"
            ),
        ),
    ],
)
def test_options_that_do_not_go_with_a_plan_are_refused(plan, options, message):
    with pytest.raises(ConfigError) as caught:
        configured(plan, **options)
    assert str(caught.value) == message


def test_a_saved_engine_is_for_cusparselt():
    source = Source("m", "m", open_source(integer_layer()).facts, saved=True)
    assert configured(source, parameters={"engine": "cusparselt"}).parameters["engine"].string_value == "cusparselt"
    with pytest.raises(ConfigError) as caught:
        configured(source, parameters={"engine": "onnxruntime"})
    assert str(caught.value) == (
        "a saved engine is executed by cusparselt\n  where: parameters, 'engine'\n  got: 'onnxruntime'\n"
        "  to fix: leave it out"
    )


def spec(shape, dtype=np.float32):
    return Source("m", "m", Facts((TensorSpec("x", np.dtype(dtype), shape),), (TensorSpec("y", F4, ("n", 4)),)))


F4 = np.dtype(np.float32)


@pytest.mark.parametrize(
    ("source", "backend", "message"),
    [
        (
            spec(None),
            "auto",
            (
                "Triton needs the number of dims\n  where: input 'x'\n"
                "  to fix: export the model with the shapes of its outputs"
            ),
        ),
        (
            spec((0, 3)),
            "auto",
            "a dim is zero: there is nothing to serve\n  where: input 'x'\n  got: (0, 3)",
        ),
        (
            spec(("n", 3), object),
            "python",
            (
                "strings are served by ONNX Runtime only\n  where: input 'x'\n"
                "  to fix: use backend 'onnxruntime' with the model"
            ),
        ),
    ],
)
def test_a_tensor_that_cannot_be_served_is_named(source, backend, message):
    with pytest.raises(ConfigError) as caught:
        configured(source, backend=backend)
    assert str(caught.value) == message


def test_strings_are_served_by_onnx_runtime():
    config = configured(spec(("n", 3), object))
    assert messages().DataType.Name(config.input[0].data_type) == "TYPE_STRING"
