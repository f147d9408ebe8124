"""Models that the parser refuses as a whole, with every version by its strict double."""

import sys

import pytest

from tests.doubles import VERSIONS, installed
from trtsparse.builder.build import build
from trtsparse.errors import ModelError


def flavour(version):
    return "TensorRT-RTX" if version.startswith("rtx") else "TensorRT"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_with_a_type_that_tensorrt_lacks_is_refused_in_the_parsers_words(text_model, version):
    model = text_model("g (string[4] x) => (string[4] y) { y = Identity(x) }")
    with installed(version), pytest.raises(ModelError) as error:
        build(model)
    assert str(error.value) == (
        f"{flavour(version)} cannot read the model\n"
        "  where: ModelProto\n"
        "  got: Assertion failed: convertDtype(onnxDtype.elem_type(), &trtDtype) && "
        '"Failed to convert ONNX date type to TensorRT data type."\n'
        "  to fix: check the model with onnx.checker, or export it again"
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("said", "got"), [(("no more", "memory"), "no more; memory"), ((), "no reason given")], ids=["logged", "silent"]
)
def test_a_parser_that_gives_no_errors_is_quoted_from_the_log(monkeypatch, relu, version, said, got):
    with installed(version) as trt:

        class OnnxParser(trt.OnnxParser):
            def __init__(self, network, logger):
                super().__init__(network, logger)
                self.logger = logger

            def parse(self, _model):
                for text in said:
                    self.logger.log(trt.ILogger.Severity.ERROR, text)
                return False

        monkeypatch.setattr(sys.modules[trt.__name__], "OnnxParser", OnnxParser)
        with pytest.raises(ModelError) as error:
            build(relu)
    assert str(error.value) == (
        f"{flavour(version)} cannot read the model\n"
        "  where: ModelProto\n"
        f"  got: {got}\n"
        "  to fix: check the model with onnx.checker, or export it again"
    )
