"""The parts of a head that are rotated together."""

from __future__ import annotations

import pytest

from llama_tq.heads import KEY, VALUE, check_head, rotation_size


@pytest.mark.parametrize(
    ("head", "key", "value"),
    [(32, 32, 32), (64, 64, 64), (96, 32, 32), (128, 128, 64), (192, 64, 64), (256, 256, 64), (320, 64, 64)],
)
def test_rotations_are_those_of_llama_cpp(head, key, value):
    check_head(head, "heads")
    assert (rotation_size(KEY, head), rotation_size(VALUE, head)) == (key, value)


@pytest.mark.parametrize("head", [0, -32, 16, 80, 112])
def test_heads_that_fill_no_blocks(head):
    with pytest.raises(ValueError, match=f"keys have heads of {head} values; allowed are multiples of 32"):
        check_head(head, "keys have heads")
