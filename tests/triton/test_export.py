"""`export_triton` writes what it says, adds versions, and overwrites nothing unless it is asked to."""

import shutil
import sys
import warnings
from unittest import mock

import numpy as np
import pytest

import models
from tests.triton.samples import from_text, integer_layer, small_models
from trtsparse import OnnxModel, Profile, build, prune
from trtsparse.engines import DeviceEngine, TensorSpec
from trtsparse.engines.cusparselt.saved import Saved, write_saved
from trtsparse.errors import ConfigError, MissingDependencyError, OutputError, PlanError
from trtsparse.triton.options import TritonOptions

pytest.importorskip("tritonclient.grpc")
from trtsparse.triton.checks import check_model
from trtsparse.triton.export import export_triton

F4 = np.dtype(np.float32)
LAYER = Profile.parse("x:1x64:4x64:16x64")
WIDER = "g (float[n, 64] x) => (float[n, 64] y) { y = Relu(x) }"


@pytest.fixture(scope="module")
def plan(built):
    return built(integer_layer(), str(LAYER))


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_plan_is_exported_with_its_report(plan, tmp_path):
    made = export_triton(plan.save(tmp_path / "layer.plan"), tmp_path / "repository")
    assert files(tmp_path / "repository") == ["layer/1/model.plan", "layer/1/model.plan.json", "layer/config.pbtxt"]
    assert (made.folder / "model.plan").read_bytes() == plan.plan
    assert (made.folder / "model.plan.json").read_text() == (tmp_path / "layer.plan.json").read_text()
    assert (made.name, made.version, made.backend, made.max_batch_size) == ("layer", 1, "tensorrt", 16)
    assert made.config == (made.folder.parent / "config.pbtxt").read_text()
    assert made.notes == ()


def test_a_model_through_a_session_brings_its_model_py(tmp_path):
    made = export_triton(integer_layer(), tmp_path, name="m", options=TritonOptions(backend="python"))
    assert files(tmp_path) == ["m/1/model.onnx", "m/1/model.py", "m/config.pbtxt"]
    text = (made.folder / "model.py").read_text()
    assert "from trtsparse.triton.python_backend import TritonPythonModel" in text
    compile(text, "model.py", "exec")


def test_a_plan_of_tensorrt_rtx_is_served_through_a_session(built, tmp_path):
    made = export_triton(built(integer_layer(), str(LAYER), version="rtx-1.7.1"), tmp_path)
    assert (made.backend, made.max_batch_size) == ("python", 16)
    assert files(made.folder) == ["model.plan", "model.plan.json", "model.py"]
    assert "kind: KIND_GPU" in made.config


def saved_engine(folder):
    """An engine of cuSPARSELt, saved without a GPU: no kernel was chosen yet."""
    return write_saved(folder / "layer.trtsparse", Saved(OnnxModel.open(integer_layer()), "bf16", {}, {}, {}))


def test_a_saved_engine_is_served_through_a_session_on_a_gpu(tmp_path):
    saved = saved_engine(tmp_path)
    made = export_triton(saved, tmp_path / "r", profiles=[LAYER])
    assert (made.name, made.backend, made.max_batch_size) == ("layer", "python", 16)
    assert files(made.folder) == ["model.py", "model.trtsparse"]
    assert (made.folder / "model.trtsparse").read_bytes() == saved.read_bytes()
    assert "kind: KIND_GPU" in made.config
    assert check_model(made.folder.parent) == ()
    with pytest.raises(ConfigError) as caught:
        export_triton(saved, tmp_path / "r", options=TritonOptions(backend="onnxruntime"))
    assert str(caught.value) == (
        "a saved engine is executed by a trtsparse session only\n  where: backend\n  got: 'onnxruntime'\n"
        "  expected: 'python'"
    )


def test_an_engine_of_cusparselt_saves_itself_into_the_repository(tmp_path):
    engine = mock.MagicMock()
    engine.name, engine.description = "cusparselt", "a double"
    engine.inputs, engine.outputs = (TensorSpec("x", F4, ("n", 64)),), (TensorSpec("y", F4, ("n", 16)),)
    engine.save = lambda path: shutil.copy(saved_engine(tmp_path), path)
    assert isinstance(engine, DeviceEngine)
    made = export_triton(engine, tmp_path / "r", name="m", profiles=[LAYER])
    assert files(made.folder) == ["model.py", "model.trtsparse"]
    assert check_model(made.folder.parent) == ()


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
@pytest.mark.parametrize("name", ["magika", "ppocr-det", "ppocr-rec"])
def test_real_networks_are_exported(tmp_path, backend, name):
    pytest.importorskip("magika")
    pytest.importorskip("rapidocr")
    prune(models.get(name), output=tmp_path / f"{name}.onnx")
    made = export_triton(tmp_path / f"{name}.onnx", tmp_path / "repository", options=TritonOptions(backend=backend))
    assert (made.name, made.max_batch_size) == (name, 32)
    assert made.notes == ("no profile limits the batch: max_batch_size 32 was assumed",)
    assert check_model(made.folder.parent) == ()


