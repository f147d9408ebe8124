import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doubles import installed
from trtsparse.builder.build import build
from trtsparse.builder.config import BuildConfig
from trtsparse.builder.engine import check_apart, report_path
from trtsparse.builder.plan import read_header
from trtsparse.errors import ConfigError, OutputError
from trtsparse.files.model import OnnxModel


@pytest.fixture
def engine(relu):
    with installed("10.13.3"):
        return build(relu)


def test_the_plan_is_saved_raw_with_its_report_beside_it(engine, tmp_path):
    path = engine.save(tmp_path / "model.plan")
    assert path.read_bytes() == engine.plan
    stored = json.loads((tmp_path / "model.plan.json").read_text())
    assert stored == json.loads(json.dumps(engine.report.to_dict()))
    assert read_header(path) == engine.header
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.plan", "model.plan.json"]


def test_the_report_has_everything_that_is_promised(engine):
    stored = engine.report.to_dict()
    assert stored["schema"] == "trtsparse.build/1"
    assert (stored["flavour"], stored["version"]) == ("tensorrt", "10.13.3.9")
    assert set(stored) == {
        "schema", "flavour", "version", "model", "plan", "precision", "sparsity", "sites", "pruning", "profiles",
        "inputs", "outputs", "config", "warnings", "library_warnings", "untraced", "build_seconds", "total_seconds",
    }  # fmt: skip
    assert set(stored["precision"]) >= {"asked", "reached", "way", "error", "limit", "kept"}


def test_a_missing_folder_is_an_output_error(engine, tmp_path):
    with pytest.raises(OutputError) as error:
        engine.save(tmp_path / "none" / "model.plan")
    assert str(error.value) == (
        "cannot write the file\n"
        f"  where: {tmp_path / 'none' / 'model.plan'}\n"
        "  got: No such file or directory\n"
        "  to fix: give a path in an existing, writable folder with enough space"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_leaves_the_old_plan(engine, tmp_path):
    path = tmp_path / "model.plan"
    path.write_bytes(b"old")
    report_path(path).mkdir()
    with pytest.raises(OutputError, match=r"model\.plan\.json"):
        engine.save(path)
    assert path.read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.plan", "model.plan.json"]


@pytest.mark.skipif(os.name != "posix", reason="limits file sizes as POSIX does")
def test_a_full_disk_leaves_nothing(tmp_path):
    """A process that may write 4 kB a file saves a plan of 1 MB."""
    script = """
import resource, sys
from tests.builder.conftest import make_net
from tests.doubles import installed
from trtsparse.builder.build import build
from trtsparse.errors import OutputError
with installed("10.13.3"):
    engine = build(make_net(batch=2, channels=512))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    engine.save(sys.argv[1])
except OutputError as error:
    print(error)
"""
    path = tmp_path / "model.plan"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("cannot write the file\n")
    assert "got: File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", [None, "hard", "soft"])
def test_the_model_is_not_replaced_by_what_is_made_of_it(external, tmp_path, link):
    model, data = OnnxModel.open(external), tmp_path / "external.data"
    same = {path: path if link is None else tmp_path / f"other-{path.name}" for path in (external, data)}
    for path, other in same.items() if link is not None else ():
        (other.hardlink_to if link == "hard" else other.symlink_to)(path)
    check_apart(model, [tmp_path / "new.plan", tmp_path / "none" / "external.onnx"])
    with pytest.raises(ConfigError) as error:
        check_apart(model, [tmp_path / "new.plan", same[external]])
    assert str(error.value) == (
        f"the output would replace the model\n  where: {same[external]}\n  to fix: name another file"
    )
    with pytest.raises(ConfigError) as error:
        check_apart(model, [same[data]])
    assert str(error.value) == (
        f"the output would replace a data file of the model {external}\n  where: {same[data]}\n"
        "  to fix: name another file"
    )


def test_a_model_in_memory_is_not_replaced(relu, tmp_path):
    (tmp_path / "m.plan").write_bytes(b"old")
    check_apart(OnnxModel.open(relu), [tmp_path / "m.plan"])


def test_a_build_with_the_real_library_saves_and_reads_back(rtx, relu, tmp_path):
    path = build(relu, BuildConfig(flavour="tensorrt_rtx")).save(tmp_path / "relu.plan")
    found = read_header(path)
    assert str(found) == f"TensorRT-RTX {rtx.__version__}"
    assert found.nbytes == path.stat().st_size
