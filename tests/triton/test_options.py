"""Options are checked when they are made, and each wrong one is named."""

import pytest

from trtsparse.errors import ConfigError
from trtsparse.triton.options import InstanceGroup, TritonOptions, VersionPolicy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", InstanceGroup(2)),
        ("1:0,3", InstanceGroup(1, (0, 3), "gpu")),
        ("4:cpu", InstanceGroup(4, kind="cpu")),
        (" 1:gpu ", InstanceGroup(1, kind="gpu")),
        ("3:auto", InstanceGroup(3, kind="auto")),
    ],
)
def test_instances_are_read_from_text(text, expected):
    assert InstanceGroup.parse(text) == expected


@pytest.mark.parametrize("text", ["latest:1", "latest:3", "all", "specific:2", "specific:1,3"])
def test_a_version_policy_is_read_and_written(text):
    assert str(VersionPolicy.parse(text)) == text


def test_text_and_lists_are_taken_where_they_are_unambiguous():
    options = TritonOptions(version_policy="latest", instances=[InstanceGroup(2)], preferred_batch_sizes=[8, 4, 8])
    assert options.version_policy == VersionPolicy(latest=1)
    assert options.instances == (InstanceGroup(2),)
    assert options.preferred_batch_sizes == (4, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: InstanceGroup.parse("two"),
            "cannot read instances\n  where: instances\n  got: 'two'\n  expected: 2, 2:0,1 or 2:cpu",
        ),
        (
            lambda: InstanceGroup(0),
            "a number is out of range\n  where: instances\n  got: 0\n  expected: 1 to 2147483647",
        ),
        (
            lambda: InstanceGroup(1, (-1,)),
            "a number is out of range\n  where: gpus\n  got: -1\n  expected: 0 to 2147483647",
        ),
        (lambda: InstanceGroup(1, (2, 2)), "a GPU is listed twice\n  where: gpus\n  got: 2, 2"),
        (
            lambda: InstanceGroup(1, (0,), "cpu"),
            (
                "instances of kind 'cpu' have no GPUs\n  where: gpus\n  got: 0\n"
                "  to fix: leave the GPUs out, or use kind 'gpu'"
            ),
        ),
        (
            lambda: TritonOptions(instances=["2"]),
            (
                "a value is of another type\n  where: instances\n  got: '2', of type str\n"
                "  expected: InstanceGroup\n  to fix: InstanceGroup.parse('2')"
            ),
        ),
        (
            lambda: TritonOptions(instances=InstanceGroup(2)),
            (
                "a value is of another type\n  where: instances\n"
                "  got: InstanceGroup(count=2, gpus=(), kind=None), of type InstanceGroup\n  expected: Iterable"
            ),
        ),
        (
            lambda: TritonOptions(version_policy=2),
            ("a value is of another type\n  where: version_policy\n  got: 2, of type int\n  expected: VersionPolicy"),
        ),
        (
            lambda: TritonOptions(parameters=["threads=1"]),
            (
                "a value is of another type\n  where: parameters\n  got: ['threads=1'], of type list\n"
                "  expected: Mapping"
            ),
        ),
        (
            lambda: TritonOptions(dynamic_batching=False, preferred_batch_sizes=(4,)),
            (
                "requests that are executed alone do not wait for others\n  where: preferred_batch_sizes\n"
                "  got: (4,), and dynamic_batching False\n  to fix: leave one of them out"
            ),
        ),
        (
            lambda: TritonOptions(dynamic_batching=False, queue_delay_us=100),
            (
                "requests that are executed alone do not wait for others\n  where: queue_delay_us\n"
                "  got: 100, and dynamic_batching False\n  to fix: leave one of them out"
            ),
        ),
        (
            lambda: InstanceGroup(1, kind="tpu"),
            "kind has no such value\n  where: kind\n  got: 'tpu'\n  expected: None, 'gpu', 'cpu', 'auto'",
        ),
        (
            lambda: VersionPolicy.parse("newest"),
            (
                "cannot read a version policy\n  where: version_policy\n  got: 'newest'\n"
                "  expected: latest, latest:2, all or specific:1,3"
            ),
        ),
        (
            lambda: VersionPolicy(latest=0),
            "a number is out of range\n  where: version_policy\n  got: 0\n  expected: 1 to 2147483647",
        ),
        (
            lambda: VersionPolicy(latest=1, specific=(1,)),
            (
                "either the latest versions or specific ones\n  where: version_policy\n"
                "  got: VersionPolicy(latest=1, specific=(1,))"
            ),
        ),
        (
            lambda: TritonOptions(backend="tensorrt_rtx"),
            (
                "backend has no such value\n  where: backend\n  got: 'tensorrt_rtx'\n"
                "  expected: 'auto', 'tensorrt', 'onnxruntime', 'python'"
            ),
        ),
        (
            lambda: TritonOptions(warmup="ones"),
            "warmup has no such value\n  where: warmup\n  got: 'ones'\n  expected: 'none', 'zeros', 'random'",
        ),
        (
            lambda: TritonOptions(max_batch_size=-1),
            "a number is out of range\n  where: max_batch_size\n  got: -1\n  expected: 0 to 2147483647",
        ),
        (lambda: TritonOptions(max_batch_size=4.0), "not a whole number\n  where: max_batch_size\n  got: 4.0"),
        (lambda: TritonOptions(queue_delay_us=True), "not a whole number\n  where: queue_delay_us\n  got: True"),
        (
            lambda: TritonOptions(preferred_batch_sizes=(0,)),
            "a number is out of range\n  where: preferred_batch_sizes\n  got: 0\n  expected: 1 to 2147483647",
        ),
        (
            lambda: TritonOptions(parameters={"threads": 4}),
            "a parameter is not text\n  where: parameters, 'threads'\n  got: 4",
        ),
    ],
)
def test_a_wrong_value_is_named(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message
