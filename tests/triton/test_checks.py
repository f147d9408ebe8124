"""What Triton never finds, and what only the files beside a configuration tell. See also test_plans_on_server."""

import shutil

import onnx
import pytest

from tests.triton.samples import every_type, from_text, integer_layer
from trtsparse import Profile
from trtsparse.errors import ConfigError
from trtsparse.triton.options import TritonOptions

pytest.importorskip("tritonclient.grpc")
from trtsparse.triton.checks import check_model, check_repository, versions_of
from trtsparse.triton.export import export_triton

LAYER = "x:1x64:4x64:16x64"


@pytest.fixture(scope="module")
def plan(built):
    return built(integer_layer(), LAYER)


@pytest.fixture
def folder(plan, tmp_path):
    """A faultless model with everything in its configuration."""
    options = TritonOptions(cuda_graphs=True, warmup="zeros")
    return export_triton(plan, tmp_path, name="layer", options=options).folder.parent


def found(folder, **options):
    return "\n".join(map(str, check_model(folder, **options)))


def edit(folder, old, new, count=1):
    path = folder / "config.pbtxt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_a_faultless_model_has_no_faults(folder, tmp_path, backend):
    assert check_model(folder) == ()
    for name, model in {"types": every_type(), "layer": integer_layer()}.items():
        made = export_triton(model, tmp_path / "others", name=name, options=TritonOptions(backend=backend))
        assert check_model(made.folder.parent) == ()


def test_the_server_is_part_of_the_check(folder):
    assert check_model(folder, server="25.10") == ()
    assert found(folder, server="24.12") == (
        f"the plan was built by another TensorRT than the server has\n  where: {folder}/1/model.plan\n"
        "  got: a plan of TensorRT 10.13.3.9\n"
        "  expected: TensorRT 10.7.0.23, which is in Triton 24.12 (2.53)\n"
        "  to fix: build it with TensorRT 10.7.0.23, or serve with Triton 25.09 or 25.10"
    )


def test_a_plan_of_another_flavour_is_found(folder, built):
    shutil.rmtree(folder / "1")
    (folder / "1").mkdir()
    built(integer_layer(), LAYER, version="rtx-1.7.1").save(folder / "1" / "model.plan")
    assert found(folder).startswith("Triton's TensorRT backend loads no plans of TensorRT-RTX\n")


def test_what_is_no_plan_is_found(folder):
    (folder / "1" / "model.plan").write_bytes(integer_layer().SerializeToString())
    assert found(folder) == (
        f"not a TensorRT plan\n  where: {folder}/1/model.plan\n  got: an ONNX model: build it first\n"
        "  expected: a file that begins with 'ftrt' (TensorRT) or 'vtrt' (TensorRT-RTX)\n"
        "  to fix: give the engine file that a build wrote"
    )


def test_the_report_of_another_plan_is_found(folder, built):
    (folder / "1" / "model.plan").write_bytes(built(integer_layer(2), "x:1x64").plan)
    assert found(folder).startswith("the build report beside the plan is that of another plan\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "max_batch_size: 16",
            "max_batch_size: 32",
            (
                "the profiles do not admit every batch up to max_batch_size\n"
                "  where: {config}, max_batch_size\n  got: 32\n  expected: at most 16"
            ),
        ),
        (
            "data_type: TYPE_FP32",
            "data_type: TYPE_FP16",
            (
                "the model has another data type\n  where: {config}, input 'x'\n  got: TYPE_FP16\n"
                "  expected: TYPE_FP32"
            ),
        ),
        (
            "dims: 16",
            "dims: 17",
            (
                "the model has other dims\n  where: {config}, output 'y'\n  got: [17]\n"
                "  expected: [16] besides the batch"
            ),
        ),
        (
            'output {\n  name: "y"',
            'output {\n  name: "z"',
            "the model has no such output\n  where: {config}\n  got: 'z'\n  expected: 'y'",
        ),
        (
            'platform: "tensorrt_plan"',
            'platform: "onnxruntime_onnx"',
            (
                "platform and backend contradict each other\n  where: {config}\n"
                "  got: 'onnxruntime_onnx' and 'tensorrt'\n  expected: backend 'onnxruntime'"
            ),
        ),
        (
            'platform: "tensorrt_plan"',
            'metric_tags { key: "a" value: "b" }',
            "",
        ),
        (
            "kind: KIND_GPU",
            "kind: KIND_CPU",
            "a plan is executed by a GPU\n  where: {config}, instance_group\n  got: KIND_CPU",
        ),
        (
            "kind: KIND_GPU",
            "kind: KIND_MODEL gpus: [ 0 ]",
            "instances that are not of kind KIND_GPU have no GPUs\n  where: {config}\n  got: gpus [0]",
        ),
        (
            "latest {\n    num_versions: 1\n  }",
            "specific { versions: [ 1, 7 ] }",
            (
                "a version that is to be served is not there\n  where: {config}, version_policy\n"
                "  got: 7\n  expected: 1"
            ),
        ),
        (
            'inputs {\n    key: "x"',
            'inputs {\n    key: "q"',
            (
                "a warm-up request has an unknown input\n  where: {config}, model_warmup 'batch 1 of x 64'\n"
                "  got: 'q'\n"
                "a warm-up request lacks an input\n  where: {config}, model_warmup 'batch 1 of x 64'\n"
                "  expected: 'x'"
            ),
        ),
        (
            "      dims: 64",
            "      dims: -1",
            (
                "a warm-up request has dims that are not sizes\n"
                "  where: {config}, model_warmup 'batch 1 of x 64'\n  got: 'x' [-1]"
            ),
        ),
        (
            "graph_spec {\n      batch_size: 4",
            "graph_spec {\n      batch_size: 40",
            (
                "a CUDA graph's batch is out of range\n  where: {config}, graph_spec\n  got: 40\n"
                "  expected: 1 to 16"
            ),
        ),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_found(folder, old, new, message):
    edit(folder, old, new)
    assert found(folder) == message.format(config=folder / "config.pbtxt")


