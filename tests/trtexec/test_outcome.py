"""What cannot be told of an engine after it ran."""

import sys

from tests.trtexec.running import QUICK, failed
from trtsparse.errors import EngineError
from trtsparse.trtexec.run import trtexec


def test_layers_that_were_not_timed_come_with_the_reason(model, cuda, monkeypatch, tmp_path):
    monkeypatch.delattr(cuda.trt, "IProfiler")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    result = trtexec(f"--onnx={model} --exportProfile={tmp_path}/p.json {QUICK}", cuda=cuda)
    assert str(failed(result, EngineError)) == (
        "the layers were not timed\n"
        "  where: tensorrt\n"
        "  got: no power and energy: nvidia-ml-py is not installed; where: import of pynvml halted; None in "
        "sys.modules; to fix: pip install 'trtsparse[cuda]'; no times of layers: this version cannot time layers; "
        "where: profile_layers; got: bytes in TensorRT 10.13.3.9 on GPU 0"
    )
    assert result.files == ()
    assert not (tmp_path / "p.json").exists()
    assert result.measurement.queries
    assert set(cuda.alive.values()) == {0}
