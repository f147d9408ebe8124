"""One suite for the in-memory CUDA and for real GPUs: what a session promises, with kernels in TensorRT's place."""

import gc
import warnings

import numpy as np
import pytest

from tests.gpu.expected import feed, right, same
from trtsparse.errors import ConfigError, DtypeError, EngineError, FeedError, ShapeError, UnsupportedOptionError
from trtsparse.runtime.arrays import DeviceArray


def test_smoke_run(world):
    with world.session(world.engine(cycles=world.slow)) as session:
        for seed in range(5):
            x = feed(seed=seed)
            same(session.run({"x": x})["y"], x)
        assert session.contexts == 1


def test_smoke_submit(world):
    with world.session(world.engine(cycles=world.slow), contexts=3) as session:
        inputs = [feed(1 + seed % 4, seed=seed) for seed in range(12)]
        requests = [session.submit({"x": x}) for x in inputs]
        for x, request in zip(inputs, requests, strict=True):
            same(request.result()["y"], x)
        assert session.contexts <= 3


def test_smoke_device_arrays(world):
    with world.session(world.engine(cycles=world.slow)) as session:
        x = feed()
        once = session.run({"x": x}, to="device")["y"]
        assert isinstance(once, DeviceArray)
        same(session.run({"x": once})["y"], right(x))
        same(once.numpy(), x)


@pytest.mark.parametrize("graphs", [None, False])
@pytest.mark.parametrize("scratch", ["context", "pool", "shared"])
def test_every_scratch_mode_gives_the_right_numbers_with_several_requests_in_flight(world, scratch, graphs):
    with world.session(world.engine(cycles=world.slow), contexts=4, scratch=scratch, graphs=graphs) as session:
        inputs = [feed(1 + seed % 3, seed=seed) for seed in range(40)]
        requests = [session.submit({"x": x}) for x in inputs]
        for x, request in zip(inputs, requests, strict=True):
            same(request.result()["y"], x)


def test_results_of_submitted_requests_outlive_the_session(world):
    session = world.session(world.engine(cycles=world.slow), contexts=3)
    x = feed()
    requests = [session.submit({"x": x + i}) for i in range(3)]
    session.close()
    for i, request in enumerate(requests):
        same(request.result()["y"], x + i)
        assert request.done()


def test_an_input_may_be_changed_as_soon_as_submit_returns(world):
    with world.session(world.engine(cycles=world.slow)) as session:
        x = feed()
        kept = x.copy()
        request = session.submit({"x": x})
        x[:] = np.nan
        same(request.result()["y"], kept)


def test_outputs_are_filled_where_the_caller_wants_them(world):
    with world.session() as session:
        x, y = feed(), np.zeros((4, 64), np.float32)
        outputs = {"y": y}
        assert session.run_into({"x": x}, outputs)["y"] is y
        same(y, x)
        wide = np.zeros((4, 128), np.float32)[:, ::2]
        session.run_into({"x": x}, {"y": wide})
        same(wide, x)
        pinned_in, pinned_out = session.host_array((4, 64), np.float32), session.host_array((4, 64), np.float32)
        for seed in range(4):
            pinned_in[:] = feed(seed=seed)
            request = session.submit({"x": pinned_in}, into={"y": pinned_out})
            assert request.result()["y"] is pinned_out
            same(pinned_out, pinned_in)


def test_outputs_are_filled_in_device_memory_in_place(world):
    with world.session() as session:
        x = feed()
        target = session.run({"x": x}, to="device")["y"]
        before = target.address
        for seed in range(4):
            x = feed(seed=seed)
            session.run_into({"x": x}, {"y": target})
            same(target.numpy(), x)
        assert target.address == before


def test_device_arrays_outlive_the_session_and_own_their_memory(world):
    session = world.session()
    inputs = [feed(seed=seed) for seed in range(3)]
    arrays = [session.run({"x": x}, to="device")["y"] for x in inputs]
    session.close()
    for x, array in zip(inputs, arrays, strict=True):
        same(array.numpy(), x)


def test_graphs_are_used_from_the_third_time_on_and_again_after_other_shapes(world):
    with world.session(world.engine(cycles=0)) as session:
        for n in (4, 4, 4, 4, 2, 4, 9, 4, 200, 4, 4, 4, 2, 2, 2):
            x = feed(n, seed=n)
            same(session.run({"x": x})["y"], x)
    if world.is_memory and world.cuda.graphs:
        assert world.memory.counts["launch"] >= 4


