/* A stand-in for NVIDIA's driver in host memory, for the calls of dgiqa/runtime/cuda.py through the real cuda-python.
 *
 * It shows that the real bindings take our arguments and that we read what they give back. Work is done at once, or kept
 * as a list of copies while a stream is recorded; whether the right things are waited for is the business of the driver
 * in gpu_fakes.py. One context, one device, one recording at a time.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    void *to;
    const void *from;
    size_t bytes;
} Copy;

typedef struct {
    Copy copies[64];
    int count;
} Graph;

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201 };
static int primary, alive, pools[1];
static _Thread_local void *stack[16];
static _Thread_local int depth;
static Graph *recording;

int dgiqa_test_alive(void) { return alive; }

static void *object(void) {
    alive++;
    return malloc(sizeof(Graph));
}

static int drop(void *pointer) {
    alive--;
    free(pointer);
    return OK;
}

static int copy(void *to, const void *from, size_t bytes) {
    if (!depth) return INVALID_CONTEXT;
    if (recording)
        recording->copies[recording->count++] = (Copy){to, from, bytes};
    else
        memcpy(to, from, bytes);
    return OK;
}

static int allocate(void **pointer, size_t bytes) {
    if (!depth) return INVALID_CONTEXT;
    if (bytes > (size_t)1 << 32) return OUT_OF_MEMORY;
    alive++;
    *pointer = aligned_alloc(256, (bytes + 255) / 256 * 256);
    return OK;
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : OK; }
int cuGetErrorName(int status, const char **name) { return *name = status == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR", OK; }
int cuGetErrorString(int status, const char **text) { return *text = status == 2 ? "out of memory" : "an error", OK; }
int cuDriverGetVersion(int *version) { return *version = 13000, OK; }
int cuDeviceGet(int *device, int ordinal) { return ordinal ? INVALID_VALUE : (*device = 0, OK); }
int cuDeviceGetName(char *name, int length, int device) { return snprintf(name, length, "Stand-in %d", device), OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    return *value = attribute == 75 ? 9 : attribute == 76 ? 0 : -1, OK; /* compute capability: major, minor */
}
int cuDeviceGetCount(int *count) { return *count = 1, OK; }
int cuDeviceGetDefaultMemPool(void **pool, int device) { return *pool = &pools[device], OK; }
int cuDeviceGetMemPool(void **pool, int device) { return *pool = &pools[device], OK; }
int cuMemPoolGetAttribute(void *pool, int attribute, void *value) { return (void)pool, (void)attribute, *(uint64_t *)value = 0, OK; }
int cuMemPoolSetAttribute(void *pool, int attribute, void *value) { return (void)pool, (void)attribute, (void)value, OK; }
int cuCtxSetCurrent(void *context) {
    if (!context) return depth -= depth > 0, OK;
    return stack[depth ? depth - 1 : depth++] = context, OK;
}
int cuCtxGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -5, OK; }
int cuCtxGetCurrent(void **context) { return *context = depth ? stack[depth - 1] : NULL, OK; }
int cuCtxGetDevice(int *device) { return depth ? (*device = 0, OK) : INVALID_CONTEXT; }
int cuCtxGetDevice_v2(int *device, void *context) { return (void)context, cuCtxGetDevice(device); }
int cuCtxPushCurrent_v2(void *context) { return stack[depth++] = context, OK; }
int cuCtxPopCurrent_v2(void **context) { return depth ? (*context = stack[--depth], OK) : INVALID_CONTEXT; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return (void)device, alive++, *context = &primary, OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { return (void)device, alive--, OK; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { return *free_bytes = 1u << 30, *total = 1u << 31, OK; }
int cuMemAlloc_v2(void **pointer, size_t bytes) { return allocate(pointer, bytes); }
int cuMemFree_v2(void *pointer) { return drop(pointer); }
int cuMemAllocHost_v2(void **pointer, size_t bytes) { return allocate(pointer, bytes); }
int cuMemFreeHost(void *pointer) { return drop(pointer); }
int cuPointerGetAttribute(void *data, int attribute, void *pointer) {
    (void)pointer;
    if (attribute == 1) return *(void **)data = &primary, OK; /* the context */
    return attribute == 9 ? (*(int *)data = 0, OK) : INVALID_VALUE; /* 9: the device's ordinal */
}
int cuMemAllocFromPoolAsync(void **pointer, size_t n, void *pool, void *stream) { return (void)pool, (void)stream, allocate(pointer, n); }
int cuMemFreeAsync(void *pointer, void *stream) { return (void)stream, drop(pointer); }
int cuMemcpyAsync(void *to, const void *from, size_t n, void *stream) { return (void)stream, copy(to, from, n); }
int cuPointerGetAttributes(unsigned count, int *attributes, void **data, void *pointer) {
    for (unsigned i = 0; i < count; i++) {
        int *value = data[i];
        *value = attributes[i] == 2 ? (alive > 1 ? 2 : 1) : 0; /* 2: the type of memory, which is the device's */
    }
    return (void)pointer, OK;
}
int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t n, void *stream) { return (void)stream, copy(to, from, n); }
int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t n, void *stream) { return (void)stream, copy(to, from, n); }
int cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t n, void *stream) { return (void)stream, copy(to, from, n); }
int cuMemcpyDtoH_v2(void *to, const void *from, size_t n) { return copy(to, from, n); }
int cuStreamCreate(void **stream, unsigned flags) { return flags == 1 ? (*stream = object(), OK) : INVALID_VALUE; }
int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return (void)priority, cuStreamCreate(stream, flags); }
int cuStreamGetCtx(void *stream, void **context) { return (void)stream, *context = &primary, OK; }
int cuStreamIsCapturing(void *stream, int *status) { return (void)stream, *status = recording != NULL, OK; }
int cuStreamGetCaptureInfo_v3(void *s, int *status, uint64_t *id, void **g, const void ***d, const void **e, size_t *n) {
    (void)s, *status = recording != NULL;
    if (id) *id = 1;
    if (g) *g = recording;
    if (d) *d = NULL;
    if (e) *e = NULL;
    if (n) *n = 0;
    return OK;
}
int cuStreamGetCaptureInfo_v2(void *s, int *status, uint64_t *id, void **g, const void ***d, size_t *n) {
    return cuStreamGetCaptureInfo_v3(s, status, id, g, d, NULL, n);
}
int cuThreadExchangeStreamCaptureMode(int *mode) { return (void)mode, OK; }
int cuStreamDestroy_v2(void *stream) { return drop(stream); }
int cuStreamSynchronize(void *stream) { return (void)stream, OK; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return (void)stream, event && !flags ? OK : INVALID_VALUE; }
int cuEventCreate(void **event, unsigned flags) { return flags == 2 ? (*event = object(), OK) : INVALID_VALUE; }
int cuEventRecord(void *event, void *stream) { return (void)stream, event ? OK : INVALID_VALUE; }
int cuEventSynchronize(void *event) { return event ? OK : INVALID_VALUE; }
int cuEventDestroy_v2(void *event) { return drop(event); }
int cuStreamBeginCapture_v2(void *stream, int mode) {
    (void)stream;
    if (mode != 1) return INVALID_VALUE; /* 1: of this thread */
    recording = object();
    recording->count = 0;
    return OK;
}
int cuStreamEndCapture(void *stream, void **graph) { return (void)stream, *graph = recording, recording = NULL, OK; }
int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) {
    if (flags) return INVALID_VALUE;
    *made = object();
    memcpy(*made, graph, sizeof(Graph));
    return OK;
}
int cuGraphInstantiateWithParams(void **made, void *graph, uint64_t *params) { return params[0] ? INVALID_VALUE : cuGraphInstantiateWithFlags(made, graph, 0); }
int cuUserObjectCreate(void **made, void *kept, void *destroy, unsigned count, unsigned flags) {
    return (void)kept, (void)destroy, (void)count, (void)flags, *made = &primary, OK;
}
int cuUserObjectRelease(void *kept, unsigned count) { return (void)kept, (void)count, OK; }
int cuGraphRetainUserObject(void *g, void *o, unsigned n, unsigned f) { return (void)g, (void)o, (void)n, (void)f, OK; }
int cuGraphReleaseUserObject(void *g, void *o, unsigned n) { return (void)g, (void)o, (void)n, OK; }
int cuGraphLaunch(void *graph, void *stream) {
    (void)stream;
    for (int i = 0; i < ((Graph *)graph)->count; i++) {
        Copy *c = &((Graph *)graph)->copies[i];
        memcpy(c->to, c->from, c->bytes);
    }
    return OK;
}
int cuGraphDestroy(void *graph) { return drop(graph); }
int cuGraphExecDestroy(void *graph) { return drop(graph); }

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    (void)flags;
    char newer[128];
    const char *suffixes[] = {"_v3", "_v2", "WithFlags", ""};
    *function = NULL;
    for (int i = version < 12030; i < 4 && !*function; i++) { /* there is one third version, of CUDA 12.3 */
        snprintf(newer, sizeof newer, "%s%s", name, suffixes[i]);
        *function = dlsym(RTLD_DEFAULT, newer);
    }
    if (status) *status = *function ? 0 : 1;
    return OK;
}
