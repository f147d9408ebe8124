"""How the runs of whole command lines are given and judged."""

from trtsparse.trtexec.words import in_flags

QUICK = "--duration=0 --iterations=5 --warmUp=0"
ON_CPU = f"--engine=onnxruntime {QUICK}"


def log(result):
    return "\n".join(result.lines)


def failed(result, kind):
    """The error of a run that ended as trtexec ends."""
    assert result.exit_code == 1
    assert not result.passed
    assert result.lines[0].startswith("&&&& RUNNING TensorRT.trtexec ")
    assert result.lines[-1].startswith("&&&& FAILED TensorRT.trtexec ")
    assert isinstance(result.error, kind), result.error
    said = [line[26:] for line in result.lines if line[21:].startswith(" [E] ")]
    assert said == in_flags(str(result.error)).splitlines()
    return result.error
