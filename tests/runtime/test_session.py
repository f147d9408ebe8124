import threading

import numpy as np
import pytest
from onnx import parser

import models
from models import packaged
from trtsparse.engines.base import TensorSpec
from trtsparse.errors import ConfigError, DtypeError, EngineError, FeedError, ShapeError
from trtsparse.runtime.session import Session

MODEL = parser.parse_model(
    '<ir_version: 8, opset_import: ["": 17]>'
    "g (float[n, 4] x, float[n, 4] z) => (float[n, 4] total, float[n, 4] difference)"
    "{ total = Add(x, z) difference = Sub(x, z) }"
)


def feed(value=1.0):
    return {"x": np.full((2, 4), value, np.float32), "z": np.ones((2, 4), np.float32)}


@pytest.fixture
def session():
    with Session(MODEL, threads=1) as opened:
        yield opened


def test_it_knows_its_inputs_and_outputs(session):
    assert session.inputs[0] == TensorSpec("x", np.dtype("float32"), ("n", 4))
    assert [spec.name for spec in session.outputs] == ["total", "difference"]


def test_it_runs_and_names_the_outputs(session):
    found = session.run(feed(3))
    assert {name: float(array[0, 0]) for name, array in found.items()} == {"total": 4, "difference": 2}


def test_only_the_outputs_asked_for_are_returned(session):
    assert list(session.run(feed(), outputs=["difference"])) == ["difference"]


def test_an_unknown_output_is_refused(session):
    with pytest.raises(ConfigError) as caught:
        session.run(feed(), outputs=["totl"])
    assert str(caught.value) == (
        "the model has no such output\n"
        "  where: outputs\n"
        "  got: 'totl'\n"
        "  expected: 'total', 'difference'\n"
        "  to fix: did you mean 'total'?"
    )


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"y": np.zeros((2, 4), np.float32)}, FeedError),
        ({"x": np.zeros((2, 4))}, DtypeError),
        ({"x": [[1.0] * 4] * 2}, DtypeError),
        ({"x": np.zeros((2, 5), np.float32)}, ShapeError),
        ({"x": np.zeros((3, 4), np.float32)}, ShapeError),
    ],
)
def test_wrong_inputs_are_refused_before_anything_runs(session, change, error):
    with pytest.raises(error):
        session.run({**feed(), **change})


def test_arrays_need_not_be_contiguous(session):
    wide = np.arange(16, dtype=np.float32).reshape(4, 4)
    found = session.run({"x": wide.T[::2], "z": np.broadcast_to(np.float32(1), (2, 4))})
    np.testing.assert_array_equal(found["total"], wide.T[::2] + 1)


def test_results_belong_to_the_caller(session):
    first = session.run(feed(1))["total"]
    session.run(feed(5))
    assert first[0, 0] == 2


def test_closing_twice_is_harmless_and_running_afterwards_is_not():
    session = Session(MODEL)
    assert repr(session).startswith("<Session of ModelProto in ONNX Runtime")
    session.close()
    session.close()
    assert session.closed
    assert repr(session).endswith(", closed>")
    with pytest.raises(EngineError) as caught:
        session.run(feed())
    assert str(caught.value).startswith("the session is closed\n  where: ModelProto in ONNX Runtime")
    assert str(caught.value).endswith("  to fix: open another one")


def test_leaving_the_block_closes():
    with Session(MODEL) as session:
        assert not session.closed
    assert session.closed


class Doubler:
    """An engine that is not ONNX Runtime."""

    name = "doubler"
    description = "doubles"
    inputs = (TensorSpec("x", np.dtype("float32"), (2,)),)
    outputs = (TensorSpec("y", np.dtype("float32"), (2,)),)
    closed = 0

    def run(self, feeds, *, outputs=None):
        assert outputs is None
        return {"y": feeds["x"] * 2}

    def close(self):
        self.closed += 1


def test_any_engine_can_be_given_and_is_closed_once():
    engine = Doubler()
    with Session(engine) as session:
        assert session.run({"x": np.float32([1, 2])})["y"].tolist() == [2, 4]
        session.close()
    assert engine.closed == 1


def test_threads_may_share_a_session(session):
    wrong = []

    def work(value):
        results = [session.run(feed(value))["total"][0, 0] for _ in range(50)]
        wrong.extend(result for result in results if result != value + 1)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_closing_while_others_run_ends_in_results_or_a_clear_error():
    session = Session(MODEL, threads=1)
    unexpected = []

    def work():
        try:
            while True:
                session.run(feed())
        except EngineError as error:
            if "closed" not in str(error):
                unexpected.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    session.close()
    for thread in threads:
        thread.join(timeout=10)
    assert unexpected == []
    assert not any(thread.is_alive() for thread in threads)


def test_magika_tells_python_from_markdown(tmp_path):
    files = {
        "python": "import os\n\n\ndef main() -> None:\n    print(os.environ)\n\n\nif os.name:\n    main()\n",
        "markdown": "# Title\n\nSome *text* with a [link](https://example.org).\n\n- one\n- two\n\n## More\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with Session(models.get("magika")) as session:
        scores = session.run({"bytes": packaged.magika_features([tmp_path / name for name in files])})["target_label"]
    assert [packaged.magika_labels()[i] for i in scores.argmax(1)] == list(files)
