#!/usr/bin/env bash
# Makes an arm64 Python and Java with the interpreters that run a bundle, and an emulator, under FOLDER. For Debian and
# its kin: packages are only downloaded and unpacked, so nothing here needs root or changes the system. One thing it
# takes from the system: the compiler aarch64-linux-gnu-g++ (package g++-aarch64-linux-gnu).
#
#   tests/arm64/setup.sh [FOLDER, default build/arm64]
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(realpath -m "${1:-build/arm64}")
[ -e "$folder/ready" ] && [ -e "$folder/rootfs/usr/lib/jvm" ] && exit 0
command -v aarch64-linux-gnu-g++ > /dev/null || { echo "apt-get install g++-aarch64-linux-gnu first" >&2; exit 1; }
rm -rf "$folder"
mkdir -p "$folder/rootfs"
# The mirror that this machine uses already.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' 'Component: main' | head -n 1)
[ -n "$mirror" ] || { echo "tests/arm64/setup.sh needs apt with Debian 12 (bookworm) among its sources" >&2; exit 1; }

# fetch ARCHITECTURE SUITE PACKAGE...: downloads the packages of that suite to FOLDER/debs-ARCHITECTURE.
fetch() {
    local state="$folder/apt-$1" debs="$folder/debs-$1"
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$debs"
    touch "$state/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $2 main" > "$state/sources.list"
    local options=(-qq -o "APT::Architecture=$1" -o "APT::Architectures=$1" -o "Dir::Etc::SourceList=$state/sources.list"
        -o Dir::Etc::SourceParts=/dev/null -o "Dir::State=$state" -o "Dir::State::status=$state/status"
        -o "Dir::Cache=$state/cache" -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update
    (cd "$debs" && apt-get "${options[@]}" download "${@:3}")
}

# Debian 12's own qemu (7.2) crashes in these interpreters; the backport does not.
fetch "$(dpkg --print-architecture)" bookworm-backports qemu-user
fetch arm64 bookworm python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 libgomp1 \
    zlib1g libexpat1 libffi8 libssl3 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libcrypt1 libdb5.3 libncursesw6 \
    libtinfo6 libreadline8 media-types openjdk-17-jre-headless
for deb in "$folder"/debs-arm64/*.deb; do dpkg-deb -x "$deb" "$folder/rootfs"; done
for deb in "$folder"/debs-"$(dpkg --print-architecture)"/*.deb; do dpkg-deb -x "$deb" "$folder/qemu"; done

# What `pip install pocketdraft[onnx,litert-lm]` would bring to an arm64 machine.
arm64_pip() {
    .venv/bin/python -m pip install --quiet --constraint constraints.txt --target "$folder/site-packages" \
        --python-version 3.11 --only-binary=:all: --no-warn-conflicts \
        --platform manylinux_2_34_aarch64 --platform manylinux_2_31_aarch64 --platform manylinux_2_28_aarch64 \
        --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 "$@"
}
arm64_pip ai-edge-litert ml-dtypes numpy onnxruntime pydantic rich tokenizers typer litert-lm-api
# ExecuTorch's C++ libraries alone: its Python binding needs torch.
arm64_pip --no-deps executorch
mv "$folder/site-packages/executorch" "$folder/executorch"
rm -rf "$folder"/site-packages/executorch-*
include="$folder/executorch/include"
aarch64-linux-gnu-g++ -w -std=c++17 -O2 -fPIC -shared -DC10_USING_CUSTOM_GENERATED_MACROS -I"$include" \
    -I"$include/executorch/runtime/core/portable_type/c10" tests/arm64/executorch_native.cpp \
    -o "$folder/executorch/lib/libexecutorch_native.so" -Wl,--no-as-needed -L"$folder/executorch/lib" -lexecutorch \
    -lexecutorch_kernels_optimized -lexecutorch_kernels_quantized -lexecutorch_backend_xnnpack -lexecutorch_threadpool \
    -Wl,-rpath,'$ORIGIN'
mkdir -p "$folder/site-packages/pocketdraft"
for package in quantize runtime; do ln -sfn "$PWD/$package" "$folder/site-packages/pocketdraft/$package"; done
rm -rf "$folder"/apt-* "$folder"/debs-*
touch "$folder/ready"
