// Rows of the data set -> the micro-batches of one rank and step. Legend: B rows of a step over all ranks, S seq_len.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/data/dataset.h"
#include "runtime/models/rank_model.h"

namespace r1::train {

/// How the rows of a step are spread: dp rank d takes a contiguous part of the step's rows, in micro-batches of
/// `micro_batch` rows; every rank runs the same number of micro-batches, and what is missing is filled with masked rows.
struct BatchLayout {
  int64_t batch = 1, micro_batch = 1, seq_len = 0;
  int dp = 1;
  [[nodiscard]] int microbatches() const;
  [[nodiscard]] int64_t tokens() const { return micro_batch * seq_len; }
};

/// Appends a row to a micro-batch.
void append_row(models::HostBatch& batch, const data::Row& row);
/// Appends a row of S masked tokens.
void append_masked_row(models::HostBatch& batch, int64_t seq_len, int32_t pad_id);

/// The micro-batches of dp rank `dp_rank` for the step whose first row is `first_row`.
[[nodiscard]] std::vector<models::HostBatch> make_batches(const data::Dataset& dataset, const BatchLayout& layout,
                                                          int64_t first_row, int dp_rank);

}  // namespace r1::train