SESSION = {
    "engine=bogus": "no such engine\n  where: {config}, parameters, 'engine'\n  got: 'bogus'\n"
    "  expected: auto, onnxruntime, tensorrt, cusparselt",
    "threads=none": "not a number of threads\n  where: {config}, parameters, 'threads'\n  got: 'none'\n"
    "  expected: at least 1",
}


@pytest.mark.parametrize("parameter", SESSION)
def test_a_parameter_with_which_the_session_does_not_open_is_found(tmp_path, parameter):
    made = export_triton(integer_layer(), tmp_path, name="m", options=TritonOptions(backend="python"))
    path = made.folder.parent / "config.pbtxt"
    key, _, value = parameter.partition("=")
    path.write_text(f'{made.config}parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n')
    assert found(made.folder.parent) == SESSION[parameter].format(config=path)


def test_a_plan_for_the_cpu_or_with_threads_of_it_is_found(plan, tmp_path):
    made = export_triton(plan, tmp_path, name="m", options=TritonOptions(backend="python"))
    folder, config = made.folder.parent, made.folder.parent / "config.pbtxt"
    edit(folder, "kind: KIND_GPU", "kind: KIND_CPU")
    config.write_text(config.read_text() + 'parameters { key: "threads" value { string_value: "2" } }\n')
    assert found(folder) == (
        f"a plan is executed by a GPU\n  where: {config}, instances\n  got: kind 'cpu'\n  to fix: use 'gpu'\n"
        f"a plan is executed by a GPU, without threads of the CPU\n  where: {config}, parameters, 'threads'\n"
        "  got: '2'\n  to fix: leave it out"
    )


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_an_external_data_file_that_is_missing_is_found(tmp_path, backend):
    onnx.save(integer_layer(), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    made = export_triton(tmp_path / "m.onnx", tmp_path / "r", options=TritonOptions(backend=backend))
    assert check_model(made.folder.parent) == ()
    (made.folder / "m.bin").unlink()
    assert found(made.folder.parent) == (
        f"an external data file is missing\n  where: file 'm.bin' of {made.folder}/model.onnx\n"
        f"  got: {made.folder}/m.bin\n  to fix: copy the data file beside the model"
    )


def test_a_model_that_our_model_py_would_not_find_is_missing(tmp_path):
    made = export_triton(integer_layer(), tmp_path, name="m", options=TritonOptions(backend="python"))
    (made.folder / "model.onnx").unlink()
    assert found(made.folder.parent) == (
        f"the model's file is missing\n  where: {made.folder}\n"
        "  expected: model.plan or model.trtsparse or model.onnx"
    )
    (made.folder / "model.onnx").write_bytes(b"whatever it reads")
    (made.folder / "model.py").write_text("class TritonPythonModel: pass\n")
    assert check_model(made.folder.parent) == ()


def test_a_dim_that_was_served_as_a_batch_and_is_none_is_found(tmp_path):
    model = from_text("g (float[n, 4] x) => (float[n, n] y) { t = Transpose(x) y = MatMul(x, t) }")
    made = export_triton(model, tmp_path, name="m")
    assert (made.max_batch_size, check_model(made.folder.parent)) == (0, ())
    (made.folder.parent / "config.pbtxt").write_text(
        'backend: "onnxruntime"\nmax_batch_size: 32\ninput { name: "x" data_type: TYPE_FP32 dims: 4 }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: -1 }\n'
    )
    assert "the model has no batch dim" in found(made.folder.parent)


def test_neither_platform_nor_backend_is_found(folder):
    edit(folder, 'platform: "tensorrt_plan"', "")
    edit(folder, 'backend: "tensorrt"', "")
    assert found(folder) == (
        f"neither platform nor backend is given\n  where: {folder}/config.pbtxt\n"
        '  to fix: such as backend: "tensorrt"'
    )


def test_an_input_that_is_not_listed_is_found(tmp_path):
    model = from_text("g (float[n, s] a, float[n, s] b) => (float[n, s] y) { y = Add(a, b) }")
    folder = export_triton(model, tmp_path, name="two").folder.parent
    edit(folder, 'input {\n  name: "b"\n  data_type: TYPE_FP32\n  dims: -1\n}\n', "")
    assert found(folder) == (
        f"an input of the model is not listed\n  where: {folder}/config.pbtxt\n  got: 'b' float32 (n, s)"
    )


def test_a_batch_that_the_model_does_not_have_is_found(tmp_path):
    model = from_text("g (float[2, s] x) => (float[2, s] y) { y = Relu(x) }")
    folder = export_triton(model, tmp_path, name="fixed").folder.parent
    edit(folder, "input {", "max_batch_size: 8\ninput {")
    assert "the model has no batch dim" in found(folder)


def test_folders_that_are_no_versions_are_found(folder):
    (folder / "01").mkdir()
    (folder / "old").mkdir()
    (folder / "warmup").mkdir()
    (folder / ".hidden").mkdir()
    message = "a folder's name is no version\n  where: {}\n  expected: a whole number without leading zeros"
    assert found(folder) == "\n".join(message.format(folder / name) for name in ("01", "old"))
    assert versions_of(folder) == [1]


def test_a_reshape_to_nothing_needs_batches(tmp_path):
    folder = export_triton(
        from_text("g (float[2] x) => (float[2] y) { y = Relu(x) }"), tmp_path, name="m"
    ).folder.parent
    edit(folder, "dims: 2", "dims: 1 reshape { }")
    assert found(folder) == (
        f"a reshape to no dims needs batches\n  where: {folder}/config.pbtxt, input 'x'\n"
        "  to fix: leave it out; backend 'python' serves scalars"
    )


def test_a_name_that_is_missing_is_found(folder):
    edit(folder, 'input {\n  name: "x"', "input {")
    assert f"a name is missing\n  where: {folder}/config.pbtxt, input 0" in found(folder)


def test_a_model_without_a_configuration_is_found(folder):
    (folder / "config.pbtxt").unlink()
    assert found(folder) == f"the model has no configuration\n  where: {folder}\n  expected: config.pbtxt"
    (folder / "config.pbtxt").write_bytes(b"\xff\xfe")
    assert found(folder).startswith(f"the model's configuration cannot be read\n  where: {folder}/config.pbtxt\n")


def test_models_of_other_backends_are_checked_as_far_as_they_are_known(tmp_path):
    tensors = "".join(f'{role} {{ name: "a" data_type: TYPE_STRING dims: 1 }}\n' for role in ("input", "output"))
    version = tmp_path / "mine" / "1"
    version.mkdir(parents=True)
    (tmp_path / "mine" / "config.pbtxt").write_text(f'backend: "custom"\n{tensors}')
    assert check_model(tmp_path / "mine") == ()
    (tmp_path / "mine" / "config.pbtxt").write_text(f'backend: "python"\n{tensors}')
    assert found(tmp_path / "mine") == f"the model's file is missing\n  where: {version}\n  expected: model.py"
    (version / "model.py").write_text("class TritonPythonModel: pass\n")
    assert check_model(tmp_path / "mine") == ()


def test_an_ensemble_needs_no_files(tmp_path):
    text = 'platform: "ensemble"\ninput { name: "a" data_type: TYPE_FP32 dims: 1 }\n'
    (tmp_path / "all" / "1").mkdir(parents=True)
    (tmp_path / "all" / "config.pbtxt").write_text(f'{text}output {{ name: "b" data_type: TYPE_FP32 dims: 1 }}')
    assert check_model(tmp_path / "all") == ()


def test_a_repository_is_checked_model_by_model(folder, plan):
    other = export_triton(plan, folder.parent, name="other")
    (other.folder / "model.plan").unlink()
    (folder.parent / ".staged").mkdir()
    checked = check_repository(folder.parent)
    assert {name: len(problems) for name, problems in checked.items()} == {"layer": 0, "other": 1}


def test_one_model_of_a_repository_is_checked(folder):
    assert check_repository(folder.parent, name="layer") == {"layer": ()}
    with pytest.raises(ConfigError) as caught:
        check_repository(folder.parent, name="layers")
    assert str(caught.value) == (
        f"there is no such model\n  where: {folder.parent}\n  got: 'layers'\n  expected: 'layer'\n"
        "  to fix: did you mean 'layer'?"
    )


@pytest.mark.parametrize(("make", "got"), [(False, "no such folder"), (True, "a folder without models")])
def test_what_is_no_repository_is_named(tmp_path, make, got):
    place = tmp_path / "nothing"
    if make:
        place.mkdir()
    with pytest.raises(ConfigError) as caught:
        check_repository(place)
    assert str(caught.value) == (
        f"there is no model repository\n  where: {place}\n  got: {got}\n  expected: folders with a config.pbtxt"
    )


def test_profiles_of_a_model_are_not_kept_so_its_batch_is_free(tmp_path):
    made = export_triton(integer_layer(), tmp_path, name="m", profiles=[Profile.parse(LAYER)])
    edit(made.folder.parent, "max_batch_size: 16", "max_batch_size: 64")
    assert check_model(made.folder.parent) == ()
