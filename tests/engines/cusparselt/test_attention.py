"""Which implementation of attention is taken; on a CPU PyTorch has its own choice and "flash"."""

import pytest

import models
from trtsparse.engines.cusparselt.attention import Attention
from trtsparse.engines.cusparselt.graph import read_graph
from trtsparse.engines.cusparselt.patterns import fuse
from trtsparse.engines.cusparselt.program import Program
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import random_feeds

torch = pytest.importorskip("torch")
functional = torch.nn.functional
real = functional.scaled_dot_product_attention


class Times:
    """What keeps times: each implementation takes what a test says."""

    def __init__(self, **taken):
        self.taken, self.passes = taken, {}

    def pass_ms(self, name, work):
        assert name not in self.passes
        work()
        self.passes[name] = self.taken[name.rpartition(" ")[2]]


class Backends:
    """Notes which implementations are switched on when attention is computed."""

    def __init__(self):
        self.seen, self.factors = [], {}

    def __call__(self, queries, *arguments, **options):
        on = {
            "flash": torch.backends.cuda.flash_sdp_enabled(),
            "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
            "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
        }
        (which,) = [name for name, is_on in on.items() if is_on] if sum(on.values()) == 1 else ["default"]
        self.seen.append(which)
        if which not in ("default", "flash"):
            raise RuntimeError("No available kernel. Aborting execution.")
        return real(queries, *arguments, **options) * self.factors.get(which, 1)


@pytest.fixture
def backends(monkeypatch):
    made = Backends()
    monkeypatch.setattr(functional, "scaled_dot_product_attention", made)
    return made


def values(dtype=torch.bfloat16, shape=(2, 4, 16, 8)):
    made = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=made).to(dtype) for _ in range(3)]


@pytest.mark.parametrize(("flash", "chosen"), [(0.5, "flash"), (1.5, "default")])
def test_the_fastest_implementation_is_taken(backends, flash, chosen):
    times, q = Times(default=1.0, flash=flash), values()
    attention = Attention(times)
    found = attention(*q, None, scale=0.25)
    assert backends.seen[-1] == chosen
    torch.testing.assert_close(found, real(*q, scale=0.25), rtol=2e-2, atol=2e-2)
    shapes = "2x4x16x8 2x4x16x8 2x4x16x8"
    assert times.passes == {
        f"attention {shapes} torch.bfloat16 by default": 1.0, f"attention {shapes} torch.bfloat16 by flash": flash,
    }  # fmt: skip
    backends.seen.clear()
    attention(*q, None, scale=0.25)
    assert backends.seen == [chosen]  # measured once


def test_an_implementation_that_gives_something_else_is_not_taken(backends):
    backends.factors["flash"] = 0.5
    Attention(Times(default=1.0, flash=0.1))(*values(), None, scale=1.0)
    assert backends.seen[-1] == "default"


def test_masks_are_measured_for_themselves(backends):
    times = Times(default=1.0, flash=0.5)
    attention, q, mask = Attention(times), values(torch.float16), torch.zeros(2, 1, 16, 16, dtype=torch.float16)
    mask[:, :, :, 9:] = -60000.0
    found = attention(*q, mask, scale=0.25)
    torch.testing.assert_close(found, real(*q, mask, scale=0.25), rtol=3e-3, atol=3e-3)
    assert any("2x1x16x16" in name for name in times.passes)
    assert backends.seen[-1] == "flash"


@pytest.mark.parametrize(("factor", "chosen"), [(1, "flash"), (torch.nan, "default")])
def test_a_mask_that_hides_everything_gives_what_pytorch_gives(backends, factor, chosen):
    """Zeros, though the weights are undefined."""
    backends.factors["flash"] = factor
    mask = torch.full((2, 1, 16, 16), -torch.inf, dtype=torch.bfloat16)
    found = Attention(Times(default=1.0, flash=0.5))(*values(), mask, scale=1.0)
    assert backends.seen[-1] == chosen
    assert float(found.abs().max()) == 0


@pytest.mark.parametrize("made", [values(torch.float32), values(shape=(4, 16, 8))], ids=["float32", "three dims"])
def test_there_is_nothing_to_choose_for_other_values(backends, made):
    Attention(Times())(*made, None, scale=1.0)
    assert backends.seen == ["default"]


def test_a_traced_program_has_what_was_measured_before():
    source = models.get("bert-base", layers=2, hidden=64, heads=4, intermediate=128, vocabulary=99)
    graph = fuse(read_graph(OnnxModel.open(source)))
    feeds = random_feeds(source, shapes={"input_ids": (2, 16)})[0]
    inputs = [torch.from_numpy(feeds[name]) for name in graph.inputs]
    times = Times(default=1.0, flash=0.5)

    def linear(_node, weight, bias):
        weight = torch.tensor(weight).bfloat16()
        bias = None if bias is None else torch.tensor(bias).bfloat16()
        return lambda x: functional.linear(x, weight, bias)

    program = Program(graph, device="cpu", floating=torch.bfloat16, linear=linear, attend=Attention(times))
    with torch.inference_mode():
        right = program(inputs)
        found = [torch.empty_like(value) for value in right]
        traced = program.trace(inputs, found)
        traced(*inputs, *found)
    assert len(times.passes) == 2
    torch.testing.assert_close(found, right)
    assert traced.code.count("torch.ops.aten._scaled_dot_product_flash_attention") == 2
