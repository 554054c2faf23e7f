#include "runtime/device/cuda/gemm_plans.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "runtime/core/error.h"
#include "runtime/core/log.h"
#include "runtime/device/cuda/check.h"
#include "runtime/device/cuda/context.h"

namespace r1::cuda {
namespace {

constexpr int kCandidates = 24;
/// A run this many times as long as the best so far ends a candidate's trial.
constexpr double kHopeless = 1.25;

const char* type_name(cudaDataType_t t) {
  return t == CUDA_R_32F ? "fp32" : t == CUDA_R_16BF ? "bf16" : "?";
}

cublasLtMatrixLayout_t layout(cudaDataType_t type, int64_t rows, int64_t cols, int64_t ld) {
  cublasLtMatrixLayout_t l = nullptr;
  CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&l, type, static_cast<uint64_t>(rows),
                                          static_cast<uint64_t>(cols), ld));
  return l;
}

template <class T>
void set(cublasLtMatmulDesc_t op, cublasLtMatmulDescAttributes_t what, const T& value) {
  CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(op, what, &value, sizeof(value)));
}
template <class T>
void set(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t what, const T& value) {
  CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(p, what, &value, sizeof(value)));
}

std::string hex(const cublasLtMatmulAlgo_t& algo) {
  std::string text;
  for (uint64_t word : algo.data) text += fmt::format("{:016x}", word);
  return text;
}

bool parse_hex(const std::string& text, cublasLtMatmulAlgo_t& algo) {
  constexpr size_t kWords = sizeof(algo.data) / sizeof(algo.data[0]);
  if (text.size() != kWords * 16) return false;
  for (size_t i = 0; i < kWords; ++i) {
    uint64_t word = 0;
    for (size_t j = 0; j < 16; ++j) {
      const char c = text[i * 16 + j];
      if (std::isxdigit(static_cast<unsigned char>(c)) == 0) return false;
      word = word * 16 + static_cast<uint64_t>(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    }
    algo.data[i] = word;
  }
  return true;
}

}  // namespace

std::string GemmShape::str() const {
  return fmt::format("{}{} {}->{} m {} n {} k {} ld {} {} {}{}{}{}", transpose_a ? 'T' : 'N',
                     transpose_b ? 'T' : 'N', type_name(in), type_name(out), m, n, k, lda, ldb, ldc,
                     bias ? " bias" : "", accumulate ? " accumulate" : "",
                     alignment == 16 ? "" : fmt::format(" align {}", alignment));
}

GemmPlans::GemmPlans(DeviceContext& ctx) : ctx_(ctx) {}

GemmPlans::~GemmPlans() {
  for (auto& [shape, plan] : plans_) {
    (void)cublasLtMatmulDescDestroy(plan.op);
    (void)cublasLtMatrixLayoutDestroy(plan.a);
    (void)cublasLtMatrixLayoutDestroy(plan.b);
    (void)cublasLtMatrixLayoutDestroy(plan.c);
  }
  if (begin_ != nullptr) (void)cudaEventDestroy(begin_);
  if (end_ != nullptr) (void)cudaEventDestroy(end_);
}

