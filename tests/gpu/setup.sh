#!/usr/bin/env bash
# Puts a software Vulkan driver and its loader under FOLDER, from a package that carries Chromium's: SwiftShader, which
# is new enough for WebGPU where Debian 12's lavapipe is not. For Linux on x86-64 with npm; changes nothing else.
#
#   tests/gpu/setup.sh [FOLDER, default build/gpu]
set -euo pipefail
cd "$(dirname "$0")/../.."
package=@sparticuz/chromium@147.0.0
folder=$(realpath -m "${1:-build/gpu}")
[ -e "$folder/ready" ] && exit 0
rm -rf "$folder"
mkdir -p "$folder"
(cd "$folder" && npm pack --silent "$package" > /dev/null)
tar --extract --gzip --file "$folder"/*.tgz --directory "$folder" package/bin/swiftshader.tar.br
node -e 'process.stdout.write(require("zlib").brotliDecompressSync(require("fs").readFileSync(0)))' \
    < "$folder/package/bin/swiftshader.tar.br" \
    | tar --extract --no-same-owner --directory "$folder" libvk_swiftshader.so libvulkan.so.1 vk_swiftshader_icd.json
rm -rf "$folder"/*.tgz "$folder/package"
touch "$folder/ready"
