/* A stand-in for libnvinfer, libnvinfer_plugin and libnvonnxparser, for tests on machines without TensorRT.
 *
 * TensorRT's Python bindings import nine C functions from those three libraries. Here each of them hands over to the
 * function of the same name in TensorRT-RTX, which is of the TensorRT 11 generation and compiles engines without a GPU.
 * Versions are not handed over but asked of the library, since the two count theirs differently. The libraries are
 * opened on the first call, so that importing the bindings (to read their types) needs neither of them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static void *symbol(void **library, const char *variable, const char *name) {
    if (!*library) {
        const char *path = getenv(variable);
        *library = path ? dlopen(path, RTLD_NOW | RTLD_GLOBAL) : NULL;
        if (!*library) {
            fprintf(stderr, "stand-in: %s=%s: %s\n", variable, path ? path : "(unset)", path ? dlerror() : "");
            abort();
        }
    }
    void *found = dlsym(*library, name);
    if (!found) {
        fprintf(stderr, "stand-in: %s\n", dlerror());
        abort();
    }
    return found;
}

static void *core(const char *name) {
    static void *library;
    return symbol(&library, "DGIQA_TEST_NVINFER", name);
}

static void *onnx(const char *name) {
    static void *library;
    core("getInferLibVersion"); /* the parser finds the core library among those already open */
    return symbol(&library, "DGIQA_TEST_NVONNXPARSER", name);
}

static int32_t core_version(void) { return ((int32_t (*)(void))core("getInferLibVersion"))(); }

int getNvOnnxParserVersion(void) { return ((int (*)(void))onnx(__func__))(); }

void *createInferBuilder_INTERNAL(void *logger, int32_t version) {
    (void)version;
    return ((void *(*)(void *, int32_t))core(__func__))(logger, core_version());
}

void *createInferRuntime_INTERNAL(void *logger, int32_t version) {
    (void)version;
    return ((void *(*)(void *, int32_t))core(__func__))(logger, core_version());
}

void *createInferRefitter_INTERNAL(void *engine, void *logger, int32_t version) {
    (void)version;
    return ((void *(*)(void *, void *, int32_t))core(__func__))(engine, logger, core_version());
}

void *getPluginRegistry(void) { return ((void *(*)(void))core(__func__))(); }

void *getBuilderPluginRegistry(int capability) { return ((void *(*)(int))core(__func__))(capability); }

void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) {
    (void)version;
    return ((void *(*)(void *, void *, int))onnx(__func__))(network, logger, getNvOnnxParserVersion());
}

void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) {
    (void)version;
    return ((void *(*)(void *, void *, int))onnx(__func__))(refitter, logger, getNvOnnxParserVersion());
}

int initLibNvInferPlugins(void *logger, const char *name_space) { /* no plugins beyond those a test loads */
    (void)logger;
    (void)name_space;
    return 1;
}
