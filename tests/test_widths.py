"""Types named by a number of bits."""

from __future__ import annotations

import numpy as np
import pytest

from llama_tq.widths import type_of


@pytest.mark.parametrize(("bits", "name"), [(4, "tq4_0"), (3, "tq3_0"), (2, "tq2_1")])
def test_width(bits, name):
    assert type_of(bits).name == type_of(np.int64(bits)).name == name


def test_a_name_goes_first():
    assert type_of(4, "tq2_1").name == "tq2_1"
    with pytest.raises(ValueError, match="unknown type 'q4_0'; allowed are tq4_0, tq3_0, tq2_1"):
        type_of(4, "q4_0")


@pytest.mark.parametrize("bits", [0, 1, 5, -4, 8, 4.0, "4", None, True])
def test_refused(bits):
    with pytest.raises(ValueError, match=r"no type has .* bits; allowed are 4 \(tq4_0\), 3 .*, 2 "):
        type_of(bits)
