"""The environment's own promises: nothing foreign is removed, and what would hang the server is found first."""

import sys

import pytest

from tests.triton.environment import Environment, _check_libraries, make


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="is a folder of something else"):
        make(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_an_environment_of_other_versions_is_not_complete(tmp_path):
    assert not Environment(tmp_path).complete
    (tmp_path / "complete").write_text("of another time")
    assert not Environment(tmp_path).complete


def test_a_program_without_its_libraries_is_found(tmp_path):
    tool = tmp_path / "ldd"
    tool.write_text("#!/bin/sh\necho 'libpython3.99.so.1.0 => not found'\n")
    tool.chmod(0o755)
    with pytest.raises(SystemExit) as caught:
        _check_libraries(tmp_path / "stub", {"PATH": str(tmp_path)})
    assert str(caught.value) == (
        f"{tmp_path}/stub lacks libraries: libpython3.99.so.1.0 => not found; "
        "libpython needs an interpreter built with --enable-shared"
    )


def test_variables_lead_to_the_environments_own_python(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    made = Environment(tmp_path)
    variables = made.variables(tmp_path / "libraries")
    assert "PYTHONPATH" not in variables
    assert variables["PATH"].startswith(f"{tmp_path}/venv/bin:")
    assert variables["LD_LIBRARY_PATH"].startswith(f"{tmp_path}/libraries:")
    assert f"python{sys.version_info.major}.{sys.version_info.minor}" in str(made.packages)
