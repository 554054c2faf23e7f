/* Faults inside a real rank, for tests: preloaded into r1run-rank, it waits for a file to appear and then, at the next call of
 * the kind asked for on the rank asked for, does what was asked for. The file is removed first, so that it happens once.
 *
 *   R1TEST_FAULT   kill, segv, exit, finalize, stop, deadlock, nan, slow
 *   R1TEST_AT      gemm (cblas_sgemm), message (MPI_Isend), pwrite, fsync, rename
 *   R1TEST_RANK    world rank; R1TEST_TRIGGER  the file
 * "slow" needs no repeated trigger: while the file is there, each call sleeps R1TEST_SLOW_US.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int is_set(const char* name, const char* value) {
  const char* v = getenv(name);
  return v != NULL && strcmp(v, value) == 0;
}

/* 0: nothing happens; 1: the caller spoils its result. */
static int fault_at(const char* where) {
  static __thread int inside = 0;
  const char* trigger = getenv("R1TEST_TRIGGER");
  const char* rank = getenv("OMPI_COMM_WORLD_RANK");
  if (inside || trigger == NULL || rank == NULL || !is_set("R1TEST_AT", where) || !is_set("R1TEST_RANK", rank)) return 0;
  inside = 1;
  int spoil = 0;
  if (access(trigger, F_OK) == 0) {
    if (is_set("R1TEST_FAULT", "slow")) {
      usleep((useconds_t)atoi(getenv("R1TEST_SLOW_US")));
    } else if (unlink(trigger) == 0) {
      if (is_set("R1TEST_FAULT", "kill")) raise(SIGKILL);
      if (is_set("R1TEST_FAULT", "segv")) {
        signal(SIGSEGV, SIG_DFL);
        raise(SIGSEGV);
      }
      if (is_set("R1TEST_FAULT", "exit")) _exit(0);
      if (is_set("R1TEST_FAULT", "finalize")) {
        int (*finalize)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "MPI_Finalize");
        finalize();
        exit(0);
      }
      if (is_set("R1TEST_FAULT", "stop")) raise(SIGSTOP);
      if (is_set("R1TEST_FAULT", "deadlock"))
        for (;;) pause();
      spoil = is_set("R1TEST_FAULT", "nan");
    }
  }
  inside = 0;
  return spoil;
}

#define NEXT(type, name) \
  static type next = NULL; \
  if (next == NULL) next = (type)dlsym(RTLD_NEXT, name)

void cblas_sgemm(int layout, int op_a, int op_b, int m, int n, int k, float alpha, const float* a, int lda, const float* b, int ldb,
                 float beta, float* c, int ldc) {
  typedef void (*function)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int);
  NEXT(function, "cblas_sgemm");
  const int spoil = fault_at("gemm");
  next(layout, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  if (spoil) c[0] = NAN;
}

int MPI_Isend(const void* data, int n, void* type, int to, int tag, void* comm, void* request) {
  typedef int (*function)(const void*, int, void*, int, int, void*, void*);
  NEXT(function, "MPI_Isend");
  fault_at("message");
  return next(data, n, type, to, tag, comm, request);
}

ssize_t pwrite(int fd, const void* data, size_t n, off_t at) {
  typedef ssize_t (*function)(int, const void*, size_t, off_t);
  NEXT(function, "pwrite");
  fault_at("pwrite");
  return next(fd, data, n, at);
}
ssize_t pwrite64(int fd, const void* data, size_t n, off64_t at) { return pwrite(fd, data, n, (off_t)at); }

int fsync(int fd) {
  typedef int (*function)(int);
  NEXT(function, "fsync");
  fault_at("fsync");
  return next(fd);
}

int rename(const char* from, const char* to) {
  typedef int (*function)(const char*, const char*);
  NEXT(function, "rename");
  /* Only the one that makes a checkpoint of a staging directory. */
  if (strstr(from, "/.step-") != NULL && strstr(to, "/step-") != NULL && strchr(strstr(to, "/step-") + 1, '/') == NULL) fault_at("rename");
  return next(from, to);
}
