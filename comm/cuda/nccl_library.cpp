// NCCL, opened when a job first makes a group over it: neither the front door nor a job without it
// needs the library.
#include <dlfcn.h>
#include <nccl.h>

#include <chrono>
#include <cstring>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "comm/nccl/nccl_api.h"
#include "runtime/core/error.h"
#include "runtime/device/cuda/context.h"

namespace r1::comm {
namespace {

static_assert(sizeof(ncclUniqueId) == sizeof(NcclApi::Id));

class NcclLibrary final : public NcclApi {
 public:
  NcclLibrary() {
    handle_ = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (handle_ == nullptr) {
      const char* why = dlerror();
      throw DeviceError(
          "NCCL cannot be loaded: {}; put the folder of libnccl.so.2 on LD_LIBRARY_PATH, or choose "
          "--comm ipc or mpi",
          why != nullptr ? why : "no message");
    }
    load(get_version_, "ncclGetVersion");
    load(get_unique_id_, "ncclGetUniqueId");
    load(init_, "ncclCommInitRankConfig");
    load(split_, "ncclCommSplit");
    load(async_error_, "ncclCommGetAsyncError");
    load(error_string_, "ncclGetErrorString");
    load(last_error_, "ncclGetLastError");
    load(group_start_, "ncclGroupStart");
    load(group_end_, "ncclGroupEnd");
    load(all_reduce_, "ncclAllReduce");
    load(all_gather_, "ncclAllGather");
    load(reduce_scatter_, "ncclReduceScatter");
    load(broadcast_, "ncclBroadcast");
    load(send_, "ncclSend");
    load(recv_, "ncclRecv");
    load(finalize_, "ncclCommFinalize");
    load(destroy_, "ncclCommDestroy");
    load(abort_, "ncclCommAbort");
  }

  std::string version() override {
    int v = 0;
    (void)get_version_(&v);
    return fmt::format("{}.{}.{}", v / 10000, v / 100 % 100, v % 100);
  }
  Id unique_id() override {
    ncclUniqueId id;
    const ncclResult_t r = get_unique_id_(&id);
    if (r != ncclSuccess) throw CommError("NCCL start: {}", text(r, nullptr));
    Id out;
    std::memcpy(out.data(), &id, sizeof id);
    return out;
  }
  Comm init(const Id& id, int ranks, int rank, Device device) override {
    const r1::cuda::DeviceScope scope(device.index);
    ncclUniqueId nccl_id;
    std::memcpy(&nccl_id, id.data(), sizeof nccl_id);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclComm_t comm = nullptr;
    const ncclResult_t r = init_(&comm, ranks, nccl_id, rank, &config);
    if (r != ncclSuccess && r != ncclInProgress)
      throw CommError("NCCL start of {} ranks: {}", ranks, text(r, comm));
    return comm;
  }
  NcclStatus status(Comm comm) override {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t r = async_error_(of(comm), &state);
    return status_of(r != ncclSuccess ? r : state, of(comm));
  }

  NcclStatus split(Comm parent, int rank, Comm* out) override {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;
    config.splitShare = 1;
    return status_of(split_(of(parent), 0, rank, reinterpret_cast<ncclComm_t*>(out), &config),
                     of(parent));
  }

  void group_begin() override { (void)group_start_(); }
  NcclStatus group_end() override { return status_of(group_end_(), nullptr); }
  NcclStatus all_reduce(Comm c, const Tensor& x, ReduceOp op, const Stream& s) override {
    return call(c, s, [&](ncclComm_t comm, cudaStream_t stream) {
      return all_reduce_(x.data, x.data, static_cast<size_t>(x.numel()), type_of(x.dtype),
                         op_of(op), comm, stream);
    });
  }
  NcclStatus all_gather(Comm c, const void* in, void* out, int64_t numel, DType dtype,
                        const Stream& s) override {
    return call(c, s, [&](ncclComm_t comm, cudaStream_t stream) {
      return all_gather_(in, out, static_cast<size_t>(numel), type_of(dtype), comm, stream);
    });
  }
  NcclStatus reduce_scatter(Comm c, const void* in, void* out, int64_t numel, DType dtype,
                            const Stream& s) override {
    return call(c, s, [&](ncclComm_t comm, cudaStream_t stream) {
      return reduce_scatter_(in, out, static_cast<size_t>(numel), type_of(dtype), ncclSum, comm,
                             stream);
    });
  }
  NcclStatus broadcast(Comm c, const Tensor& x, int root, const Stream& s) override {
    return call(c, s, [&](ncclComm_t comm, cudaStream_t stream) {
      return broadcast_(x.data, x.data, x.bytes(), ncclInt8, root, comm, stream);
    });
  }
  NcclStatus send(Comm c, const void* data, int64_t bytes, int peer, const Stream& s) override {
    return call(c, s, [&](ncclComm_t comm, cudaStream_t stream) {
      return send_(data, static_cast<size_t>(bytes), ncclInt8, peer, comm, stream);
    });
  }
  NcclStatus recv(Comm c, void* data, int64_t bytes, int peer, const Stream& s) override {
    return call(c, s, [&](ncclComm_t comm, cudaStream_t stream) {
      return recv_(data, static_cast<size_t>(bytes), ncclInt8, peer, comm, stream);
    });
  }

