/* A CUDA driver without a device: enough of libcuda to test the table that is filled from it. Memory is the host's, streams do
 * their work at once, and three kernels are known by name:
 *
 *   add_fwd     adds one to n floats: parameters float*, int
 *   fault_fwd   launches, and the next call that waits finds an illegal address; no call works after that
 *   refuse_fwd  does not launch: out of resources
 *
 * fake_hip.c makes a HIP runtime of the same text. Built with -DVERSION=11080 (an old driver), -DDEVICES=0, -DLACKS (two functions missing), -DMEMORY=bytes, -DSTUB,
 * -DNO_POOLS, -DINIT=803 (cuInit fails). */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef VERSION
#define VERSION 12080
#endif
#ifndef DEVICES
#define DEVICES 2
#endif
#ifndef MEMORY
#define MEMORY (64u << 20)
#endif
#ifndef INIT
#define INIT (DEVICES == 0 ? 100 : 0)
#endif

typedef int status;
typedef uint64_t address;
typedef void *handle;

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NO_BINARY = 209, INVALID_PTX = 218, NOT_FOUND = 500,
       ILLEGAL_ADDRESS = 700, OUT_OF_RESOURCES = 701, NO_PEER = 217 };

static status lost, pending;
static size_t used;
static int capturing;
/* What the last launch asked for, for the test to read. */
static char launched[256];

/* A header before each allocation: its size and a mark. */
struct block { size_t bytes; uint64_t mark; char pad[240]; };
enum { MARK = 0x5ca1ab1e };

static status get(address *at, size_t bytes) {
    if (used + bytes > MEMORY) return OUT_OF_MEMORY;
    struct block *b = aligned_alloc(256, sizeof *b + (bytes + 255) / 256 * 256);
    b->bytes = bytes;
    b->mark = MARK;
    used += bytes;
    *at = (address)(uintptr_t)(b + 1);
    return 0;
}

static status put(address at) {
    if (at % 256 || at == 0) return INVALID_VALUE;
    struct block *b = (struct block *)(uintptr_t)at - 1;
    if (b->mark != MARK) return INVALID_VALUE;
    b->mark = 0;
    used -= b->bytes;
    free(b);
    return 0;
}

/* Calls that wait find what a kernel did wrong. */
static status finish(void) {
    if (pending) lost = pending;
    pending = 0;
    return lost;
}

status cuDriverGetVersion(int *version) {
#ifdef STUB
    return 34;
#endif
    *version = VERSION;
    return 0;
}
status cuInit(unsigned flags) { return flags ? INVALID_VALUE : INIT; }
status cuDeviceGetCount(int *n) { *n = DEVICES; return 0; }
#ifndef HIP
status cuGetErrorName(status s, const char **text) {
    switch (s) {
    case OUT_OF_MEMORY: *text = "CUDA_ERROR_OUT_OF_MEMORY"; return 0;
    case 803: *text = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"; return 0;
    case INVALID_VALUE: *text = "CUDA_ERROR_INVALID_VALUE"; return 0;
    case INVALID_PTX: *text = "CUDA_ERROR_INVALID_PTX"; return 0;
    case ILLEGAL_ADDRESS: *text = "CUDA_ERROR_ILLEGAL_ADDRESS"; return 0;
    case OUT_OF_RESOURCES: *text = "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"; return 0;
    }
    *text = NULL;
    return INVALID_VALUE;
}
status cuGetErrorString(status s, const char **text) {
    if (s == ILLEGAL_ADDRESS) { *text = "an illegal memory access was encountered"; return 0; }
    if (s == OUT_OF_RESOURCES) { *text = "too many resources requested for launch"; return 0; }
    *text = NULL;
    return INVALID_VALUE;
}

#endif

status cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal < DEVICES ? 0 : INVALID_DEVICE;
}
status cuDeviceGetName(char *name, int len, int device) { snprintf(name, len, "Fake %d", device); return 0; }
status cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = MEMORY; return 0; }
#ifndef HIP
status cuDeviceGetAttribute(int *value, int which, int device) {
    (void)device;
    switch (which) {
    case 1: *value = 1024; break;
    case 2: case 3: *value = 1024; break;
    case 4: *value = 64; break;
    case 5: *value = 0x7fffffff; break;
    case 6: case 7: *value = 65535; break;
    case 8: *value = 49152; break;
    case 10: *value = 32; break;
    case 16: *value = 132; break;
    case 38: *value = 50 << 20; break;
    case 75: *value = 9; break;
    case 76: *value = 0; break;
    case 95: case 120: *value = 1; break;
    case 97: *value = 232448; break;
#ifdef NO_POOLS
    case 115: *value = 0; break;
#else
    case 115: *value = 1; break;
#endif
    default: return INVALID_VALUE;
    }
    return 0;
}
#endif
status cuDevicePrimaryCtxRetain(handle *context, int device) {
    *context = (handle)(uintptr_t)(0x1000 + device);
    return 0;
}
status cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return 0; }
status cuCtxSetCurrent(handle context) { (void)context; return 0; }

