import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtsparse.errors import CudaError, EngineError
from trtsparse.runtime.memory import Pool, host_array, pinned_address, size_class


@pytest.fixture
def pool(cuda):
    made = Pool(cuda, "device")
    yield made
    made.close()


@given(st.integers(0, 1 << 40))
def test_a_size_class_wastes_at_most_an_eighth_and_is_aligned(nbytes):
    size = size_class(nbytes)
    assert size >= max(nbytes, 1)
    assert size % 512 == 0
    assert size <= max(nbytes * 1.125 + 512, 512)
    assert size_class(size) == size


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 40))
def test_size_classes_are_in_order_and_few(a, b):
    assert (size_class(min(a, b))) <= size_class(max(a, b))
    octave = 1 << int(math.log2(max(a, 1 << 16)))
    assert len({size_class(octave + i * octave // 64) for i in range(64)}) <= 9


def test_a_block_that_came_back_is_lent_again(pool):
    first = pool.take(1000)
    address = first.address
    first.release()
    first.release()
    second = pool.take(900)
    assert second.address == address
    stats = pool.stats
    assert (stats.allocations, stats.reuses, stats.held_nbytes, stats.used_nbytes) == (1, 1, 1024, 1024)
    second.release()
    assert pool.stats.used_nbytes == 0


def test_a_block_that_nobody_holds_comes_back(pool):
    pool.take(1000)
    assert pool.stats.used_nbytes == 0
    assert pool.stats.held_nbytes == 1024


def test_exact_blocks_waste_nothing(pool):
    block = pool.take(1_000_001, exact=True)
    assert block.nbytes == 1_000_448
    assert pool.take(0, exact=True).nbytes == 512


def test_the_limit_holds_and_idle_blocks_give_way(cuda):
    pool = Pool(cuda, "device", limit_nbytes=4096)
    pool.take(2048).release()
    kept = pool.take(3000)
    assert pool.stats.held_nbytes == 3072
    with pytest.raises(EngineError) as caught:
        pool.take(2000)
    assert str(caught.value) == (
        "the limit of device memory is reached\n"
        "  where: limit_nbytes\n"
        "  got: 3,072 bytes in use and 2,048 more asked for\n"
        "  expected: at most 4,096 bytes\n"
        "  to fix: raise the limit, release results earlier, or use fewer contexts"
    )
    assert pool.stats.peak_nbytes == 3072
    kept.release()
    pool.close()


def test_idle_blocks_are_freed_before_memory_is_said_to_be_out(cuda):
    cuda.free_limit = 4096
    pool = Pool(cuda, "device")
    pool.take(3000).release()
    kept = pool.take(2000)
    with pytest.raises(CudaError) as caught:
        pool.take(4000)
    assert str(caught.value) == "cudaMalloc failed\n  got: cudaErrorMemoryAllocation (2)"
    assert (caught.value.call, caught.value.code, caught.value.name) == ("cudaMalloc", 2, "cudaErrorMemoryAllocation")
    kept.release()
    pool.close()


def test_blocks_that_others_have_seen_are_lent_again_after_the_device_was_synchronised(cuda):
    pool = Pool(cuda, "device")
    addresses = set()
    for _ in range(24):
        block = pool.take(1000)
        block.shared = True
        addresses.add(block.address)
        before = pool.stats.device_synchronizations
        block.release()
        assert pool.stats.device_synchronizations == before
    assert len(addresses) == 8
    assert cuda.counts["synchronize_device"] == pool.stats.device_synchronizations == 2
    pool.close()


def test_at_the_limit_blocks_that_others_have_seen_are_synchronised_at_once(cuda):
    pool = Pool(cuda, "device", limit_nbytes=1024)
    for i in range(5):
        block = pool.take(1000)
        block.shared = True
        block.release()
        assert pool.stats.device_synchronizations == i
    pool.close()


def test_closing_frees_what_is_lent_when_it_comes_back(cuda):
    pool = Pool(cuda, "device")
    block = pool.take(1000)
    pool.take(5000).release()
    pool.close()
    pool.close()
    assert cuda.alive["allocations"] == 1
    block.release()
    assert cuda.alive["allocations"] == 0
    with pytest.raises(EngineError) as caught:
        pool.take(1)
    assert str(caught.value) == "the pool of device memory is closed"


def test_trimming_frees_what_is_idle(pool, cuda):
    kept = pool.take(1000)
    pool.take(5000).release()
    shared = pool.take(9000)
    shared.shared = True
    shared.release()
    pool.trim()
    assert cuda.alive["allocations"] == 1
    assert pool.stats.held_nbytes == kept.nbytes
    kept.release()


def test_a_forgotten_pool_warns_and_frees(cuda):
    pool = Pool(cuda, "pinned")
    pool.take(1000).release()
    with pytest.warns(ResourceWarning, match="a pool that holds 1,024 bytes of pinned memory was not closed"):
        del pool
    assert cuda.alive["allocations"] == 0


def test_threads_never_hold_one_block_together(cuda):
    pool = Pool(cuda, "device")
    wrong, holders = [], {}

    def work(number):
        token = cuda.enter()
        for i in range(300):
            block = pool.take(1 + (i * 37 + number) % 4000)
            if holders.setdefault(block.address, number) != number:
                wrong.append(block.address)
            del holders[block.address]
            block.release()
        cuda.leave(token)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert pool.stats.used_nbytes == 0
    pool.close()


def test_pinned_arrays_are_recognised_where_they_are_contiguous(cuda):
    pool = Pool(cuda, "pinned")
    array = host_array(pool, (4, 6), np.dtype(np.float16))
    array[:] = 3
    assert array.shape == (4, 6)
    assert array.dtype == np.float16
    assert pinned_address(array) == array.ctypes.data
    assert pinned_address(array[1:]) == array.ctypes.data + 12
    assert pinned_address(array[:, ::2]) is None
    assert pinned_address(array.copy()) is None
    assert pinned_address(np.arange(12).reshape(3, 4).T) is None
    part = array[2:]
    del array
    assert pool.stats.used_nbytes == 512
    assert (part == 3).all()
    del part
    assert pool.stats.used_nbytes == 0
    assert host_array(pool, (0, 5), np.dtype(np.int8)).shape == (0, 5)
    pool.close()
