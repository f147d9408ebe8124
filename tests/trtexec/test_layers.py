"""What engines and models tell about their layers."""

import json

import numpy as np
import pytest

from tests.doubles.cuda import MemoryCuda
from tests.doubles.gpu import engine_on
from tests.helpers import matmul, random, save_external
from trtsparse.engines.cusparselt.product import Used
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
from trtsparse.errors import EngineError
from trtsparse.files.model import OnnxModel
from trtsparse.trtexec.layers import inspect_engine, inspect_onnx, inspect_products, layer_names
from trtsparse.tune.gemm import Gemm


def test_a_model_is_described_in_the_inspectors_shape():
    found = json.loads(inspect_onnx(OnnxModel.open(matmul(random(8, 4)))))
    assert found == {
        "Layers": [
            {
                "Name": "matmul",
                "LayerType": "MatMul",
                "Inputs": [{"Name": "x", "Dimensions": [2, 8], "Format/Datatype": "Row major linear FP32"}],
                "Outputs": [{"Name": "y", "Dimensions": [2, 4], "Format/Datatype": "Row major linear FP32"}],
                "Weights": {"Type": "Float", "Count": 32},
            }
        ],
        "Bindings": ["x", "y"],
    }


def test_layers_are_those_that_onnx_runtime_times():
    pytest.importorskip("magika", reason="the package brings the model")
    from models.packaged import magika_model

    model = OnnxModel.open(magika_model())
    (run,) = OnnxRuntimeEngine(model).profile({"bytes": np.zeros((1, 2048), np.int32)}, runs=1)
    assert layer_names(inspect_onnx(model)) == [name for name, _ in run]


@pytest.mark.parametrize(("epilogue", "inputs"), [("bias_relu", ["fc.x"]), ("bias_add_relu", ["fc.x", "fc.c"])])
def test_what_a_kernel_adds_is_an_input_of_its_product(epilogue, inputs):
    gemm = Gemm(7, 48, 64, epilogue=epilogue)
    (layer,) = json.loads(inspect_products([Used("fc", "w", gemm, None)], ["x", "y"]))["Layers"]
    assert [one["Name"] for one in layer["Inputs"]] == inputs
    assert [one["Dimensions"] for one in layer["Inputs"]] == [[7, 64], [7, 48]][: len(inputs)]
    assert layer["TacticName"] == "PyTorch's own kernel"


def test_weights_outside_the_model_need_not_be_read(tmp_path):
    path = save_external(matmul(random(64, 64)), tmp_path / "m.onnx", w="w.bin")
    (layer,) = json.loads(inspect_onnx(OnnxModel.open(path)))["Layers"]
    assert layer["Weights"] == {"Type": "Float", "Count": 64 * 64}
    assert sorted(found.name for found in tmp_path.iterdir()) == ["m.onnx", "w.bin"]


def test_a_model_that_does_not_load_is_an_error():
    proto = matmul(random(8, 4))
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 9
    with pytest.raises(EngineError, match="ONNX Runtime does not load the model"):
        inspect_onnx(OnnxModel.open(proto))


def test_an_engine_is_inspected_as_json_and_as_text():
    with engine_on(MemoryCuda(), matmul(random(8, 4))) as (engine, trt):
        assert layer_names(inspect_engine(trt, engine.raw)) == ["matmul"]
        assert inspect_engine(trt, engine.raw, line=True).startswith("Layers:\nmatmul")
        engine.close()


def test_an_engine_that_tells_nothing_is_an_error():
    class Silent:
        def create_engine_inspector(self):
            return self

        def get_engine_information(self, _kind):
            return ""

    class Library:
        class LayerInformationFormat:
            ONELINE, JSON = range(2)

    with pytest.raises(EngineError) as error:
        inspect_engine(Library, Silent())
    assert str(error.value) == (
        "the engine tells nothing about its layers\n  to fix: build it with --profilingVerbosity=detailed"
    )
