"""The engine: a model in PyTorch, cuSPARSELt and cuBLASLt on one GPU, each shape captured in a CUDA graph."""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import closing
from typing import Any

import onnx

from trtsparse._version import __version__
from trtsparse.engines.cusparselt.attention import Attention
from trtsparse.engines.cusparselt.context import CusparseltContext, torch_type
from trtsparse.engines.cusparselt.graph import read_graph
from trtsparse.engines.cusparselt.operators import Tensor
from trtsparse.engines.cusparselt.patterns import fuse
from trtsparse.engines.cusparselt.product import Used
from trtsparse.engines.cusparselt.products import Products
from trtsparse.engines.cusparselt.program import Program, Shapes, check_operators
from trtsparse.engines.cusparselt.saved import Saved, is_saved, read_saved, write_saved
from trtsparse.engines.device import ProfileShapes, Shape
from trtsparse.errors import ConfigError, DeviceError, EngineError, MissingDependencyError, UnsupportedOptionError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.half import to_half
from trtsparse.precision.specs import TensorSpec, input_specs, output_specs
from trtsparse.tune import dense, sparse
from trtsparse.tune.choose import Choose, Chooser, Remembered

__all__ = ["CusparseltEngine"]

_LARGEST_DIM = 65536
_USUAL_DIM = 16
_OLDEST = (8, 0)  # the first GPUs with Sparse Tensor Cores


