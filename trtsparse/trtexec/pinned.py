"""A TensorRT engine with a single optimization profile: the one that ``--useProfile`` names."""

from __future__ import annotations

from trtsparse.cuda.base import Cuda
from trtsparse.engines.tensorrt import TensorRTContext, TensorRTEngine
from trtsparse.errors import ConfigError

__all__ = ["PinnedEngine"]


class PinnedEngine:
    """Shows one profile of an engine; see `trtsparse.engines.device.DeviceEngine`. The engine itself stays open.

    Args:
        engine: Loaded.
        profile: Its index.
        scratch: Where to allocate the memory for intermediate results, for this profile alone; None lets TensorRT
            allocate it, for the largest of all profiles.

    Raises:
        ConfigError: The engine has no such profile.
    """

    def __init__(self, engine: TensorRTEngine, profile: int, *, scratch: Cuda | None = None) -> None:
        if profile >= len(engine.profiles):
            raise ConfigError(
                "Selected profile index exceeds the number of profiles that the engine holds.",
                where="--useProfile",
                got=profile,
                expected=f"0 to {len(engine.profiles) - 1}",
            )
        self._engine, self._profile, self._scratch = engine, profile, scratch
        self._allocated: list[int] = []
        self.name, self.description, self.device = engine.name, engine.description, engine.device
        self.inputs, self.outputs, self.shape_inputs = engine.inputs, engine.outputs, engine.shape_inputs
        self.profiles = (engine.profiles[profile],)
        self.exclusive_profiles, self.can_capture = engine.exclusive_profiles, engine.can_capture

    def scratch_nbytes(self, profile: int) -> int:  # noqa: ARG002 - there is one
        """Bytes of intermediate results of one execution."""
        return self._engine.scratch_nbytes(self._profile)

    def create_context(self, *, profile: int, stream: int, own_scratch: bool) -> TensorRTContext:  # noqa: ARG002
        """A context for the profile."""
        own = own_scratch and self._scratch is None
        context = self._engine.create_context(profile=self._profile, stream=stream, own_scratch=own)
        if self._scratch is not None and own_scratch:
            nbytes = max(self._engine.scratch_nbytes(self._profile), 1)
            self._allocated.append(self._scratch.allocate(nbytes))
            context.set_scratch(self._allocated[-1], nbytes)
        return context

    def set_weights_budget(self, nbytes: int) -> None:
        """As the engine's."""
        self._engine.set_weights_budget(nbytes)

    def close(self) -> None:
        """Free the memory for intermediate results; contexts that use it must be closed."""
        while self._allocated and self._scratch is not None:
            self._scratch.free(self._allocated.pop())
