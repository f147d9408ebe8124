import importlib.util
import sys
import sysconfig
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import models
from models import packaged
from trtsparse.errors import ConfigError, MissingDependencyError, ModelError


@pytest.fixture(scope="module")
def recogniser():
    return onnxruntime.InferenceSession(packaged.ppocr_rec_model())


def files_of_many_kinds():
    root, stdlib = Path(models.__file__).parents[1], Path(sysconfig.get_path("stdlib"))
    found = [*sorted(root.glob("models/*.py")), root / "pyproject.toml", root / "LICENSE", packaged.magika_model()]
    found += sorted(stdlib.glob("*.py"))[:10] + sorted(stdlib.rglob("*.pyc"))[:3] + sorted(stdlib.rglob("*.so"))[:3]
    return found


def test_magikas_features_give_magikas_own_labels(tmp_path):
    magika = pytest.importorskip("magika")
    paths = files_of_many_kinds()
    for name, data in {
        "short": b"x = 1\ny = 2\n",
        "spaces": b" \n" * 3000 + b"<html><body>text</body></html>" + b"\n " * 3000,
        "blocks": b"{" + b" " * 8190 + b"}" * 20,
    }.items():
        (tmp_path / name).write_bytes(data)
        paths.append(tmp_path / name)
    assert len(paths) > 20
    features = packaged.magika_features(paths)
    assert (features.shape, features.dtype) == ((len(paths), 2048), np.int32)
    session = onnxruntime.InferenceSession(packaged.magika_model())
    scores = np.concatenate([session.run(None, {"bytes": row[None]})[0] for row in features])  # as Magika does
    labels = packaged.magika_labels()
    assert scores.shape == (len(paths), len(labels))
    reference = magika.Magika()
    compared = 0
    for path, row in zip(paths, scores, strict=True):
        result = reference.identify_path(path)
        if result.dl.label != "undefined":  # Magika did not ask its model: too little is left after stripping
            assert labels[row.argmax()] == result.dl.label, path
            assert row.max() == pytest.approx(result.score, abs=1e-5)
            compared += 1
    assert compared > 20


def test_magikas_features_are_its_own_even_where_it_does_not_ask_its_model(tmp_path):
    magika = pytest.importorskip("magika")
    from magika.types import Seekable

    for size in (0, 1, 1023, 1024, 1025, 4095, 4096, 4097, 9000):
        path = tmp_path / str(size)
        path.write_bytes((b"\n \x00ab\xff" * size)[: max(0, size - 1)] + b"\n" * min(size, 1))
        with path.open("rb") as file:
            own = magika.Magika._extract_features_from_seekable(Seekable(file), 1024, 0, 1024, 256, 4096, False)  # noqa: FBT003
        np.testing.assert_array_equal(packaged.magika_features([path]), [[*own.beg, *own.end]])


def test_a_packaged_model_stays_where_its_package_has_it(tmp_path):
    for name, package in {"magika": "magika", "ppocr-det": "rapidocr", "ppocr-rec": "rapidocr"}.items():
        folder = Path(importlib.util.find_spec(package).origin).parent
        path = models.get(name, folder=tmp_path)
        assert path.is_relative_to(folder)
        assert path.stat().st_size > 1_000_000
    assert not list(tmp_path.iterdir())


def test_rendered_text_is_read_back_by_the_recogniser(recogniser):
    images = np.concatenate([packaged.ppocr_input("rec", seed=seed) for seed in range(6)])
    assert (images.shape, images.dtype) == ((6, 3, 48, 320), np.float32)
    read = packaged.ppocr_read(recogniser.run(None, {"x": images})[0])
    assert [text.replace(" ", "") for text in read] == [
        packaged.ppocr_text(seed).replace(" ", "") for seed in range(6)
    ]


def test_a_given_text_and_size_are_rendered(recogniser):
    image = packaged.ppocr_input("rec", text="HELLO 42", size=(48, 200))
    assert image.shape == (1, 3, 48, 200)
    assert packaged.ppocr_read(recogniser.run(None, {"x": image})[0]) == ("HELLO 42",)


def test_the_detector_finds_the_rendered_line_and_nothing_else():
    image = packaged.ppocr_input("det", seed=1)
    session = onnxruntime.InferenceSession(packaged.ppocr_det_model())
    (score,) = session.run(None, {"x": image})[0][0]
    ys, xs = np.nonzero(score > 0.5)
    assert 80 < ys.min() < ys.max() < 112
    assert 40 < xs.min() < xs.max() < 280
    assert len(xs) > 1000


def test_an_image_depends_on_its_seed_only():
    for kind in ("det", "rec"):
        image = packaged.ppocr_input(kind, seed=4)
        np.testing.assert_array_equal(image, packaged.ppocr_input(kind, seed=4))
        assert not np.array_equal(image, packaged.ppocr_input(kind, seed=5))
        assert -1 <= image.min() < 0 < image.max() <= 1


def test_repeats_merge_and_blanks_drop():
    alphabet = packaged._ppocr_alphabet()
    a, b = alphabet.index("A"), alphabet.index("B")
    steps = [[0, a, a, 0, a, b, b, 0], [b, 0, 0, 0, 0, 0, 0, len(alphabet) - 1]]
    scores = np.float32(np.asarray(steps)[..., None] == np.arange(len(alphabet)))
    assert packaged.ppocr_read(scores) == ("AAB", "B ")


def test_scores_of_another_model_are_refused():
    classes = len(packaged._ppocr_alphabet())
    with pytest.raises(ModelError) as caught:
        packaged.ppocr_read(np.zeros((1, 2, 3), np.float32))
    assert str(caught.value) == f"not the recogniser's output\n  got: (1, 2, 3)\n  expected: (N, steps, {classes})"


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError) as caught:
        packaged.ppocr_input("cls")
    assert str(caught.value) == "no such kind of PP-OCR model\n  got: 'cls'\n  expected: det, rec"


@pytest.mark.parametrize(
    ("name", "package"), [("magika", "magika"), ("ppocr-det", "rapidocr"), ("ppocr-rec", "rapidocr")]
)
def test_a_missing_package_names_the_extra(monkeypatch, name, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError) as caught:
        models.get(name)
    assert str(caught.value) == (f"the package {package} is not installed\n  to fix: pip install 'trtsparse[models]'")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("name", "package"), [("magika", "magika"), ("ppocr-rec", "rapidocr")])
def test_a_package_without_the_model_is_told_apart_from_a_missing_one(monkeypatch, tmp_path, name, package):
    spec = importlib.util.spec_from_file_location(package, tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    with pytest.raises(MissingDependencyError) as caught:
        models.get(name)
    assert str(caught.value) == (
        f"the installed {package} does not hold the model\n  to fix: pip install 'trtsparse[models]'"
    )


def test_the_newest_of_several_magika_models_is_found(monkeypatch, tmp_path):
    for version in ("v3_3", "v3_10", "v2_9"):
        (tmp_path / "models" / f"standard_{version}").mkdir(parents=True)
        (tmp_path / "models" / f"standard_{version}" / "model.onnx").touch()
    spec = importlib.util.spec_from_file_location("magika", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    assert packaged.magika_model().parent.name == "standard_v3_10"


def test_rendering_without_pillow_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError) as caught:
        packaged.ppocr_input("rec")
    assert str(caught.value) == "rendering text needs Pillow\n  to fix: pip install 'trtsparse[models]'"
