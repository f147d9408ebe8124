"""Which device arrays are used where they are, and what happens to the others."""

import contextlib

import numpy as np
import pytest
from onnx import parser

from tests.doubles.cuda import MemoryCuda
from tests.doubles.device_engine import engine_on_memory
from tests.doubles.kernels import KernelEngine, MemoryKernels
from trtsparse.cuda.base import current
from trtsparse.errors import ConfigError, DtypeError, ShapeError
from trtsparse.runtime import dlpack
from trtsparse.runtime.memory import Pool, host_view
from trtsparse.runtime.options import SessionOptions
from trtsparse.runtime.session import Session

SHAPE = (4, 8)


class Given:
    """An array of another library: ``__cuda_array_interface__`` over memory that the test holds."""

    def __init__(self, address, *, shape=SHAPE, dtype=np.float32, strides=None, stream=None, read_only=False):
        self.address, self.shape, self.dtype = address, shape, np.dtype(dtype)
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": self.dtype.str, "data": (address, read_only), "version": 3,
            "strides": strides, "stream": stream,
        }  # fmt: skip

    @property
    def values(self):
        return host_view(self.address, self.shape, self.dtype)


@pytest.fixture
def memory(cuda):
    pool = Pool(cuda, "device")
    block = pool.take(1 << 16)
    yield block.address
    block.release()
    pool.close()


def opened(cuda, **options):
    return Session(KernelEngine(MemoryKernels(cuda), columns=8), cuda=cuda, options=SessionOptions(**options))


def random(seed=0):
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


@pytest.mark.parametrize("graphs", [True, False])
def test_arrays_that_fit_are_used_where_they_are(cuda, memory, graphs):
    x, y = Given(memory), Given(memory + 4096)
    with opened(cuda, graphs=graphs) as session:
        for seed in range(6):
            x.values[:] = random(seed)
            assert session.run_into({"x": x}, {"y": y}) == {"y": y}
            np.testing.assert_array_equal(y.values, 2 * random(seed) + 1)
            request = session.submit({"x": x}, into={"y": y})
            y.values[:] = 0
            request.result()
            np.testing.assert_array_equal(y.values, 2 * random(seed) + 1)
        assert not cuda.copies
        assert (cuda.counts["launch"] > 0) == graphs


@pytest.mark.parametrize("graphs", [True, False])
def test_the_streams_of_producers_are_waited_for_every_time(cuda, memory, graphs):
    stream = cuda.create_stream()
    x, y = Given(memory, stream=stream), Given(memory + 4096, stream=stream)
    with opened(cuda, graphs=graphs) as session:
        for seed in range(6):

            def write(seed=seed):
                x.values[:] = random(seed)

            def spoil():
                y.values[:] = 0

            cuda.submit(stream, write)
            cuda.submit(stream, spoil)
            session.run_into({"x": x}, {"y": y})
            np.testing.assert_array_equal(y.values, 2 * random(seed) + 1)
    cuda.destroy_stream(stream)


def test_an_array_is_looked_at_again_although_its_address_is_known(cuda, memory):
    x, y = Given(memory), Given(memory + 4096)
    with opened(cuda) as session:
        for _ in range(4):
            session.run_into({"x": x}, {"y": y})
        for wrong, error in (
            ({"shape": (4, 9)}, ShapeError), ({"dtype": np.int32}, DtypeError), ({"strides": (4, 16)}, ConfigError),
        ):  # fmt: skip
            with pytest.raises(error):
                session.run_into({"x": x}, {"y": Given(memory + 4096, **wrong)})
            with pytest.raises(error):
                session.run_into({"x": Given(memory, **wrong)}, {"y": y})
        with pytest.raises(ConfigError) as caught:
            session.run_into({"x": x}, {"y": Given(memory + 4096, strides=(4, 16))})
        assert str(caught.value) == "only a contiguous array can be filled\n  where: output 'y'"


def test_an_array_at_an_odd_address_is_copied(cuda, memory):
    x, y = Given(memory + 4), Given(memory + 4096 + 8)
    with opened(cuda) as session:
        for seed in range(4):
            x.values[:] = random(seed)
            session.run_into({"x": x}, {"y": y})
            np.testing.assert_array_equal(y.values, 2 * random(seed) + 1)
        assert cuda.copies == {"across": 8}


def test_an_array_that_does_not_fit_is_refused_where_asked(cuda, memory):
    good, odd = Given(memory), Given(memory + 4)
    with opened(cuda, unfit="refuse") as session:
        with pytest.raises(ConfigError) as caught:
            session.run({"x": odd})
        assert str(caught.value) == (
            "an array cannot be used in place\n"
            "  where: 'x', unfit='refuse'\n"
            f"  got: an array at {memory + 4:#x}\n"
            "  expected: contiguous, on GPU 0, at a multiple of 256 bytes\n"
            "  to fix: allow copies with unfit='copy'"
        )
        with pytest.raises(ConfigError) as caught:
            session.run_into({"x": good}, {"y": odd})
        assert str(caught.value) == (
            f"an array cannot be filled in place\n  where: 'y', unfit='refuse'\n  got: an array at {memory + 4:#x}"
        )
        cuda.device_of = lambda _address: 1
        with pytest.raises(ConfigError) as caught:
            session.run({"x": good})
        assert caught.value.got == "an array on GPU 1"


