import os
import signal
import sys
import threading

import pytest

from tests.doubles import installed
from trtsparse.builder import progress
from trtsparse.builder.build import build
from trtsparse.builder.config import BuildConfig, Profile


def interrupt_at_first_step(monkeypatch):
    """Press Ctrl-C when the builder has taken its first step."""
    taken = []
    step = progress._Bar.step

    def pressed(self, *args):
        if not taken:
            os.kill(os.getpid(), signal.SIGINT)
        taken.append(args)
        step(self, *args)

    monkeypatch.setattr(progress._Bar, "step", pressed)
    return taken


@pytest.mark.usefixtures("rtx")
def test_ctrl_c_stops_the_real_builder(monkeypatch, magika):
    config = BuildConfig(profiles=(Profile.parse("bytes:1x2048:8x2048:32x2048"),), flavour="tensorrt_rtx")
    before = signal.getsignal(signal.SIGINT)
    build(magika, config)
    taken = interrupt_at_first_step(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        build(magika, config)
    assert 1 <= len(taken) < 20
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("version", ["10.0.1", "10.16.1", "11.4.0", "rtx-1.7.1"])
def test_ctrl_c_stops_every_version_and_leaves_nothing(version, monkeypatch, relu, tmp_path):
    interrupt_at_first_step(monkeypatch)
    with installed(version), pytest.raises(KeyboardInterrupt):
        build(relu, BuildConfig(timing_cache=tmp_path / "t" if not version.startswith("rtx") else None))
    assert list(tmp_path.iterdir()) == []


def test_builds_in_other_threads_leave_signals_alone(relu):
    found = []
    with installed("10.13.3"):
        thread = threading.Thread(target=lambda: found.append(build(relu).header.flavour))
        thread.start()
        thread.join()
    assert found == ["tensorrt"]


def test_a_version_without_monitors_builds_without_one(relu):
    with installed("8.6.1") as trt:
        build(relu)
        assert not any("progress_monitor" in call.method for call in trt.calls)


class Terminal:
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_a_long_build_shows_its_phases_on_a_terminal_only(monkeypatch):
    monkeypatch.setattr(progress, "_QUIET_SECONDS", -1.0)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = progress._Bar()
    bar.start("Building", None, 2)
    bar.start("Timing", "Building", 3)
    bar.step("Timing", 0)
    bar.finish("Timing")
    bar.step("Building", 0)
    bar.close()
    assert "Building" in terminal.text
    assert "  Timing" in terminal.text


def test_nothing_is_shown_when_piped(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_QUIET_SECONDS", -1.0)
    bar = progress._Bar()
    bar.start("Building", None, 2)
    bar.step("Building", 0)
    bar.close()
    assert capsys.readouterr() == ("", "")