class CusparseltEngine:
    """An ONNX model on an NVIDIA GPU without TensorRT; see `trtsparse.engines.device.DeviceEngine`.

    Eligible products run by the kernel that ``choose`` names, everything else by PyTorch. Inputs and outputs keep the
    model's types.

    Args:
        source: A path, bytes, a ModelProto or an OnnxModel, or the path of a saved engine.
        device: The GPU's number.
        precision: "bf16": float32 values are computed in bfloat16. "fp16": the model is converted first by
            `trtsparse.precision.half.to_half`, which leaves in float32 what would overflow. "typed": as the model is.
            By default what the saved engine has, else bf16.
        compiled: Have torch.compile fuse what surrounds the products, for each shape when it is first executed: that
            takes seconds to minutes, and needs Triton and a C compiler. By default what the saved engine has, else
            False.
        use_sparse: Whether sparse kernels may run; without them compliant weights have dense kernels. By default what
            the saved engine has, else True.
        choose: The kernel for each product. By default what a saved engine brings; for others the fastest one,
            measured when a shape is first executed, and kept in the user's cache.

    Raises:
        ModelError: The model has operators that are not executed here; all of them are named.
        ConfigError: There is no such precision, or a saved engine has another one.
        DeviceError: There is no such GPU, or it is older than Ampere.
        MissingDependencyError: PyTorch is not installed, or cannot be imported.
    """

    name = "cusparselt"
    shape_inputs: frozenset[str] = frozenset()
    exclusive_profiles = False
    can_capture = False  # a context captures graphs of its own

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel,
        *,
        device: int = 0,
        precision: str | None = None,
        compiled: bool | None = None,
        use_sparse: bool | None = None,
        choose: Choose | None = None,
    ) -> None:
        _require_torch()  # constants are folded with it
        saved = read_saved(source) if isinstance(source, (str, os.PathLike)) and is_saved(source) else None
        model = OnnxModel.open(source) if saved is None else saved.model
        if saved is not None and precision not in (None, saved.precision):
            raise ConfigError(
                "a saved engine computes in what it was saved in",
                where="precision",
                got=repr(precision),
                expected=repr(saved.precision),
                fix="leave it out, or make an engine of the ONNX model",
            )
        self.precision = precision or ("bf16" if saved is None else saved.precision)
        self.compiled = compiled if compiled is not None else saved is not None and saved.compiled
        self.use_sparse = use_sparse if use_sparse is not None else saved is None or saved.use_sparse
        graph = fuse(read_graph(model))
        check_operators(graph)  # before anything that takes long
        torch = _torch_with_gpu(device)
        if self.precision == "fp16" and saved is None:
            model = to_half(model, precision="fp16").model
            graph = fuse(read_graph(model))
        floating = _floating(torch, self.precision)
        self.device, self._model, self._name = device, model, model.name
        self.inputs: tuple[TensorSpec, ...] = input_specs(model)
        self.outputs: tuple[TensorSpec, ...] = output_specs(model)
        self.profiles: tuple[ProfileShapes, ...] = ({spec.name: _range(spec) for spec in self.inputs},)
        self.lock = threading.Lock()
        place = torch.device("cuda", device)
        self._chooser = Chooser(device=device)
        usable = saved if saved is not None and self._fits(saved) else None
        self.products = Products(
            place,
            floating,
            choose or (self._chooser if usable is None else Remembered(usable.kernels, self._chooser)),
            use_sparse=self.use_sparse,
            compressed=None if usable is None else usable.weights,
            passes=None if usable is None else usable.passes,
        )
        attend = Attention(self.products)
        self.program = Program(graph, device=str(place), floating=floating, linear=self.products, attend=attend)
        self._layouts: dict[Shapes, dict[str, Shape]] = {}
        self._compiled: dict[Shapes, Callable[..., Any]] = {}

    def _fits(self, saved: Saved) -> bool:
        """Whether a saved engine's kernels are for this GPU and these libraries; warns where they are not."""
        fits = saved.made_on == made_on(self.device)
        if not fits:
            warnings.warn(
                f"the kernels in {saved.model.name} were chosen for {dict(saved.made_on)}: they are chosen anew",
                RuntimeWarning,
                stacklevel=3,
            )
        return fits

    @property
    def description(self) -> str:
        """The model, how it is computed, and how many products are sparse."""
        count = sum(used.kernel is not None and used.kernel.kind == "sparse" for used in self.used)
        products = f"{count} of {len(self.used)} products sparse"
        return f"{self._name} in {self.precision} on GPU {self.device}, {products}"

    @property
    def used(self) -> tuple[Used, ...]:
        """The kernel of each product, once a shape was executed."""
        return self.products.used

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, the kernels in use and the compressed weights to one file.

        Only shapes that were executed are in it; products that could not be tuned are tuned when it runs. On another
        GPU, or with other libraries, the file is an ONNX model whose kernels are chosen anew.

        Raises:
            OutputError: It cannot be written.
        """
        made = self.products
        found = Saved(
            self._model,
            self.precision,
            made.chosen,
            made.compressed(),
            made_on(self.device),
            compiled=self.compiled,
            use_sparse=self.use_sparse,
            passes=made.passes,
        )
        write_saved(path, found)

    def layout(self, shapes: Shapes) -> dict[str, Shape]:
        """The outputs' shapes, found out by executing once on zeros, which libraries want before a capture anyway.

        Raises:
            EngineError: A step does not take the shapes.
        """
        torch = _torch()
        with self.lock:
            found = self._layouts.get(shapes)
            if found is None:
                with torch.inference_mode(), torch.cuda.device(self.device), closing(self._chooser):
                    outputs = self.program(self._zeros(shapes))
                    torch.cuda.synchronize()
                found = {spec.name: tuple(value.shape) for spec, value in zip(self.outputs, outputs, strict=True)}
                self._layouts[shapes] = found
        return found

    def runner(self, shapes: Shapes) -> Callable[[list[Tensor], list[Tensor]], None]:
        """What executes these shapes, from inputs to outputs: the program, compiled if that was asked for.

        Raises:
            EngineError: It cannot be compiled.
        """
        if not self.compiled:
            return self.program.run
        torch = _torch()
        found = self._compiled.get(shapes)
        if found is None:
            inputs, outputs = self.buffers(shapes)
            # its method: a module's call has a handler of errors, with which the compiler hides those of a product
            found = torch.compile(self.program.trace(inputs, outputs).forward, fullgraph=True, dynamic=False)
            try:
                self._run_compiled(found, inputs, outputs)
            except EngineError:  # of a product
                raise
            except RuntimeError as error:  # all of the compiler's are
                raise EngineError(
                    "torch.compile does not compile the model",
                    where=self.description,
                    got=str(error).strip().partition("\n")[0],
                    fix="install Triton and a C compiler, or leave compiled=True out",
                ) from error
            self._compiled[shapes] = found
        return functools.partial(self._run_compiled, found)

    def _run_compiled(self, compiled: Callable[..., Any], inputs: list[Tensor], outputs: list[Tensor]) -> None:
        with self.products.opaques.current():
            compiled(*inputs, *outputs)

    def buffers(self, shapes: Shapes) -> tuple[list[Tensor], list[Tensor]]:
        """Memory for inputs of given shapes, which are zeros, and for their outputs."""
        torch, known = _torch(), self._layouts[shapes]
        outputs = [
            torch.empty(known[spec.name], dtype=torch_type(torch, spec.dtype), device=self.program.device)
            for spec in self.outputs
        ]
        return self._zeros(shapes), outputs

    def _zeros(self, shapes: Shapes) -> list[Tensor]:
        torch = _torch()
        return [
            torch.zeros(shape, dtype=torch_type(torch, spec.dtype), device=self.program.device)
            for spec, shape in zip(self.inputs, shapes, strict=True)
        ]

    def scratch_nbytes(self, profile: int) -> int:  # noqa: ARG002
        """PyTorch's allocator has the memory."""
        return 0

    def create_context(self, *, profile: int, stream: int, own_scratch: bool) -> CusparseltContext:  # noqa: ARG002
        """A context; its graphs are made when a shape is first executed.

        Raises:
            UnsupportedOptionError: Scratch memory of the session's own.
        """
        if not own_scratch:
            raise UnsupportedOptionError(
                "PyTorch allocates this engine's memory", where="scratch", expected="scratch='context'"
            )
        return CusparseltContext(self)

    def set_weights_budget(self, nbytes: int) -> None:
        """Weights stay on the GPU.

        Raises:
            UnsupportedOptionError: Always.
        """
        raise UnsupportedOptionError("this engine does not stream weights", where="weights_nbytes", got=nbytes)

    def close(self) -> None:
        """Free plans and weights. Closing twice is harmless."""
        self.products.close()
        self.program.close()
        self._layouts.clear()
        self._compiled.clear()


