"""PEP 517 hooks: scikit-build-core's, after the patched upstream tree has been put in place."""

from __future__ import annotations

from typing import Any

from scikit_build_core import build as skbuild
from scikit_build_core.build import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from tq_build import upstream

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = dict[str, Any] | None


def build_wheel(
    wheel_directory: str, settings: Settings = None, metadata_directory: str | None = None
) -> str:
    return skbuild.build_wheel(wheel_directory, _with_upstream(settings), metadata_directory)


def build_editable(
    wheel_directory: str, settings: Settings = None, metadata_directory: str | None = None
) -> str:
    return skbuild.build_editable(wheel_directory, _with_upstream(settings), metadata_directory)


def _with_upstream(settings: Settings) -> dict[str, Any]:
    """Prepare the upstream tree and tell CMake where it is.

    Raises SystemExit, which a frontend shows as the plain message that it carries.
    """
    try:
        pin = upstream.read_pin()
        tree = upstream.prepare(pin)
    except (upstream.UpstreamError, OSError) as error:
        raise SystemExit(f"\nllama-tq: {error}\n") from None
    return {
        **(settings or {}),
        "cmake.define.LLAMA_TQ_UPSTREAM": tree.as_posix(),
        "cmake.define.LLAMA_BUILD_COMMIT": pin.llama_cpp_commit,
    }
