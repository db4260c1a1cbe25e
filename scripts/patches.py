#!/usr/bin/env python3
"""The patch series as commits: `import` into a git repository, edit, `export`, `check` that all is in order.

python scripts/patches.py import        # build/series: upstream, then one commit per patch
... edit there; `git commit --fixup`, `git rebase -i upstream` ...
python scripts/patches.py export        # patches/ = those commits
python scripts/patches.py check         # applies without offset or fuzz, and exports to the same bytes
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

from tq_build import series, upstream
from tq_build.series import Patch, git

BASE = "upstream"  # tag of the unpatched commit


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("import", "export", "check"))
    parser.add_argument(
        "--repository", type=Path, default=upstream.TREE.with_name("series"), help="default: %(default)s"
    )
    arguments = parser.parse_args()
    try:
        if arguments.command == "import":
            import_series(arguments.repository)
            print(f"{arguments.repository} holds the series on top of the tag `{BASE}`.")
        elif arguments.command == "export":
            write(commits(arguments.repository))
            print("patches/ holds the commits of the series.")
        else:
            check()
            print("The series applies and exports to itself.")
    except (upstream.UpstreamError, series.GitError) as error:
        print(f"patches.py {arguments.command}: {error}", file=sys.stderr)
        return 1
    return 0


def import_series(repository: Path) -> None:
    """Make `repository`: a commit of unpatched upstream, tagged, and one commit for every patch."""
    if repository.exists() and any(repository.iterdir()):
        raise upstream.UpstreamError(f"{repository} exists; export what you need from it and delete it.")
    pin = upstream.read_pin()
    repository.mkdir(parents=True, exist_ok=True)
    upstream.unpack(upstream.find_sdist(pin), repository)
    git("init", "--quiet", cwd=repository)
    git("config", "user.name", "llama-tq", cwd=repository)
    git("config", "user.email", "llama-tq@localhost", cwd=repository)
    git("config", "commit.gpgsign", "false", cwd=repository)
    commit(repository, pin.requirement)
    git("tag", BASE, cwd=repository)
    for name in series.names(upstream.PATCHES):
        upstream.apply_patch(pin, upstream.PATCHES / name, repository)
        commit(repository, Patch.parse((upstream.PATCHES / name).read_text(encoding="utf-8")).message)


def commit(repository: Path, message: str) -> None:
    git("add", "--all", "--force", cwd=repository)
    git("commit", "--quiet", "--no-verify", "--allow-empty", "--message", message, cwd=repository)


def commits(repository: Path) -> list[Patch]:
    """The commits after the base as patches, without anything that depends on who exports them and when."""
    if not (repository / ".git").is_dir():
        raise upstream.UpstreamError(f"{repository} does not exist; run `scripts/patches.py import` first.")
    patches = []
    for revision in git("rev-list", "--reverse", f"{BASE}..HEAD", cwd=repository).split():
        message = git("log", "-1", "--format=%B", revision, cwd=repository).strip()
        diff = git("diff-tree", "--no-commit-id", "--patch", "--no-renames", revision, cwd=repository)
        lines = (line for line in diff.splitlines(keepends=True) if not line.startswith("index "))
        patches.append(Patch(message, "".join(lines)))
    return patches


def write(patches: list[Patch]) -> None:
    """Replace the series in patches/."""
    for old in upstream.PATCHES.glob("*.patch"):
        old.unlink()
    for patch in patches:
        (upstream.PATCHES / patch.name).write_text(patch.text, encoding="utf-8")
    (upstream.PATCHES / "series").write_text(
        "".join(f"{patch.name}\n" for patch in patches), encoding="utf-8"
    )


def check() -> None:
    """Raises UpstreamError where patches/ is not exactly what exporting its own import writes."""
    with tempfile.TemporaryDirectory() as scratch:
        import_series(Path(scratch))
        exported = {patch.name: patch.text for patch in commits(Path(scratch))}
    listed = series.names(upstream.PATCHES)
    present = {path.name: path.read_text(encoding="utf-8") for path in upstream.PATCHES.glob("*.patch")}
    if list(exported) != listed:
        raise upstream.UpstreamError(
            f"patches/series lists {listed}; by their subjects they are {list(exported)}."
        )
    for name in sorted(exported.keys() ^ present.keys()):
        raise upstream.UpstreamError(f"patches/{name} is not in patches/series.")
    for name, text in exported.items():
        if present[name] != text:
            raise upstream.UpstreamError(f"patches/{name} differs from its export: run import, then export.")


if __name__ == "__main__":
    sys.exit(main())
