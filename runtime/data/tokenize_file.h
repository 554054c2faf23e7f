// One data file -> one cache file, with a thread that reads, threads that tokenise, and writing in
// the file's order, in bounded memory. The result does not depend on the number of threads.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "runtime/data/cache.h"
#include "runtime/data/dataset.h"
#include "runtime/data/formats.h"
#include "runtime/data/input.h"

namespace r1::data {

struct TokenizeFileOptions {
  std::optional<Format> format;  ///< empty: found from the first rows
  EncodeSettings encode;
  std::string
      no_template_reason;  ///< added to the error when rows need a chat template and there is none
  int threads = 1;
  int64_t max_bad_rows = 0;
  std::function<void(const DataProgress&)> progress;
  std::chrono::milliseconds progress_every{250};
};

/// Tokenises all rows of `reader` into `writer`; returns the format. Throws DataError: more than
/// max_bad_rows bad rows (listed with file:line and reason), no format found, broken file.
[[nodiscard]] Format tokenize_rows(RecordReader& reader, CacheWriter& writer,
                                   const TokenizeFileOptions& options);

/// The message about bad rows, with at most ten of them.
[[nodiscard]] std::string describe_bad_rows(const std::vector<BadRow>& rows, int64_t count,
                                            bool all_read, int64_t max_bad_rows);

}  // namespace r1::data
