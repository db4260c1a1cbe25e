"""The figures of SmolLM2 in the texts are those of the committed measurement, which is of today's pairs."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from llama_tq.runtime.pairs import RECOMMENDED, REFERENCE, YARDSTICKS

SCRIPT = Path(__file__).parents[1] / "scripts" / "measure_quality.py"


@pytest.fixture(scope="module")
def script() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.fixture(scope="module")
def result(script) -> dict:
    return json.loads(script.RESULT.read_text())


def test_texts_say_what_was_measured(script, result):
    blocks = script.blocks_of(result)
    texts = [path.read_text(encoding="utf-8") for path in script.TEXTS]
    for text in texts:
        assert script.fill(text, blocks) == text, "run scripts/measure_quality.py --tables"
    for name in blocks:
        assert any(f"<!-- {name} -->" in text for text in texts), f"nothing shows {name}"


def test_a_changed_figure_is_noticed(script, result):
    changed = json.loads(json.dumps(result))
    changed["evaluation"]["pairs"][3]["perplexity"]["value"] += 1
    blocks = script.blocks_of(changed)
    for path in script.TEXTS:
        text = path.read_text(encoding="utf-8")
        assert script.fill(text, blocks) != text


def test_the_pairs_are_those_recommended_now(script, result):
    measured = [row["pair"] for row in result["evaluation"]["pairs"]]
    assert measured == list(map(str, (REFERENCE, *YARDSTICKS, *RECOMMENDED)))
    assert (result["evaluation"]["model"], result["evaluation"]["chunks"]) == ("smollm2", script.CHUNKS)
