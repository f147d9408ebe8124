"""Sessions on two GPUs of one machine: each works on its own, and arrays go from one to the other."""

import threading

import numpy as np
import pytest

from tests.doubles.kernels import GpuKernels, KernelEngine
from tests.gpu.conftest import BINDINGS
from trtsparse.cuda.base import current, open_cuda
from trtsparse.errors import ConfigError, DeviceError, MissingDependencyError
from trtsparse.runtime.options import SessionOptions
from trtsparse.runtime.session import Session

pytestmark = pytest.mark.gpu


def feed(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 64)).astype(np.float32)


def right(x):
    return 2 * x + np.float32(1)


@pytest.fixture(params=BINDINGS)
def gpus(request):
    """A provider and an engine on each of two GPUs."""
    try:
        cudas = [open_cuda(request.param, device=device) for device in (0, 1)]
    except (DeviceError, MissingDependencyError) as error:
        pytest.skip(str(error).replace("\n", " "))
    engines = []
    for cuda in cudas:
        with current(cuda):
            engines.append(KernelEngine(GpuKernels(cuda.device)))
    return list(zip(cudas, engines, strict=True))


def sessions(gpus, **options):
    return [Session(engine, cuda=cuda, options=SessionOptions(**options)) for cuda, engine in gpus]


def test_each_gpu_answers_and_the_threads_device_stays_what_it_was(gpus):
    from cuda.bindings import runtime

    first, second = sessions(gpus)
    with first, second:
        runtime.cudaSetDevice(0)
        for seed in range(4):
            x = feed(1 + seed, seed)
            for session in (first, second):
                np.testing.assert_array_equal(session.run({"x": x})["y"], right(x))
                np.testing.assert_array_equal(session.submit({"x": x}).result()["y"], right(x))
        assert int(runtime.cudaGetDevice()[1]) == 0
        arrays = [session.run({"x": x}, to="device")["y"] for session in (first, second)]
        assert [array.device for array in arrays] == [0, 1]
    for array in arrays:
        np.testing.assert_array_equal(array.numpy(), right(x))


def test_an_array_of_the_other_gpu_is_copied_or_refused(gpus):
    first, second = sessions(gpus)
    x = feed(4)
    with first, second:
        for source, target in ((first, second), (second, first)):
            for _ in range(3):
                there = source.run({"x": x}, to="device")["y"]
                np.testing.assert_array_equal(target.run({"x": there})["y"], right(right(x)))
    first, second = sessions(gpus, unfit="refuse")
    with first, second:
        there = first.run({"x": x}, to="device")["y"]
        with pytest.raises(ConfigError) as caught:
            second.run({"x": there})
        assert str(caught.value) == (
            "an array cannot be used in place\n  where: 'x', unfit='refuse'\n  got: an array on GPU 0\n"
            "  expected: contiguous, on GPU 1, at a multiple of 256 bytes\n  to fix: allow copies with unfit='copy'"
        )
        np.testing.assert_array_equal(second.run({"x": x})["y"], right(x))


def test_an_engine_of_the_other_gpu_is_refused(gpus):
    (cuda, _), (_, engine) = gpus
    with pytest.raises((ConfigError, DeviceError)) as caught:
        Session(engine, cuda=cuda)
    assert "GPU 1" in str(caught.value) or "another device" in str(caught.value)


def test_eight_threads_use_both_gpus_in_turn(gpus):
    first, second = sessions(gpus, contexts=3)
    wrong = []

    def work(number):
        try:
            for i in range(100):
                x = feed(1 + (number + i) % 16, seed=i)
                session = (first, second)[(number + i) % 2]
                found = session.run({"x": x})["y"] if i % 3 else session.submit({"x": x}).result()["y"]
                if not np.array_equal(found, right(x)):
                    wrong.append((number, i))
        except Exception as error:  # noqa: BLE001 - shown below
            wrong.append(error)

    with first, second:
        workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(timeout=60)
    assert wrong == []
    assert not any(worker.is_alive() for worker in workers)
