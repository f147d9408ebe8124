import sys

import pytest

from trtsparse.tune.process import Child, Died


def child(code):
    return Child((sys.executable, "-c", code))


ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


def test_documents_go_in_and_come_out():
    echo = child(ECHO)
    try:
        for number in range(3):
            echo.send({"number": number, "text": "ü\n"})
            assert echo.receive(20) == {"number": number, "text": "ü\n"}
    finally:
        echo.close()


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("import sys; sys.exit(7)", "ended with exit code 7"),
        ("import sys; sys.stderr.write('first\\nlast words\\n'); sys.exit(1)", "ended with exit code 1: last words"),
        ("pass", "ended with exit code 0"),
        ("print('hello')", "not an answer: 'hello'"),
    ],
)
def test_the_end_is_told_in_words(code, how):
    dying = child(code)
    try:
        with pytest.raises(Died) as caught:
            dying.receive(20)
        assert str(caught.value) == how
    finally:
        dying.close()


def test_a_silent_child_is_killed():
    silent = child("import time; time.sleep(1000)")
    with pytest.raises(Died) as caught:
        silent.receive(0.3)
    assert str(caught.value) == "no answer in 0.3 s"
    assert silent._process.returncode is not None


def test_writing_to_a_dead_child_says_so():
    dead = child("import sys; sys.exit(3)")
    dead._process.wait()
    try:
        with pytest.raises(Died, match="exit code 3"):
            dead.send({"long": "x" * 100_000})
    finally:
        dead.close()


def test_a_talkative_child_does_not_block():
    talker = child(
        "import sys\nfor _ in range(20000): sys.stderr.write('x' * 100 + chr(10))\nprint('{}', flush=True)"
    )
    try:
        assert talker.receive(60) == {}
    finally:
        talker.close()


def test_a_child_finds_this_package_wherever_it_is_started(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    finder = child("import json, trtsparse; print(json.dumps({'found': trtsparse.__name__}), flush=True)")
    try:
        assert finder.receive(20) == {"found": "trtsparse"}
    finally:
        finder.close()


def test_closing_twice_is_harmless():
    echo = child(ECHO)
    echo.close()
    echo.close()
