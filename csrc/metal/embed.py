"""usage: embed.py FILE.metal OUTPUT.cpp

Writes the Metal source, with what it includes, as the string tq_metal_source: ggml-metal compiles it on the
user's machine, and what is inside a library needs no path.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def flatten(path: Path, folders: list[Path], seen: set[Path]) -> str:
    """The file with its own includes inserted: headers once, and lists (*.def) each time."""
    text = ""
    for line in path.read_text().splitlines(keepends=True):
        match = re.match(r'\s*#\s*include\s+"(.+)"', line)
        if match:
            found = next(
                folder / match[1] for folder in (path.parent, *folders) if (folder / match[1]).is_file()
            )
            if found.suffix == ".def" or found.resolve() not in seen:
                seen.add(found.resolve())
                text += flatten(found, folders, seen)
        elif not re.match(r"\s*#\s*pragma once", line):
            text += line
    return text


def main() -> None:
    source, output = map(Path, sys.argv[1:])
    text = flatten(source, [source.parents[1]], set())
    # a header that this file's branch for other compilers includes stays: Metal never sees it
    output.write_text(
        f'extern const char tq_metal_source[];\nconst char tq_metal_source[] = R"TQ({text})TQ";\n'
    )


if __name__ == "__main__":
    main()