void GemmPlans::describe(const GemmShape& s, Plan& plan) {
  // CUBLAS_COMPUTE_32F never rounds fp32 inputs to TF32.
  CUBLAS_CHECK(cublasLtMatmulDescCreate(&plan.op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t ta = s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N,
                          tb = s.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  set(plan.op, CUBLASLT_MATMUL_DESC_TRANSA, ta);
  set(plan.op, CUBLASLT_MATMUL_DESC_TRANSB, tb);
  if (s.bias) {
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    set(plan.op, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    const auto type = static_cast<int32_t>(s.in);
    set(plan.op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type);
  }
  plan.a = s.transpose_a ? layout(s.in, s.k, s.m, s.lda) : layout(s.in, s.m, s.k, s.lda);
  plan.b = s.transpose_b ? layout(s.in, s.n, s.k, s.ldb) : layout(s.in, s.k, s.n, s.ldb);
  plan.c = layout(s.out, s.m, s.n, s.ldc);
}

cublasStatus_t GemmPlans::launch(const GemmShape& s, const Plan& plan,
                                 const cublasLtMatmulAlgo_t& algo, const void* a, const void* b,
                                 const void* c, void* d, cudaStream_t stream) {
  const float alpha = 1.0F, beta = s.accumulate ? 1.0F : 0.0F;
  return cublasLtMatmul(ctx_.cublaslt(), plan.op, &alpha, a, plan.a, b, plan.b, &beta, c, plan.c, d,
                        plan.c, &algo, ctx_.gemm_workspace(stream),
                        DeviceContext::kGemmWorkspaceBytes, stream);
}

double GemmPlans::time_us(const GemmShape& s, const Plan& plan, const cublasLtMatmulAlgo_t& algo,
                          const void* a, const void* b, const void* c, void* d, cudaStream_t stream,
                          int repeats) {
  CUDA_CHECK(cudaEventRecord(begin_, stream));
  for (int i = 0; i < repeats; ++i)
    if (launch(s, plan, algo, a, b, c, d, stream) != CUBLAS_STATUS_SUCCESS) return -1;
  CUDA_CHECK(cudaEventRecord(end_, stream));
  CUDA_CHECK(cudaEventSynchronize(end_));
  float ms = 0;
  CUDA_CHECK(cudaEventElapsedTime(&ms, begin_, end_));
  return static_cast<double>(ms) * 1e3 / repeats;
}

bool GemmPlans::take(const Cached& choice, Plan& plan) {
  cublasLtMatmulHeuristicResult_t result{};
  if (cublasLtMatmulAlgoCheck(ctx_.cublaslt(), plan.op, plan.a, plan.b, plan.c, plan.c,
                              &choice.algo, &result) != CUBLAS_STATUS_SUCCESS ||
      result.workspaceSize > DeviceContext::kGemmWorkspaceBytes)
    return false;
  plan.algo = choice.algo;
  plan.rank = choice.rank;
  plan.first_us = choice.first_us;
  plan.best_us = choice.best_us;
  plan.settled = true;
  return true;
}

void GemmPlans::choose(const GemmShape& s, Plan& plan, const void* a, const void* b, void* c,
                       const void* bias, cudaStream_t stream) {
  if (bias != nullptr) set(plan.op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  const Settings& settings = ctx_.settings();
  const bool timed = settings.tuning == Tuning::kTimed;
  if (timed && cache_read_from_ != cache_path()) {
    cache_ = read_cache();
    cache_read_from_ = cache_path();
  }
  // A sum differs from its product by one more operand; the choice for one serves the other, since the trials are most of a
  // first step.
  GemmShape twin = s;
  twin.accumulate = !s.accumulate;
  if (timed)
    for (const GemmShape& shape : {s, twin})
      if (const auto known = cache_.find(shape.str()); known != cache_.end() && take(known->second, plan)) return;

  cublasLtMatmulPreference_t preference = nullptr;
  CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
  cublasLtMatmulHeuristicResult_t found[kCandidates];
  int count = 0;
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  try {
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, DeviceContext::kGemmWorkspaceBytes);
    // Partial sums only in fp32 and in a fixed order.
    const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    const auto alignment = static_cast<uint32_t>(s.alignment);
    for (const auto what :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      set(preference, what, alignment);
    status = cublasLtMatmulAlgoGetHeuristic(ctx_.cublaslt(), plan.op, plan.a, plan.b, plan.c,
                                            plan.c, preference, kCandidates, found, &count);
  } catch (...) {
    (void)cublasLtMatmulPreferenceDestroy(preference);
    throw;
  }
  (void)cublasLtMatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS || count == 0)
    throw DeviceError("cuda:{}: cuBLASLt {} has no algorithm for the product {} ({})", ctx_.index(),
                      cublasLtGetVersion(), s.str(), cublasLtGetStatusName(status));
  plan.algo = found[0].algo;
  plan.rank = 0;
  plan.settled = !timed || count == 1;
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  CUDA_CHECK(cudaStreamIsCapturing(stream, &capturing));
  if (plan.settled || capturing != cudaStreamCaptureStatusNone) return;

  // An accumulating product must not run more than once on its output: the trials write elsewhere.
  void* out = c;
  if (s.accumulate) {
    const size_t bytes = static_cast<size_t>(s.ldc * s.n) * (s.out == CUDA_R_32F ? 4 : 2);
    if (cudaMalloc(&out, bytes) != cudaSuccess) {
      (void)cudaGetLastError();
      log::debug("no memory to time algorithms for {}: taking the library's first", s.str());
      plan.settled = true;
      return;
    }
  }
  if (begin_ == nullptr) {
    CUDA_CHECK(cudaEventCreate(&begin_));
    CUDA_CHECK(cudaEventCreate(&end_));
  }
  struct Trial {
    int rank;
    double us;
  };
  std::vector<Trial> trials;
  double best_so_far = std::numeric_limits<double>::infinity();
  for (int i = 0; i < count; ++i) {
    if (found[i].state != CUBLAS_STATUS_SUCCESS) continue;
    // The first run warms up (its kernel may have to be loaded), and shows whether it runs at all;
    // the second shows who cannot win: a slow candidate is not worth three more.
    if (time_us(s, plan, found[i].algo, a, b, c, out, stream, 1) < 0) continue;
    const double once = time_us(s, plan, found[i].algo, a, b, c, out, stream, 1);
    const double us = i > 0 && once > kHopeless * best_so_far
                          ? once : time_us(s, plan, found[i].algo, a, b, c, out, stream, 3);
    best_so_far = std::min(best_so_far, us);
    trials.push_back({i, us});
  }
  const double first = !trials.empty() && trials.front().rank == 0 ? trials.front().us : 0;
  std::sort(trials.begin(), trials.end(),
            [](const Trial& x, const Trial& y) { return x.us < y.us; });
  // The leaders once more, in turn, so that a clock change does not decide.
  if (trials.size() > 4) trials.resize(4);
  for (int round = 0; round < 2; ++round)
    for (Trial& t : trials) {
      const double us = time_us(s, plan, found[t.rank].algo, a, b, c, out, stream, 4);
      t.us = round == 0 ? us : std::min(t.us, us);
    }
  if (out != c) (void)cudaFree(out);
  if (trials.empty()) return;
  const auto best = std::min_element(trials.begin(), trials.end(),
                                     [](const Trial& x, const Trial& y) { return x.us < y.us; });
  plan.algo = found[best->rank].algo;
  plan.rank = best->rank;
  plan.first_us = first;
  plan.best_us = best->us;
  plan.settled = true;
  cache_[s.str()] = {plan.algo, plan.rank, plan.first_us, plan.best_us};
  unsaved_ = true;
  log::debug("gemm {}: candidate {} of {}, {:.1f} us (first {:.1f} us)", s.str(), plan.rank, count,
             plan.best_us, first);
}

void GemmPlans::run(const GemmShape& shape, const void* a, const void* b, void* c, const void* bias,
                    cudaStream_t stream) {
  const std::scoped_lock lock(mutex_);
  Plan& plan = plans_[shape];
  if (plan.op == nullptr) describe(shape, plan);
  if (!plan.settled) choose(shape, plan, a, b, c, bias, stream);
  if (bias != nullptr) set(plan.op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  const cublasStatus_t status = launch(shape, plan, plan.algo, a, b, c, c, stream);
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const std::string text = fmt::format("cuda:{}: product {} failed: {} ({})", ctx_.index(), shape.str(),
                                       cublasLtGetStatusString(status), cublasLtGetStatusName(status));
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw_no_memory(text);
  throw DeviceError("{}", text);
}

std::vector<GemmChoice> GemmPlans::choices() {
  const std::scoped_lock lock(mutex_);
  std::vector<GemmChoice> all;
  for (const auto& [shape, plan] : plans_)
    all.push_back({shape.str(), plan.rank, plan.first_us, plan.best_us});
  return all;
}

// ------------------------------------------------------------------ the cache file

std::string GemmPlans::cache_path() const {
  if (ctx_.settings().cache_dir.empty()) return {};
  std::string name;
  for (const char c : ctx_.info().name)
    name += std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '-';
  return ctx_.settings().cache_dir + fmt::format("/gemm-{}-{}sm-cublaslt{}.txt", name,
                                                 ctx_.multiprocessors(),
                                                 ctx_.info().cublaslt_version);
}

std::string GemmPlans::cache_header() const {
  return fmt::format("# r1run GEMM choices 1; {}; {} multiprocessors; cuBLASLt {}",
                     ctx_.info().name, ctx_.multiprocessors(), ctx_.info().cublaslt_version);
}

GemmPlans::Cache GemmPlans::read_cache() const {
  Cache cache;
  const std::string path = cache_path();
  if (path.empty()) return cache;
  std::ifstream in(path);
  std::string line;
  if (!std::getline(in, line) || line != cache_header()) return cache;
  while (std::getline(in, line)) {  // shape, tab, rank first_us best_us algorithm
    const size_t tab = line.find('\t');
    if (tab == std::string::npos) continue;
    std::istringstream rest(line.substr(tab + 1));
    Cached c;
    std::string algo;
    if (rest >> c.rank >> c.first_us >> c.best_us >> algo && parse_hex(algo, c.algo))
      cache[line.substr(0, tab)] = c;
  }
  return cache;
}

void GemmPlans::save() {
  const std::scoped_lock lock(mutex_);
  const std::string path = cache_path();
  if (path.empty() || !unsaved_) return;
  namespace fs = std::filesystem;
  std::error_code ec;
  fs::create_directories(fs::path(path).parent_path(), ec);
  Cache all = read_cache();  // what other ranks wrote meanwhile
  for (const auto& [key, value] : cache_) all[key] = value;
  const std::string temporary = fmt::format("{}.{}.tmp", path, getpid());
  {
    std::ofstream out(temporary);
    out << cache_header() << '\n';
    for (const auto& [key, c] : all)
      out << key << '\t' << c.rank << ' ' << c.first_us << ' ' << c.best_us << ' ' << hex(c.algo)
          << '\n';
    if (!out) {
      log::warn("cannot write the GEMM cache {}: timing will be repeated at the next start",
                temporary);
      return;
    }
  }
  fs::rename(temporary, path, ec);
  if (ec) log::warn("cannot write the GEMM cache {}: {}", path, ec.message());
  unsaved_ = false;
}

}  // namespace r1::cuda
