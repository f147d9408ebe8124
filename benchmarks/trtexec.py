"""How soon `trtsparse trtexec` answers `--help` and a wrong command line, against an interpreter that does nothing.

python benchmarks/trtexec.py
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys

from _results import Benchmark, interleaved, ratios

RUNS = 15
_NOTHING = [sys.executable, "-c", "pass"]
_COMMAND = "import sys; from trtsparse.cli.trtexec import main; sys.exit(main(sys.argv[1:]))"
CASES = {
    "--help": ["--help"],
    "a typo": ["--onnx=m.onnx", "--sparsty=enable", "--fp16"],
    "a refused flag": ["--onnx=m.onnx", "--useDLACore=0"],
}


def main() -> None:
    """Start each command and an empty interpreter in turn."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    bench = Benchmark("trtexec")
    for case, words in CASES.items():
        command = [sys.executable, "-c", _COMMAND, *words]
        ours, nothing = interleaved(functools.partial(_run, command), functools.partial(_run, _NOTHING), RUNS)
        bench.add(case, "until it has answered", ours, "s", at_most=0.5)
        bench.add(case, "against an interpreter that does nothing", ratios(ours, nothing), "x")
    bench.finish()


def _run(command: list[str]) -> None:
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


if __name__ == "__main__":
    main()
