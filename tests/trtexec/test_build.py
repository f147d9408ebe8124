"""Builds that are refused before TensorRT is asked."""

import pytest

from tests.trtexec.running import failed
from trtsparse.errors import ConfigError
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
