"""What the engine refuses, on machines without a GPU or without PyTorch too."""

import sys
import threading
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

import models
from trtsparse._version import __version__
from trtsparse.engines.cusparselt import engine as module
from trtsparse.engines.cusparselt import product
from trtsparse.engines.cusparselt.context import CusparseltContext
from trtsparse.engines.cusparselt.engine import CusparseltEngine
from trtsparse.engines.cusparselt.graph import Node
from trtsparse.engines.cusparselt.products import Products
from trtsparse.engines.cusparselt.saved import Saved, write_saved
from trtsparse.errors import (
    ConfigError,
    DeviceError,
    EngineError,
    MissingDependencyError,
    UnsupportedOptionError,
)
from trtsparse.files.model import OnnxModel
from trtsparse.tune.gemm import Refused
from trtsparse.tune.result import Kernel

SCALES = np.ones(16, np.float32)


@pytest.fixture
def mlp():
    return models.get("mlp")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def gpu(torch, monkeypatch):
    """PyTorch believes that there is a GPU; nothing can be put there."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    return monkeypatch


def hollow(**fields):
    """An engine that was not opened."""
    engine = CusparseltEngine.__new__(CusparseltEngine)
    for name, value in fields.items():
        setattr(engine, name, value)
    return engine


def refusal(kind, work):
    with pytest.raises(kind) as caught:
        work()
    return str(caught.value)


def test_without_pytorch_the_extra_to_install_is_named(mlp, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert refusal(MissingDependencyError, lambda: CusparseltEngine(mlp)) == (
        "PyTorch is not installed\n  where: import of torch halted; None in sys.modules\n"
        "  to fix: pip install 'trtsparse[torch]'"
    )


def test_a_pytorch_that_is_broken_says_why(mlp, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert refusal(MissingDependencyError, lambda: CusparseltEngine(mlp)) == (
        "PyTorch cannot be imported\n  where: libcudart.so.13: cannot open shared object file\n"
        "  to fix: pip install 'trtsparse[torch]'"
    )


def test_a_gpu_that_is_not_there_is_named(mlp, torch, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert refusal(DeviceError, lambda: CusparseltEngine(mlp, device=3)) == (
        f"there is no such GPU for PyTorch\n  where: device 3\n  got: 0 GPUs, PyTorch {torch.__version__}\n"
        "  expected: an NVIDIA GPU, and a PyTorch that was built for CUDA"
    )


def test_a_gpu_without_sparse_tensor_cores_is_refused(mlp, torch, gpu):
    gpu.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert refusal(DeviceError, lambda: CusparseltEngine(mlp)) == (
        "the GPU has no Sparse Tensor Cores\n  where: device 0: a GPU\n  got: compute capability 7.5\n"
        "  expected: 8.0 or newer (Ampere)"
    )


@pytest.mark.usefixtures("gpu")
def test_an_unknown_precision_is_refused(mlp):
    assert refusal(ConfigError, lambda: CusparseltEngine(mlp, precision="fp8")) == (
        "no such precision of this engine\n  where: precision\n  got: 'fp8'\n  expected: bf16, fp16, typed"
    )


def test_what_only_plans_have_is_refused():
    assert refusal(UnsupportedOptionError, lambda: hollow().set_weights_budget(5)) == (
        "this engine does not stream weights\n  where: weights_nbytes\n  got: 5"
    )
    scratch = refusal(UnsupportedOptionError, lambda: hollow().create_context(profile=0, stream=0, own_scratch=False))
    assert scratch == "PyTorch allocates this engine's memory\n  where: scratch\n  expected: scratch='context'"
    context = CusparseltContext(hollow())
    assert refusal(UnsupportedOptionError, lambda: context.set_scratch(16, 8)) == (
        "PyTorch allocates this engine's memory\n  where: 8 bytes at 0x10"
    )
    known = "no output of this engine has a size that depends on the data\n  where: y"
    assert refusal(EngineError, lambda: context.set_allocator("y", lambda _nbytes: 0)) == known
    assert refusal(EngineError, lambda: context.allocated_shape("y")) == known


def test_kernels_that_were_chosen_elsewhere_are_warned_of(mlp, monkeypatch):
    monkeypatch.setattr(module, "made_on", lambda _device: {"gpu": "here"})
    model = OnnxModel.open(mlp)
    engine = hollow(device=0, precision="bf16")
    assert engine._fits(Saved(model, "bf16", {}, {}, {"gpu": "here"}))
    with pytest.warns(RuntimeWarning) as warned:
        assert not engine._fits(Saved(model, "bf16", {}, {}, {"gpu": "there"}))
    assert str(warned[0].message) == (
        f"the kernels in {model.name} were chosen for {{'gpu': 'there'}}: they are chosen anew"
    )


@pytest.mark.usefixtures("gpu")
def test_kernels_are_for_a_gpu_its_libraries_and_this_version(monkeypatch, torch):
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(module, "_version", lambda library, device: f"{library.__name__.rpartition('.')[2]} {device}")
    assert module.made_on(0) == {
        "gpu": "a GPU", "capability": "(9, 0)", "trtsparse": __version__, "cusparselt": "sparse 0",
        "cublaslt": "dense 0", "torch": f"{torch.__version__}, cuDNN 91900",
    }  # fmt: skip


@pytest.mark.usefixtures("torch")
def test_a_saved_engine_computes_in_what_it_was_saved_in(mlp, tmp_path):
    path = write_saved(tmp_path / "mlp.trtsparse", Saved(OnnxModel.open(mlp), "bf16", {}, {}, {}))
    assert refusal(ConfigError, lambda: CusparseltEngine(path, precision="fp16")) == (
        "a saved engine computes in what it was saved in\n  where: precision\n  got: 'fp16'\n  expected: 'bf16'\n"
        "  to fix: leave it out, or make an engine of the ONNX model"
    )


def test_what_does_not_compile_is_said_in_a_line(torch, monkeypatch):
    def compiled(*_values):
        raise RuntimeError("no compiler\nand a long story")

    class Program:
        floating = None

        def trace(self, inputs, outputs):
            assert inputs == outputs == []
            return SimpleNamespace(forward=None)

    monkeypatch.setattr(torch, "compile", lambda *_args, **_options: compiled)
    engine = hollow(
        compiled=True, precision="bf16", device=0, inputs=(), outputs=(), program=Program(), _compiled={},
        _layouts={(): {}}, _name="m.onnx",
        products=Products(torch.device("cpu"), None, lambda _gemm, _compliant: None),
    )  # fmt: skip
    assert refusal(EngineError, lambda: engine.runner(())) == (
        "torch.compile does not compile the model\n  where: m.onnx in bf16 on GPU 0, 0 of 0 products sparse\n"
        "  got: no compiler\n  to fix: install Triton and a C compiler, or leave compiled=True out"
    )


def test_what_cannot_be_captured_is_said(torch, monkeypatch):
    def run(_inputs, _outputs):
        raise RuntimeError("operation not permitted when stream is capturing")

    stream = SimpleNamespace(wait_stream=lambda _other: None, synchronize=lambda: None)
    for name, value in {
        "device": lambda _device: nullcontext(), "stream": lambda _stream: nullcontext(), "CUDAGraph": object,
        "Stream": lambda **_options: stream, "current_stream": lambda: stream, "graph_pool_handle": object,
        "default_stream": lambda _device: stream,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    engine = hollow(
        compiled=False, precision="bf16", device=0, inputs=(), outputs=(), lock=threading.Lock(), _name="m.onnx",
        program=SimpleNamespace(run=run, floating=None, device="cpu"), _layouts={(): {}},
        products=Products(torch.device("cpu"), None, lambda _gemm, _compliant: None),
    )  # fmt: skip
    assert refusal(EngineError, lambda: CusparseltContext(engine).execute(0)) == (
        "the model cannot be captured in a CUDA graph\n  where: m.onnx in bf16 on GPU 0, 0 of 0 products sparse\n"
        "  got: operation not permitted when stream is capturing"
    )


def test_a_products_own_error_is_not_hidden_by_compiling_or_capturing(torch, monkeypatch):
    def run(*_values):
        raise EngineError("a step failed", where="fc")

    monkeypatch.setattr(torch, "compile", lambda *_args, **_options: run)
    program = SimpleNamespace(floating=None, trace=lambda _inputs, _outputs: SimpleNamespace(forward=None))
    engine = hollow(
        compiled=True, inputs=(), outputs=(), program=program, _compiled={}, _layouts={(): {}},
        products=Products(torch.device("cpu"), None, lambda _gemm, _compliant: None),
    )  # fmt: skip
    assert refusal(EngineError, lambda: engine.runner(())) == "a step failed\n  where: fc"


def test_a_kernel_that_the_library_does_not_have_is_named(torch, monkeypatch):
    def refuse(*_args, **_options):
        raise Refused("cuSPARSELt: invalid value")

    monkeypatch.setattr(product, "Sparse", refuse)
    kernel = Kernel("sparse", "config 99", {"config": 99}, 1, 1, 1, 0, 0)
    owner = Products(torch.device("cpu"), torch.bfloat16, lambda _gemm, _compliant: kernel)
    made = owner(Node("Linear", "fc", ["x", "w"], ["y"], {"act": ""}), np.zeros((16, 32), np.float32), None)
    assert refusal(EngineError, lambda: made(torch.zeros(8, 32, dtype=torch.bfloat16))) == (
        "a chosen kernel does not exist\n  where: fc: 8x16x32 bf16->bf16\n"
        "  got: sparse kernel config 99: cuSPARSELt: invalid value\n  to fix: "
        "delete the cache of tuning, or make the saved engine again, on this machine"
    )
    assert owner.used == ()
    owner.close()


def test_a_closed_engine_holds_no_weights(torch):
    owner = Products(torch.device("cpu"), None, lambda _gemm, _compliant: None)
    node = Node("Linear", "fc", ["x", "w"], ["y"], {"act": ""})
    quantized = Node("QuantizedLinear", "q", ["x", "v"], ["z"], {"act": "", "x_scale": 0.5, "w_scale": SCALES})
    owner(node, np.zeros((16, 32), np.float16), np.zeros(16, np.float16))(torch.zeros(8, 32, dtype=torch.float16))
    owner(quantized, np.zeros((16, 32), np.int8), np.zeros(16, np.float32))(torch.zeros(8, 32))
    held = [weakref.ref(value) for made in owner.made for value in vars(made).values() if torch.is_tensor(value)]
    held += [weakref.ref(value) for value in owner._scalars.values()]
    used = owner.used
    assert len(held) >= 7
    assert [one.node for one in used] == ["fc", "q"]
    owner.close()
    owner.close()
    assert not [value for value in held if value() is not None]
    assert owner.used == used


def test_plans_of_many_numbers_of_rows_are_not_all_kept(torch):
    owner = Products(torch.device("cpu"), None, lambda _gemm, _compliant: None)
    made = owner(Node("Linear", "fc", ["x", "w"], ["y"], {"act": ""}), np.ones((16, 32), np.float16), None)
    for rows in range(1, 200):
        assert made(torch.ones(rows, 32, dtype=torch.float16)).tolist() == [[32.0] * 16] * rows
    assert [one.gemm.m for one in owner.used] == list(range(136, 200))
    owner.close()


def test_weights_are_compressed_for_each_product_that_reads_them(torch):
    """One that is compliant both ways may be read as it is and transposed."""
    owner = Products(torch.device("cpu"), None, lambda _gemm, _compliant: None)
    for output in ("y", "z"):
        made = owner(Node("Linear", output, ["x", "w"], [output], {"act": ""}), np.ones((16, 32), np.float16), None)
        made.compressed = torch.full((3,), ord(output), dtype=torch.uint8)
    assert owner.compressed() == {"y": b"yyy", "z": b"zzz"}
    owner.close()
