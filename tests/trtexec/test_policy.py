"""Whose defaults apply, what flags make of them, and the line that says so."""

import pytest

from trtsparse.errors import ConfigError
from trtsparse.trtexec.parse import parse
from trtsparse.trtexec.policy import Policy, like_of


def policy(like, *words):
    return parse(["--onnx=m.onnx", f"--like={like}", *words]).policy


@pytest.mark.parametrize("like", [8, 10])
def test_up_to_10_kernels_are_launched_one_by_one_and_data_is_copied(like):
    assert str(policy(like)) == (
        f"Measured like trtexec {like} (--like={like}): CUDA graph off, data transfers on, spin wait off, separate "
        "profile run off"
    )


def test_from_11_on_graphs_are_replayed_and_nothing_is_copied():
    assert str(policy(11)) == (
        "Measured like trtexec 11 (--like=11): CUDA graph on, data transfers off, spin wait on, separate profile run "
        "on"
    )


@pytest.mark.parametrize("like", [8, 10])
def test_flags_turn_the_old_policy_into_the_new_one(like):
    words = ("--useCudaGraph", "--noDataTransfers", "--useSpinWait", "--separateProfileRun")
    found = policy(like, *words)
    modern = policy(11)
    fields = ("graphs", "transfers", "spin_wait", "separate_profile_run")
    assert [getattr(found, name) for name in fields] == [getattr(modern, name) for name in fields]
    assert str(found).endswith(
        "CUDA graph on (--useCudaGraph), data transfers off (--noDataTransfers), spin wait on (--useSpinWait), "
        "separate profile run on (--separateProfileRun)"
    )


def test_flags_turn_the_new_policy_into_the_old_one():
    found = policy(11, "--noCudaGraph", "--includeDataTransfers", "--noSpinWait")
    assert (found.graphs, found.transfers, found.spin_wait) == (False, True, False)
    assert found.separate_profile_run  # trtexec 11 has no other way


def test_in_11_the_flags_of_10_do_nothing_even_beside_their_opposites():
    assert policy(11, "--useCudaGraph", "--noDataTransfers", "--useSpinWait").changed == ()
    assert not policy(11, "--useCudaGraph", "--noCudaGraph").graphs


def test_before_11_a_flag_and_its_opposite_contradict_each_other():
    with pytest.raises(ConfigError) as caught:
        policy(10, "--useCudaGraph", "--noCudaGraph")
    assert str(caught.value) == "--useCudaGraph and --noCudaGraph contradict each other\n  expected: one of them"


@pytest.mark.parametrize(
    ("flavour", "version", "like"),
    [
        ("tensorrt", "8.6.1", 8),
        ("tensorrt", "9.3.0", 10),
        ("tensorrt", "10.0.1", 10),
        ("tensorrt", "10.16.1.11", 10),
        ("tensorrt", "11.0.0", 11),
        ("tensorrt", "12.0.0", 11),
        ("tensorrt_rtx", "1.7.1.116", 11),
        (None, None, 11),
    ],
)
def test_each_library_stands_for_one_trtexec(flavour, version, like):
    found, reason = like_of(flavour, version)
    assert found == like
    assert reason.endswith("is installed")
    assert version is None or version in reason


def test_a_change_keeps_what_was_changed_before():
    found = (
        Policy.of(10, reason="--like=10")
        .change("graphs", to=True, flag="--a")
        .change("transfers", to=False, flag="--b")
    )
    assert (found.graphs, found.transfers, found.changed) == (True, False, (("graphs", "--a"), ("transfers", "--b")))
