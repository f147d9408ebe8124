"""Kernels that do what a script says, for the process that tunes: ``python tests/tune/scripted.py SCRIPT``.

A script is {kernel: what it does}; kernels are called as candidates are, "dense 0" or "sparse config 1 segment_k".
What it does: a number of milliseconds, or "crash", "hang", "exit", "break" (the device), "refuse", "wrong", "raise",
or one of "crash in race" and "raise in race". The first of each kind is the library's own choice. "unavailable" says
that there is no device, "open" what opening a product does.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from trtsparse.errors import CudaError, DeviceError, MissingDependencyError
from trtsparse.tune.data import Check
from trtsparse.tune.gemm import Refused
from trtsparse.tune.library import Candidate
from trtsparse.tune.worker import serve

FACTS = {
    "gpu": "NVIDIA Scripted 1",
    "compute_capability": "9.0",
    "driver": "1",
    "cublaslt": "13.1.0",
    "cusparselt": "0.8.0",
}


class ScriptedLibrary:
    def __init__(self, script):
        self.script = dict(script)
        self.broken = False
        self.opened, self.closed = [], 0

    def facts(self):
        return dict(FACTS)

    def healthy(self):
        return not self.broken

    def open(self, gemm):
        self.opened.append(gemm)
        self.act(self.script.get("open", 0.0))
        return ScriptedProblem(self)

    def act(self, what):
        if what == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "hang":
            time.sleep(1000)
        elif what == "exit":
            print("a last word", file=sys.stderr, flush=True)
            os._exit(7)
        elif what == "break":
            self.broken = True
            raise CudaError("cudaStreamSynchronize", code=715, name="cudaErrorIllegalInstruction")
        elif what == "refuse":
            raise Refused("cuSPARSELt: invalid value")
        elif what == "raise":
            raise ValueError("not now")
        return what


class ScriptedProblem:
    def __init__(self, library):
        self.library = library
        self.asked = []

    def _what(self, candidate):
        return self.library.script[candidate.key]

    def _keys(self):
        return [key for key in self.library.script if key.startswith(("dense ", "sparse "))]

    def candidates(self):
        return [_candidate(key) for key in self._keys() if not _candidate(key).form]

    def variants(self, candidate):
        return [_candidate(key) for key in self._keys() if key.startswith(candidate.key + " ")]

    def screen(self, candidate):
        self.asked.append(candidate.key)
        what = self.library.act(self._what(candidate))
        return 0.5 if isinstance(what, str) else what

    def check(self, candidate):
        wrong = self._what(candidate) == "wrong"
        return Check(error=0.7 if wrong else 1e-4, bound=1e-3, largest=1e-3)

    def race(self, candidates, rounds, before):
        for one in candidates:
            before(one)
            what = str(self._what(one))
            if what.endswith(" in race"):
                self.library.act(what.removesuffix(" in race"))
        return [[self._what(one) * (1 + 0.01 * at) for at in range(rounds)] for one in candidates]

    def facts(self):
        return {"dense_nbytes": 64}

    def close(self):
        self.library.closed += 1


def _candidate(key):
    kind, name = key.split(" ", 1)
    words = name.split(" ")
    form = " ".join(words[2:]) if kind == "sparse" else ""
    return Candidate(kind, name, form, {"of": key})


def main():
    script = json.loads(sys.argv[1])

    def say(event):
        print(json.dumps(event), flush=True)

    if script.get("unavailable"):
        error = {
            "device": DeviceError("cuBLASLt does not take this GPU", got="CUBLAS_STATUS_ARCH_MISMATCH"),
            "dependency": MissingDependencyError("cuBLASLt is used through nvmath-python", extra="cuda"),
        }[script["unavailable"]]
        facts = {"what": error.what, "where": str(error.where or ""), "got": str(error.got or "")}
        say({"event": "unavailable", "kind": type(error).__name__, "facts": facts})
        return error.exit_code
    return serve(ScriptedLibrary(script), sys.stdin, say)


def command(script):
    """Starts the child."""
    return (sys.executable, __file__, json.dumps(script))


if __name__ == "__main__":
    sys.exit(main())
