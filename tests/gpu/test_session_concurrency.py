"""What a session promises when requests overlap: on asyncio, on the caller's streams, and from many threads."""

import asyncio
import gc
import random
import threading

import numpy as np
import pytest

from tests.gpu.expected import feed, right, same
from trtsparse.errors import ConfigError, EngineError


def test_asyncio_runs_requests_side_by_side(world):
    async def work(session):
        inputs = [feed(seed=seed) for seed in range(8)]
        found = await asyncio.gather(*(session.arun({"x": x}) for x in inputs))
        for x, outputs in zip(inputs, found, strict=True):
            same(outputs["y"], x)
        request = session.submit({"x": inputs[0]})
        same((await request)["y"], inputs[0])

    with world.session(world.engine(cycles=world.slow), contexts=3) as session:
        asyncio.run(work(session))


def test_a_request_times_out_and_goes_on(world):
    with world.session(world.engine(cycles=100 * world.slow)) as session:
        x = feed()
        request = session.submit({"x": x})
        if not world.is_memory or world.memory.order != "eager":
            with pytest.raises(TimeoutError):
                request.result(timeout=0.001)
        assert request.exception() is None
        same(request.result(timeout=10)["y"], x)


def test_the_callers_stream_is_used_and_nothing_is_waited_for(world):
    with world.session(world.engine(cycles=world.slow)) as session:
        token = world.cuda.enter()
        stream = world.cuda.create_stream()
        try:
            inputs = [feed(1 + seed % 3, seed=seed) for seed in range(6)]
            arrays = [session.run({"x": x}, stream=stream)["y"] for x in inputs]
            chained = [session.run({"x": array}, stream=stream)["y"] for array in arrays]
            for x, array, twice in zip(inputs, arrays, chained, strict=True):
                assert array.stream == stream
                same(array.numpy(), x)
                same(twice.numpy(), right(x))
            target = session.host_array((4, 64), np.float32)
            x = feed()
            session.run_into({"x": x}, {"y": target}, stream=stream)
            world.cuda.synchronize(stream)
            same(target, x)
            with pytest.raises(ConfigError, match="an array in ordinary host memory is filled when"):
                session.run_into({"x": x}, {"y": np.zeros_like(x)}, stream=stream)
            with pytest.raises(ConfigError, match="outputs cannot go there"):
                session.run({"x": x}, stream=stream, to="host")
        finally:
            session.close()
            del arrays, chained
            world.cuda.synchronize(stream)
            world.cuda.destroy_stream(stream)
            world.cuda.leave(token)


def test_an_array_still_being_written_on_another_stream_is_waited_for(world):
    with world.session(world.engine(cycles=world.slow)) as session:
        token = world.cuda.enter()
        stream = world.cuda.create_stream()
        try:
            for seed in range(3):
                x = feed(seed=seed)
                pending = session.run({"x": x}, stream=stream)["y"]
                same(session.run({"x": pending})["y"], right(x))
                same(session.submit({"x": pending}).result()["y"], right(x))
        finally:
            session.close()
            del pending
            world.cuda.synchronize(stream)
            world.cuda.destroy_stream(stream)
            world.cuda.leave(token)


def test_a_producer_outside_of_the_session_is_waited_for(world):
    token = world.cuda.enter()
    stream = world.cuda.create_stream()
    try:
        with world.session(world.engine(cycles=20 * world.slow)) as producer, world.session() as session:
            for seed in range(4):
                x = feed(seed=seed)
                pending = producer.run({"x": x}, stream=stream)["y"]
                same(session.run({"x": pending})["y"], right(x))
                pending = producer.run({"x": x}, stream=stream)["y"]
                same(session.submit({"x": pending}).result()["y"], right(x))
                world.cuda.synchronize(stream)
            del pending
    finally:
        world.cuda.destroy_stream(stream)
        world.cuda.leave(token)


def test_an_input_in_device_memory_may_be_dropped_as_soon_as_submit_returns(world):
    with world.session(world.engine(cycles=world.slow), contexts=4) as session:
        inputs = [feed(seed=seed) for seed in range(6)]
        requests = []
        for x in inputs:
            array = session.run({"x": x}, to="device")["y"]
            requests.append(session.submit({"x": array}))
            del array
            session.run({"x": feed(seed=99)}, to="device")  # takes memory that is free
        for x, request in zip(inputs, requests, strict=True):
            same(request.result()["y"], right(x))


def test_an_input_may_be_dropped_while_the_callers_stream_still_reads_it(world):
    token = world.cuda.enter()
    stream = world.cuda.create_stream()
    try:
        with world.session(world.engine(cycles=world.slow), contexts=4) as session:
            inputs = [feed(seed=seed) for seed in range(6)]
            arrays = []
            for x in inputs:
                array = session.run({"x": x}, to="device")["y"]
                arrays.append(session.run({"x": array}, stream=stream)["y"])
                del array
                session.run({"x": feed(seed=99)}, to="device")
            for x, array in zip(inputs, arrays, strict=True):
                same(array.numpy(), right(x))
            del array, arrays
    finally:
        world.cuda.synchronize(stream)
        world.cuda.destroy_stream(stream)
        world.cuda.leave(token)


