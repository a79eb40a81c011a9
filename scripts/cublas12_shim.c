/*
 * libcublas.so.12 for a machine that has libcublas.so.13 only.
 *
 * TurboMind is built for CUDA 12 and links six functions of cuBLAS, whose signatures are the same in
 * CUDA 13: each call is forwarded. Handles are created by the forwarded cublasCreate_v2, streams and
 * device pointers belong to the driver, so both releases can use them.
 *
 * libcublas.so.13 must be loaded already (import torch does that) or findable by the loader.
 * scripts/gpu.py builds this file with gcc.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static void *find(const char *name) {
    static void *library;
    if (!library) {
        library = dlopen("libcublas.so.13", RTLD_NOW | RTLD_GLOBAL);
    }
    void *function = library ? dlsym(library, name) : NULL;
    if (!function) {
        fprintf(stderr, "cublas12_shim: cannot find %s: %s\n", name, dlerror());
        abort();
    }
    return function;
}

#define FORWARD(name, parameters, arguments)           \
    int name parameters {                              \
        static int(*function) parameters;              \
        if (!function) {                               \
            function = (int(*) parameters)find(#name); \
        }                                              \
        return function arguments;                     \
    }

FORWARD(cublasCreate_v2, (void **handle), (handle))
FORWARD(cublasDestroy_v2, (void *handle), (handle))
FORWARD(cublasSetStream_v2, (void *handle, void *stream), (handle, stream))
FORWARD(cublasSetWorkspace_v2, (void *handle, void *workspace, size_t size), (handle, workspace, size))
FORWARD(cublasGetMathMode, (void *handle, int *mode), (handle, mode))
FORWARD(cublasGemmEx,
        (void *handle, int transa, int transb, int m, int n, int k, const void *alpha, const void *a,
         int a_type, int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type,
         int ldc, int compute_type, int algorithm),
        (handle, transa, transb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc,
         compute_type, algorithm))