status cuMemGetInfo_v2(size_t *free_, size_t *total) { *free_ = MEMORY - used; *total = MEMORY; return lost; }
status cuMemAlloc_v2(address *at, size_t bytes) { return lost ? lost : get(at, bytes); }
status cuMemFree_v2(address at) { return lost ? lost : put(at); }
#ifndef NO_POOLS
status cuMemAllocAsync(address *at, size_t bytes, handle stream) { (void)stream; return lost ? lost : get(at, bytes); }
status cuMemFreeAsync(address at, handle stream) { (void)stream; return lost ? lost : put(at); }
#else
status cuMemAllocAsync(address *at, size_t bytes, handle stream) { (void)at; (void)bytes; (void)stream; return 801; }
status cuMemFreeAsync(address at, handle stream) { (void)at; (void)stream; return 801; }
#endif
status cuDeviceGetDefaultMemPool(handle *pool, int device) { *pool = (handle)(uintptr_t)(0x2000 + device); return 0; }
status cuMemPoolSetAttribute(handle pool, int which, void *value) {
    (void)pool;
    (void)value;
    return which == 4 ? 0 : INVALID_VALUE;
}
status cuMemPoolGetAttribute(handle pool, int which, void *value) {
    (void)pool;
    if (which != 5 && which != 7) return INVALID_VALUE;
    *(uint64_t *)value = 0;
    return 0;
}
status cuMemPoolTrimTo(handle pool, size_t keep) { (void)pool; (void)keep; return 0; }
status cuMemPoolSetAccess(handle pool, const int *access, size_t count) {
    (void)pool;
    return count == 1 && access[0] == 1 && access[2] == 3 ? 0 : INVALID_VALUE;
}
status cuMemcpyHtoDAsync_v2(address to, const void *from, size_t bytes, handle stream) {
    (void)stream;
    memcpy((void *)(uintptr_t)to, from, bytes);
    return lost;
}
status cuMemcpyDtoHAsync_v2(void *to, address from, size_t bytes, handle stream) {
    (void)stream;
    if (finish()) return lost;
    memcpy(to, (void *)(uintptr_t)from, bytes);
    return 0;
}
status cuMemcpyDtoDAsync_v2(address to, address from, size_t bytes, handle stream) {
    (void)stream;
    memmove((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes);
    return lost;
}
status cuMemsetD8Async(address at, unsigned char byte, size_t bytes, handle stream) {
    (void)stream;
    memset((void *)(uintptr_t)at, byte, bytes);
    return lost;
}

#ifndef HIP
/* PTX text that has "broken" in it does not assemble; "wrong target" asks for another device. */
status cuModuleLoadDataEx(handle *module, const void *image, unsigned n, int *options, void **values) {
    if (n != 2 || options[0] != 5 || options[1] != 6) return INVALID_VALUE;
    if (strstr(image, "wrong target")) return NO_BINARY;
    if (strstr(image, "broken")) {
        snprintf(values[0], (size_t)values[1], "ptxas: line 3\nsyntax error\n");
        return INVALID_PTX;
    }
    *module = (handle)0x3000;
    return lost;
}
#endif
status cuModuleUnload(handle module) { (void)module; return lost; }
static const char *const names[] = {"add_fwd", "fault_fwd", "refuse_fwd"};
status cuModuleGetFunction(handle *function, handle module, const char *name) {
    (void)module;
    for (int i = 0; i < 3; i++)
        if (!strcmp(name, names[i])) {
            *function = (handle)(uintptr_t)(0x4000 + i);
            return 0;
        }
    return NOT_FOUND;
}
status cuFuncGetAttribute(int *value, int which, handle function) {
    (void)function;
    switch (which) {
    case 0: *value = 512; return 0;
    case 1: *value = 1024; return 0;
    case 3: *value = 0; return 0;
    case 4: *value = 40; return 0;
    }
    return INVALID_VALUE;
}
static int opted;
status cuFuncSetAttribute(handle function, int which, int value) {
    (void)function;
    if (which == 8) opted = value;
    return which == 8 || which == 14 ? 0 : INVALID_VALUE;
}
status cuFuncGetParamInfo(handle function, size_t i, size_t *offset, size_t *size) {
    (void)function;
    if (i > 1) return INVALID_VALUE;
    *offset = i * 8;
    *size = i ? 4 : 8;
    return 0;
}

struct attribute { int id; int pad; unsigned value[16]; };
struct config { unsigned grid[3], block[3], shared; handle stream; const struct attribute *attributes; unsigned count; };

/* What a kernel does. */
static status run(handle function, void **params) {
    switch ((uintptr_t)function) {
    case 0x4000: {
        float *y = (float *)(uintptr_t)*(address *)params[0];
        for (int i = 0; i < *(int *)params[1]; i++) y[i] += 1;
        return 0;
    }
    case 0x4001: pending = ILLEGAL_ADDRESS; return 0;
    case 0x4002: return OUT_OF_RESOURCES;
    }
    return INVALID_VALUE;
}
#if !defined LACKS && !defined HIP
status cuLaunchKernelEx(const struct config *c, handle function, void **params, void **extra) {
    if (extra) return INVALID_VALUE;
    if (lost) return lost;
    int n = snprintf(launched, sizeof launched, "%u block %u shared %u opted %d", c->grid[0], c->block[0], c->shared, opted);
    for (unsigned i = 0; i < c->count; i++)
        n += snprintf(launched + n, sizeof launched - n, c->attributes[i].id == 4 ? " cluster %u" : " cooperative %u",
                      c->attributes[i].value[0]);
    return run(function, params);
}
status cuTensorMapEncodeTiled(uint8_t *map, int dtype, unsigned rank, void *at, const uint64_t *dims, const uint64_t *strides,
                              const unsigned *box, const unsigned *ones, int interleave, int swizzle, int promotion, int fill) {
    (void)at; (void)dims; (void)strides; (void)box; (void)interleave; (void)promotion;
    if ((uintptr_t)map % 64 || ones[rank - 1] != 1) return INVALID_VALUE;
    map[0] = (uint8_t)dtype;
    map[1] = (uint8_t)swizzle;
    map[2] = (uint8_t)fill;
    return 0;
}
#endif
/* Not of the driver: what the last launch asked for. */
const char *fake_launched(void) { return launched; }

static uintptr_t next = 0x5000;
status cuStreamCreate(handle *stream, unsigned flags) {
    *stream = (handle)++next;
    return flags == 1 ? lost : INVALID_VALUE;
}
status cuStreamDestroy_v2(handle stream) { (void)stream; return lost; }
status cuStreamSynchronize(handle stream) { (void)stream; return finish(); }
status cuStreamWaitEvent(handle stream, handle event, unsigned flags) {
    (void)stream;
    (void)event;
    (void)flags;
    return lost;
}
status cuStreamIsCapturing(handle stream, int *is) { (void)stream; *is = capturing; return 0; }
status cuStreamBeginCapture_v2(handle stream, int mode) { (void)stream; capturing = mode == 2; return lost; }
status cuStreamEndCapture(handle stream, handle *graph) {
    (void)stream;
    capturing = 0;
    *graph = (handle)0x6000;
    return lost;
}
status cuEventCreate(handle *event, unsigned flags) { *event = (handle)++next; return flags ? INVALID_VALUE : lost; }
status cuEventDestroy_v2(handle event) { (void)event; return lost; }
status cuEventRecord(handle event, handle stream) { (void)event; (void)stream; return lost; }
status cuEventSynchronize(handle event) { (void)event; return finish(); }
status cuEventElapsedTime(float *milliseconds, handle from, handle to) {
    *milliseconds = (uintptr_t)to - (uintptr_t)from;
    return lost;
}
status cuGraphInstantiateWithFlags(handle *exec, handle graph, uint64_t flags) {
    (void)graph;
    (void)flags;
    *exec = (handle)0x7000;
    return lost;
}
status cuGraphLaunch(handle exec, handle stream) { (void)exec; (void)stream; return lost; }
status cuGraphExecDestroy(handle exec) { (void)exec; return lost; }
status cuGraphDestroy(handle graph) { (void)graph; return lost; }
status cuDeviceCanAccessPeer(int *can, int device, int other) { *can = device != other; return 0; }
status cuCtxEnablePeerAccess(handle context, unsigned flags) { (void)context; return flags ? INVALID_VALUE : lost; }
struct ipc { char bytes[64]; };
status cuIpcGetMemHandle(struct ipc *ipc, address at) {
    memset(ipc, 0, sizeof *ipc);
    memcpy(ipc, &at, sizeof at);
    return lost;
}
status cuIpcOpenMemHandle_v2(address *at, struct ipc ipc, unsigned flags) {
    memcpy(at, &ipc, sizeof *at);
    return flags == 1 ? lost : INVALID_VALUE;
}
status cuIpcCloseMemHandle(address at) { (void)at; return lost; }
