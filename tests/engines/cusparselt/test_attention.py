"""Which implementation of attention is taken; on a CPU PyTorch has its own choice and "flash"."""

import threading
from functools import partial

import pytest

import models
from trtsparse.engines.cusparselt import attention
from trtsparse.engines.cusparselt.attention import Attention
from trtsparse.engines.cusparselt.graph import read_graph
from trtsparse.engines.cusparselt.patterns import fuse
from trtsparse.engines.cusparselt.program import Program
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import random_feeds

torch = pytest.importorskip("torch")
real = torch.nn.functional.scaled_dot_product_attention


class Times:
    """What keeps times: each implementation takes what a test says."""

    def __init__(self, **taken):
        self.taken, self.passes = taken, {}

    def pass_ms(self, name, work):
        assert name not in self.passes
        work()
        self.passes[name] = self.taken[name.rpartition(" ")[2]]


class Backends:
    """Notes which implementation computes; on a CPU "flash" is another operator, and there is no "cudnn"."""

    def __init__(self, monkeypatch):
        self.seen, self.factors = [], {}
        on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        default, cudnn = (attention._IMPLEMENTATIONS[name] for name in ("default", "cudnn"))
        made = {
            "default": default, "cudnn": cudnn,
            "flash": lambda c: on_cpu(c.queries, c.keys, c.values, attn_mask=c.mask, scale=c.scale)[0],
        }  # fmt: skip
        for name, work in made.items():
            monkeypatch.setitem(attention._IMPLEMENTATIONS, name, partial(self.noted, name, work))

    def noted(self, name, work, call):
        self.seen.append(name)
        return work(call) * self.factors.get(name, 1)


@pytest.fixture
def backends(monkeypatch):
    return Backends(monkeypatch)


def values(dtype=torch.bfloat16, shape=(2, 4, 16, 8)):
    made = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=made).to(dtype) for _ in range(3)]


@pytest.mark.parametrize(("flash", "chosen"), [(0.5, "flash"), (1.5, "default")])
def test_the_fastest_implementation_is_taken(backends, flash, chosen):
    times, q = Times(default=1.0, flash=flash), values()
    attend = Attention(times)
    found = attend(*q, None, scale=0.25)
    assert backends.seen[-1] == chosen
    torch.testing.assert_close(found, real(*q, scale=0.25), rtol=2e-2, atol=2e-2)
    form = " ".join(["2x4x16x8/512x128x8x1"] * 3)
    assert times.passes == {
        f"attention {form} torch.bfloat16 by default": 1.0, f"attention {form} torch.bfloat16 by flash": flash,
    }  # fmt: skip
    backends.seen.clear()
    attend(*q, None, scale=0.25)
    assert backends.seen == [chosen]  # measured once


def test_an_implementation_that_gives_something_else_is_not_taken(backends):
    backends.factors["flash"] = 0.5
    Attention(Times(default=1.0, flash=0.1))(*values(), None, scale=1.0)
    assert backends.seen[-1] == "default"


def test_masks_are_measured_for_themselves(backends):
    times = Times(default=1.0, flash=0.5)
    q, mask = values(torch.float16), torch.zeros(2, 1, 16, 16, dtype=torch.float16)
    mask[:, :, :, 9:] = -60000.0
    found = Attention(times)(*q, mask, scale=0.25)
    torch.testing.assert_close(found, real(*q, mask, scale=0.25), rtol=3e-3, atol=3e-3)
    assert any("2x1x16x16" in name for name in times.passes)
    assert backends.seen[-1] == "flash"


@pytest.mark.parametrize("hidden", [0.0, -torch.inf])
def test_a_choice_does_not_depend_on_the_values_that_came_first(backends, hidden):
    """The first execution is one on zeros, whose mask hides all or nothing."""
    backends.factors["flash"] = torch.nan
    mask = torch.full((2, 1, 16, 16), hidden, dtype=torch.bfloat16)
    Attention(Times(default=1.0, flash=0.5))(*values(), mask, scale=1.0)
    assert backends.seen[-1] == "default"


@pytest.mark.usefixtures("backends")
def test_values_that_lie_otherwise_are_measured_for_themselves():
    times, (q, k, v) = Times(default=1.0, flash=0.5), values()
    for keys in (k, k.transpose(-1, -2).contiguous().transpose(-1, -2)):
        Attention(times)(q, keys, v, None, scale=1.0)
    assert len({name.rpartition(" by ")[0] for name in times.passes}) == 2


@pytest.mark.usefixtures("backends")
def test_nobody_elses_random_numbers_or_switches_change():
    torch.manual_seed(3)
    wanted, seen = torch.rand(4), []

    def look(_call):
        thread = threading.Thread(target=lambda: seen.append(torch.backends.cuda.math_sdp_enabled()))
        thread.start()
        thread.join()
        raise NotImplementedError

    torch.manual_seed(3)
    attention._IMPLEMENTATIONS["cudnn"] = look
    Attention(Times(default=1.0, flash=0.5))(*values(), None, scale=1.0)
    assert torch.equal(torch.rand(4), wanted)
    assert seen == [True]


@pytest.mark.parametrize("made", [values(torch.float32), values(shape=(4, 16, 8))], ids=["float32", "three dims"])
def test_there_is_nothing_to_choose_for_other_values(backends, made):
    Attention(Times())(*made, None, scale=1.0)
    assert backends.seen == ["default"]


@pytest.mark.usefixtures("backends")
def test_a_traced_program_has_what_was_measured_before():
    source = models.get("bert-base", layers=2, hidden=64, heads=4, intermediate=128, vocabulary=99)
    graph = fuse(read_graph(OnnxModel.open(source)))
    feeds = random_feeds(source, shapes={"input_ids": (2, 16)})[0]
    inputs = [torch.from_numpy(feeds[name]) for name in graph.inputs]
    times = Times(default=1.0, flash=0.5)

    def linear(_node, weight, bias):
        weight = torch.tensor(weight).bfloat16()
        bias = None if bias is None else torch.tensor(bias).bfloat16()
        return lambda x: torch.nn.functional.linear(x, weight, bias)

    program = Program(graph, device="cpu", floating=torch.bfloat16, linear=linear, attend=Attention(times))
    with torch.inference_mode():
        right = program(inputs)
        found = [torch.empty_like(value) for value in right]
        traced = program.trace(inputs, found)
        traced(*inputs, *found)
    assert len(times.passes) == 2
    torch.testing.assert_close(found, right)
    assert traced.code.count("torch.ops.aten._scaled_dot_product_flash_attention") == 2
