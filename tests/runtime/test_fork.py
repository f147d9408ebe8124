"""A session and a fork, for real: in a process of its own, since the one of the tests has threads."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import asyncio, gc, os, sys, time
import numpy as np
from onnx import parser
from trtsparse.errors import EngineError
from trtsparse.runtime.session import Session

text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x) => (float[n, 4] y) { y = Add(x, x) }'
feeds = {"x": np.ones((3, 4), np.float32)}
session = Session(parser.parse_model(text), threads=2)
dropped = [Session(parser.parse_model(text), threads=2)]
for one in (session, *dropped):
    one.run(feeds), one.submit(feeds).result(), asyncio.run(one.arun(feeds))

def child():
    calls = {
        "run": lambda: session.run(feeds),
        "run_into": lambda: session.run_into(feeds, {}),
        "submit": lambda: session.submit(feeds),
        "arun": lambda: asyncio.run(session.arun(feeds)),
        "memory": lambda: session.memory,
    }
    for name, call in calls.items():
        try:
            call()
        except EngineError as error:
            print(name, "refused:", repr(str(error)), flush=True)
    if not (grandchild := os.fork()):
        try:
            session.run(feeds)
        except EngineError as error:
            print("grandchild refused:", repr(str(error)), flush=True)
        os._exit(0)
    os.waitpid(grandchild, 0)
    with Session(parser.parse_model(text), threads=2) as own:
        print(own.submit(feeds).result()["y"].sum(), flush=True)
    session.close()
    session.close()
    dropped.clear()
    gc.collect()
    print("closed", session.closed, flush=True)

if not (pid := os.fork()):
    child()
    os._exit(0)
deadline = time.monotonic() + 30
while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
    if time.monotonic() > deadline:
        os.kill(pid, 9)
        sys.exit("the child hangs")
    time.sleep(0.02)
print("ended", ended[1], session.run(feeds)["y"].sum())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_is_told_to_open_a_session_of_its_own():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *refusals, own, closed, ended = done.stdout.splitlines()
    assert [line.split()[0] for line in refusals] == ["run", "run_into", "submit", "arun", "memory", "grandchild"]
    for line in refusals:
        assert "'the session was opened before this process was forked\\n  where: ModelProto in ONNX" in line
        assert line.endswith("\\n  to fix: open a session in the child'")
    assert (own, closed, ended) == ("24.0", "closed True", "ended 0 24.0")
