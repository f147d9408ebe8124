"""The in-memory CUDA."""

import pytest

from tests.doubles.cuda import current


@pytest.fixture
def cuda():
    with current("late") as made:
        yield made
