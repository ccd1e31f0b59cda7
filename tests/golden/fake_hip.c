/* A HIP runtime without a device: fake_driver.c under HIP's names, and what HIP does otherwise. Versions count as in HIP: 5.7.3 is
 * 50730000. Built with -DR0600 for the device's struct of HIP 6, -DCOOPERATIVE for the launch that HIP 5.5 brought, -DLAZY=0 for
 * the flag of HIP 5. */
#define HIP
#define cuDeviceGet hipDeviceGet
#define cuDeviceGetCount hipGetDeviceCount
#define cuDeviceGetName hipDeviceGetName
#define cuDeviceTotalMem_v2 hipDeviceTotalMem
#define cuDriverGetVersion hipRuntimeGetVersion
#define cuInit hipInit
#define cuMemGetInfo_v2 hipMemGetInfo
#define cuMemAlloc_v2 hipMalloc
#define cuMemFree_v2 hipFree
#define cuMemAllocAsync hipMallocAsync
#define cuMemFreeAsync hipFreeAsync
#define cuDeviceGetDefaultMemPool hipDeviceGetDefaultMemPool
#define cuMemPoolSetAttribute hipMemPoolSetAttribute
#define cuMemPoolGetAttribute hipMemPoolGetAttribute
#define cuMemPoolTrimTo hipMemPoolTrimTo
#define cuMemPoolSetAccess hipMemPoolSetAccess
#define cuMemcpyHtoDAsync_v2 hipMemcpyHtoDAsync
#define cuMemcpyDtoHAsync_v2 hipMemcpyDtoHAsync
#define cuMemcpyDtoDAsync_v2 hipMemcpyDtoDAsync
#define cuMemsetD8Async hipMemsetD8Async
#define cuModuleUnload hipModuleUnload
#define cuModuleGetFunction hipModuleGetFunction
#define cuFuncGetAttribute hipFuncGetAttribute
#define cuStreamCreate hipStreamCreateWithFlags
#define cuStreamDestroy_v2 hipStreamDestroy
#define cuStreamSynchronize hipStreamSynchronize
#define cuStreamWaitEvent hipStreamWaitEvent
#define cuStreamIsCapturing hipStreamIsCapturing
#define cuStreamBeginCapture_v2 hipStreamBeginCapture
#define cuStreamEndCapture hipStreamEndCapture
#define cuEventCreate hipEventCreateWithFlags
#define cuEventDestroy_v2 hipEventDestroy
#define cuEventRecord hipEventRecord
#define cuEventSynchronize hipEventSynchronize
#define cuEventElapsedTime hipEventElapsedTime
#define cuGraphInstantiateWithFlags hipGraphInstantiateWithFlags
#define cuGraphLaunch hipGraphLaunch
#define cuGraphExecDestroy hipGraphExecDestroy
#define cuGraphDestroy hipGraphDestroy
#define cuDeviceCanAccessPeer hipDeviceCanAccessPeer
#define cuIpcGetMemHandle hipIpcGetMemHandle
#define cuIpcCloseMemHandle hipIpcCloseMemHandle
#ifndef VERSION
#define VERSION 50221153
#endif
#include "fake_driver.c"

const char *hipGetErrorName(status s) {
    switch (s) {
    case OUT_OF_MEMORY: return "hipErrorOutOfMemory";
    case NO_BINARY: return "hipErrorNoBinaryForGpu";
    case ILLEGAL_ADDRESS: return "hipErrorIllegalAddress";
    case OUT_OF_RESOURCES: return "hipErrorLaunchOutOfResources";
    }
    return "hipErrorUnknown";
}
const char *hipGetErrorString(status s) {
    /* Version 5 says the name again. */
    return VERSION < 60000000 ? hipGetErrorName(s) : "a sentence";
}
status hipSetDevice(int device) { return device < DEVICES ? 0 : INVALID_DEVICE; }
status hipDeviceGetAttribute(int *value, int which, int device) {
    (void)device;
    switch (which) {
    case 10: *value = 1; break;
    case 19: *value = 8 << 20; break;
    case 26: case 27: case 28: *value = 1024; break;
    case 29: *value = 0x7fffffff; break;
    case 30: case 31: *value = 65535; break;
    case 56: *value = 1024; break;
    case 63: *value = 110; break;
    case 74: *value = 65536; break;
    case 87: *value = 64; break;
    case 88: *value = 1; break;
    default: return INVALID_VALUE;
    }
    return 0;
}
#ifdef R0600
status hipGetDevicePropertiesR0600(char *properties, int device) {
    (void)device;
    memset(properties, 'x', 1472);
    strcpy(properties + 1160, "gfx942:sramecc+:xnack-");
    return 0;
}
#endif
status hipGetDeviceProperties(char *properties, int device) {
    (void)device;
    memset(properties, 'x', 792);
    strcpy(properties + 396, "gfx90a:sramecc+:xnack-");
    return 0;
}
/* Code whose byte after the header's architecture is marked asks for another device. */
status hipModuleLoadData(handle *module, const unsigned char *image) {
    if (image[15]) return NO_BINARY;
    *module = (handle)0x3000;
    return lost;
}
status hipModuleLaunchKernel(handle function, unsigned x, unsigned y, unsigned z, unsigned u, unsigned v, unsigned w,
                             unsigned shared, handle stream, void **params, void **extra) {
    (void)stream;
    if (extra) return INVALID_VALUE;
    snprintf(launched, sizeof launched, "%u %u %u block %u %u %u shared %u", x, y, z, u, v, w, shared);
    return lost ? lost : run(function, params);
}
#ifdef COOPERATIVE
status hipModuleLaunchCooperativeKernel(handle function, unsigned x, unsigned y, unsigned z, unsigned u, unsigned v, unsigned w,
                                        unsigned shared, handle stream, void **params) {
    status s = hipModuleLaunchKernel(function, x, y, z, u, v, w, shared, stream, params, NULL);
    strcat(launched, " cooperative");
    return s;
}
#endif
status hipDeviceEnablePeerAccess(int device, unsigned flags) { return device < DEVICES && !flags ? lost : INVALID_VALUE; }
#ifndef LAZY
#define LAZY 1
#endif
status hipIpcOpenMemHandle(address *at, struct ipc ipc, unsigned flags) {
    memcpy(at, &ipc, sizeof *at);
    return flags == LAZY ? lost : INVALID_VALUE;
}
