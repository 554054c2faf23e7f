#include "runtime/models/paged_model.h"

#include <algorithm>
#include <cmath>

#include "runtime/kernels/ops.h"
#include "runtime/models/rope_table.h"

namespace r1::models {

using parallel::ParamRole;

PagedModel::PagedModel(const parallel::ModelSpec& spec, const parallel::InferencePlan& plan,
                       parallel::ProcessGroups& groups, std::span<const StageParameters> params, Device device,
                       const Stream& s)
    : spec_(spec),
      plan_(plan),
      groups_(groups),
      device_(device),
      stream_(s),
      scratch_(device, arena_specs(plan.scratch)),
      cache_(device, arena_specs(plan.cache)) {
  for (size_t i = 0; i < plan_.scratch.size(); ++i) index_[plan_.scratch[i].name] = i;
  fill_rope_table(spec.config(), scratch("rope table"), s);
  const auto optional = [&](const char* name) { return index_.contains(name) ? scratch(name) : Tensor{}; };
  shared_.config = &spec.config();
  shared_.local = spec.local(plan.coord.tp);
  shared_.kv_of_q = shared_.local.kv_of_q(spec.config().heads / spec.config().kv_heads);
  shared_.tp = &groups.tp();
  shared_.cos_sin = scratch("rope table");
  shared_.attention_rows = plan.shape.attention_rows;
  shared_.scratch = {.norm = scratch("norm"),
                     .rstd = scratch("rstd"),
                     .qkv = scratch("qkv"),
                     .qkv_raw = optional("qkv raw"),
                     .qk_rstd = optional("qk rstd"),
                     .attention = scratch("attention"),
                     .partial = scratch("partial"),
                     .gate_up = scratch("gate_up"),
                     .swiglu = scratch("swiglu"),
                     .workspace = optional("workspace")};
  R1_CHECK(params.size() == plan.chunks.size(), "{} stages, planned {}", params.size(), plan.chunks.size());
  size_t layer = 0;
  for (size_t i = 0; i < params.size(); ++i) {
    R1_CHECK(params[i].stage() == plan.chunks[i].stage && params[i].elems() == plan.chunks[i].param_elems, "stage {}",
             params[i].stage());
    Chunk c{.stage = params[i].stage(),
            .spec = spec.stages()[static_cast<size_t>(params[i].stage())],
            .params = &params[i],
            .layers = {}};
    for (int64_t l = c.spec.layer_begin; l < c.spec.layer_end; ++l, ++layer)
      c.layers.emplace_back(shared_, params[i].layer(params[i].weights(), l), cache_.at(2 * layer),
                            cache_.at(2 * layer + 1));
    chunks_.push_back(std::move(c));
  }
  std::vector<comm::ExpectedMessage> expected;
  if (std::ranges::any_of(chunks_, [](const Chunk& c) { return !c.spec.embedding; }))
    expected.push_back({.peer = (plan.coord.pp + plan.mesh.pp - 1) % plan.mesh.pp});
  groups.pp().expect_messages(expected);
}

PagedModel::~PagedModel() = default;

Tensor PagedModel::scratch(const std::string& name) const {
  const auto it = index_.find(name);
  R1_CHECK(it != index_.end(), "no scratch tensor '{}'", name);
  return scratch_.at(it->second);
}

parallel::InferencePlan::Bytes PagedModel::allocated() const {
  parallel::InferencePlan::Bytes b;
  for (const Chunk& c : chunks_) b.weights += static_cast<int64_t>(c.params->weights().bytes());
  b.cache = static_cast<int64_t>(cache_.bytes());
  b.scratch = static_cast<int64_t>(scratch_.bytes());
  return b;
}

nn::PagedBatch PagedModel::upload(const HostPass& pass) {
  DeviceBackend& backend = backend_of(device_.kind);
  const int64_t tokens = pass.tokens();
  R1_CHECK(tokens > 0 && tokens <= plan_.shape.pass_tokens, "a pass of {} tokens, planned {}", tokens,
           plan_.shape.pass_tokens);
  if (device_.kind != DeviceKind::kCpu) backend.synchronize(stream_);
  held_ = pass;
  const auto put = [&](const char* name, const auto& values, Shape shape) {
    Tensor t = scratch(name);
    R1_CHECK(shape.numel() == static_cast<int64_t>(values.size()) && shape.numel() <= t.numel(), "{}: {} of {}", name,
             shape.str(), t.shape.str());
    t.shape = shape;
    backend.copy(t.data, values.data(), t.bytes(), stream_);
    return t;
  };
  return {.ids = put("token ids", held_.ids, {tokens}),
          .positions = put("positions", held_.positions, {tokens}),
          .slots = put("slots", held_.slots, {tokens}),
          .block_table = put("block table", held_.block_table, {tokens, held_.table_width}),
          .context_lens = put("context lengths", held_.context_lens, {tokens}),
          .tokens = tokens,
          .max_context = *std::max_element(held_.context_lens.begin(), held_.context_lens.end())};
}

void PagedModel::embed(const Chunk& c, const nn::PagedBatch& batch, const Tensor& x) {
  const StageParameters& p = *c.params;
  kernels::embedding_forward(batch.ids, p.part(p.weights(), p.index(ParamRole::kEmbedding, -1)),
                             shared_.local.vocab.begin, x, stream_);
  groups_.tp().all_reduce(x, comm::ReduceOp::kSum, stream_);  // one rank has the row, the others zeros
}

void PagedModel::run_chunk(const Chunk& c, const nn::PagedBatch& batch) {
  const int pp = groups_.mesh().pp, here = groups_.coord().pp;
  const Tensor x = scratch("stream").rows(0, batch.tokens);
  if (c.spec.embedding)
    embed(c, batch, x);
  else
    groups_.pp().recv(x, (here + pp - 1) % pp, stream_);
  bool pending = false;
  for (const nn::PagedLayer& layer : c.layers) {
    layer.forward(x, pending, batch, stream_);
    pending = true;
  }
  if (c.spec.head) return;  // logits() adds what is pending, to the rows it wants
  std::unique_ptr<comm::Pending>& send = sends_[next_send_];
  if (send) send->wait();
  const Tensor out = scratch(next_send_ == 0 ? "output 0" : "output 1").rows(0, batch.tokens);
  kernels::add(x, scratch("partial").rows(0, batch.tokens), out, stream_);
  const comm::Transfer transfer{.kind = comm::Transfer::Kind::kSend, .tensor = out, .peer = (here + 1) % pp};
  send = groups_.pp().start({&transfer, 1}, stream_);
  next_send_ = 1 - next_send_;
}

void PagedModel::forward(const HostPass& pass) {
  const nn::PagedBatch batch = upload(pass);
  for (const Chunk& c : chunks_) run_chunk(c, batch);
}

void PagedModel::logits(std::span<const int64_t> rows, const std::function<void(int64_t, const Tensor&)>& use) {
  const Chunk& c = chunks_.back();
  R1_CHECK(c.spec.head, "stage {} has no head", c.stage);
  if (rows.empty()) return;
  DeviceBackend& backend = backend_of(device_.kind);
  const Tensor x = scratch("stream"), partial = scratch("partial"), input = scratch("head input");
  const auto count = static_cast<int64_t>(rows.size());
  R1_CHECK(count <= input.dim(0), "logits of {} rows, planned {}", count, input.dim(0));
  // The rows wanted, gathered: runs of neighbours at once (a decode pass is one run). `norm` takes what is pending.
  const auto gather = [&](const Tensor& from, const Tensor& to) {
    for (int64_t i = 0, n = 1; i < count; i += n, n = 1) {
      while (i + n < count && rows[static_cast<size_t>(i + n)] == rows[static_cast<size_t>(i)] + n) ++n;
      const Tensor run = from.rows(rows[static_cast<size_t>(i)], rows[static_cast<size_t>(i)] + n);
      backend.copy(to.rows(i, i + n).data, run.data, run.bytes(), stream_);
    }
  };
  const Tensor in = input.rows(0, count), norm = scratch("norm").rows(0, count);
  gather(x, in);
  gather(partial, norm);
  const StageParameters& p = *c.params;
  const int64_t last = spec_.config().layers;
  const Tensor head = p.part(p.weights(), p.holds(ParamRole::kHead, last) ? p.index(ParamRole::kHead, last)
                                                                          : p.index(ParamRole::kEmbedding, -1));
  const Tensor final_norm = p.part(p.weights(), p.index(ParamRole::kFinalNorm, last));
  kernels::add(in, norm, in, stream_);
  kernels::rmsnorm_forward(in, final_norm, static_cast<float>(spec_.config().rms_eps), norm,
                           scratch("rstd").rows(0, count), stream_);
  const Tensor all = scratch("logits");
  for (int64_t first = 0; first < count; first += all.dim(0)) {
    const int64_t n = std::min(all.dim(0), count - first);
    const Tensor out = all.rows(0, n);
    kernels::linear_forward(norm.rows(first, first + n), head, {}, out, stream_);
    use(first, out);
  }
}

void PagedModel::drain() {
  for (std::unique_ptr<comm::Pending>& send : sends_) {
    if (send) send->wait();
    send.reset();
  }
}

}  // namespace r1::models
