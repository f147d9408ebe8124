"""Which builds are asked for, and which are refused before TensorRT is asked."""

import numpy as np
import onnx
import pytest
from onnx import parser

from tests.helpers import matmul, sparse
from tests.trtexec.running import failed, log
from trtsparse.errors import ConfigError
from trtsparse.precision.int8 import to_int8
from trtsparse.trtexec.build import build_plan
from trtsparse.trtexec.log import Printer
from trtsparse.trtexec.parse import parse
from trtsparse.trtexec.run import trtexec


def test_a_build_needs_a_model():
    out = Printer()
    with pytest.raises(ConfigError) as error:  # trtexec itself never builds where a plan is loaded
        build_plan(parse(["--loadEngine=m.plan"]), out, flavour="tensorrt")
    assert str(error.value) == "no model is given\n  expected: --onnx=<file>, or --loadEngine=<file>"
    assert out.lines == []


def test_a_static_model_takes_no_shapes(model, cuda):
    error = failed(trtexec(f"--onnx={model} --shapes=x:2x64", cuda=cuda), ConfigError)
    assert str(error) == (
        "Static model does not take explicit shapes since the shape of inference tensors will be determined by the "
        "model itself\n"
        f"  where: {model}\n"
        "  got: x\n"
        "  to fix: leave the shapes out"
    )


@pytest.fixture
def sliced(tmp_path, rtx):
    """A model with an input whose value says where to cut."""
    assert rtx
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[8, 64] x, int64[1] st) => (float[k, 64] y)
        <int64[1] en = {8}, int64[1] ax = {0}> { y = Slice(x, st, en, ax) }"""
    path = tmp_path / "slice.onnx"
    onnx.save(parser.parse_model(text), path)
    return path


def test_values_of_a_shape_input_that_are_not_given_are_one(sliced):
    result = trtexec(f"--onnx={sliced} --skipInference")
    assert result.passed, log(result)
    assert (
        "[W] Dynamic dimensions required for input: st, but no shapes were provided. Automatically overriding shape "
        "to: 1"
    ) in log(result)


def test_values_of_a_shape_input_may_be_zero(sliced):
    result = trtexec(f"--onnx={sliced} --skipInference --minShapes=st:0 --optShapes=st:0 --maxShapes=st:4")
    assert result.passed, log(result)
    assert result.build.profiles == ({"st": {"min": [0], "opt": [0], "max": [4]}},)
    assert "no shapes were provided" not in log(result)


def test_a_dim_of_zero_is_refused(dynamic, cuda):
    error = failed(trtexec(f"--onnx={dynamic} --minShapes=x:0x8 --optShapes=x:1x8 --maxShapes=x:4x8"), ConfigError)
    assert cuda
    assert str(error) == (
        "a dim is zero\n  where: profile 0, input 'x', min, dim 0\n  got: 0\n  expected: at least 1"
    )


def test_layers_that_cannot_be_kept_are_refused_in_words_of_flags(tmp_path, cuda):
    path = tmp_path / "q.onnx"
    feeds = [{"x": np.ones((2, 64), "f4")}]
    onnx.save(to_int8(matmul(sparse(64, 128, axis=0)), calibration=feeds, max_error=0.9).model.load(), path)
    flags = "--int8 --precisionConstraints=obey --layerPrecisions=matmul:fp32"
    result = trtexec(f"--onnx={path} {flags} --skipInference")
    failed(result, ConfigError)
    assert cuda
    assert "[E] --layerPrecisions=('matmul',) is about conversions, and the model is not converted" in log(result)
    assert "got: --int8 and a model stored in INT8" in log(result)
    assert "to fix: leave --layerPrecisions out" in log(result)
