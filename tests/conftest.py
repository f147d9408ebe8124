"""What holds for every test."""

import gc

import hypothesis
import pytest

# examples are few and varied: the suite must stay quick on one core
hypothesis.settings.register_profile("trtsparse", deadline=None, max_examples=40, database=None)
hypothesis.settings.load_profile("trtsparse")


@pytest.fixture(autouse=True, scope="module")
def _quick_collections():
    """Collections of garbage, which measuring begins with, pass over the tests themselves and imported libraries."""
    gc.collect()
    gc.freeze()
