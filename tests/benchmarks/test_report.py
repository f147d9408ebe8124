"""What the end-to-end benchmark makes of what its processes found."""

import json

import pytest

from benchmarks.peers.cases import CASES, DENSE, DENSE_8, NOT_ASKED, SPARSE, SPARSE_8, give_up, prepare, wait_for
from benchmarks.peers.report import add_rows, kind_of, merged
from benchmarks.peers.table import markdown


class Rows:
    """Notes what is added."""

    def __init__(self):
        self.rows = {}

    def add(self, _case, metric, values, unit, *, at_least=None, at_most=None):
        self.rows[metric] = (values, unit, at_least if at_least is not None else at_most)


def ran(ms, joules=None, **facts):
    joules = [None] * len(ms) if joules is None else joules
    return {"ms": ms, "joules": joules, "error": 0.01, "peak_nbytes": 2**20, "build_s": 1.0, "notes": ""} | facts


def rows(**report):
    table = Rows()
    add_rows(table, {"case": "bert-large", "notes": [], "variants": {}, **report})
    return table.rows


def test_the_fastest_dense_variant_is_what_sparse_is_compared_with_round_by_round():
    found = rows(
        variants={
            SPARSE: ran([10.0, 10.0], [2.0, 2.0], peak_nbytes=2**20),
            DENSE: ran([14.0, 15.0], [4.0, 3.0], peak_nbytes=2**21),
            "torch.compile max-autotune": ran([13.0, 12.5], [3.0, None]),
            "eager": ran([20.0, 21.0]),
            "semi-structured": ran([11.0, 12.0]),
            "semi-structured, best algorithms, torch.compile": {"failure": "no"},
        }
    )
    assert found["best dense (torch.compile max-autotune) / sparse engine"] == ([1.3, 1.25], "x", 1.2)
    assert found["dense engine / sparse engine"] == ([1.4, 1.5], "x", None)
    assert found["inferences per joule, sparse engine / best dense"] == ([1.5], "x", None)
    assert found["PyTorch's semi-structured / sparse engine"] == ([1.1, 1.2], "x", None)
    assert found["peak device memory, sparse engine / dense engine"] == (0.5, "x", None)
    assert found["semi-structured, best algorithms, torch.compile: not run: no"] == (0.0, "runs", None)


def test_eight_bits_are_compared_among_themselves():
    found = rows(
        variants={
            SPARSE_8: ran([5.0]),
            DENSE_8: ran([7.0]),
            "FP8, torch.compile default": ran([6.5]),
            "INT8, torch.compile default": {"failure": "out of memory"},
        }
    )
    assert found["best 8-bit dense (FP8, torch.compile default) / INT8 sparse engine"] == ([1.3], "x", 1.25)


def test_a_target_that_cannot_be_measured_is_missed():
    found = rows(variants={SPARSE: {"failure": "no GPU"}, "eager": ran([1.0])}, ended="the process died")
    assert found["best dense (eager) / sparse engine (not run)"] == (0.0, "x", 1.2)
    assert found["sparse engine: not run: no GPU"] == (0.0, "runs", None)


def test_what_was_not_asked_for_is_left_out():
    found = rows(variants={SPARSE: {"failure": NOT_ASKED}, "eager": {"failure": NOT_ASKED}, SPARSE_8: ran([1.0])})
    assert not [metric for metric in found if "not run: not asked" in metric or metric.startswith("best dense")]
    assert found["best 8-bit dense / INT8 sparse engine (not run)"] == (0.0, "x", 1.25)


