#!/bin/sh
# Makes the code objects of this folder and the text that LLVM prints for their functions, with the tools of LLVM 19.
set -e
cd "$(dirname "$0")"
for arch in gfx90a gfx942; do
    clang-19 -x hip --offload-arch=$arch --cuda-device-only --no-gpu-bundle-output -nogpuinc -nogpulib -O3 -std=c++17 \
        -ffp-contract=off -fno-math-errno -fuse-cuid=none -o features.$arch.co features.hip
    # Address and text; symbols, words and headers left out.
    llvm-objdump-19 -d features.$arch.co |
        sed -nE 's/^\t(.*[^ ]) *\/\/ 0*([0-9A-F]+):.*$/\2 \1/p' | tr -s ' ' > features.$arch.txt
done
