#include "comm/ucx/ucx.h"

#include <ucp/api/ucp.h>

#include <cstdlib>
#include <numeric>
#include <sstream>

#include "comm/arguments.h"
#include "comm/check.h"
#include "comm/composed.h"
#include "runtime/core/host.h"

namespace r1::comm {

std::string ucx_error_text(int status) {
  return ucs_status_string(static_cast<ucs_status_t>(status));
}

namespace {

// One worker and its endpoints: what all groups of a process share. Freed by close() only.
struct UcxWires : Wires {
  Memory* memory = &host_memory();
  std::vector<bool> watched;  // by world rank: whether UCX shall tell that it died
  ucp_context_h context = nullptr;
  ucp_worker_h worker = nullptr;
  int world_rank = 0;
  std::vector<std::vector<char>> addresses;  // by world rank
  std::vector<ucp_ep_h>
      endpoints;  // by world rank; made when first sent to, as few pairs ever talk
  std::vector<ucs_status_t> failures;  // by world rank: what UCX said of a broken endpoint

  // User data of an endpoint's error handler.
  struct Peer {
    UcxWires* wires = nullptr;
    size_t world_rank = 0;
  };
  std::vector<Peer> peers;
};

// UCX calls this inside progress; done() throws.
void on_endpoint_error(void* argument, ucp_ep_h, ucs_status_t status) {
  const auto* peer = static_cast<UcxWires::Peer*>(argument);
  peer->wires->failures[peer->world_rank] = status;
}

ucp_ep_h endpoint(UcxWires& wires, const Communicator& c, int world_rank) {
  const auto w = static_cast<size_t>(world_rank);
  // UCX must not be given more for an endpoint that it has reported broken.
  if (wires.failures[w] != UCS_OK)
    throw CommError("send on {}: rank {} to world rank {}: {}", c.name(), c.rank(), world_rank,
                    ucs_status_string(wires.failures[w]));
  if (wires.endpoints[w] != nullptr) return wires.endpoints[w];
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(wires.addresses[w].data());
  params.err_mode = wires.watched[w] ? UCP_ERR_HANDLING_MODE_PEER : UCP_ERR_HANDLING_MODE_NONE;
  params.err_handler = {.cb = on_endpoint_error, .arg = &wires.peers[w]};
  const ucs_status_t status = ucp_ep_create(wires.worker, &params, &wires.endpoints[w]);
  UCX_CHECK(status, c, fmt::format("connection of rank {} to world rank {}", c.rank(), world_rank));
  return wires.endpoints[w];
}

class UcxBatch final : public Batch {
 public:
  UcxBatch(const Communicator& c, UcxWires& wires, const std::vector<int>& world_ranks, int64_t id)
      : comm_(c), wires_(wires), world_ranks_(world_ranks), id_(id) {}

  // UCX knows no streams: what it is given must be ready, and it is through when done() says so.
  void begin(const Stream& s) override { wires_.memory->synchronize(s); }
  void send(Channel channel, const void* data, size_t bytes, int peer) override {
    const int to = world_ranks_[static_cast<size_t>(peer)];
    const ucp_request_param_t params = request_params();
    add(ucp_tag_send_nbx(endpoint(wires_, comm_, to), data, bytes, tag(channel, wires_.world_rank),
                         &params),
        peer, kSend);
  }
  void recv(Channel channel, void* data, size_t bytes, int peer) override {
    const int from = world_ranks_[static_cast<size_t>(peer)];
    const ucp_request_param_t params = request_params();
    add(ucp_tag_recv_nbx(wires_.worker, data, bytes, tag(channel, from), ~ucp_tag_t{0}, &params),
        peer, bytes);
  }
  bool done() override {
    if (next_ == open_.size()) return finish();
    ucp_worker_progress(wires_.worker);
    for (; next_ < open_.size(); ++next_) {
      Open& o = open_[next_];
      ucp_tag_recv_info_t info{};
      const bool is_send = o.bytes == kSend;
      const ucs_status_t status = is_send ? ucp_request_check_status(o.request)
                                          : ucp_tag_recv_request_test(o.request, &info);
      if (status == UCS_INPROGRESS) return check_peer(o);
      ucp_request_free(o.request);
      o.request = nullptr;
      if (status != UCS_OK) fail(o, status);
      if (!is_send && info.length != o.bytes)
        throw CommError("recv on {}: rank {} sent {} bytes where {} were expected", comm_.name(),
                        o.peer, info.length, o.bytes);
    }
    return finish();
  }

 private:
  static constexpr size_t kSend = SIZE_MAX;
  struct Open {
    void* request;
    int peer;
    size_t bytes;  // expected; kSend for a send
  };