def test_two_reports_of_a_case_are_put_together_by_what_is_compared():
    first = {
        "case": "bert-large", "saved": {}, "calls": [{"commit": "aaa"}],
        "variants": {SPARSE: ran([10.0]), "eager": ran([12.0]), SPARSE_8: {"failure": "no time"}},
        "kernels": {SPARSE: [["old", 1, 1.0]], DENSE: [["dense", 1, 1.0]]},
    }  # fmt: skip
    second = {
        "case": "bert-large", "calls": [{"commit": "bbb"}], "kernels": {SPARSE: [["new", 1, 1.0]]},
        "variants": {SPARSE: {"failure": NOT_ASKED}, SPARSE_8: ran([5.0]), "FP8, eager": {"failure": "no time"}},
    }  # fmt: skip
    both = merged(first, second)
    assert both["variants"] == {
        SPARSE: ran([10.0]), "eager": ran([12.0]), SPARSE_8: ran([5.0]), "FP8, eager": {"failure": "no time"}
    }  # fmt: skip
    assert (both["calls"], both["saved"]) == ([{"commit": "aaa"}, {"commit": "bbb"}], {})
    assert both["kernels"] == {SPARSE: [["new", 1, 1.0]], DENSE: [["dense", 1, 1.0]]}, "of the later one"
    assert merged(second, first)["variants"] == {**first["variants"], **{
        name: second["variants"][name] for name in (SPARSE_8, "FP8, eager")
    }}  # fmt: skip
    assert merged(first, first) == first


def test_what_a_report_leaves_nothing_of_is_not_said_to_be_in_it():
    first = {"case": "vit-h", "calls": ["a"], "ended": "killed", "saved": {}, "variants": {SPARSE: ran([10.0])}}
    second = {"case": "vit-h", "calls": ["b"], "variants": {SPARSE: ran([9.0]), SPARSE_8: ran([5.0])}}
    assert merged(first, second) == {**second, "kernels": {}}
    profiled = {**first, "kernels": {SPARSE: [["k", 1, 1.0]]}}
    assert merged(profiled, second) == {**second, "kernels": profiled["kernels"], "calls": ["b", "a"]}


def test_the_table_has_a_line_for_each_type_that_was_measured():
    table = Rows()
    variants = {
        SPARSE: ran([10.0], [2.0]), DENSE: ran([12.0], [3.0]), "eager": {"failure": "no time"},
        SPARSE_8: ran([5.0]), DENSE_8: ran([7.0]), "FP8, torch.compile default": ran([6.0]),
    }  # fmt: skip
    add_rows(table, {"case": "bert-large", "notes": [], "variants": variants})
    found = [{"case": "net", "metric": metric, "value": values if isinstance(values, float) else values[0]}
             for metric, (values, _, _) in table.rows.items()]  # fmt: skip
    assert markdown(found).splitlines()[2:] == [
        "| net | BF16 | dense engine (not run: eager) | 1.20 | 1.50 | 1.20 | - | 1.00 |",
        "| net | INT8 | FP8, torch.compile default | 1.20 | - | 1.40 | - | 1.00 |",
    ]


def test_a_variant_without_times_says_how_the_process_ended():
    built = {"error": 0.01, "peak_nbytes": 1, "build_s": 1.0, "notes": ""}
    assert "eager: not run: the process took too long" in rows(
        variants={"eager": built}, ended="the process took too long"
    )
    assert "eager: not run: it was built, but not measured" in rows(variants={"eager": built})


def test_explain_is_off_by_percent_of_the_measured_gain():
    found = rows(
        variants={SPARSE: ran([10.0, 10.0]), DENSE: ran([15.0, 15.0])},
        explain={"predicted": {"now": {"expected": 1.2}}, "of the measured time": None, "times": "measured"},
    )
    assert found["explain's expected gain"] == (1.2, "x", None)
    assert found["explain's expected gain / measured gain, off by"][0] == pytest.approx(20.0)
    assert found["explain's expected gain / measured gain, off by"][2] == 10


