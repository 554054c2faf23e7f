#include "runtime/train/sample.h"

#include <algorithm>

namespace r1::train {

std::vector<int32_t> greedy(Engine& engine, const BatchLayout& rows, const std::vector<int32_t>& prompt, int64_t max_new,
                            const std::vector<int64_t>& eos, int32_t pad_id, const std::function<void(int32_t)>& each) {
  const parallel::ModelSpec& spec = engine.spec();
  parallel::ProcessGroups& groups = engine.groups();
  const int64_t vocab = spec.config().vocab;
  std::vector<int32_t> ids = prompt, out;
  std::vector<int64_t> counts;
  for (int r = 0; r < spec.tp(); ++r) counts.push_back(spec.local(r).vocab.size());
  const int64_t local_vocab = counts[static_cast<size_t>(groups.tp().rank())];

  while (static_cast<int64_t>(out.size()) < max_new && static_cast<int64_t>(ids.size()) < rows.seq_len) {
    const auto last = static_cast<int64_t>(ids.size()) - 1;
    models::HostBatch batch;
    data::Row row{.ids = ids, .targets = std::vector<int32_t>(static_cast<size_t>(rows.seq_len), -1),
                  .segments = {static_cast<int32_t>(ids.size()), static_cast<int32_t>(rows.seq_len - last - 1)}};
    row.ids.resize(static_cast<size_t>(rows.seq_len), pad_id);
    append_row(batch, row);
    for (int64_t i = 1; i < rows.micro_batch; ++i) append_masked_row(batch, rows.seq_len, pad_id);

    std::vector<float> local(static_cast<size_t>(local_vocab)), all(static_cast<size_t>(vocab));
    engine.model().set_logits_sink([&](int, int64_t first, const Tensor& logits) {
      if (last < first || last >= first + logits.dim(0)) return;
      local = models::host_floats(logits.rows(last - first, last - first + 1), engine.stream());
    });
    static_cast<void>(engine.forward_only({&batch, 1}, true));
    engine.model().set_logits_sink({});

    int64_t next = 0;
    if (groups.coord().pp == groups.mesh().pp - 1) {
      const Tensor in{.data = local.data(), .shape = {local_vocab}}, whole{.data = all.data(), .shape = {vocab}};
      groups.tp().all_gather(in, whole, counts, {});
      next = std::max_element(all.begin(), all.end()) - all.begin();
    }
    groups.pp().broadcast({.data = &next, .dtype = DType::kI64, .shape = {1}}, groups.mesh().pp - 1, {});
    if (std::find(eos.begin(), eos.end(), next) != eos.end()) break;
    out.push_back(static_cast<int32_t>(next));
    ids.push_back(static_cast<int32_t>(next));
    if (each) each(static_cast<int32_t>(next));
  }
  return out;
}

void print_sample(const RankContext& ctx, Engine& engine, const data::Dataset& dataset, const text::Tokenizer& tokenizer,
                  const BatchLayout& rows) {
  const data::TokenSample sample = dataset.sample(0);
  const auto first_trained = std::find_if(sample.labels.begin(), sample.labels.end(), [](int32_t l) { return l >= 0; });
  const auto prompt_length = first_trained - sample.labels.begin();
  const std::vector<int32_t> prompt(sample.ids.begin(), sample.ids.begin() + prompt_length);
  say(ctx, fmt::format("\nA greedy answer from the weights in memory:\n{}", tokenizer.decode(prompt)));
  text::StreamDecoder decoder(tokenizer, true);
  static_cast<void>(greedy(engine, rows, prompt, 96, engine.spec().config().eos_ids, dataset.pad_id(), [&](int32_t id) {
    ctx.check_stop();
    if (!ctx.first()) return;
    fmt::print("{}", decoder.push(id));
    std::fflush(stdout);
  }));
  say(ctx, decoder.finish());
}

}  // namespace r1::train
