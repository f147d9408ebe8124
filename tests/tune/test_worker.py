import json

import pytest

from tests.tune.scripted import FACTS, ScriptedLibrary
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.worker import BROKEN, serve

GEMM = Gemm(64, 64, 256)
FORMS = ("segment_k", "data_parallel", "split 2 one_kernel")


def job(**changes):
    fields = {
        "gemm": GEMM.to_dict(), "screened": {}, "skip": [], "refused": [], "give_up": [], "finalists": 2, "rounds": 3,
        "screen_s": 60.0,
    }  # fmt: skip
    return {**fields, **changes}


def served(script, *jobs):
    library, events = ScriptedLibrary(script), []
    code = serve(library, [json.dumps(one) for one in jobs or (job(),)], events.append)
    assert library.closed == len(library.opened) - sum(event["event"] == "failed" for event in events)
    assert json.loads(json.dumps(events)) == events
    return code, events


def keys(events, what):
    return [event["key"] for event in events if event["event"] == what]


def test_everything_is_screened_and_the_fastest_of_each_kind_race():
    script = {"dense 0": 3.0, "dense 1": 2.0, "dense 2": 2.5, "sparse config 1": 1.5, "sparse config 0": 1.0}
    code, events = served(script)
    assert code == 0
    assert events[0] == {"event": "ready", "facts": FACTS}
    assert keys(events, "screened") == list(script)
    assert keys(events, "checked") == ["dense 1", "dense 2", "sparse config 0", "sparse config 1"]
    raced = next(event for event in events if event["event"] == "raced")
    assert list(raced["times"]) == keys(events, "checked")
    assert raced["times"]["sparse config 0"] == [1.0, 1.01, 1.02]
    assert events[-1] == {"event": "done", "facts": {"dense_nbytes": 64}}


def test_a_kernel_is_named_before_it_is_touched():
    _, events = served({"dense 0": 1.0})
    touched = [(event["event"], event.get("stage")) for event in events if event.get("key") == "dense 0"]
    assert touched == [
        ("start", "screen"), ("screened", None), ("start", "check"), ("checked", None), ("start", "race"),
    ]  # fmt: skip


def test_only_the_fastest_sparse_kernels_are_tried_in_other_forms():
    script = {f"sparse config {at}": 1.0 + at for at in range(3)}
    script |= {f"sparse config {at} {form}": 0.5 for at in range(3) for form in FORMS}
    _, events = served(script)
    tried = keys(events, "screened")
    assert tried == [
        *(f"sparse config {at}" for at in range(3)),
        *(f"sparse config {a} {f}" for a in (0, 1) for f in FORMS),
    ]


def test_a_form_that_is_known_to_be_refused_is_not_asked_for():
    script = {"sparse config 0": 1.0, **{f"sparse config 0 {form}": 0.5 for form in FORMS}}
    _, events = served(script, job(refused=["data_parallel", "split 2 one_kernel"]))
    assert keys(events, "screened") == ["sparse config 0", "sparse config 0 segment_k"]


def test_a_refusal_is_told_apart_from_a_failure():
    _, events = served({"sparse config 0": "refuse", "sparse config 1": "raise", "sparse config 2": 1.0})
    assert [event for event in events if event["event"] in ("refused", "skipped")] == [
        {"event": "refused", "key": "sparse config 0", "reason": "cuSPARSELt: invalid value"},
        {"event": "skipped", "key": "sparse config 1", "reason": "not now"},
    ]


def test_a_wrong_kernel_does_not_race():
    _, events = served({"dense 0": "wrong", "dense 1": 9.0})
    assert keys(events, "checked") == ["dense 0", "dense 1"]
    assert [event["passed"] for event in events if event["event"] == "checked"] == [False, True]
    assert list(next(event for event in events if event["event"] == "raced")["times"]) == ["dense 1"]


def test_what_is_known_is_not_measured_again_and_what_is_to_be_skipped_is():
    script = {"dense 0": 9.0, "dense 1": 2.0, "dense 2": 1.0}
    _, events = served(script, job(screened={"dense 0": 0.1}, skip=["dense 2"]))
    assert keys(events, "screened") == ["dense 1"]
    assert keys(events, "checked") == ["dense 0", "dense 1"]


def test_a_kind_that_was_given_up_is_left_alone():
    _, events = served({"dense 0": 1.0, "sparse config 0": 1.0}, job(give_up=["sparse"]))
    assert keys(events, "screened") == ["dense 0"]


def test_without_time_one_kernel_of_each_kind_is_enough():
    script = {"dense 0": 1.0, "dense 1": 1.0, "sparse config 0": 1.0, "sparse config 1": 1.0}
    _, events = served(script, job(screen_s=0.0))
    assert keys(events, "screened") == ["dense 0", "sparse config 0"]
    assert [event for event in events if event["event"] == "skipped"] == [
        {"event": "skipped", "key": key, "reason": "not tried: no time left"}
        for key in ("dense 1", "sparse config 1")
    ]


def test_a_lost_device_ends_the_process_at_once():
    code, events = served({"dense 0": 1.0, "sparse config 0": "break", "sparse config 1": 1.0}, job(), job())
    assert code == BROKEN
    assert events[-1]["event"] == "broken"
    assert events[-1]["key"] == "sparse config 0"
    assert events[-1]["reason"] == "cudaStreamSynchronize failed got: cudaErrorIllegalInstruction (715)"


@pytest.mark.parametrize(("what", "code"), [("raise", 0), ("break", BROKEN)])
def test_a_product_that_cannot_be_opened_is_reported(what, code):
    ended, events = served({"open": what, "dense 0": 1.0}, job(), job())
    assert ended == code
    assert [event["event"] for event in events[1:]] == ["failed"] * (2 if code == 0 else 1)


def test_products_are_served_one_after_another():
    code, events = served({"dense 0": 1.0}, job(), job(gemm=Gemm(8, 8, 8).to_dict()))
    assert code == 0
    assert [event["event"] for event in events].count("done") == 2


def test_no_kernel_at_all_is_an_answer_too():
    code, events = served({})
    assert code == 0
    assert [event["event"] for event in events] == ["ready", "candidates", "done"]
