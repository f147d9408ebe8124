"""A plan runs in one TensorRT: that of the server is known before the server is."""

import itertools

import pytest

from trtsparse.builder.plan import PlanHeader
from trtsparse.errors import ConfigError, PlanError
from trtsparse.triton.servers import RELEASES, check_plan, find_server


@pytest.mark.parametrize(
    "text",
    ["24.12", "2.53", "2.53.0", "v2.53.0", "r24.12", "nvcr.io/nvidia/tritonserver:24.12-py3", "24.12-py3", " 24.12 "],
)
def test_a_server_is_found_under_all_its_names(text):
    release = find_server(text)
    assert (release.name, release.triton, release.tensorrt) == ("24.12", "2.53", (10, 7, 0, 23))


def test_the_release_of_a_patch_is_told_apart():
    assert [find_server(text).name for text in ("2.59", "2.59.0", "2.59.1")] == ["25.06", "25.06", "25.07"]


def test_a_tensorrt_is_a_server_too():
    assert find_server("tensorrt-10.13.3.9").tensorrt == (10, 13, 3, 9)
    assert str(find_server("TensorRT 11.0.0")) == "TensorRT 11.0.0"


def test_releases_come_in_order_and_their_tensorrt_only_grows():
    assert all(a.name < b.name for a, b in itertools.pairwise(RELEASES))
    assert all(a.tensorrt[:3] <= b.tensorrt[:3] for a, b in itertools.pairwise(RELEASES))
    assert len({release.triton for release in RELEASES}) == len(RELEASES)


@pytest.mark.parametrize("text", ["", "latest", "19.06", "99.01", "tensorrt-10", "10.13.3"])
def test_a_server_that_is_not_known_is_an_error(text):
    with pytest.raises(ConfigError) as caught:
        find_server(text)
    assert str(caught.value) == (
        f"not a server whose TensorRT is known\n  where: server\n  got: {text!r}\n"
        "  expected: a release from 23.05 to 26.02 or its version, such as 24.10 or 2.51\n"
        "  to fix: name its TensorRT, as tensorrt-10.5.0; the server prints it when it loads its TensorRT backend"
    )


def plan(*version, flavour="tensorrt"):
    return PlanHeader(flavour, version, None)


def test_a_plan_of_the_servers_tensorrt_passes():
    check_plan(plan(10, 7, 0, 23), find_server("24.12"), where="m.plan")
    check_plan(plan(10, 5, 0, 18), find_server("24.10"), where="m.plan")  # the build number is not in the table
    check_plan(plan(8, 6, 1, 6), None, where="m.plan")


def test_a_plan_of_another_tensorrt_is_refused_and_the_servers_that_have_it_are_named():
    with pytest.raises(PlanError) as caught:
        check_plan(plan(10, 13, 3, 9), find_server("24.12"), where="m.plan")
    assert str(caught.value) == (
        "the plan was built by another TensorRT than the server has\n  where: m.plan\n"
        "  got: a plan of TensorRT 10.13.3.9\n"
        "  expected: TensorRT 10.7.0.23, which is in Triton 24.12 (2.53)\n"
        "  to fix: build it with TensorRT 10.7.0.23, or serve with Triton 25.09 or 25.10"
    )


def test_a_version_compatible_plan_runs_in_later_versions_of_the_same_major():
    check_plan(plan(10, 4, 0, 26), find_server("24.12"), where="m.plan", compatible=True)
    check_plan(plan(10, 5, 0, 18), find_server("24.11"), where="m.plan", compatible=True)
    for header in (plan(10, 13, 3, 9), plan(8, 6, 1, 6)):
        with pytest.raises(PlanError):
            check_plan(header, find_server("24.12"), where="m.plan", compatible=True)


def test_a_plan_of_tensorrt_rtx_has_no_backend_in_any_server():
    with pytest.raises(PlanError) as caught:
        check_plan(plan(1, 7, 1, 116, flavour="tensorrt_rtx"), None, where="m.plan")
    assert str(caught.value) == (
        "Triton's TensorRT backend loads no plans of TensorRT-RTX\n  where: m.plan\n"
        "  got: a plan of TensorRT-RTX 1.7.1.116\n  expected: a plan of TensorRT\n"
        "  to fix: export with backend 'python', which serves it through a trtsparse session"
    )
