"""Kernels chosen for products as they come up."""

import pytest

from tests.tune.scripted import command
from trtsparse.tune import choose
from trtsparse.tune.cache import Cache
from trtsparse.tune.choose import Chooser, NotTuned, Remembered, question
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.measure import Options, Tuner
from trtsparse.tune.result import Kernel

GEMM, OTHER = Gemm(64, 64, 256), Gemm(8, 64, 256)
KERNEL = Kernel("dense", "0", {}, 1.0, 1.0, 1.0, 0.0, 1.0)
COMPLIANT, DENSE = True, False


@pytest.fixture
def started(monkeypatch):
    """Counts the processes that choosers of their own start, by the device."""
    devices = []

    class Counted(Tuner):
        def __init__(self, *, device):
            script = {"dense 0": 3.0, "sparse config 0": 1.0}
            super().__init__(Options(rounds=3, timeout_s=20), device=device, command=command(script))

        def _started(self):
            if self._child is None:
                devices.append(self._command[-1])
            return super()._started()

    monkeypatch.setattr(choose, "Tuner", Counted)
    return devices


def test_one_process_measures_all_products_each_once(started, tmp_path):
    chooser = Chooser(device=3, cache=Cache(tmp_path / "tune.json"))
    for gemm in (GEMM, OTHER, GEMM, GEMM):
        assert chooser(gemm, COMPLIANT).kind == "sparse"
        assert chooser(gemm, DENSE).kind == "dense"
    assert started == ["3"]
    chooser.close()
    assert chooser(GEMM, COMPLIANT).kind == "sparse"
    assert started == ["3"]  # it is known
    chooser(Gemm(16, 64, 256), COMPLIANT)
    assert started == ["3", "3"]
    chooser.close()
    chooser.close()


def test_a_tuner_that_was_given_stays_open(started, tmp_path):
    with Tuner(Options(rounds=3, timeout_s=20), command=command({"dense 0": 1.0})) as tuner:
        chooser = Chooser(tuner=tuner, cache=Cache(tmp_path / "tune.json"))
        assert chooser(GEMM, COMPLIANT).kind == "dense"
        chooser.close()
        assert chooser(OTHER, COMPLIANT).kind == "dense"
    assert not started


@pytest.mark.parametrize(("what", "why"), [("raise", "not now"), ("exit", "the tuning process died: ")])
def test_a_product_that_could_not_be_tuned_is_tried_again(what, why, tmp_path):
    """Not as one for which neither library has a kernel: that answer is None, and stays."""
    cache, script = Cache(tmp_path / "tune.json"), {"dense 0": 3.0, "sparse config 0": 1.0}
    with Tuner(Options(rounds=3, timeout_s=20), command=command({**script, "open": what})) as tuner:
        chooser = Chooser(tuner=tuner, cache=cache)
        for compliant in (COMPLIANT, DENSE):
            with pytest.raises(NotTuned) as caught:
                chooser(GEMM, compliant)
            assert str(caught.value).startswith(why)
        tuner.close()
        tuner._command = (*command(script), "0")  # as when the GPU's memory is free again
        assert chooser(GEMM, COMPLIANT).kind == "sparse"


def test_that_there_is_no_kernel_is_known(tmp_path):
    with Tuner(Options(rounds=3, timeout_s=20), command=command({"dense 0": "wrong"})) as tuner:
        chooser = Chooser(tuner=tuner, cache=Cache(tmp_path / "tune.json"))
        assert chooser(GEMM, COMPLIANT) is None
        tuner.close()
        tuner._command = (*command({"dense 0": 1.0}), "0")
        assert chooser(GEMM, COMPLIANT) is None


def test_what_was_chosen_before_is_not_asked_again():
    asked = []

    def otherwise(gemm, compliant):
        asked.append((gemm, compliant))

    known = {question(GEMM, compliant=True): KERNEL, question(GEMM, compliant=False): None}
    remembered = Remembered(known, otherwise)
    assert remembered(GEMM, COMPLIANT) is KERNEL
    assert remembered(GEMM, DENSE) is None
    assert not asked
    assert remembered(OTHER, COMPLIANT) is None
    assert asked == [(OTHER, True)]