def test_graphs_are_bounded(world):
    with world.session(graph_limit=2, contexts=1) as session:
        for _ in range(3):
            for n in (1, 2, 3, 4, 5):
                for seed in range(3):
                    x = feed(n, seed=seed)
                    same(session.run({"x": x})["y"], x)
        if world.is_memory and world.cuda.graphs:
            assert world.memory.alive["graphs"] <= 2
            assert world.memory.counts["destroy_graph"] > 0


def test_graphs_follow_device_addresses(world):
    with world.session() as session:
        sources = [session.run({"x": feed(seed=seed)}, to="device")["y"] for seed in range(3)]
        for _ in range(4):
            for seed, source in enumerate(sources):
                same(session.run({"x": source})["y"], right(feed(seed=seed)))


def test_graphs_asked_for_where_there_are_none_are_refused(world):
    if world.cuda.graphs:
        with world.session(graphs=True):
            return
    engine = world.engine()
    with pytest.raises(UnsupportedOptionError) as caught:
        world.session(engine, graphs=True)
    assert str(caught.value) == (
        "this CUDA provider has no CUDA graphs\n  where: graphs=True\n  got: pycuda\n  expected: cuda-python"
    )


def test_an_output_whose_size_the_data_decides(world):
    with world.session(world.engine(positive=True, cycles=world.slow), contexts=2) as session:
        inputs = [feed(n, seed=n) for n in (1, 5, 2, 64)] + [np.full((2, 64), -1, np.float32)]
        for x in inputs:
            found = session.run({"x": x})
            same(found["y"], x)
            np.testing.assert_array_equal(found["p"], x[x > 0])
            on_device = session.run({"x": x}, to="device")
            np.testing.assert_array_equal(on_device["p"].numpy(), x[x > 0])
            assert list(session.run({"x": x}, outputs=["y"])) == ["y"]
        requests = [session.submit({"x": x}) for x in inputs]
        for x, request in zip(inputs, requests, strict=True):
            np.testing.assert_array_equal(request.result()["p"], x[x > 0])


def test_a_profile_is_chosen_for_each_shape(world):
    rows = ((1, 1, 4), (5, 32, 64))
    with world.session(world.engine(rows=rows, exclusive=True), contexts=2) as session:
        for n in (1, 32, 4, 64, 5, 2, 40):
            x = feed(n, seed=n)
            same(session.run({"x": x})["y"], x)
        assert session.contexts == 2
        with pytest.raises(ShapeError) as caught:
            session.run({"x": feed(65)})
        assert str(caught.value) == (
            "a size is outside of what the plan was built for\n"
            "  where: input 'x', dim 0\n"
            "  got: 65, in (65, 64)\n"
            "  expected: min 1, max 4 or min 5, max 64\n"
            "  to fix: build the plan with a profile that covers it"
        )


def test_a_context_gives_way_to_one_of_another_profile(world):
    with world.session(world.engine(rows=((1, 1, 4), (5, 32, 64))), contexts=1) as session:
        for n in (1, 32, 4, 64, 5, 2, 40):
            x = feed(n, seed=n)
            same(session.run({"x": x})["y"], x)
        assert session.contexts == 1
        requests = [(n, session.submit({"x": feed(n, seed=n)})) for n in (1, 32, 4, 64, 5)]
        for n, request in requests:
            same(request.result()["y"], feed(n, seed=n))


@pytest.mark.parametrize(
    ("feeds", "error"),
    [
        ({}, FeedError),
        ({"x": feed(), "z": feed()}, FeedError),
        ({"z": feed()}, FeedError),
        ({"x": feed().astype(np.float64)}, DtypeError),
        ({"x": [1.0]}, DtypeError),
        ({"x": None}, FeedError),
        ({"x": feed(columns=65)}, ShapeError),
        ({"x": feed()[0]}, ShapeError),
        ({"x": feed(2000)}, ShapeError),
        ({"x": feed(0)}, ShapeError),
    ],
)
def test_wrong_feeds_are_refused_and_the_session_goes_on(world, feeds, error):
    with world.session(contexts=1) as session:
        for _ in range(3):
            with pytest.raises(error):
                session.run(feeds)
            with pytest.raises(error):
                session.submit(feeds)
        x = feed()
        same(session.run({"x": x})["y"], x)
        assert session.contexts_replaced == 0


