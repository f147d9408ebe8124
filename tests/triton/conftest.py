"""The environment with the real server, and plans of a double of TensorRT."""

import os
import warnings
from pathlib import Path

import pytest

from tests.doubles import installed
from tests.triton import environment as environments
from trtsparse import BuildConfig, Profile, build


@pytest.fixture(scope="session")
def environment():
    """Made by `make triton-env`; where TRTSPARSE_REQUIRE_TRITON is set it must be there."""
    found = environments.Environment(Path(os.environ.get("TRTSPARSE_TRITON_ENV") or environments.DEFAULT))
    if not found.complete:
        text = f"no Triton server in {found.folder}: make triton-env"
        if os.environ.get("TRTSPARSE_REQUIRE_TRITON"):
            pytest.fail(text)
        pytest.skip(text)
    return found


@pytest.fixture(scope="session")
def built():
    """Builds a plan with a double of TensorRT: its header and report are those of a real one."""

    def make(model, *shapes, version="10.13.3", **options):
        profiles = tuple(Profile.parse(text) for text in shapes)
        flavour = "tensorrt_rtx" if version.startswith("rtx") else "tensorrt"
        with warnings.catch_warnings(), installed(version):
            warnings.simplefilter("ignore")
            return build(model, BuildConfig(profiles=profiles, flavour=flavour, **options))

    return make
