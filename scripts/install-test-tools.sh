#!/bin/sh
# Installs what the tests need and pip does not have: a cross-compiler and an emulator for the NEON kernels.
set -eu

missing=
command -v aarch64-linux-gnu-gcc >/dev/null || missing="$missing gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
command -v qemu-aarch64 >/dev/null || missing="$missing qemu-user"
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "install-test-tools.sh: no apt-get here; install aarch64-linux-gnu-gcc and qemu-aarch64 yourself." >&2
    exit 1
fi
root=
[ "$(id -u)" -eq 0 ] || root=sudo
$root apt-get update -q
$root env DEBIAN_FRONTEND=noninteractive apt-get install -q --yes --no-install-recommends $missing
