import sys

import pytest

from tests.tune.scripted import FACTS, command
from trtsparse.errors import DeviceError, EngineError, MissingDependencyError
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.lessons import Lessons
from trtsparse.tune.measure import Options, Tuner

GEMM, OTHER = Gemm(64, 64, 256), Gemm(64, 128, 256)
GOOD = {"dense 0": 3.0, "dense 1": 2.0, "sparse config 3": 1.5, "sparse config 0": 1.0}


def tuner(script, **options):
    return Tuner(Options(**{"timeout_s": 20.0, "rounds": 3, **options}), command=command(script))


def tuned(script, *gemms, **options):
    with tuner(script, **options) as made:
        return [made.tune(gemm) for gemm in gemms or (GEMM,)]


def test_the_fastest_kernels_are_found_with_their_gain():
    (result,) = tuned(GOOD)
    assert (result.dense.name, result.sparse.name) == ("1", "config 0")
    assert (result.dense.ms, result.dense.low, result.dense.high) == (2.02, 2.0, 2.04)
    assert result.gain == pytest.approx(2.0)
    assert result.gains == pytest.approx((2.0, 2.0, 2.0))
    assert result.choice == result.sparse
    assert result.defaults == {"dense": 3.0, "sparse": 1.5}
    assert (result.tried, result.skipped, result.restarts, dict(result.refused)) == (4, (), 0, {})
    assert result.facts == {"dense_nbytes": 64}
    assert (result.dense.error, result.dense.bound) == (1e-4, 1e-3)


def test_the_facts_are_those_of_the_child():
    with tuner(GOOD) as made:
        assert made.facts() == FACTS


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("crash", "killed by SIGKILL"),
        ("exit", "ended with exit code 7: a last word"),
        ("break", "cudaStreamSynchronize failed got: cudaErrorIllegalInstruction (715)"),
    ],
)
def test_a_kernel_that_kills_the_process_is_skipped_and_the_rest_goes_on(what, why):
    with tuner({**GOOD, "sparse config 1": what, "sparse config 2": 0.5}) as made:
        result = made.tune(GEMM)
        assert result.sparse.name == "config 2"
        assert result.skipped == (("sparse config 1", why),)
        assert (result.restarts, made.restarts) == (1, 1)


def test_a_kernel_that_hangs_is_killed_and_skipped():
    (result,) = tuned({**GOOD, "sparse config 1": "hang"}, timeout_s=3.0)
    assert ("sparse config 1", "no answer in 3 s") in result.skipped
    assert result.dense is not None


def test_a_killer_is_not_tried_for_the_next_product_of_its_type():
    script = {**GOOD, "sparse config 1": "crash"}
    with tuner(script) as made:
        made.tune(GEMM)
        again = made.tune(OTHER)
        assert (again.restarts, made.restarts) == (0, 1)
        assert again.skipped == (("sparse config 1", "killed by SIGKILL (with 64x64x256 bf16->bf16)"),)
        assert again.sparse is not None
        assert made.tune(Gemm(64, 64, 256, "fp16")).restarts == 1  # another type: other kernels


def test_after_some_crashes_in_a_row_the_rest_of_a_kind_is_left():
    script = {"dense 0": 2.0, "sparse config 9": 1.0, **{f"sparse config {at}": "crash" for at in range(4)}}
    with tuner(script, crashes=2) as made:
        result = made.tune(GEMM)
        assert result.restarts == 2
        assert result.skipped == (
            ("sparse config 0", "killed by SIGKILL"),
            ("sparse config 1", "killed by SIGKILL"),
            ("sparse config 2", "not tried: 2 before it crashed"),
            ("sparse config 3", "not tried: 2 before it crashed"),
        )
        assert result.sparse.name == "config 9"
        assert made.tune(OTHER).restarts == 0
        assert set(made.lessons["bf16->bf16"].killers) == {f"sparse config {at}" for at in range(4)}


def test_a_dense_killer_is_skipped_for_its_own_product_only():
    with tuner({**GOOD, "dense 1": "crash"}) as made:
        assert made.tune(GEMM).dense.name == "0"
        assert made.lessons["bf16->bf16"].killers == {}


@pytest.mark.parametrize(("what", "restarts"), [("crash", 1), ("raise", 0)])
def test_what_fails_in_the_race_is_the_one_that_ran(what, restarts):
    script = {"dense 0": 2.0, "sparse config 0": 1.0, "sparse config 1": f"{what} in race"}
    with tuner(script) as made:
        result = made.tune(GEMM)
        assert (result.dense.name, result.sparse.name, result.restarts) == ("0", "config 0", restarts)
        assert [key for key, _ in result.skipped] == ["sparse config 1"]
        assert made.tune(OTHER).restarts == 0