  NcclStatus finalize(Comm c) override { return status_of(finalize_(of(c)), of(c)); }
  void destroy(Comm c) noexcept override { (void)destroy_(of(c)); }
  void abort(const std::vector<Comm>& comms) noexcept override {
    if (comms.empty()) return;
    // In a thread that may be left behind: the process is about to end, and no library call may
    // keep it.
    auto done = std::make_shared<std::promise<void>>();
    std::future<void> through = done->get_future();
    try {
      int device = 0;
      (void)cudaGetDevice(&device);
      std::thread([this, comms, done, device] {
        (void)cudaSetDevice(device);
        (void)group_start_();
        for (Comm c : comms) (void)abort_(of(c));
        (void)group_end_();
        done->set_value();
      }).detach();
      (void)through.wait_for(std::chrono::seconds(3));
    } catch (const std::exception&) {  // no thread to be had: leave as it is
    }
  }

 private:
  static ncclComm_t of(Comm c) { return static_cast<ncclComm_t>(c); }
  template <class F>
  void load(F& f, const char* name) {
    f = reinterpret_cast<F>(dlsym(handle_, name));
    if (f == nullptr)
      throw DeviceError("libnccl.so.2 has no {}: NCCL 2.18 or newer is needed", name);
  }
  template <class F>
  NcclStatus call(Comm c, const Stream& s, F f) {
    const r1::cuda::DeviceScope scope(s.device.index);
    return status_of(f(of(c), r1::cuda::handle_of(s)), of(c));
  }
  std::string text(ncclResult_t r, ncclComm_t comm) {
    const char* last = last_error_(comm);
    return last != nullptr && *last != '\0' ? fmt::format("{} ({})", error_string_(r), last)
                                            : std::string(error_string_(r));
  }
  NcclStatus status_of(ncclResult_t r, ncclComm_t comm) {
    if (r == ncclSuccess) return {};
    if (r == ncclInProgress) return {NcclStatus::State::kUnderWay, {}};
    return {NcclStatus::State::kFailed, text(r, comm)};
  }
  static ncclRedOp_t op_of(ReduceOp op) { return op == ReduceOp::kSum ? ncclSum : ncclMax; }
  static ncclDataType_t type_of(DType t) {
    switch (t) {
      case DType::kF32:
        return ncclFloat32;
      case DType::kF64:
        return ncclFloat64;
      case DType::kBF16:
        return ncclBfloat16;
      case DType::kF16:
        return ncclFloat16;
      case DType::kI32:
        return ncclInt32;
      case DType::kI64:
        return ncclInt64;
      case DType::kU8:
        return ncclUint8;
    }
    return ncclUint8;
  }

  void* handle_ = nullptr;  // never closed: its threads outlive any owner
  decltype(&::ncclGetVersion) get_version_ = nullptr;
  decltype(&::ncclGetUniqueId) get_unique_id_ = nullptr;
  decltype(&::ncclCommInitRankConfig) init_ = nullptr;
  decltype(&::ncclCommSplit) split_ = nullptr;
  decltype(&::ncclCommGetAsyncError) async_error_ = nullptr;
  decltype(&::ncclGetErrorString) error_string_ = nullptr;
  decltype(&::ncclGetLastError) last_error_ = nullptr;
  decltype(&::ncclGroupStart) group_start_ = nullptr;
  decltype(&::ncclGroupEnd) group_end_ = nullptr;
  decltype(&::ncclAllReduce) all_reduce_ = nullptr;
  decltype(&::ncclAllGather) all_gather_ = nullptr;
  decltype(&::ncclReduceScatter) reduce_scatter_ = nullptr;
  decltype(&::ncclBroadcast) broadcast_ = nullptr;
  decltype(&::ncclSend) send_ = nullptr;
  decltype(&::ncclRecv) recv_ = nullptr;
  decltype(&::ncclCommFinalize) finalize_ = nullptr;
  decltype(&::ncclCommDestroy) destroy_ = nullptr;
  decltype(&::ncclCommAbort) abort_ = nullptr;
};

}  // namespace
}  // namespace r1::comm

extern "C" r1::comm::NcclApi* r1run_nccl_api() {
  static r1::comm::NcclLibrary& library =
      *new r1::comm::NcclLibrary;  // a failed attempt is tried again
  return &library;
}
