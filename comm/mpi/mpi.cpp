// Messages over MPI. All groups use MPI_COMM_WORLD and differ by tag, so that making a group is an
// exchange of messages like any other (MPI_Comm_split blocks inside MPI, for ever when a rank is
// missing).
#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <utility>

#include "comm/arguments.h"
#include "comm/check.h"
#include "comm/composed.h"
#include "runtime/core/log.h"

namespace r1::comm {

std::string mpi_error_text(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS)
    return fmt::format("MPI error {}", code);
  return std::string(text, static_cast<size_t>(length));
}

struct MpiWorld::State : Wires {
  int64_t tag_limit = 32767;    // MPI_TAG_UB; the standard promises this much
  bool library_yields = false;  // inside MPI_Testall
  bool abandoned = false;
  bool made = false;    // world() was called
  bool closed = false;  // and closed by all
  std::function<void()> early_end;
};

namespace {

// MPI counts are int; larger messages travel in pieces, which match in order like any others.
constexpr size_t kPieceBytes = size_t{1} << 30;

class MpiBatch final : public Batch {
 public:
  MpiBatch(const Communicator& c, const std::vector<int>& world_ranks, int64_t id)
      : comm_(c), world_ranks_(world_ranks), id_(id) {}

  void send(Channel channel, const void* data, size_t bytes, int peer) override {
    pieces(const_cast<void*>(data), bytes, [&](char* p, int n) {
      MPI_CHECK(
          MPI_Isend(p, n, MPI_BYTE, world_rank(peer), tag(channel), MPI_COMM_WORLD, add(peer, -1)),
          comm_, "send");
    });
  }
  void recv(Channel channel, void* data, size_t bytes, int peer) override {
    pieces(data, bytes, [&](char* p, int n) {
      MPI_CHECK(
          MPI_Irecv(p, n, MPI_BYTE, world_rank(peer), tag(channel), MPI_COMM_WORLD, add(peer, n)),
          comm_, "recv");
    });
  }
  bool done() override {
    if (requests_.empty()) return true;
    statuses_.resize(requests_.size());
    int flag = 0;
    const int code =
        MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &flag, statuses_.data());
    if (code == MPI_ERR_IN_STATUS) fail();
    MPI_CHECK(code, comm_, "MPI_Testall");
    if (flag == 0) return false;
    for (size_t i = 0; i < requests_.size(); ++i) {
      if (expected_[i].bytes < 0) continue;
      int got = 0;
      MPI_CHECK(MPI_Get_count(&statuses_[i], MPI_BYTE, &got), comm_, "recv");
      if (got != expected_[i].bytes)
        throw CommError("recv on {}: rank {} sent {} bytes where {} were expected", comm_.name(),
                        expected_[i].peer, got, expected_[i].bytes);
    }
    requests_.clear();
    expected_.clear();
    return true;
  }

 private:
  struct Expected {
    int peer;
    int bytes;  // -1: a send
  };

  template <class Post>
  static void pieces(void* data, size_t bytes, Post post) {
    char* p = static_cast<char*>(data);
    do {  // an empty message is one piece
      const size_t n = std::min(bytes, kPieceBytes);
      post(p, static_cast<int>(n));
      p += n;
      bytes -= n;
    } while (bytes != 0);
  }
  [[nodiscard]] int world_rank(int peer) const { return world_ranks_[static_cast<size_t>(peer)]; }
  [[nodiscard]] int tag(Channel c) const {
    return static_cast<int>(2 * id_ + (c == Channel::kCollectives ? 1 : 0));
  }
  MPI_Request* add(int peer, int bytes) {
    expected_.push_back({peer, bytes});
    requests_.push_back(MPI_REQUEST_NULL);
    return &requests_.back();
  }
  [[noreturn]] void fail() const {
    for (size_t i = 0; i < statuses_.size(); ++i) {
      const int code = statuses_[i].MPI_ERROR;
      if (code == MPI_SUCCESS || code == MPI_ERR_PENDING) continue;
      throw CommError("{} on {}: rank {} and rank {} (world rank {}): {}",
                      expected_[i].bytes < 0 ? "send" : "recv", comm_.name(), comm_.rank(),
                      expected_[i].peer, world_rank(expected_[i].peer), mpi_error_text(code));
    }
    throw CommError("MPI_Testall on {}: an error in no status", comm_.name());
  }