def test_after_some_crashes_in_races_a_kind_is_left():
    script = {"dense 0": 2.0, **{f"sparse config {at}": "crash in race" for at in range(9)}}
    with tuner(script, crashes=2) as made:
        result = made.tune(GEMM)
        assert (result.dense.name, result.sparse, result.restarts) == ("0", None, 2)
        assert set(dict(result.skipped).values()) == {
            "killed by SIGKILL", "not used: 2 crashed after they had been timed",
        }  # fmt: skip
        assert len(made.lessons["bf16->bf16"].killers) == 2  # the others may work elsewhere


def test_forms_that_every_kernel_was_refused_are_summed_up_and_not_asked_for_again():
    script = {"dense 0": 2.0}
    for at in range(2):
        script |= {
            f"sparse config {at}": 1.0 + at, f"sparse config {at} segment_k": "refuse" if at else 0.5,
            f"sparse config {at} data_parallel": "refuse",
        }  # fmt: skip
    with tuner(script) as made:
        first, second = made.tune(GEMM), made.tune(OTHER)
        assert dict(first.refused) == {"cuSPARSELt: invalid value": 3}
        assert dict(second.refused) == {"cuSPARSELt: invalid value": 1}
        assert first.skipped == second.skipped == ()
        assert first.sparse.name == second.sparse.name == "config 0 segment_k"
        assert made.lessons["bf16->bf16"].refused == {"data_parallel"}


def test_what_an_earlier_run_learned_is_used():
    with tuner({**GOOD, "sparse config 1": "crash"}) as made:
        made.learn({"bf16->bf16": Lessons({"sparse config 1": "it crashed"}, set())})
        result = made.tune(GEMM)
        assert (result.restarts, result.skipped) == (0, (("sparse config 1", "it crashed"),))


def test_a_wrong_kernel_is_dropped_with_its_error():
    (result,) = tuned({**GOOD, "sparse config 1": "wrong"})
    assert result.sparse.name == "config 0"
    assert result.skipped == (("sparse config 1", "wrong result: error 0.7, bound 0.001"),)


def test_a_product_that_nothing_can_compute_is_a_result_without_kernels():
    (result,) = tuned({"dense 0": "refuse", "sparse config 0": "raise"})
    assert (result.dense, result.sparse, result.gain, result.choice, result.gains) == (None, None, None, None, ())
    assert dict(result.refused) == {"cuSPARSELt: invalid value": 1}
    assert result.skipped == (("sparse config 0", "not now"),)


def test_a_product_that_cannot_be_opened_is_a_result_that_says_so():
    first, second = tuned({**GOOD, "open": "raise"}, GEMM, OTHER)
    assert first.facts == second.facts == {"failed": "not now"}


def test_a_process_that_dies_while_it_opens_a_product_is_not_tried_for_ever():
    (result,) = tuned({**GOOD, "open": "crash"})
    assert result.facts == {"failed": "the tuning process died: killed by SIGKILL"}


def test_without_time_the_rest_is_left_out():
    (result,) = tuned(GOOD, screen_s=0.0)
    assert (result.dense.name, result.sparse.name) == ("0", "config 3")
    assert result.skipped == (
        ("dense 1", "not tried: no time left"),
        ("sparse config 0", "not tried: no time left"),
    )


def test_a_missing_library_is_named_with_the_extra_that_brings_it():
    with tuner({"unavailable": "dependency"}) as made, pytest.raises(MissingDependencyError) as caught:
        made.tune(GEMM)
    assert str(caught.value) == ("cuBLASLt is used through nvmath-python\n  to fix: pip install 'trtsparse[cuda]'")
    assert caught.value.exit_code == 3


def test_a_machine_without_a_fitting_gpu_is_told():
    with tuner({"unavailable": "device"}) as made, pytest.raises(DeviceError) as caught:
        made.facts()
    assert str(caught.value) == (
        "cuBLASLt does not take this GPU\n  got: CUBLAS_STATUS_ARCH_MISMATCH\n"
        "  expected: an NVIDIA GPU of compute capability 8.0 or newer, and its driver\n"
        "  to fix: tune on a machine with such a GPU"
    )


def test_a_child_that_does_not_start_is_an_engine_error():
    dying = (sys.executable, "-c", "raise SystemExit('no such thing')")
    with Tuner(command=dying) as made, pytest.raises(EngineError) as caught:
        made.tune(GEMM)
    assert str(caught.value) == (
        f"the tuning process does not start\n  where: {' '.join(dying)} 0\n"
        "  got: ended with exit code 1: no such thing"
    )


def test_the_real_child_says_what_this_machine_lacks():
    """Here that is nvmath-python or a GPU; on a machine with both it starts."""
    with Tuner() as made:
        try:
            told = made.facts()["cusparselt"]
        except (MissingDependencyError, DeviceError) as error:
            told = f"{error.exit_code} {error}"
    assert told[0].isdecimal()
    assert told.startswith("3 ") == ("to fix: " in told)