def test_a_real_plan_of_tensorrt_rtx_is_exported(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("magika")
    from trtsparse import BuildConfig

    profile = Profile.parse("bytes:1x2048:8x2048:64x2048")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = build(models.get("magika"), BuildConfig(profiles=(profile,), flavour="tensorrt_rtx"))
    made = export_triton(engine, tmp_path, name="magika", options=TritonOptions(warmup="random"))
    assert (made.backend, made.max_batch_size) == ("python", 64)
    assert check_model(made.folder.parent) == ()


@pytest.mark.parametrize("version", ["8.6.1", "10.0.1", "10.13.3", "10.16.1", "11.0.0", "11.4.0"])
def test_plans_of_every_tensorrt_are_exported(built, tmp_path, version):
    made = export_triton(built(integer_layer(), str(LAYER), version=version), tmp_path)
    assert (made.backend, made.max_batch_size) == ("tensorrt", 16)
    assert check_model(made.folder.parent) == ()


def test_every_small_model_is_exported_to_every_backend(tmp_path):
    for name, model in small_models().items():
        for backend in ("onnxruntime", "python"):
            made = export_triton(model, tmp_path, name=f"{name}-{backend}", options=TritonOptions(backend=backend))
            assert check_model(made.folder.parent) == ()


def test_versions_are_numbered_and_the_configuration_stays(plan, tmp_path):
    made = [export_triton(plan, tmp_path, name="m") for _ in range(3)]
    assert [one.version for one in made] == [1, 2, 3]
    assert [one.notes for one in made] == [()] * 3
    config = tmp_path / "m" / "config.pbtxt"
    edited = made[0].config.replace("max_queue_delay_microseconds: 100", "max_queue_delay_microseconds: 7")
    config.write_text(edited)
    stamp = config.stat().st_mtime_ns
    again = export_triton(plan, tmp_path, name="m", version=9)
    assert (again.version, again.config, config.read_text()) == (9, edited, edited)
    assert again.notes == ("config.pbtxt was kept as it is; overwrite to have it written anew",)
    assert config.stat().st_mtime_ns == stamp
    assert export_triton(plan, tmp_path, name="m").version == 10


def test_overwriting_writes_the_configuration_and_the_version_that_is_named(plan, built, tmp_path):
    export_triton(plan, tmp_path, name="m")
    export_triton(plan, tmp_path, name="m")
    other = built(integer_layer(5), str(LAYER))
    made = export_triton(
        other, tmp_path, name="m", version=1, overwrite=True, options=TritonOptions(version_policy="all")
    )
    assert (made.version, files(tmp_path / "m")[:2]) == (1, ["1/model.plan", "1/model.plan.json"])
    assert (made.folder / "model.plan").read_bytes() == other.plan
    assert (tmp_path / "m" / "2" / "model.plan").read_bytes() == plan.plan
    assert (tmp_path / "m" / "config.pbtxt").read_text() == made.config
    assert "all {" in made.config
    assert export_triton(plan, tmp_path, name="m", overwrite=True).version == 3  # adds; only the configuration is new


def test_the_only_version_may_be_replaced_by_one_with_other_inputs(tmp_path):
    export_triton(integer_layer(), tmp_path, name="m")
    made = export_triton(from_text(WIDER), tmp_path, name="m", version=1, overwrite=True)
    assert check_model(made.folder.parent) == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"version": 1},
            (
                "the version is there already\n  where: {m}/1\n  got: versions 1\n"
                "  to fix: leave the version out to add a new one, or overwrite it"
            ),
        ),
        ({"version": 0}, "a version is a positive number\n  where: version\n  got: 0"),
        ({"version": "2"}, "a version is a positive number\n  where: version\n  got: '2'"),
        (
            {"options": TritonOptions(backend="python")},
            (
                "the model is served by another backend\n  where: {m}/config.pbtxt\n  got: 'onnxruntime'\n"
                "  expected: 'python'\n  to fix: export it under another name"
            ),
        ),
        (
            {"source": from_text(WIDER)},
            (
                "the configuration that is there does not fit the new version: the model has other dims\n"
                "  where: {m}/config.pbtxt, output 'y'\n  got: [16]\n  expected: [64] besides the batch\n"
                "  to fix: export it under another name, or overwrite the configuration"
            ),
        ),
        (
            {"source": from_text(WIDER), "overwrite": True},
            (
                "the new configuration does not fit version 1, which stays: the model has other dims\n"
                "  where: {m}/config.pbtxt, output 'y'\n  got: [64]\n  expected: [16] besides the batch\n"
                "  to fix: export it under another name, or remove that version first"
            ),
        ),
        (
            {"options": TritonOptions(backend="python"), "overwrite": True},
            (
                "the new configuration does not fit version 1, which stays: the model's file is missing\n"
                "  where: {m}/1\n  expected: model.py\n"
                "  to fix: export it under another name, or remove that version first"
            ),
        ),
        (
            {"options": TritonOptions(version_policy="specific:5"), "overwrite": True},
            (
                "a version that is to be served is not there\n  where: {m}, version_policy\n  got: 5\n"
                "  expected: 1, 2"
            ),
        ),
        (
            {"name": "../m"},
            (
                "a model cannot have this name\n  where: name\n  got: '../m'\n"
                "  expected: letters, digits, _ - . + only"
            ),
        ),
    ],
)  # fmt: skip
def test_what_is_there_is_protected(tmp_path, given, message):
    export_triton(integer_layer(), tmp_path, name="m")
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    arguments = {"source": integer_layer(), "name": "m", **given}
    with pytest.raises(ConfigError) as caught:
        export_triton(arguments.pop("source"), tmp_path, **arguments)
    assert str(caught.value) == message.format(m=tmp_path / "m")
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_a_smaller_profile_does_not_slip_under_a_larger_configuration(plan, built, tmp_path):
    export_triton(plan, tmp_path, name="m")
    with pytest.raises(ConfigError) as caught:
        export_triton(built(integer_layer(), "x:1x64:2x64:8x64"), tmp_path, name="m")
    assert str(caught.value) == (
        "the configuration that is there does not fit the new version: "
        "the profiles do not admit every batch up to max_batch_size\n"
        f"  where: {tmp_path}/m/config.pbtxt, max_batch_size\n  got: 16\n  expected: at most 8\n"
        "  to fix: export it under another name, or overwrite the configuration"
    )