def test_many_inputs_dropped_while_a_stream_never_runs_dry(world):
    token = world.cuda.enter()
    stream = world.cuda.create_stream()
    try:
        with world.session() as producer, world.session(world.engine(cycles=world.slow), contexts=1) as session:
            inputs = [feed(seed=seed) for seed in range(120)]
            arrays = []
            for x in inputs:
                array = producer.run({"x": x}, to="device")["y"]  # takes memory that was let go
                arrays.append(session.run({"x": array}, stream=stream)["y"])
                del array
            for x, array in zip(inputs, arrays, strict=True):
                same(array.numpy(), right(x))
            del array, arrays
    finally:
        world.cuda.synchronize(stream)
        world.cuda.destroy_stream(stream)
        world.cuda.leave(token)


def test_memory_still_being_written_on_the_callers_stream_is_not_lent_again(world):
    token = world.cuda.enter()
    stream = world.cuda.create_stream()
    try:
        with world.session(world.engine(cycles=world.slow), contexts=4) as session:
            for seed in range(24):
                session.run({"x": feed(seed=seed)}, stream=stream)  # its result is dropped while it is written
                x = feed(seed=100 + seed)
                array = session.run({"x": x}, to="device")["y"]
                world.cuda.synchronize(stream)
                same(array.numpy(), x)
                del array
    finally:
        world.cuda.synchronize(stream)
        world.cuda.destroy_stream(stream)
        world.cuda.leave(token)


def test_one_context_serves_several_streams_of_the_caller_in_turn(world):
    token = world.cuda.enter()
    streams = [world.cuda.create_stream() for _ in range(3)]
    try:
        with world.session(world.engine(cycles=world.slow), contexts=1) as session:
            sources = [session.run({"x": feed(seed=seed)}, to="device")["y"] for seed in range(3)]
            for turn in range(4):
                found = [session.run({"x": x}, stream=s)["y"] for x, s in zip(sources, streams, strict=True)]
                other = session.run({"x": feed(seed=turn)})["y"]
                same(other, feed(seed=turn))
                for seed, array in enumerate(found):
                    same(array.numpy(), right(feed(seed=seed)))
            del found, array, sources
    finally:
        for stream in streams:
            world.cuda.synchronize(stream)
            world.cuda.destroy_stream(stream)
        world.cuda.leave(token)


def stress(session, *, threads, requests, rows, seed=0):  # noqa: C901 - every kind of request in turn
    """Every thread sends requests of random kinds and shapes; returns what went wrong."""
    wrong = []

    def work(number):
        chooser = random.Random(seed * 1000 + number)  # noqa: S311 - shapes, not secrets
        flying = []
        try:
            for i in range(requests):
                n = chooser.randint(1, rows)
                x = np.full((n, 64), np.float32(number * 1000 + i % 1000), np.float32)
                x[-1] += chooser.randint(0, 9)
                kind = chooser.choice(("run", "run", "submit", "device", "into"))
                if kind == "run":
                    found = session.run({"x": x})["y"]
                elif kind == "submit":
                    flying.append((x, session.submit({"x": x})))
                    if len(flying) < chooser.randint(1, 6):
                        continue
                    x, request = flying.pop(0)
                    found = request.result()["y"]
                elif kind == "device":
                    found = session.run({"x": x}, to="device")["y"].numpy()
                else:
                    found = np.zeros_like(x)
                    session.run_into({"x": x}, {"y": found})
                if not np.array_equal(found, right(x)):
                    wrong.append((number, i, kind))
            for x, request in flying:
                if not np.array_equal(request.result()["y"], right(x)):
                    wrong.append((number, "late"))
        except Exception as error:  # noqa: BLE001 - shown by the test
            wrong.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=600)
    assert not any(worker.is_alive() for worker in workers), "a thread hangs"
    return wrong


@pytest.mark.parametrize("requests", [60, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scratch", ["context", "shared"])
def test_eight_threads_get_right_answers_and_memory_does_not_grow(world, scratch, requests):
    is_longest = world.cuda is world.memory and world.memory.order == "shuffled" and scratch == "context"
    if world.is_memory and requests > 1000 and not is_longest:
        pytest.skip("in host memory one world is enough for the long run")
    with world.session(contexts=4, scratch=scratch) as session:
        assert stress(session, threads=8, requests=min(requests, 200), rows=32) == []
        for n in range(1, 33):  # every size that a lane may want
            session.run({"x": feed(n)})
        gc.collect()
        stats = session.memory
        before = {name: stats[name].held_nbytes for name in stats}
        assert stress(session, threads=8, requests=requests, rows=32, seed=1) == []
        gc.collect()
        after = {name: session.memory[name].held_nbytes for name in stats}
        room = {"device": 24 * 10240, "pinned": 8 * 10240}  # another few arrays in flight at once than before
        assert all(after[name] <= before[name] + room[name] for name in stats), (before, after)


def test_closing_during_flight_ends_in_results_or_a_clear_error(world):
    session = world.session(world.engine(cycles=world.slow), contexts=3)
    unexpected, started = [], threading.Barrier(7)

    def work(number):
        started.wait()
        try:
            while True:
                x = feed(1 + number % 3, seed=number)
                if number % 2:
                    same(session.run({"x": x})["y"], x)
                else:
                    same(session.submit({"x": x}).result()["y"], x)
        except EngineError as error:
            if "closed" not in str(error):
                unexpected.append(error)
        except Exception as error:  # noqa: BLE001 - shown by the test
            unexpected.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    started.wait()
    for seed in range(5):
        session.run({"x": feed(seed=seed)})
    session.close()
    for worker in workers:
        worker.join(timeout=30)
    assert unexpected == []
    assert not any(worker.is_alive() for worker in workers)
