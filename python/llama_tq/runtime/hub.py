"""Models of Hugging Face's hub, by the names, the choice of file and the cache of llama.cpp's own -hf."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError

PREFIX = "hf:"
FORM = f"{PREFIX}OWNER/REPO[:QUANT]"
_PREFERRED = ("Q4_K_M", "Q8_0")  # where no quant is named; then the first file
_NO_MODEL = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")  # in the names of files beside one
_PATIENCE = 10  # seconds for the list of files
_PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)


def fetch(name: str) -> Path:
    """The file of `hf:OWNER/REPO[:QUANT]`, the first one of a split model; downloaded unless it is cached.

    Without a quant Q4_K_M, or Q8_0, or the first file. Without a network what is cached has to do. The cache
    is huggingface_hub's, or where LLAMA_CACHE says, as for `llama-cli -hf`.

    Raises InputError for a name of another form, without huggingface_hub, for a repository or a quant that is
    not there (with those that are), and where nothing is cached and there is no network.
    """
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?::([\w.-]+))?", name)
    if not match:
        raise InputError(f"{name!r} does not name a model of the hub. Write it as {FORM}.")
    repo, quant = match.groups()
    folder = os.environ.get("LLAMA_CACHE") or None
    hub = _library()
    try:
        with _errors(repo):
            names = [file.rfilename for file in hub.HfApi().model_info(repo, timeout=_PATIENCE).siblings]
    except _Unreachable as error:
        snapshot = _cached(repo, folder)
        if snapshot is None:
            raise InputError(f"{repo} is not in the cache, and the hub cannot be reached: {error}.") from None
        names = [
            path.relative_to(snapshot).as_posix() for path in sorted(snapshot.rglob("*")) if path.is_file()
        ]
        files = [snapshot / part for part in parts(choose(names, repo, quant), names)]
    else:
        chosen = parts(choose(names, repo, quant), names)
        try:
            with _errors(repo):
                files = [Path(hub.hf_hub_download(repo, part, cache_dir=folder)) for part in chosen]
        except _Unreachable as error:
            raise InputError(f"The download of {repo} failed: {error}. Try again.") from None
    return files[0]


def choose(names: Sequence[str], repo: str, quant: str | None = None) -> str:
    """The model file of a quant among the `names` of a repository; the first one of a split model."""
    models = [n for n in sorted(names) if n.lower().endswith(".gguf") and _is_model(n)]
    if not models:
        raise InputError(f"{repo} has no GGUF file. Take a repository with GGUF in its name.")
    for wanted in (quant,) if quant else _PREFERRED:
        pattern = re.compile(rf"(?<![A-Z0-9]){re.escape(wanted)}[.-]", re.IGNORECASE)
        found = next((n for n in models if pattern.search(n.rpartition("/")[2])), None)
        if found:
            return found
    if quant:
        raise InputError(f"{repo} has no {quant}. It has {', '.join(models)}.")
    return models[0]


def parts(first: str, names: Sequence[str]) -> list[str]:
    """The files of a split model, in order; just the one of any other. InputError if one is missing."""
    match = _PART.match(first)
    if not match:
        return [first]
    count = match["count"]
    wanted = [f"{match['stem']}-{number:05}-of-{count}.gguf" for number in range(1, int(count) + 1)]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InputError(f"A model of {len(wanted)} files lacks {', '.join(missing)}.")
    return wanted


def _is_model(name: str) -> bool:
    match = _PART.match(name)
    file = name.rpartition("/")[2]
    return (not match or int(match["number"]) == 1) and not any(word in file for word in _NO_MODEL)


def _library():
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(
            f"{PREFIX} needs huggingface_hub: pip install huggingface_hub (the extra [hub])"
        ) from None
    return huggingface_hub


class _Unreachable(Exception):
    """No answer from the hub."""


@contextlib.contextmanager
def _errors(repo: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into InputError, or _Unreachable where it got no answer."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise InputError(
            f"{repo} asks for consent on its page, and for HF_TOKEN in the environment."
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(f"There is no repository {repo} on the hub, or none that you may see.") from None
    except (errors.HFValidationError, errors.EntryNotFoundError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise _Unreachable(_line(error)) from None
        raise InputError(f"{repo}: {_line(error)}") from None
    except errors.HfHubHTTPError as error:
        raise InputError(f"The hub refuses {repo}: {_line(error)}") from None
    except (OSError, errors.HTTPError) as error:
        raise _Unreachable(f"{type(error).__name__}: {_line(error)}") from None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _cached(repo: str, folder: str | None) -> Path | None:
    """The newest snapshot of a repository in the cache."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = scan_cache_dir(folder).repos
    except CacheNotFound:
        return None
    revisions = [r for found in repos if found.repo_id == repo for r in found.revisions]
    return max(revisions, key=lambda r: r.last_modified).snapshot_path if revisions else None