KERNELS = {
    "sm90_xmma_sparse_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x256x64_kernel_5x_cusparselt": "sparse products",
    "sm90_xmma_gemm_i8i32_i8i32_i32_tn_n_tilesize64x256x128_execute_kernel__5x_cublas": "dense products",
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64_kernel0_0": "attention",
    "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_execute_kernel__5x_cudnn": "convolutions",
    "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized_bf16_256x64>": "convolutions",
    "triton_per_fused_add_native_layer_norm_1": "norms",
    "triton_poi_fused_convolution_permute_product_relu_15": "other passes",
    "triton_poi_fused__scaled_dot_product_cudnn_attention__to_copy_add_mul_permute_2": "other passes",
}


@pytest.mark.parametrize(("kernel", "kind"), KERNELS.items())
def test_what_a_kernel_is_about_is_seen_by_its_name(kernel, kind):
    assert kind_of(kernel) == kind


def test_kernels_are_added_up_by_kinds_and_the_longest_are_printed(capsys):
    ours = [["nvjet_a", 2, 3.0], ["nvjet_b", 1, 1.0], ["Memset", 4, 0.5]]
    found = rows(kernels={SPARSE: ours})
    assert found["sparse engine's kernels alone"] == (4.5, "ms", None)
    assert found["sparse engine's kernels alone: dense products"] == (4.0, "ms", None)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(": sparse engine's kernels, the longest first")
    assert printed[1].split() == ["3.0000", "ms", "2", "x", "dense", "products", "nvjet_a"]


def test_a_saved_engine_is_compared_with_dense_weights():
    found = rows(saved={"nbytes": 3 * 2**20, "dense_nbytes": 2 * 2**20, "load_s": {"compiled": 4.0}})
    assert found["saved engine's file / dense weights in bfloat16"] == (1.5, "x", None)
    assert found["saved engine, loaded and run once, compiled"] == (4.0, "s", None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_case_has_a_tiny_form_that_can_be_prepared(case, tmp_path):
    tiny = case.tiny()
    path = prepare(tiny, tmp_path, int8=False)
    assert path == wait_for(path, limit_s=0)
    assert path.stat().st_size < 20 * 2**20
    assert prepare(tiny, tmp_path, int8=False) == path, "it is there already"


def test_a_model_that_cannot_be_made_is_not_waited_for(tmp_path):
    give_up(tmp_path / "int8.onnx", "no ONNX Runtime")
    with pytest.raises(RuntimeError, match="no ONNX Runtime"):
        wait_for(tmp_path / "int8.onnx", limit_s=60)
    with pytest.raises(TimeoutError, match=r"/pruned.onnx was not ready in 0 s"):
        wait_for(tmp_path / "pruned.onnx", limit_s=0)


def test_what_killed_a_process_is_left_out_in_the_next(monkeypatch, tmp_path):
    from benchmarks import gpu_end_to_end as script

    jobs = []

    def process(job, _timeout_s):
        jobs.append(job)
        working = "" if "eager" in job["skip"] else "eager"
        report = {"case": "vit-h", "variants": {}, "notes": [], "working": working}
        script.Path(job["report"]).write_text(json.dumps(report))
        return "the process was ended by SIGSEGV" if working else ""

    monkeypatch.setattr(script, "_process", process)
    found = script.measure({"case": "vit-h", "report": str(tmp_path / "case.json"), "limit_s": 300.0})
    assert found["working"] == ""
    assert json.loads((tmp_path / "case.json").read_text())["machine"]["python"]
    assert [job["skip"] for job in jobs] == [{}, {"eager": "the process was ended by SIGSEGV"}]


def test_a_process_that_takes_too_long_is_ended_with_what_it_started(monkeypatch, tmp_path):
    from benchmarks import gpu_end_to_end as script

    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(script, "__file__", str(sleeper))
    assert script._process({}, 1.0) == "the process took too long"


def test_reports_of_different_machines_are_not_mixed():
    from benchmarks import gpu_end_to_end as script

    script.check_alike([{"facts": {"gpu": "H100"}}, {"facts": {"gpu": "H100"}}])
    with pytest.raises(SystemExit, match="reports of different machines"):
        script.check_alike([{"facts": {"gpu": "H100"}}, {"facts": {"gpu": "A100"}}])
