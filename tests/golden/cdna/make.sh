#!/bin/sh
# Makes the code objects of this folder, the text that LLVM prints for the functions of features.hip and what the host gives
# for the lines of expressions.hip, with the tools of LLVM 19 on a processor with F16C and FMA.
set -e
cd "$(dirname "$0")"
for arch in gfx90a gfx942; do
    device="-x hip --offload-arch=$arch --cuda-device-only --no-gpu-bundle-output -nogpuinc -nogpulib -std=c++17
        -ffp-contract=off -fno-math-errno -fuse-cuid=none"
    for name in features run; do
        clang-19 $device -O3 -o $name.$arch.co $name.hip
    done
    # Address and text; symbols, words and headers left out.
    llvm-objdump-19 -d features.$arch.co |
        sed -nE 's/^\t(.*[^ ]) *\/\/ 0*([0-9A-F]+):.*$/\2 \1/p' | tr -s ' ' > features.$arch.txt
    clang-19 $device -O1 -fwrapv -o expressions.$arch.co expressions.hip
done
# Without excess precision: each half is rounded, as the targets do it.
clang++-19 -x c++ -DHOST -O1 -fwrapv -ffp-contract=off -Xclang -ffloat16-excess-precision=none -mf16c -mfma -std=c++17 \
    -o expressions.host expressions.hip
./expressions.host > expressions.bin
rm expressions.host
