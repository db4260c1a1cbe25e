#!/bin/sh
# Makes what `pip install '.[test]'` and `pytest` need and pip does not have: the headers of Python, a cross-compiler and
# an emulator for the NEON kernels, a compiler for the emulated Metal kernels, others for musl and Windows, and what runs
# Windows programs (Debian's packages), and a virtual environment in .venv.
set -eu
cd "$(dirname "$0")/.."

missing=
python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
python3 -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
    missing="$missing python3-dev"
command -v aarch64-linux-gnu-gcc >/dev/null || missing="$missing gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
command -v qemu-aarch64 >/dev/null || missing="$missing qemu-user"
command -v clang++-19 >/dev/null || missing="$missing clang-19" # any from 15 on; Debian's clang is older
command -v musl-gcc >/dev/null || missing="$missing musl-tools"
command -v x86_64-w64-mingw32-gcc >/dev/null || missing="$missing gcc-mingw-w64-x86-64-win32"
command -v wine >/dev/null || missing="$missing wine wine64"

if [ -n "$missing" ]; then
    if ! command -v apt-get >/dev/null; then
        echo "setup.sh: no apt-get here; install the equivalents of:$missing" >&2
        exit 1
    fi
    root=
    [ "$(id -u)" -eq 0 ] || root=sudo
    $root apt-get update -q
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -q --yes --no-install-recommends $missing
fi

python3 -m venv .venv
