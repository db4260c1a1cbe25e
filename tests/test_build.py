"""From the source distribution to the installed wheel."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from importlib import metadata
from pathlib import Path

import pytest

from tq_build import upstream
from tq_build.upstream import ROOT, Pin, UpstreamError

# --- the installed distribution -----------------------------------------------------------------------------

DISTRIBUTION = metadata.distribution("llama-cpp-python")
FILES = [str(path) for path in DISTRIBUTION.files or []]
PROGRAMS = [script.name for script in DISTRIBUTION.entry_points if script.value == "llama_tq._programs:main"]


def test_installed_version_is_the_checkout_s():
    project = upstream.tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert DISTRIBUTION.version == project["version"]


def test_wheel_holds_the_packages_and_nothing_of_the_build():
    top = {path.split("/")[0] for path in FILES if not path.startswith("..") and ".dist-info" not in path}
    assert top == {"llama_cpp", "llama_tq"}


def test_wheel_has_every_library_once():
    libraries = [DISTRIBUTION.locate_file(path) for path in FILES if "/lib/" in path]
    assert {"llama", "ggml", "ggml-base", "ggml-cpu", "ggml-rpc", "mtmd"} <= {
        path.name.split(".")[0].removeprefix("lib") for path in libraries
    }
    assert not [path.name for path in libraries if path.suffix not in {".so", ".dylib", ".dll"}]
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in libraries}) == len(libraries)


def test_every_program_has_its_entry_point():
    binaries = {Path(path).name.removesuffix(".exe") for path in FILES if path.startswith("llama_cpp/bin/")}
    assert binaries == set(PROGRAMS)
    assert len(PROGRAMS) == 6


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_runs_with_an_empty_environment(program, tmp_path):
    script = Path(sysconfig.get_path("scripts"), program)
    result = subprocess.run([script, "--help"], env={}, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode in {0, 1}  # llama-quantize answers --help with 1
    assert "usage" in (result.stdout + result.stderr).lower()


def test_bindings_load_with_an_empty_environment(tmp_path):
    code = "import llama_cpp, llama_cpp.mtmd_cpp, llama_tq; print(llama_cpp.llama_max_devices())"
    subprocess.run([sys.executable, "-c", code], env={}, cwd=tmp_path, check=True)


def test_programs_start_without_importing_the_bindings():
    code = "import sys, llama_tq._programs; sys.exit('llama_cpp' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- finding the source distribution ------------------------------------------------------------------------

PIN = upstream.read_pin()


@pytest.fixture(scope="session")
def sdist() -> Path:
    """The real source distribution, which installing this checkout has left in the cache."""
    return upstream.find_sdist(PIN)


@pytest.fixture
def links(monkeypatch, tmp_path) -> Path:
    """The directory that is all that pip can reach; the cache is empty."""
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(upstream.SDIST_VARIABLE, raising=False)
    return links


def test_sdist_comes_from_pip_then_from_the_cache(sdist, links, capfd):
    shutil.copy(sdist, links / PIN.sdist_name)
    cached = upstream.find_sdist(PIN)
    assert cached == upstream.cache_dir() / PIN.sdist_name
    assert list(cached.parent.iterdir()) == [cached]  # nothing temporary is left

    cached.write_bytes(b"damaged")
    assert upstream.find_sdist(PIN) == cached
    assert f"{cached} is damaged" in capfd.readouterr().err

    (links / PIN.sdist_name).unlink()
    assert upstream.find_sdist(PIN) == cached  # without pip


def test_a_download_with_another_hash_is_refused(links):
    (links / PIN.sdist_name).write_bytes(b"not what is pinned")
    with pytest.raises(UpstreamError, match=f"(?s)could not get .*{PIN.requirement}.*HASH.*{PIN.sha256}"):
        upstream.find_sdist(PIN)
    assert not (upstream.cache_dir() / PIN.sdist_name).exists()


def test_the_named_sdist_is_verified(monkeypatch, tmp_path):
    named = tmp_path / "other.tar.gz"
    monkeypatch.setenv(upstream.SDIST_VARIABLE, str(named))
    with pytest.raises(UpstreamError, match=f"{named}, which is not a file"):
        upstream.find_sdist(PIN)
    named.write_bytes(b"other")
    found = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(UpstreamError, match=f"{named}.* has sha256 {found}, .*pinned to {PIN.sha256}"):
        upstream.find_sdist(PIN)


def test_the_backend_answers_a_missing_network_with_one_message(links, tmp_path):
    """As pip runs it: a subprocess whose output the user sees."""
    checkout = tmp_path / "checkout"
    for name in ("pyproject.toml", "patches", "python/tq_build"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, checkout / name)
    code = "from tq_build.backend import build_wheel; build_wheel('.')"
    environment = {**os.environ, "PYTHONPATH": "python"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.count("llama-tq: pip could not get the source distribution") == 1
    assert f"{upstream.SDIST_VARIABLE}=/path/to/{PIN.sdist_name}" in result.stderr


# --- the tree -----------------------------------------------------------------------------------------------

SOURCES = {"llama_cpp/a.py": "a = 1\n", "vendor/llama.cpp/src/b.c": "int one;\nint two;\nint three;\n"}
PATCH = """Count further

