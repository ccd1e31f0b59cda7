"""Writes the .ptx files beside this script from the .cu files: what NVRTC 12.9 prints, unmodified.

    pip install nvidia-cuda-nvrtc-cu12==12.9.86
    python3 tests/golden/ptx/make_ptx.py

A file's name says its architecture: *_sm90.cu is compiled for compute_90a, the others for compute_80.
"""

import ctypes
import pathlib
import sys

import nvidia.cuda_nvrtc

HERE = pathlib.Path(__file__).parent
KERNELS = HERE.parents[2] / "kernels"


def library():
    for folder in map(pathlib.Path, nvidia.cuda_nvrtc.__path__):
        found = folder / "lib" / "libnvrtc.so.12"
        if found.exists():
            return ctypes.CDLL(str(found))
    sys.exit("libnvrtc.so.12 not found: pip install nvidia-cuda-nvrtc-cu12==12.9.86")


def text(get_size, get, program):
    size = ctypes.c_size_t()
    get_size(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    get(program, buffer)
    return buffer.value.decode()


def compile_one(nvrtc, source):
    arch = "compute_90a" if source.stem.endswith("sm90") else "compute_80"
    options = [f"--gpu-architecture={arch}", "-std=c++17", f"-I{KERNELS}"]
    options = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None)
    failed = nvrtc.nvrtcCompileProgram(program, len(options), options)
    log = text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).strip()
    if failed or log:
        sys.exit(f"{source.name}: {log}")
    source.with_suffix(".ptx").write_text(text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program))


if __name__ == "__main__":
    compiler = library()
    for cu in sorted(HERE.glob("*.cu")):
        compile_one(compiler, cu)
        print(cu.with_suffix(".ptx").name)