  const Communicator& comm_;
  const std::vector<int>& world_ranks_;
  int64_t id_;
  std::vector<MPI_Request> requests_;
  std::vector<Expected> expected_;
  std::vector<MPI_Status> statuses_;
};

class MpiCommunicator final : public ComposedCommunicator {
 public:
  MpiCommunicator(std::string name, int rank, std::vector<int> world_ranks,
                  std::shared_ptr<Wires> wires, int64_t id, int64_t tag_limit, bool library_yields,
                  bool* closed)
      : ComposedCommunicator(std::move(name), rank, std::move(world_ranks), std::move(wires)),
        id_(id),
        tag_limit_(tag_limit),
        library_yields_(library_yields),
        world_closed_(closed) {
    if (2 * id_ + 1 > tag_limit_)
      throw CommError(
          "{}: group number {} needs tag {}, this MPI allows {}: too many groups were made",
          this->name(), id_, 2 * id_ + 1, tag_limit_);
  }
  void close() override {
    ComposedCommunicator::close();
    if (world_closed_ != nullptr) *world_closed_ = true;
  }

 protected:
  std::unique_ptr<Batch> make_batch() override {
    return std::make_unique<MpiBatch>(*this, world_ranks(), id_);
  }
  // Open MPI yields in each look that finds nothing, as it was told to (MpiWorld); with that
  // switched off it spins, which is then the user's wish.
  bool done_yields() const override { return library_yields_; }
  std::unique_ptr<Communicator> make_group(std::string name, int rank, std::vector<int> world_ranks,
                                           int64_t id) override {
    return std::make_unique<MpiCommunicator>(std::move(name), rank, std::move(world_ranks),
                                             shared_wires(), id, tag_limit_, library_yields_,
                                             nullptr);
  }

 private:
  int64_t id_;
  int64_t tag_limit_;
  bool library_yields_;
  bool* world_closed_;  // in the shared state; the world's group only
};

}  // namespace

MpiWorld::MpiWorld(int* argc, char*** argv) : state_(std::make_shared<State>()) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  R1_CHECK(initialized == 0, "MPI was initialized before MpiWorld");
  setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);  // a user's own choice wins
  int provided = 0;
  const int code = MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
  if (code != MPI_SUCCESS) throw CommError("MPI_Init_thread: {}", mpi_error_text(code));
  if (provided < MPI_THREAD_FUNNELED)
    throw CommError(
        "this MPI library gives thread level {}, a process with threads needs MPI_THREAD_FUNNELED "
        "({})",
        provided, MPI_THREAD_FUNNELED);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
  char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(version, &length);
  state_->library_yields = std::string_view(version).starts_with("Open MPI");
  void* limit = nullptr;
  int found = 0;
  MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, static_cast<void*>(&limit), &found);
  if (found != 0) state_->tag_limit = *static_cast<int*>(limit);
}

std::unique_ptr<Communicator> MpiWorld::world(StopCheck stop) {
  R1_CHECK(!state_->made, "MpiWorld::world() called twice: split the first one");
  int rank = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  state_->made = true;
  state_->stop = std::move(stop);
  state_->next_group = 1;
  std::vector<int> ranks(static_cast<size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  std::string name = group_name("world", ranks);
  return std::make_unique<MpiCommunicator>(std::move(name), rank, std::move(ranks), state_, 0,
                                           state_->tag_limit, state_->library_yields,
                                           &state_->closed);
}

void MpiWorld::on_early_end(std::function<void()> told) {
  R1_CHECK(!state_->early_end, "MpiWorld::on_early_end() called twice");
  state_->early_end = std::move(told);
  int key = MPI_KEYVAL_INVALID;
  const auto deleted = [](MPI_Comm, int, void*, void* state) {
    if (auto& early = static_cast<State*>(state)->early_end) std::exchange(early, nullptr)();
    return MPI_SUCCESS;
  };
  MPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, deleted, &key, state_.get());
  MPI_Comm_set_attr(MPI_COMM_SELF, key, nullptr);
}

void MpiWorld::abandon() noexcept {
  state_->abandoned = true;
  state_->early_end = nullptr;
}

MpiWorld::~MpiWorld() {
  state_->early_end = nullptr;  // from here on the end is not early
  if (state_->abandoned || !state_->broken.empty()) return;
  if (state_->made && !state_->closed) {
    // MPI_Finalize waits for all ranks, and without close() nobody knows that they are coming.
    log::warn("the world communicator was not closed: leaving without MPI_Finalize");
    return;
  }
  MPI_Finalize();
}

}  // namespace r1::comm
