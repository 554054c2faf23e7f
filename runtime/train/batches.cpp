#include "runtime/train/batches.h"

#include <algorithm>

#include "parallel/cost/job_shape.h"
#include "parallel/shard/shard.h"

namespace r1::train {

int BatchLayout::microbatches() const {
  return parallel::microbatches_of(batch, micro_batch, dp);
}

void append_row(models::HostBatch& batch, const data::Row& row) {
  if (batch.cu_seqlens.empty()) batch.cu_seqlens.push_back(0);
  batch.ids.insert(batch.ids.end(), row.ids.begin(), row.ids.end());
  batch.targets.insert(batch.targets.end(), row.targets.begin(), row.targets.end());
  for (const int32_t length : row.segments) {
    if (length == 0) continue;
    for (int32_t p = 0; p < length; ++p) batch.positions.push_back(p);
    batch.cu_seqlens.push_back(batch.cu_seqlens.back() + length);
  }
  R1_CHECK(batch.positions.size() == batch.ids.size(), "segments of a row do not sum to its {} tokens", row.ids.size());
  batch.trained_tokens += row.trained_tokens;
}

void append_masked_row(models::HostBatch& batch, int64_t seq_len, int32_t pad_id) {
  const auto n = static_cast<size_t>(seq_len);
  append_row(batch, {.ids = std::vector<int32_t>(n, pad_id), .targets = std::vector<int32_t>(n, -1),
                     .segments = {static_cast<int32_t>(seq_len)}});
}

std::vector<models::HostBatch> make_batches(const data::Dataset& dataset, const BatchLayout& layout, int64_t first_row,
                                            int dp_rank) {
  const parallel::Interval rows = parallel::even_part(layout.batch, dp_rank, layout.dp);
  std::vector<models::HostBatch> out(static_cast<size_t>(layout.microbatches()));
  int64_t row = rows.begin;
  for (models::HostBatch& b : out)
    for (int64_t i = 0; i < layout.micro_batch; ++i, ++row) {
      if (row < rows.end) append_row(b, dataset.row(first_row + row));
      else append_masked_row(b, layout.seq_len, dataset.pad_id());
    }
  return out;
}

}  // namespace r1::train
