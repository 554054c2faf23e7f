/* Faults of the CUDA libraries, for tests: preloaded into r1run-rank, it answers in their place.
 *
 *   R1TEST_CUDA_FAULT  device    every wait for the device fails with R1TEST_CUDA_ERROR (a cudaError_t), as after an ECC error
 *                      memory    cublasLtMatmul finds no memory
 *                      driver    the driver is of CUDA 12.8, too old for this build
 *   R1TEST_TRIGGER     a file: nothing happens before it exists (not for "driver")
 *
 * The library that is answered for is opened by name, since it is no part of the program's own scope.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int wanted(const char* fault) {
  const char* v = getenv("R1TEST_CUDA_FAULT");
  const char* trigger = getenv("R1TEST_TRIGGER");
  if (v == NULL || strcmp(v, fault) != 0) return 0;
  return strcmp(fault, "driver") == 0 || (trigger != NULL && access(trigger, F_OK) == 0);
}

static int device_error(void) { return atoi(getenv("R1TEST_CUDA_ERROR")); }

static void* of_library(const char* library, const char* name) {
  void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  void* symbol = handle == NULL ? NULL : dlsym(handle, name);
  if (symbol == NULL) {
    fprintf(stderr, "cuda_fault_preload: no %s in %s\n", name, library);
    abort();
  }
  return symbol;
}

#define WAIT(name, type)                                                          \
  int name(type what) {                                                           \
    static int (*next)(type) = NULL;                                              \
    if (wanted("device")) return device_error();                                  \
    if (next == NULL) next = (int (*)(type))of_library("libcudart.so.13", #name); \
    return next(what);                                                            \
  }
WAIT(cudaStreamQuery, void*)
WAIT(cudaStreamSynchronize, void*)
WAIT(cudaEventQuery, void*)
WAIT(cudaEventSynchronize, void*)

int cudaDriverGetVersion(int* version) {
  static int (*next)(int*) = NULL;
  if (wanted("driver")) {
    *version = 12080;
    return 0;
  }
  if (next == NULL) next = (int (*)(int*))of_library("libcudart.so.13", "cudaDriverGetVersion");
  return next(version);
}

int cudaGetDeviceCount(int* count) {
  static int (*next)(int*) = NULL;
  if (wanted("driver")) {
    *count = 0;
    return 35; /* cudaErrorInsufficientDriver */
  }
  if (next == NULL) next = (int (*)(int*))of_library("libcudart.so.13", "cudaGetDeviceCount");
  return next(count);
}

typedef int (*Matmul)(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*, void*, void*,
                      const void*, void*, size_t, void*);
int cublasLtMatmul(void* handle, void* op, const void* alpha, const void* a, void* a_layout, const void* b, void* b_layout, const void* beta,
                   const void* c, void* c_layout, void* d, void* d_layout, const void* algo, void* workspace, size_t bytes, void* stream) {
  static Matmul next = NULL;
  if (wanted("memory")) return 3; /* CUBLAS_STATUS_ALLOC_FAILED */
  if (next == NULL) next = (Matmul)of_library("libcublasLt.so.13", "cublasLtMatmul");
  return next(handle, op, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algo, workspace, bytes, stream);
}