def made_on(device: int) -> dict[str, str]:
    """What kernels, compressed weights and passes depend on: the GPU's kind, the libraries' versions and our own.

    Another version may rewrite a model to other products.
    """
    torch = _torch()
    return {
        "gpu": torch.cuda.get_device_name(device),
        "capability": str(torch.cuda.get_device_capability(device)),
        "trtsparse": __version__,
        "cusparselt": _version(sparse, device),
        "cublaslt": _version(dense, device),
        "torch": f"{torch.__version__}, cuDNN {torch.backends.cudnn.version()}",
    }


def _floating(torch: Any, precision: str) -> Any:
    """In which type float32 values are computed; None: as the model has them."""
    choices = {"bf16": torch.bfloat16, "fp16": None, "typed": None}
    if precision not in choices:
        raise ConfigError(
            "no such precision of this engine", where="precision", got=repr(precision), expected=", ".join(choices)
        )
    return choices[precision]


def _version(library: Any, device: int) -> str:
    try:
        with _torch().cuda.device(device):
            return str(library.version(device))
    except (MissingDependencyError, DeviceError):
        return "not installed"


def _torch() -> Any:
    import torch

    return torch


def _require_torch() -> None:
    try:
        _torch()
    except ModuleNotFoundError as error:
        raise MissingDependencyError("PyTorch is not installed", extra="torch", where=str(error)) from error
    except (ImportError, OSError) as error:  # such as for a library of CUDA's that it lacks
        raise MissingDependencyError("PyTorch cannot be imported", extra="torch", where=str(error)) from error


def _torch_with_gpu(device: int) -> Any:
    torch = _torch()
    count = torch.cuda.device_count()
    if device not in range(count):
        raise DeviceError(
            "there is no such GPU for PyTorch",
            where=f"device {device}",
            got=f"{count} GPUs, PyTorch {torch.__version__}",
            expected="an NVIDIA GPU, and a PyTorch that was built for CUDA",
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST:
        raise DeviceError(
            "the GPU has no Sparse Tensor Cores",
            where=f"device {device}: {torch.cuda.get_device_name(device)}",
            got=f"compute capability {capability[0]}.{capability[1]}",
            expected="8.0 or newer (Ampere)",
        )
    return torch


def _range(spec: TensorSpec) -> tuple[Shape, Shape, Shape]:
    """Any size for a dim that the model leaves open."""
    dims = spec.shape or ()
    fixed = [dim if isinstance(dim, int) else None for dim in dims]
    low = tuple(1 if dim is None else dim for dim in fixed)
    usual = tuple((1 if place == 0 else _USUAL_DIM) if dim is None else dim for place, dim in enumerate(fixed))
    high = tuple(_LARGEST_DIM if dim is None else dim for dim in fixed)
    return low, usual, high
