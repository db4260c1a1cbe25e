"""The patch series: a file `series` that lists patches in order, each a message followed by a git diff."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

DIFF_START = "diff --git "


class GitError(Exception):
    """A git command failed, or there is no git; the message is git's own first line."""


@dataclass(frozen=True)
class Patch:
    """One subject of the series: why it exists, and the diff."""

    message: str
    diff: str

    @property
    def name(self) -> str:
        """File name, made from the subject line."""
        return re.sub(r"[^a-z0-9]+", "-", self.message.splitlines()[0].lower()).strip("-") + ".patch"

    @property
    def text(self) -> str:
        """Content of the file."""
        return f"{self.message}\n\n{self.diff}"

    @classmethod
    def parse(cls, text: str) -> Patch:
        message, start, diff = text.partition(f"\n{DIFF_START}")
        return cls(message.strip(), f"{start.lstrip()}{diff}" if start else "")

    def changed_lines(self) -> dict[str, int]:
        """Added plus removed lines of every file that the patch touches."""
        counts: dict[str, int] = {}
        for part in re.split(rf"^(?={DIFF_START})", self.diff, flags=re.MULTILINE)[1:]:
            path = part.splitlines()[0].rpartition(" b/")[2]
            hunks = part.partition("\n@@")[2].splitlines()
            counts[path] = sum(line.startswith(("+", "-")) for line in hunks)
        return counts


def names(directory: Path) -> list[str]:
    """File names of the patches in `directory`, in the order in which they apply."""
    lines = (directory / "series").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def load(directory: Path) -> list[Patch]:
    """The patches of `directory`, in order."""
    return [Patch.parse((directory / name).read_text(encoding="utf-8")) for name in names(directory)]


def git(*arguments: str, cwd: Path) -> str:
    """Run git in `cwd` and return its output.

    Neither a repository around `cwd` nor the user's configuration has any influence: git then applies patches
    relative to `cwd`, and writes the same diffs for everyone.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {
        "GIT_CEILING_DIRECTORIES": str(cwd.resolve().parent),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=cwd, env=environment, capture_output=True, encoding="utf-8", check=True
        )
    except FileNotFoundError:
        raise GitError("git was not found; install git") from None
    except subprocess.CalledProcessError as error:
        complaint = (error.stderr or error.stdout).strip().splitlines()
        raise GitError(
            complaint[0].removeprefix("error: ") if complaint else f"exit {error.returncode}"
        ) from None
    return result.stdout
