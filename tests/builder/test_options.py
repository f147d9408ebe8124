"""Options of a build that TensorRT itself refuses."""

import pytest

from tests.doubles import installed
from trtsparse.builder.build import build
from trtsparse.builder.config import BuildConfig
from trtsparse.errors import ConfigError


def test_a_compute_capability_that_tensorrt_refuses_is_named(monkeypatch, relu):
    with installed("rtx-1.7.1") as trt:
        real = trt.IBuilderConfig.set_compute_capability
        refused = trt.ComputeCapability.SM120
        monkeypatch.setattr(
            trt.IBuilderConfig,
            "set_compute_capability",
            lambda config, target, index: target != refused and real(config, target, index),
        )
        build(relu, BuildConfig(compute_capabilities=("8.6",)))
        with pytest.raises(ConfigError) as error:
            build(relu, BuildConfig(compute_capabilities=("8.6", "12.0")))
    assert str(error.value) == "TensorRT refuses the compute capability\n  where: compute_capabilities\n  got: 12.0"
