"""What docs/serving shows: its files are well-formed and agree with each other and with the real server."""

import contextlib
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.triton.server import TritonServer

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
SERVING = ROOT / "docs" / "serving"
FILES = sorted(SERVING.rglob("*.yaml"))
TEXT = (SERVING / "serving.md").read_text()


def block(kind):
    """The code behind a `<!-- test: kind -->` comment."""
    (code,) = re.findall(rf"<!-- test: {kind} -->\n```[a-z]*\n(.*?)```", TEXT, re.DOTALL)
    return code


def documents():
    """Kubernetes objects by kind."""
    found = [one for path in FILES if path.parent != SERVING for one in yaml.safe_load_all(path.read_text())]
    return {one["kind"]: one for one in found}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_document_is_yaml(path):
    for document in yaml.safe_load_all(path.read_text()):
        assert isinstance(document, dict)
        if path.parent != SERVING:
            assert {"apiVersion", "kind", "metadata"} <= document.keys()


def test_every_file_is_mentioned_or_in_a_folder_that_is():
    for path in FILES:
        relative = path.relative_to(SERVING)
        assert f"({relative.parts[0]})" in TEXT


def test_selectors_and_names_agree():
    found = documents()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    for kind in ("PodMonitor", "PodDisruptionBudget"):
        assert found[kind]["spec"]["selector"]["matchLabels"] == labels
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", found["Deployment"]["metadata"]["name"])


def test_ports_are_named_once_and_used_by_name():
    found = documents()
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
    assert {port["targetPort"] for port in found["Service"]["spec"]["ports"]} <= ports.keys()
    assert found["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"] in ports
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in ports


def test_volumes_are_mounted_where_the_server_looks():
    spec = documents()["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in spec["volumes"]}
    assert f"--model-repository={mounts['models']}" in container["args"]
    assert documents()["PersistentVolumeClaim"]["metadata"]["name"] == "triton-models"


def test_there_is_more_time_to_stop_than_the_server_takes():
    spec = documents()["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    takes = next(int(word.partition("=")[2]) for word in container["args"] if "--exit-timeout-secs" in word)
    takes += int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] > takes
    service = yaml.safe_load((SERVING / "compose.yaml").read_text())["services"]["triton"]
    takes = next(int(word.partition("=")[2]) for word in service["command"] if "--exit-timeout-secs" in word)
    assert int(service["stop_grace_period"].rstrip("s")) > takes


def test_the_command_for_compose_serves_the_repository_of_the_folder_where_it_is_typed():
    """Compose takes relative paths from the first file's folder, unless it is given another."""
    compose = SERVING / "compose.yaml"
    commands = re.findall(r"docker compose [^`\n]* up", compose.read_text() + TEXT)
    assert len(commands) == 2
    (volume,) = yaml.safe_load(compose.read_text())["services"]["triton"]["volumes"]
    for command in commands:
        given = dict(itertools.pairwise(shlex.split(command)))
        base = Path(given.get("--project-directory", Path(given["-f"]).parent))
        assert base / volume.partition(":")[0] == Path("repository")
        assert (ROOT / given["-f"]).samefile(compose)


def test_the_autoscaler_scales_on_a_metric_that_the_adapter_makes():
    found = documents()
    (rule,) = yaml.safe_load(found["ConfigMap"]["data"]["config.yaml"])["rules"]
    (metric,) = found["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert rule["name"]["matches"] in rule["metricsQuery"]


def test_the_server_knows_every_flag(environment):
    variables = environment.variables()
    done = subprocess.run(
        [environment.server, "--help"], capture_output=True, text=True, check=False, env=variables, timeout=60
    )
    known = set(re.findall(r"--[a-z][a-z-]*", done.stdout + done.stderr))
    service = yaml.safe_load((SERVING / "compose.yaml").read_text())["services"]["triton"]
    (container,) = documents()["Deployment"]["spec"]["template"]["spec"]["containers"]
    used = {word.partition("=")[0] for word in (*service["command"][1:], *container["args"])}
    used |= set(re.findall(r"`(--(?:exit|model-|disable|cache)[a-z-]*)", TEXT))
    assert used <= known


@pytest.fixture(scope="module")
def repository(environment, tmp_path_factory):  # noqa: ARG001 - nothing to serve without a server
    """What the shell commands and the Python of the page make."""
    pytest.importorskip("tritonclient.grpc")
    folder = tmp_path_factory.mktemp("docs")
    variables = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["sh", "-e", "-c", block("shell")], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("mlp: nothing wrong\nmlp-session: nothing wrong\n")
    assert "mlp version 2 in repository/mlp/2" in done.stdout
    with changed_to(folder):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block("python"), "serving.md", "exec"), {})  # noqa: S102 - running the page is the test
    assert printed.getvalue() == "repository/warm/1 32 ()\n"
    return folder / "repository"


@contextlib.contextmanager
def changed_to(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.mark.slow
def test_the_client_of_the_page_gets_an_answer_and_the_metrics_of_the_autoscaler_are_there(
    environment, repository, tmp_path
):
    """The server has no ONNX Runtime backend here: what goes through a session is loaded."""
    control = ("--model-control-mode=explicit", "--load-model=mlp-session", "--load-model=warm")
    with TritonServer(environment, repository, tmp_path / "log", *control) as server:
        code = block("client").replace("localhost:8001", server.grpc)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "serving.md", "exec"), {})  # noqa: S102 - running the page is the test
        assert printed.getvalue() == "(4, 64)\n"
        with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
    rules = documents()["ConfigMap"]["data"]["config.yaml"]
    wanted = set(re.findall(r"nv_[a-z_]+", rules))
    assert len(wanted) == 2
    for name in wanted:
        assert f'{name}{{model="mlp-session",version="1"}}' in metrics
