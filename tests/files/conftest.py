"""A model with external data."""

import pytest

from tests.files.external import three
from tests.helpers import save_external


@pytest.fixture
def external(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return save_external(three(), folder / "model.onnx", w1="one.bin", w2="sub/two.bin", w3="one.bin")
