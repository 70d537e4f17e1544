"""Positions and sight of tokens beside kept keys, by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from nfllm.model.cache import positions, visible_keys


def test_positions_go_on_from_those_of_the_text() -> None:
    np.testing.assert_array_equal(positions(3, None), [[0, 1, 2]])
    np.testing.assert_array_equal(positions(2, jnp.asarray([0, 4])), [[0, 1], [4, 5]])


def test_a_query_sees_itself_and_what_came_before() -> None:
    found = visible_keys(2, 4, jnp.asarray([0, 2]))
    assert found.shape == (2, 1, 2, 4)
    np.testing.assert_array_equal(found[0, 0], [[1, 0, 0, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(found[1, 0], [[1, 1, 1, 0], [1, 1, 1, 1]])
    # Without kept keys the queries are the last ones.
    np.testing.assert_array_equal(visible_keys(2, 3, None)[0, 0], [[1, 1, 0], [1, 1, 1]])
