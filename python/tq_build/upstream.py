"""The patched upstream source tree: find the source distribution, verify it, unpack it, apply the series."""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tq_build import series

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PATCHES = ROOT / "patches"
TREE = ROOT / "build" / "upstream"
SDIST_VARIABLE = "LLAMA_TQ_SDIST"

# What the build needs of the source distribution; its documentation, models and history stay packed.
KEPT = (
    "LICENSE.md",
    "llama_cpp",
    *(
        f"vendor/llama.cpp/{name}"
        for name in (
            "CMakeLists.txt",
            "LICENSE",
            "cmake",
            "common",
            "ggml",
            "include",
            "scripts/ui-assets.cmake",
            "src",
            "tests",
            "tools",
            "vendor",
        )
    ),
)


class UpstreamError(Exception):
    """The upstream tree cannot be prepared; the message says why and what to do."""


@dataclass(frozen=True)
class Pin:
    """The upstream release that this checkout patches."""

    name: str
    version: str
    sha256: str
    llama_cpp_commit: str
    budget: dict[str, int] = field(default_factory=dict)

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def sdist_name(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}.tar.gz"


def read_pin(root: Path = ROOT) -> Pin:
    """The pin of the checkout at `root`: pyproject.toml names the release, patches/upstream.toml the rest."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = tomllib.loads((root / "patches" / "upstream.toml").read_text(encoding="utf-8"))
    return Pin(name=project["name"], version=project["version"].split("+")[0], **pinned)


def prepare(pin: Pin, patches: Path = PATCHES, tree: Path = TREE) -> Path:
    """Bring `tree` up to date with the pin and the series in `patches`, and return it.

    Does nothing when it already is. Otherwise files whose content stays the same keep their modification
    time, so that the next build compiles only what changed.
    """
    stamp = tree / ".stamp"
    wanted = _fingerprint(pin, patches)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return tree
    sdist = find_sdist(pin)
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="upstream-", dir=tree.parent) as scratch:
        fresh = Path(scratch)
        unpack(sdist, fresh)
        for name in series.names(patches):
            apply_patch(pin, patches / name, fresh)
        stamp.unlink(missing_ok=True)
        _mirror(fresh, tree)
    stamp.write_text(wanted, encoding="utf-8")
    return tree


def find_sdist(pin: Pin) -> Path:
    """The verified source distribution: the file that the user names, the cached one, or pip's download."""
    if named := os.environ.get(SDIST_VARIABLE):
        path = Path(named).expanduser()
        if not path.is_file():
            raise UpstreamError(f"{SDIST_VARIABLE} names {path}, which is not a file.")
        if (found := _sha256(path)) != pin.sha256:
            raise UpstreamError(
                f"{path}, named by {SDIST_VARIABLE}, has sha256 {found}, but {pin.requirement} is pinned to "
                f"{pin.sha256}. Name the {pin.sdist_name} of the package index, or unset {SDIST_VARIABLE}."
            )
        return path
    cached = cache_dir() / pin.sdist_name
    if cached.is_file():
        if _sha256(cached) == pin.sha256:
            return cached
        print(f"llama-tq: {cached} is damaged; downloading it again.", file=sys.stderr)
    _download(pin, cached)
    return cached


def cache_dir() -> Path:
    """Where downloaded source distributions are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama-tq"


def unpack(sdist: Path, destination: Path) -> None:
    """Unpack the files of `sdist` that are in `KEPT` into `destination`, without their top directory."""
    with tarfile.open(sdist) as archive:
        for member in archive:
            relative = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if not member.isfile() or ".." in relative.parts or not _is_kept(relative):
                continue
            target = destination / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.extractfile(member) as source, target.open("wb") as file:  # type: ignore[union-attr]
                shutil.copyfileobj(source, file)


def apply_patch(pin: Pin, patch: Path, tree: Path) -> None:
    """Apply one patch to the upstream files in `tree`; every line of context must be there."""
    try:
        series.git("apply", "--whitespace=nowarn", str(patch.resolve()), cwd=tree)
    except series.GitError as error:
        raise UpstreamError(
            f"{patch.parent.name}/{patch.name} does not apply to {pin.requirement}: {error}. The patches and "
            "patches/upstream.toml must come from one commit: restore them, or refresh the patch with "
            "scripts/patches.py."
        ) from None


def _download(pin: Pin, target: Path) -> None:
    """Let pip get the source distribution, as the user has configured it, and store it as `target`."""
    print(f"llama-tq: getting the source distribution of {pin.requirement} with pip.", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(f"{pin.requirement} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
        # With hashes required pip verifies the file before it runs any of its code.
        options = ["--require-hashes", "--no-deps", "--no-build-isolation", f"--no-binary={pin.name}"]
        result = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, "-d", scratch, "-r", str(requirements)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        found = Path(scratch, pin.sdist_name)
        if result.returncode or not found.is_file():
            raise UpstreamError(
                f"pip could not get the source distribution of {pin.requirement} (sha256 {pin.sha256}).\n"
                f"{_complaint(result.stderr)}\n"
                "Check the network and pip's index settings, or download the file elsewhere and name it: "
                f"{SDIST_VARIABLE}=/path/to/{pin.sdist_name}"
            )
        if (sha256 := _sha256(found)) != pin.sha256:
            raise UpstreamError(
                f"pip delivered {pin.sdist_name} with sha256 {sha256}, pinned is {pin.sha256}. "
                "Check the package index that pip is configured to use."
            )
        os.replace(found, target)


def _complaint(stderr: str) -> str:
    """What pip printed from its first error on."""
    lines = stderr.strip().splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("ERROR")), max(0, len(lines) - 1))
    return "\n".join(f"    {line.strip()}" for line in lines[first:] if line.strip())


def _fingerprint(pin: Pin, patches: Path) -> str:
    """Identifies the tree that pin and series make together."""
    digest = hashlib.sha256(repr((pin.sha256, KEPT)).encode())
    for name in series.names(patches):
        digest.update(hashlib.sha256((patches / name).read_bytes()).digest())
    return digest.hexdigest()


def _is_kept(path: PurePosixPath) -> bool:
    return any(path.is_relative_to(kept) for kept in KEPT)


def _mirror(fresh: Path, tree: Path) -> None:
    """Make `tree` equal to `fresh` by moving what differs and deleting what is gone."""
    files = {path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file()}
    for path in files:
        target = tree / path
        if target.is_file() and filecmp.cmp(fresh / path, target, shallow=False):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(fresh / path, target)
    for path in tree.rglob("*"):
        if path.is_file() and path.relative_to(tree) not in files:
            path.unlink()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