  static ucp_request_param_t request_params() {
    ucp_request_param_t params{};
    params.op_attr_mask =
        UCP_OP_ATTR_FLAG_NO_IMM_CMPL;  // always a request, whose length can be asked for
    return params;
  }
  // 31 bits of group, 1 of channel, 32 of the sender.
  [[nodiscard]] ucp_tag_t tag(Channel c, int sender) const {
    return static_cast<ucp_tag_t>(id_) << 33 |
           static_cast<ucp_tag_t>(c == Channel::kCollectives) << 32 | static_cast<uint32_t>(sender);
  }
  void add(ucs_status_ptr_t request, int peer, size_t bytes) {
    const Open o{request, peer, bytes};
    if (UCS_PTR_IS_ERR(request)) fail(o, UCS_PTR_STATUS(request));
    open_.push_back(o);
  }
  bool finish() {
    open_.clear();
    next_ = 0;
    return true;
  }
  // A message that waits for a peer whose endpoint broke waits for ever.
  bool check_peer(const Open& o) const {
    const ucs_status_t status =
        wires_.failures[static_cast<size_t>(world_ranks_[static_cast<size_t>(o.peer)])];
    if (status != UCS_OK) fail(o, status);
    return false;
  }
  [[noreturn]] void fail(const Open& o, ucs_status_t status) const {
    if (status == UCS_ERR_MESSAGE_TRUNCATED)
      throw CommError("recv on {}: rank {} sent more than the {} bytes that were expected",
                      comm_.name(), o.peer, o.bytes);
    throw CommError("{} on {}: rank {} and rank {} (world rank {}): {}",
                    o.bytes == kSend ? "send" : "recv", comm_.name(), comm_.rank(), o.peer,
                    world_ranks_[static_cast<size_t>(o.peer)], ucs_status_string(status));
  }

  const Communicator& comm_;
  UcxWires& wires_;
  const std::vector<int>& world_ranks_;
  int64_t id_;
  std::vector<Open> open_;
  size_t next_ = 0;  // all before are through
};

class UcxCommunicator final : public ComposedCommunicator {
 public:
  UcxCommunicator(std::string name, int rank, std::vector<int> world_ranks,
                  std::shared_ptr<UcxWires> wires, int64_t id)
      : ComposedCommunicator(std::move(name), rank, std::move(world_ranks), wires, *wires->memory),
        ucx_(std::move(wires)),
        id_(id) {
    if (id_ >= int64_t{1} << 31)
      throw CommError("{}: too many groups were made ({})", this->name(), id_);
  }

  void close() override {
    if (closed()) return;
    if (id_ != 0) return ComposedCommunicator::close();
    // The second barrier comes when nothing of the first is under way any more, over connections
    // that are all set up: after it no rank needs this one's progress.
    barrier();
    flush();
    ComposedCommunicator::close();
    for (ucp_ep_h& ep : ucx_->endpoints) {
      if (ep == nullptr) continue;
      ucp_request_param_t params{};
      // A peer that was quicker has reset the connection already: nothing of use was under way.
      (void)wait(ucp_ep_close_nbx(ep, &params), "close of a connection");
      ep = nullptr;
    }
    ucp_worker_destroy(ucx_->worker);
    ucp_cleanup(ucx_->context);
    ucx_->broken = fmt::format("{} was closed", name());
  }

 protected:
  std::unique_ptr<Batch> make_batch() override {
    return std::make_unique<UcxBatch>(*this, *ucx_, world_ranks(), id_);
  }
  std::unique_ptr<Communicator> make_group(std::string name, int rank, std::vector<int> world_ranks,
                                           int64_t id) override {
    return std::make_unique<UcxCommunicator>(std::move(name), rank, std::move(world_ranks), ucx_,
                                             id);
  }

 private:
  void flush() {
    ucp_request_param_t params{};
    UCX_CHECK(wait(ucp_worker_flush_nbx(ucx_->worker, &params), "flush"), *this, "flush");
  }
  // Polls until a request is through; its status.
  ucs_status_t wait(ucs_status_ptr_t request, const char* operation) {
    if (!UCS_PTR_IS_PTR(request)) return UCS_PTR_STATUS(request);
    ucs_status_t status = UCS_INPROGRESS;
    poll(operation, [&] {
      ucp_worker_progress(ucx_->worker);
      status = ucp_request_check_status(request);
      return status != UCS_INPROGRESS;
    });
    ucp_request_free(request);
    return status;
  }

