"""Trained networks that come inside installed packages."""

import numpy as np
import onnx
import pytest

from models import packaged
from tests.helpers import differing
from trtsparse.errors import MissingDependencyError
from trtsparse.sparsity.prune import prune
from trtsparse.sparsity.validate import validate

MODELS = {
    "magika": (packaged.magika_model, 2, 3),
    "ppocr-det": (packaged.ppocr_det_model, 61, 83),
    "ppocr-rec": (packaged.ppocr_rec_model, 51, 66),
}


@pytest.fixture(params=MODELS)
def real(request):
    find, eligible, total = MODELS[request.param]
    try:
        return find(), eligible, total
    except MissingDependencyError as error:
        pytest.skip(str(error))


def feeds(session, generator):
    """Random inputs, dynamic dims small."""
    found = {}
    for value in session.get_inputs():
        shape = [dim if isinstance(dim, int) else 1 if i == 0 else 64 for i, dim in enumerate(value.shape)]
        if "int" in value.type:
            found[value.name] = generator.integers(0, 256, shape).astype(np.int32)
        else:
            found[value.name] = generator.random(shape, np.float32)
    return found


def test_a_real_model_is_judged_pruned_and_still_runs(real, tmp_path):
    path, eligible, total = real
    report = validate(path)
    weights = [site for site in report.sites if site.ref is not None and site.op in ("Conv", "Gemm", "MatMul")]
    assert (report.by_sites.eligible, len(weights)) == (eligible, total)
    assert not report.compliant
    assert all(site.reason for site in report.sites if not site.eligible)

    target = tmp_path / "pruned.onnx"
    result = prune(path, output=target)
    assert len(result.tensors) == eligible
    assert validate(target).compliant
    onnx.checker.check_model(str(target), full_check=True)
    changed = differing(path.read_bytes(), target.read_bytes())
    inside = np.zeros(path.stat().st_size, bool)
    for site in report.sites:
        if site.eligible:
            inside[site.ref.offset : site.ref.offset + site.ref.nbytes] = True
    assert len(changed)
    assert inside[changed].all()

    onnxruntime = pytest.importorskip("onnxruntime")
    onnxruntime.set_default_logger_severity(3)
    dense, pruned = (
        onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in (path, target)
    )
    given = feeds(dense, np.random.default_rng(0))
    outputs = [session.run(None, given) for session in (dense, pruned)]
    for before, after in zip(*outputs, strict=True):
        assert before.shape == after.shape
        assert np.isfinite(after).all()
    assert any(not np.array_equal(before, after) for before, after in zip(*outputs, strict=True))


def test_most_of_magikas_parameters_are_eligible():
    by_parameters = validate(packaged.magika_model()).by_parameters
    assert by_parameters.eligible / by_parameters.total == pytest.approx(0.97, abs=0.01)


def test_the_work_of_a_real_model_is_known_when_shapes_are_given():
    path = packaged.ppocr_det_model()
    assert validate(path).by_macs is None
    name = onnx.load(path).graph.input[0].name
    small, large = (validate(path, shapes={name: (1, 3, size, size)}).by_macs for size in (64, 128))
    assert small.total > 0
    assert large.total == pytest.approx(4 * small.total, rel=0.05)
