"""Batches hold what their order says, pictures with their own boxes and labels."""

from __future__ import annotations

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from training.feed import Examples, batches  # noqa: E402 (it needs Keras)


@pytest.fixture
def examples() -> Examples:
    numbers = np.arange(11, dtype=np.uint8)
    inputs = np.broadcast_to(numbers[:, None, None, None], (11, 4, 6, 1))
    return Examples(inputs, 100 + inputs, numbers.astype(np.float32))


def test_each_batch_holds_its_part_of_the_order_and_the_rest_is_left(examples: Examples) -> None:
    order = np.array([7, 2, 9, 0, 10, 3, 1, 8, 5, 4, 6])
    shown = [
        (np.asarray(pictures), np.asarray(labels)) for pictures, labels in batches(examples, order.astype(np.intp), 4)
    ]
    assert [sorted(labels.tolist()) for _, labels in shown] == [[0, 2, 7, 9], [1, 3, 8, 10]]
    for pictures, labels in shown:
        assert pictures.shape == (4, 4, 6, 2)
        assert pictures.dtype == np.float32
        assert np.array_equal(pictures[:, 0, 0, 0], labels)
        assert np.array_equal(pictures[:, 3, 5, 1], 100 + labels)


def test_fewer_examples_than_a_batch_give_none(examples: Examples) -> None:
    assert list(batches(examples, np.arange(3, dtype=np.intp), 4)) == []
    assert len(examples) == 11