diff --git a/vendor/llama.cpp/src/b.c b/vendor/llama.cpp/src/b.c
--- a/vendor/llama.cpp/src/b.c
+++ b/vendor/llama.cpp/src/b.c
@@ -1,3 +1,4 @@
 int one;
 int two;
 int three;
+int four;
"""


class Checkout:
    """A small upstream, a series with one patch, and their tree, in a repository that ignores the tree."""

    def __init__(self, directory: Path):
        self.tree = directory / "build" / "upstream"
        self.patches = directory / "patches"
        self.patches.mkdir()
        subprocess.run(["git", "init", "--quiet", str(directory)], check=True)
        (directory / ".gitignore").write_text("/build/\n")
        self.sdist = directory / "small-1.0.tar.gz"
        with tarfile.open(self.sdist, "w:gz") as archive:
            for name, text in {**SOURCES, "docs/unused.md": "", "llama_cpp/../../escaped.py": ""}.items():
                member = tarfile.TarInfo(f"small-1.0/{name}")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))
            link = tarfile.TarInfo("small-1.0/llama_cpp/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/"
            archive.addfile(link)
        self.pin = Pin("small", "1.0", hashlib.sha256(self.sdist.read_bytes()).hexdigest(), "0000000")
        self.write(PATCH)

    def write(self, patch: str | None) -> None:
        (self.patches / "series").write_text("further.patch\n" if patch else "")
        (self.patches / "further.patch").write_text(patch or "")

    def prepare(self) -> dict[str, str]:
        tree = upstream.prepare(self.pin, self.patches, self.tree)
        paths = (path for path in tree.rglob("*") if path.is_file() and path.name != ".stamp")
        return {path.relative_to(tree).as_posix(): path.read_text() for path in paths}

    def times(self) -> dict[str, int]:
        return {name: (self.tree / name).stat().st_mtime_ns for name in SOURCES}


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Checkout:
    checkout = Checkout(tmp_path)
    monkeypatch.setenv(upstream.SDIST_VARIABLE, str(checkout.sdist))
    return checkout


def test_tree_is_patched_and_holds_only_what_the_build_needs(checkout, tmp_path):
    patched = SOURCES["vendor/llama.cpp/src/b.c"] + "int four;\n"
    assert checkout.prepare() == {**SOURCES, "vendor/llama.cpp/src/b.c": patched}
    assert not list(tmp_path.rglob("escaped.py"))
    assert [path.name for path in checkout.tree.parent.iterdir()] == ["upstream"]


def test_second_run_does_nothing(checkout, monkeypatch):
    checkout.prepare()
    times = checkout.times()
    checkout.sdist.unlink()  # needed only to unpack
    checkout.prepare()
    assert checkout.times() == times


def test_a_changed_series_renews_only_what_it_changes(checkout):
    checkout.prepare()
    before = checkout.times()
    checkout.write(PATCH.replace("int four", "int five"))
    assert "int five" in checkout.prepare()["vendor/llama.cpp/src/b.c"]
    after = checkout.times()
    assert after["llama_cpp/a.py"] == before["llama_cpp/a.py"]
    assert after["vendor/llama.cpp/src/b.c"] > before["vendor/llama.cpp/src/b.c"]

    checkout.write(None)
    assert checkout.prepare() == SOURCES


@pytest.mark.parametrize("context", ["int two;", "int three;"])
def test_a_patch_must_fit_without_fuzz(checkout, context):
    before = checkout.prepare()
    checkout.write(PATCH.replace(f" {context}", f" {context} // moved on"))
    with pytest.raises(
        UpstreamError, match=r"patches/further\.patch does not apply to small==1\.0: .*b\.c:1"
    ) as raised:
        checkout.prepare()
    assert "\n" not in str(raised.value)
    checkout.write(PATCH)
    assert checkout.prepare() == before  # a failure leaves the tree as it was