def test_a_configuration_with_a_platform_only_gets_another_version(tmp_path):
    made = export_triton(integer_layer(), tmp_path, name="m")
    config = made.folder.parent / "config.pbtxt"
    config.write_text(made.config.replace('backend: "onnxruntime"\n', ""))
    assert 'platform: "onnxruntime_onnx"' in config.read_text()
    assert export_triton(integer_layer(), tmp_path, name="m").version == 2


def test_a_plan_whose_outputs_have_the_batch_twice_is_served_without_batches(built, tmp_path):
    sizes = "g (float[n, 4] x) => (float[n, n] y) { t = Transpose(x) y = MatMul(x, t) }"
    assert export_triton(built(from_text(sizes), "x:1x4:4x4:8x4"), tmp_path, name="m").max_batch_size == 0


def test_the_model_of_a_plan_tells_what_its_report_does_not(built, tmp_path):
    model = from_text("g (float[n, 4] x, float[n, n] a) => (float[n, 4] y) { y = MatMul(a, x) }")
    engine = built(model, "x:1x4:4x4:8x4,a:1x1:4x4:8x8")
    made = export_triton(engine, tmp_path, name="m", model=model)
    assert (made.max_batch_size, made.notes) == (
        0,
        ("no batches: dim 1 of input 'a' is 'n', which varies with the first dims",),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"options": {"backend": "python"}},
            "where: options\n  got: {'backend': 'python'}, of type dict\n  expected: TritonOptions",
        ),
        (
            {"profiles": ["x:1x64"]},
            ("where: profiles\n  got: 'x:1x64', of type str\n  expected: Profile\n  to fix: Profile.parse('x:1x64')"),
        ),
        (
            {"profiles": "x:1x64"},
            ("where: profiles\n  got: 'x:1x64', of type str\n  expected: Profile\n  to fix: Profile.parse('x:1x64')"),
        ),
    ],
)
def test_a_value_of_another_type_is_named(tmp_path, options, message):
    with pytest.raises(ConfigError) as caught:
        export_triton(integer_layer(), tmp_path / "r", **options)
    assert str(caught.value) == f"a value is of another type\n  {message}"
    assert not (tmp_path / "r").exists()