  std::shared_ptr<UcxWires> ucx_;
  int64_t id_;
};

// Every rank's bytes: first the lengths, then the contents.
std::vector<std::vector<char>> gather_all(Communicator& bootstrap, std::span<const char> own) {
  const auto n = static_cast<size_t>(bootstrap.size());
  auto length = static_cast<int64_t>(own.size());
  std::vector<int64_t> lengths(n);
  const Tensor one{.data = &length, .dtype = DType::kI64, .shape = {1}, .device = {}};
  const Tensor every{
      .data = lengths.data(), .dtype = DType::kI64, .shape = {bootstrap.size()}, .device = {}};
  bootstrap.all_gather(one, every, std::vector<int64_t>(n, 1), {});
  const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  std::vector<char> bytes(static_cast<size_t>(total));
  const Tensor in{
      .data = const_cast<char*>(own.data()), .dtype = DType::kU8, .shape = {length}, .device = {}};
  const Tensor out{.data = bytes.data(), .dtype = DType::kU8, .shape = {total}, .device = {}};
  bootstrap.all_gather(in, out, lengths, {});
  std::vector<std::vector<char>> all;
  auto at = bytes.begin();
  for (int64_t l : lengths) {
    all.emplace_back(at, at + l);
    at += l;
  }
  return all;
}

// Whether a UCX_TLS list leaves room for shared memory.
bool shared_memory_allowed(std::string list) {
  const char* environment = std::getenv("UCX_TLS");
  if (list.empty() && environment != nullptr) list = environment;
  if (list.empty() || list.front() == '^') return true;
  std::stringstream tokens(list);
  for (std::string t; std::getline(tokens, t, ',');)
    for (const char* shared : {"all", "shm", "sm", "mm", "posix", "sysv", "xpmem", "cma", "knem"})
      if (t == shared) return true;
  return false;
}

}  // namespace

bool ucx_moves_cuda() {
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES;
  params.features = UCP_FEATURE_TAG;
  ucp_context_h context = nullptr;
  if (ucp_init(&params, nullptr, &context) != UCS_OK) return false;
  ucp_context_attr_t attributes{};
  attributes.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES;
  const bool found = ucp_context_query(context, &attributes) == UCS_OK &&
                     (attributes.memory_types & (uint64_t{1} << UCS_MEMORY_TYPE_CUDA)) != 0;
  ucp_cleanup(context);
  return found;
}

std::unique_ptr<Communicator> make_ucx(Communicator& bootstrap, StopCheck stop,
                                       const UcxOptions& options) {
  auto wires = std::make_shared<UcxWires>();
  wires->stop = std::move(stop);
  wires->next_group = 1;
  if (options.memory != nullptr) wires->memory = options.memory;
  wires->world_rank = bootstrap.rank();
  const auto n = static_cast<size_t>(bootstrap.size());

  ucp_config_t* config = nullptr;
  UCX_CHECK(ucp_config_read(nullptr, nullptr, &config), bootstrap, "UCX start");
  const std::unique_ptr<ucp_config_t, void (*)(ucp_config_t*)> config_owner(config,
                                                                            &ucp_config_release);
  if (!options.transports.empty())
    UCX_CHECK(ucp_config_modify(config, "TLS", options.transports.c_str()), bootstrap,
              "UCX transports \"" + options.transports + "\"");
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS;
  params.features = UCP_FEATURE_TAG;
  params.estimated_num_eps = n;
  UCX_CHECK(ucp_init(&params, config, &wires->context), bootstrap, "UCX start");
  ucp_worker_params_t worker_params{};
  worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker_params.thread_mode = UCS_THREAD_MODE_SINGLE;
  UCX_CHECK(ucp_worker_create(wires->context, &worker_params, &wires->worker), bootstrap,
            "UCX worker");
  ucp_address_t* address = nullptr;
  size_t length = 0;
  UCX_CHECK(ucp_worker_get_address(wires->worker, &address, &length), bootstrap,
            "UCX worker address");
  const std::vector<char> own(reinterpret_cast<char*>(address),
                              reinterpret_cast<char*>(address) + length);
  ucp_worker_release_address(wires->worker, address);

  wires->addresses = gather_all(bootstrap, own);
  const std::string host = host_name();
  const auto hosts = gather_all(bootstrap, {host.data(), host.size()});
  const bool watch_local = options.watch_local_peers || !shared_memory_allowed(options.transports);
  for (const auto& h : hosts)
    wires->watched.push_back(watch_local || h != hosts[static_cast<size_t>(bootstrap.rank())]);
  wires->endpoints.assign(n, nullptr);
  wires->failures.assign(n, UCS_OK);
  for (size_t r = 0; r < n; ++r) wires->peers.push_back({wires.get(), r});
  std::vector<int> ranks(n);
  std::iota(ranks.begin(), ranks.end(), 0);
  std::string name = group_name(options.name, ranks);
  return std::make_unique<UcxCommunicator>(std::move(name), bootstrap.rank(), std::move(ranks),
                                           std::move(wires), 0);
}

}  // namespace r1::comm
