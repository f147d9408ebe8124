"""Command lines with --engine=cusparselt on the in-memory CUDA."""

import re

from tests.doubles.cuda import MemoryCuda
from tests.doubles.device_engine import engine_on_memory, kernel
from trtsparse.trtexec import cusparselt
from trtsparse.trtexec.run import trtexec

HERE = "--engine=cusparselt"


class Tuner:
    """Finds sparse kernels faster where they may be used; notes what it is asked.

    Attributes:
        is_running: It was asked something, and was not closed since.
    """

    def __init__(self, questions):
        self._questions, self.is_running = questions, False

    def __call__(self, gemm, compliant):
        self.is_running = True
        self._questions.append((gemm, compliant))
        return kernel("sparse" if compliant else "dense")

    def close(self):
        self.is_running = False


class Machine:
    """The in-memory CUDA with engines on it, and tuners.

    Attributes:
        questions: What the tuner was asked: (product, compliant).
        caches: The files in which tuners keep their results.
        tuners: They.
    """

    def __init__(self, monkeypatch):
        self.cuda = MemoryCuda(order="late")
        self.engines = engine_on_memory(self.cuda)
        self.questions, self.caches, self.tuners = [], [], []
        monkeypatch.setattr(cusparselt, "CusparseltEngine", self.engines)
        monkeypatch.setattr(cusparselt, "Chooser", self._chooser)

    def _chooser(self, *, device, cache):
        assert device == self.cuda.device
        self.caches.append(cache.path)
        self.tuners.append(Tuner(self.questions))
        return self.tuners[-1]

    def run(self, words):
        """Run, and check that nothing is left behind."""
        result = trtexec(words, cuda=self.cuda)
        assert not any(tuner.is_running for tuner in self.tuners)
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
