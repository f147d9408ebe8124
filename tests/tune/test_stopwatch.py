import pytest

from trtsparse.tune.gemm import Refused
from trtsparse.tune.stopwatch import Stopwatch


@pytest.fixture
def stream(cuda):
    made = cuda.create_stream()
    yield made
    cuda.destroy_stream(made)


@pytest.fixture
def watch(cuda, stream):
    made = Stopwatch(cuda, stream)
    yield made
    made.close()


class Kernel:
    def __init__(self, cuda, stream, ms):
        self.cuda, self.stream, self.ms, self.sets = cuda, stream, ms, []

    def __call__(self, at):
        self.sets.append(at)
        self.cuda.submit(self.stream, lambda: None, self.ms)


@pytest.mark.parametrize("ms", [0.004, 0.1, 1.0, 20.0])
def test_a_kernel_takes_as_long_as_it_takes(cuda, stream, watch, ms):
    assert watch.quick(Kernel(cuda, stream, ms), enough_ms=100.0) == pytest.approx(ms, rel=0.02)


def test_a_kernel_that_is_much_slower_is_timed_once_and_left(cuda, stream, watch):
    kernel = Kernel(cuda, stream, 10.0)
    assert watch.quick(kernel, enough_ms=1.0) == pytest.approx(10.0, rel=0.02)
    assert len(kernel.sets) == 3
    assert cuda.counts["begin_capture"] == 0


def test_each_launch_works_on_the_next_set(cuda, stream, watch):
    kernel = Kernel(cuda, stream, 0.1)
    watch.quick(kernel, enough_ms=100.0)
    captured = kernel.sets[3:]
    assert captured == list(range(len(captured)))
    assert len(captured) == 14  # as many as take a millisecond and a half


def test_a_race_gives_each_kernel_a_time_in_each_round(cuda, stream, watch):
    kernels = [Kernel(cuda, stream, ms) for ms in (0.3, 0.2, 2.0)]
    times = watch.race(kernels, 5)
    assert [len(taken) for taken in times] == [5, 5, 5]
    for kernel, taken in zip(kernels, times, strict=True):
        assert taken == pytest.approx([kernel.ms] * 5, rel=0.02)
    assert cuda.alive["graphs"] == 0


def test_a_kernel_that_fails_in_a_capture_leaves_no_graph(cuda, stream, watch):
    kernel = Kernel(cuda, stream, 0.1)

    def failing(at):
        if cuda.counts["begin_capture"]:
            raise Refused("not in a graph")
        kernel(at)

    with pytest.raises(Refused):
        watch.quick(failing, enough_ms=100.0)
    assert cuda.alive["graphs"] == 0
    assert watch.quick(kernel, enough_ms=100.0) == pytest.approx(0.1, rel=0.02)
