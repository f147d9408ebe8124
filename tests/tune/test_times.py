import pytest

from tests.tune.results import result
from tests.tune.scripted import command
from trtsparse.errors import ConfigError
from trtsparse.tune import shipped, times
from trtsparse.tune import tune as tuning
from trtsparse.tune.cache import Cache
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.gpus import GPUS
from trtsparse.tune.measure import Options, Tuner
from trtsparse.tune.times import find_times

FACTS = {
    "gpu": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "driver": "580.1", "cublaslt": "13.1.0",
    "cusparselt": "0.8.0",
}  # fmt: skip
KNOWN, OTHER = Gemm(4096, 4096, 4096), Gemm(2048, 1024, 1024)


@pytest.fixture
def table(monkeypatch, tmp_path):
    """A folder of shipped tables that has one."""
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    made = shipped.make("h100", "2026-01-02", FACTS, [result(KNOWN), result(Gemm(64, 4096, 4096), 0.1, 0.2)])
    shipped.write(tmp_path / "h100.json", made)


@pytest.fixture
def no_tables(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)


def scripted(monkeypatch, script):
    options = Options(rounds=3, timeout_s=20)
    monkeypatch.setattr(tuning, "Tuner", lambda: Tuner(options, command=command(script)))


@pytest.mark.usefixtures("table")
def test_a_named_gpu_has_its_table_and_estimates_beside_it():
    found = find_times("H100", [KNOWN])
    assert found.gpu == "NVIDIA H100 80GB HBM3"
    assert found.text == (
        "times of the table that ships for NVIDIA H100 80GB HBM3, measured 2026-01-02 (cublaslt 13.1.0, cusparselt "
        "0.8.0, driver 580.1); products that it does not have are estimated from the GPU's peaks"
    )
    known, between, other = (found.find(gemm) for gemm in (KNOWN, Gemm(512, 4096, 4096), OTHER))
    assert (known.dense_ms, known.sparse_ms, known.gain, known.basis) == (2.0, 1.0, 2.0, f"measured on {found.gpu}")
    assert between.basis == f"interpolated from 64 and 4096 rows on {found.gpu}"
    assert other.basis == "estimate"
    assert other.dense_ms == GPUS["h100"].dense_ms(OTHER)


@pytest.mark.usefixtures("no_tables")
def test_without_a_table_everything_is_an_estimate_and_says_so():
    found = find_times("l40s", [KNOWN])
    assert (found.gpu, found.text) == ("NVIDIA L40S", "estimates from the peaks of NVIDIA L40S, not measured")
    timing = found.find(KNOWN)
    assert (timing.basis, timing.low, timing.high) == ("estimate", timing.gain, timing.gain)


@pytest.mark.usefixtures("no_tables")
def test_a_product_that_no_sparse_kernel_takes_says_why():
    timing = find_times("h100", []).find(Gemm(32, 1000, 2048, "int8"))
    assert (timing.sparse_ms, timing.gain, timing.refusal) == (None, None, "N and K have to be multiples of 16")
    assert find_times("a100", []).find(Gemm(32, 1024, 2048, "fp8_e4m3")) is None


def test_the_gpu_at_hand_is_measured(monkeypatch, tmp_path):
    scripted(monkeypatch, {"dense 0": 2.0, "sparse config 0": 1.0, "sparse config 1": "refuse"})
    found = find_times(None, [KNOWN], cache=Cache(tmp_path / "tune.json"))
    assert found.gpu == "NVIDIA Scripted 1"
    assert found.text == "measured on the GPU at hand, NVIDIA Scripted 1"
    timing = found.find(KNOWN)
    assert timing.basis == "measured here"
    assert timing.gain == pytest.approx(2.0)
    assert found.find(OTHER) is None


@pytest.mark.parametrize(
    ("gpu", "peaks"),
    [("NVIDIA H100 PCIe", GPUS["h100-pcie"]), ("NVIDIA H100 80GB HBM3", GPUS["h100"]), ("NVIDIA H100 NVL", None)],
)
def test_the_peaks_are_those_of_the_board_that_was_measured(monkeypatch, gpu, peaks):
    monkeypatch.setattr(times, "tune", lambda *_, **__: tuning.TuneResult({"gpu": gpu}, ()))
    found = find_times(None, [KNOWN])
    assert found.peaks is peaks
    assert (found.find(KNOWN) is None) == (peaks is None)


def test_a_table_of_a_board_without_peaks_is_not_filled_up_with_those_of_another(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    facts = FACTS | {"gpu": "NVIDIA A100-PCIE-40GB"}
    shipped.write(tmp_path / "a100.json", shipped.make("a100", "2026-01-02", facts, [result(KNOWN)]))
    found = find_times("a100", [KNOWN])
    assert found.text.endswith("(cublaslt 13.1.0, cusparselt 0.8.0, driver 580.1)")
    assert found.find(KNOWN).gain == 2.0
    assert found.find(OTHER) is None


def test_a_product_without_a_sparse_kernel_has_the_librarys_word(monkeypatch, tmp_path):
    scripted(monkeypatch, {"dense 0": 2.0})
    timing = find_times(None, [KNOWN], cache=Cache(tmp_path / "tune.json")).find(KNOWN)
    assert (timing.sparse_ms, timing.refusal) == (None, "no sparse kernel computed it rightly")


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("what", "word"),
    [("device", "cuBLASLt does not take this GPU"), ("dependency", "cuBLASLt is used through nvmath-python")],
)
def test_without_a_gpu_another_stands_in_and_says_so(monkeypatch, tmp_path, what, word):
    scripted(monkeypatch, {"unavailable": what})
    found = find_times(None, [KNOWN], cache=Cache(tmp_path / "tune.json"))
    assert found.text.startswith(f"nothing was measured here ({word}): times of the table that ships for NVIDIA H100")
    assert found.find(KNOWN).gain == 2.0


def test_without_products_nothing_is_measured(monkeypatch):
    scripted(monkeypatch, {"unavailable": "device"})
    found = find_times(None, [])
    assert (found.text, found.peaks) == ("no times: no weight site of known size is eligible", None)


@pytest.mark.usefixtures("table")
def test_an_unknown_gpu_is_refused():
    with pytest.raises(ConfigError) as caught:
        find_times("v100", [])
    assert str(caught.value) == (
        f"nothing is known of this GPU\n  where: gpu\n  got: v100\n  expected: {', '.join(sorted(GPUS))}\n"
        "  to fix: leave --gpu (gpu= in Python) out to measure here, or take one of these"
    )


def test_the_stand_in_is_known():
    assert times.STAND_IN in GPUS
