"""Finished parts of an evaluation on disk, so that an interrupted one can go on."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..runtime.pairs import Pair
from .recall import Recall
from .scoring import Scores

_IDENTITY = "evaluation.json"


class Store:
    """One directory: what is being evaluated, and a file per finished chunk and per finished recall test.

    `identity` names the inputs. A directory that holds another evaluation is refused when it is to be
    resumed, and emptied of its parts otherwise.
    """

    def __init__(self, directory: Path, identity: dict[str, str], resume: bool) -> None:
        self._directory = directory
        found = self._read(_IDENTITY)
        if resume and found is None:
            raise InputError(f"There is no evaluation to resume in {directory}. Leave out --resume.")
        if resume and found != identity:
            other = ", ".join(
                f"{k} was {found.get(k)}, is {v}" for k, v in identity.items() if found.get(k) != v
            )
            raise InputError(
                f"The evaluation in {directory} is another one: {other}. Leave out --resume to start anew."
            )
        directory.mkdir(parents=True, exist_ok=True)
        if not resume:
            for old in (*directory.glob("chunk-*.npz"), *directory.glob("recall-*.json")):
                old.unlink()
            self._write(_IDENTITY, json.dumps(identity, indent=1).encode())

    def scores(self, chunk: int) -> dict[Pair, Scores] | None:
        """The scores of a finished chunk."""
        path = self._directory / f"chunk-{chunk:05}.npz"
        if not path.exists():
            return None
        found: dict[Pair, dict[str, np.ndarray]] = {}
        with np.load(path) as arrays:
            for key in arrays:
                pair, _, name = key.rpartition(".")
                found.setdefault(_pair(pair), {})[name] = arrays[key]
        return {
            pair: Scores(**{k: v if v.ndim else v.item() for k, v in f.items()}) for pair, f in found.items()
        }

    def save_scores(self, chunk: int, scores: dict[Pair, Scores]) -> None:
        """Keep the scores of a chunk."""
        temporary = self._directory / "partial.npz"
        np.savez(
            temporary, **{f"{_key(p)}.{name}": a for p, s in scores.items() for name, a in vars(s).items()}
        )
        os.replace(temporary, self._directory / f"chunk-{chunk:05}.npz")

    def recall(self, pair: Pair) -> tuple[Recall, ...] | None:
        """The answers of a finished recall test."""
        found = self._read(f"recall-{_key(pair)}.json")
        return None if found is None else tuple(Recall(**item) for item in found)

    def save_recall(self, pair: Pair, answers: tuple[Recall, ...]) -> None:
        """Keep the answers of a recall test."""
        self._write(f"recall-{_key(pair)}.json", json.dumps([asdict(a) for a in answers]).encode())

    def _read(self, name: str):
        path = self._directory / name
        return json.loads(path.read_text()) if path.exists() else None

    def _write(self, name: str, data: bytes) -> None:
        temporary = self._directory / "partial.json"
        temporary.write_bytes(data)
        os.replace(temporary, self._directory / name)


def _key(pair: Pair) -> str:
    """The pair as a part of a file name: `tq4_0-tq3_0` or `tq4_0-tq3_0-uncentred`."""
    return str(pair).replace("/", "-").replace(" ", "-")


def _pair(key: str) -> Pair:
    return Pair.parse(key.replace("-", "/", 1).replace("-", " "))