def test_arrays_that_cannot_be_filled_are_refused(world):
    with world.session(contexts=1) as session:
        x, read_only = feed(), np.zeros((4, 64), np.float32)
        read_only.flags.writeable = False
        for target, error in (
            (np.zeros((4, 63), np.float32), ShapeError),
            (np.zeros((4, 64), np.float64), DtypeError),
            (read_only, ConfigError),
            ([1.0], DtypeError),
        ):
            with pytest.raises(error):
                session.run_into({"x": x}, {"y": target})
        with pytest.raises(ConfigError):
            session.run_into({"x": x}, {"z": np.zeros((4, 64), np.float32)})
        same(session.run({"x": x})["y"], x)
        assert session.contexts_replaced == 0


def test_a_failed_execution_costs_only_its_own_context(world):
    engine = world.engine(cycles=world.slow)
    with world.session(engine, contexts=2, graphs=False) as session:
        x = feed()
        good = session.submit({"x": x})
        engine.fail_next = 1
        with pytest.raises(EngineError) as caught:
            session.run({"x": x})
        assert str(caught.value) == f"the kernels refuse\n  where: {engine.description}"
        same(good.result()["y"], x)
        for seed in range(4):
            x = feed(seed=seed)
            same(session.run({"x": x})["y"], x)
        assert session.contexts_replaced == 1


def test_a_capture_that_fails_is_warned_about_once_and_the_session_goes_on(world):
    if not world.cuda.graphs:
        pytest.skip("no graphs here")
    engine = world.engine()
    with world.session(engine, contexts=1) as session:
        x = feed()
        same(session.run({"x": x})["y"], x)
        engine.fail_next = 0
        original, calls = engine.should_fail, []

        def fail_in_capture():
            calls.append(1)
            return len(calls) == 2  # the first is the execution, the second its capture

        engine.should_fail = fail_in_capture
        with pytest.warns(RuntimeWarning, match="CUDA graphs cannot be captured here"):
            same(session.run({"x": x})["y"], x)
        engine.should_fail = original
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for seed in range(4):
                x = feed(seed=seed)
                same(session.run({"x": x})["y"], x)


def test_sessions_share_an_engine_and_the_last_one_closes_it(world):
    engine = world.engine()
    first = world.session(engine)
    second = world.session(first.engine)
    x = feed()
    same(first.run({"x": x})["y"], x)
    same(second.run({"x": x})["y"], x)
    first.close()
    assert engine.closed == 0
    same(second.run({"x": x})["y"], x)
    second.close()
    second.close()
    assert engine.closed == 1


def test_what_is_held_stays_the_same_after_warm_up(world):
    with world.session(contexts=2) as session:

        def round_trip():
            for n in (1, 3, 7, 100, 2, 64):
                x = feed(n, seed=n)
                same(session.run({"x": x})["y"], x)
                array = session.run({"x": x}, to="device")["y"]
                same(array.numpy(), x)

        for _ in range(3):
            round_trip()
        held = {name: stats.held_nbytes for name, stats in session.memory.items()}
        allocations = {name: stats.allocations for name, stats in session.memory.items()}
        for _ in range(5):
            round_trip()
        assert {name: stats.held_nbytes for name, stats in session.memory.items()} == held
        assert {name: stats.allocations for name, stats in session.memory.items()} == allocations


def test_the_limit_of_device_memory_is_kept(world):
    with world.session(world.engine(scratch=False), device_limit_nbytes=4096, contexts=1) as session:
        with pytest.raises(EngineError) as caught:
            session.run({"x": feed(64)})
        assert str(caught.value).startswith("the limit of device memory is reached\n  where: limit_nbytes")
        same(session.run({"x": feed(2)})["y"], feed(2))
        assert session.memory["device"].held_nbytes <= 4096


def test_a_session_that_was_forgotten_warns_and_frees(world):
    session = world.session()
    session.run({"x": feed()})
    with pytest.warns(ResourceWarning, match="was not closed"):
        session.__class__.__del__(session)
    assert session.closed


def test_a_session_that_was_never_finished_leaves_nothing(world):
    class Unwilling(type(world.engine())):
        def scratch_nbytes(self, profile):
            raise EngineError("no size", where=str(profile))

    engine = Unwilling(world.kernels)
    with pytest.raises(EngineError, match="no size"):
        world.session(engine, scratch="shared")
    gc.collect()