def test_an_array_that_nobody_can_make_contiguous_is_refused(cuda, memory):
    with opened(cuda) as session, pytest.raises(ConfigError) as caught:
        session.run({"x": Given(memory, strides=(4, 16))})
    assert str(caught.value) == (
        "an array on the GPU is not contiguous\n  where: 'x'\n  got: Given\n  to fix: make it contiguous before"
    )


def test_arrays_kept_for_a_busy_stream_are_let_go_in_the_end(cuda, memory):
    class Counted(Given):
        alive = 0

        def __init__(self, *args):
            super().__init__(*args)
            Counted.alive += 1

        def __del__(self):
            Counted.alive -= 1

    y, stream, most = Given(memory + 32768), cuda.create_stream(), 0
    with opened(cuda, contexts=1, graphs=False) as session:
        for i in range(300):
            x = Counted(memory + 256 * (i % 100))
            session.run_into({"x": x}, {"y": y}, stream=stream)
            most = max(most, Counted.alive)
        del x
        assert 30 < most < 80
        cuda.synchronize(stream)
        session.run_into({"x": Given(memory)}, {"y": y})
        assert Counted.alive == 0
    cuda.destroy_stream(stream)


@pytest.mark.parametrize("graphs", [True, False])
def test_an_array_that_is_read_only_is_not_filled_although_its_address_is_known(cuda, memory, graphs):
    x, y = Given(memory, read_only=True), Given(memory + 4096)
    with opened(cuda, graphs=graphs) as session:
        for _ in range(4):
            session.run_into({"x": x}, {"y": y})
        y.values[:] = 7
        for _ in range(2):
            with pytest.raises(ConfigError) as caught:
                session.run_into({"x": x}, {"y": Given(memory + 4096, read_only=True)})
            assert str(caught.value) == "the array cannot be written to\n  where: output 'y'\n  got: Given"
        assert (y.values == 7).all()


class ByDlpack(Given):
    """An array with DLPack alone, as its protocol asks: the consumer's stream waits for the producer's."""

    def __init__(self, cuda, address, stream):
        super().__init__(address)
        del self.__cuda_array_interface__
        self.cuda, self.stream = cuda, stream

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, *, stream=None):
        event = self.cuda.create_event()
        self.cuda.record(event, self.stream)
        self.cuda.wait(stream, event)
        self.cuda.destroy_event(event)
        return dlpack.make_capsule(self.address, self.shape, self.dtype, device=(2, 0), owner=self)


@contextlib.contextmanager
def shuffled(seed):
    """A device whose streams execute in random order, 8 KiB of its memory, and a stream of the application."""
    cuda = MemoryCuda(order="shuffled", seed=seed)
    with current(cuda):
        pool = Pool(cuda, "device")
        block, app = pool.take(1 << 13), cuda.create_stream()
        yield cuda, block.address, app
        cuda.synchronize_device()
        cuda.destroy_stream(app)
        block.release()
        pool.close()
        cuda.check()


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("on_app", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_the_producer_of_a_dlpack_output_is_waited_for_on_the_stream_that_writes(seed, on_app, graphs):
    with shuffled(seed) as (cuda, address, app):
        producer = cuda.create_stream()
        x, y = Given(address), ByDlpack(cuda, address + 4096, producer)
        x.values[:] = random(seed)
        with opened(cuda, graphs=graphs) as session:
            for _ in range(4):
                cuda.submit(producer, lambda: y.values.fill(-1))
                session.run_into({"x": x}, {"y": y}, stream=app if on_app else None)
                cuda.synchronize_device()
                np.testing.assert_array_equal(y.values, 2 * random(seed) + 1)
        cuda.destroy_stream(producer)


SUM = parser.parse_model(
    '<ir_version: 8, opset_import: ["": 17]> g (float[n, 8] x, float[n, 8] z) => (float[n, 8] y) { y = Add(x, z) }'
)


@pytest.mark.parametrize("refused_on_app", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_what_a_refused_request_left_on_a_stream_does_not_reach_the_next_one(seed, refused_on_app):
    with shuffled(seed) as (cuda, address, app):
        copied, refused = Given(address + 16), Given(address + 4096, strides=(4, 16))
        with Session(engine_on_memory(cuda)(SUM), cuda=cuda, options=SessionOptions(contexts=1)) as session:
            x, z, y = (session.host_array(SHAPE, np.float32) for _ in range(3))
            x[:], z[:] = 1, 2
            with pytest.raises(ConfigError, match="not contiguous"):
                session.run({"x": copied, "z": refused}, stream=app if refused_on_app else None, to="device")
            session.run_into({"x": x, "z": z}, {"y": y}, stream=None if refused_on_app else app)
            cuda.synchronize(app)
            assert (y == 3).all()
            assert session.contexts_replaced == 0


def test_a_context_whose_stream_fails_when_a_request_is_refused_is_replaced(cuda, memory):
    with opened(cuda) as session:
        cuda.fail("record")
        with pytest.raises(ConfigError, match="not contiguous"):
            session.run({"x": Given(memory, strides=(4, 16))})
        assert session.contexts_replaced == 1
        assert session.run({"x": random()})["y"].shape == SHAPE