def test_a_larger_configuration_does_not_slip_over_a_smaller_profile(plan, built, tmp_path):
    export_triton(plan, tmp_path, name="m")
    with pytest.raises(ConfigError) as caught:
        export_triton(built(integer_layer(), "x:1x64:2x64:64x64"), tmp_path, name="m", overwrite=True)
    assert str(caught.value) == (
        "the new configuration does not fit version 1, which stays: "
        "the profiles do not admit every batch up to max_batch_size\n"
        f"  where: {tmp_path}/m/config.pbtxt, max_batch_size\n  got: 64\n  expected: at most 16\n"
        "  to fix: export it under another name, or remove that version first"
    )


def test_a_folder_that_is_there_without_a_model_gets_one(plan, tmp_path):
    (tmp_path / "m").mkdir()
    made = export_triton(plan, tmp_path, name="m")
    assert (made.version, check_model(tmp_path / "m")) == (1, ())


def test_a_plan_for_another_server_is_refused_before_anything_is_written(plan, tmp_path):
    with pytest.raises(PlanError, match="the plan was built by another TensorRT than the server has"):
        export_triton(plan, tmp_path / "repository", options=TritonOptions(server="24.10"))
    assert not (tmp_path / "repository").exists()
    assert export_triton(plan, tmp_path / "repository", options=TritonOptions(server="25.10")).version == 1


def test_a_version_compatible_plan_fits_later_servers_and_says_what_they_need(built, tmp_path):
    compatible = built(integer_layer(), str(LAYER), version_compatible=True)
    made = export_triton(compatible, tmp_path, options=TritonOptions(server="25.12"))
    assert made.notes == ("start the server with --backend-config=tensorrt,version-compatible=true",)


def test_a_profile_that_admits_no_single_request_is_noted(built, tmp_path):
    made = export_triton(built(integer_layer(), "x:4x64:8x64:16x64"), tmp_path)
    assert made.max_batch_size == 0
    assert made.notes == ("no batches: not every profile admits a single request, which Triton may send",)


def test_a_version_that_is_to_be_served_must_come_with_it(tmp_path):
    with pytest.raises(ConfigError, match="a version that is to be served is not there"):
        export_triton(integer_layer(), tmp_path / "r", options=TritonOptions(version_policy="specific:2"))
    assert not (tmp_path / "r").exists()
    assert export_triton(
        integer_layer(), tmp_path / "r", version=2, options=TritonOptions(version_policy="specific:2")
    ).version == 2  # fmt: skip


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        export_triton(integer_layer(), tmp_path / "file" / "repository")
    assert str(caught.value) == (
        f"cannot write the model into the repository\n  where: {tmp_path}/file/repository/model\n"
        "  got: Not a directory\n  to fix: give a repository in a writable place with enough space"
    )


def test_without_tritons_client_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(MissingDependencyError) as caught:
        export_triton(integer_layer(), tmp_path / "r")
    assert str(caught.value) == (
        "Triton's client library is not installed\n  to fix: pip install 'trtsparse[triton]'"
    )
    assert not (tmp_path / "r").exists()


def test_a_client_library_without_grpc_says_why_it_does_not_load(tmp_path, monkeypatch):
    folder = tmp_path / "tritonclient" / "grpc"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "__init__.py").write_text("raise RuntimeError('The installation does not include grpc support.')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "tritonclient"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError) as caught:
        export_triton(integer_layer(), tmp_path / "r")
    assert str(caught.value) == (
        "Triton's client library cannot be imported\n"
        "  where: tritonclient.grpc: The installation does not include grpc support.\n"
        "  to fix: pip install 'trtsparse[triton]'"
    )


def test_the_result_is_json(tmp_path):
    made = export_triton(integer_layer(), tmp_path, name="m")
    assert made.to_dict() == {
        "schema": "trtsparse.triton/1",
        "name": "m",
        "version": 1,
        "folder": str(tmp_path / "m" / "1"),
        "backend": "onnxruntime",
        "max_batch_size": 32,
        "config": made.config,
        "notes": list(made.notes),
    }
