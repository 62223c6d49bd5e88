"""Each test of a network begins with the same random numbers and the backend's own order of axes."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import pytest

from training.networks import layout


@pytest.fixture(autouse=True)
def same_beginning() -> Iterator[None]:
    """Seed Keras and set the order of axes; leave the order as it was found."""
    before = keras.config.image_data_format()
    keras.utils.set_random_seed(4)
    layout.use_quickest()
    yield
    keras.config.set_image_data_format(before)
