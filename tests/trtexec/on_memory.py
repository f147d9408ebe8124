"""Command lines with --engine=cusparselt on the in-memory CUDA."""

import re

from tests.doubles.cuda import MemoryCuda
from tests.doubles.device_engine import engine_on_memory, kernel
from trtsparse.trtexec import cusparselt
from trtsparse.trtexec.run import trtexec

HERE = "--engine=cusparselt"


class Machine:
    """The in-memory CUDA with engines on it, and a tuner that finds sparse kernels faster where they may be used.

    Attributes:
        questions: What the tuner was asked: (product, compliant).
        caches: The files in which tuners keep their results.
    """

    def __init__(self, monkeypatch):
        self.cuda = MemoryCuda(order="late")
        self.engines = engine_on_memory(self.cuda)
        self.questions, self.caches = [], []
        monkeypatch.setattr(cusparselt, "CusparseltEngine", self.engines)
        monkeypatch.setattr(cusparselt, "Chooser", self._chooser)

    def _chooser(self, *, device, cache):
        assert device == self.cuda.device
        self.caches.append(cache.path)

        def choose(gemm, compliant):
            self.questions.append((gemm, compliant))
            return kernel("sparse" if compliant else "dense")

        return choose

    def run(self, words):
        """Run, and check that nothing is left behind."""
        result = trtexec(words, cuda=self.cuda)
        assert set(self.cuda.alive.values()) == {0}
        assert all(engine.closed for engine in self.engines.made)
        self.cuda.check()
        return result

    @property
    def engine(self):
        """The one that was made last."""
        return self.engines.made[-1]


def texts(result, levels="IW"):
    """The lines of some levels, without their times."""
    return [line[22:] for line in result.lines if re.match(rf"\[.{{19}}\] \[[{levels}]\]", line)]


def warnings_of(result):
    """The warnings, without advice about the times, which are the host's here."""
    return [line for line in texts(result, "W") if not line.startswith(("[W] * ", "[W]   "))]
