// One data file as tokens: taken from the cache, or tokenised into it by one process of all that
// ask.
#pragma once

#include <cstdint>
#include <memory>

#include "runtime/data/cache.h"
#include "runtime/data/dataset.h"
#include "runtime/data/tokenizer_settings.h"

namespace r1::data {

struct OpenedSource {
  std::shared_ptr<const CacheFile> cache;
  Hash128 key;           ///< of content, tokenizer and settings
  uint64_t content = 0;  ///< hash of the file's bytes
  bool cached = false;   ///< not tokenised by this process
};

/// Waits where another process makes the cache file. Throws DataError (file:line), UsageError,
/// StorageError.
[[nodiscard]] OpenedSource open_source(const DataSource& source, const DataOptions& options,
                                       const text::Tokenizer* tokenizer,
                                       const TokenizerSettings& settings, int64_t max_bad_rows);

}  // namespace r1::data
