#include "runtime/tokenizer/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>

#include "runtime/core/error.h"
#include "runtime/tokenizer/hash.h"

namespace r1::text {
namespace {

constexpr size_t kShortBytes = 96;       // up to here a plain loop beats every other way
constexpr size_t kRankListBytes = 4096;  // from here lists by rank beat the heap

size_t table_size(size_t count) { return std::bit_ceil(std::max<size_t>(16, count * 2)); }

}  // namespace

void ByteStringMap::reserve(size_t count, uint64_t seed) {
  seed_ = seed;
  slots_.assign(table_size(count), Slot{});
  mask_ = slots_.size() - 1;
  texts_.clear();
  texts_.reserve(count);
  arena_.clear();
}

uint64_t ByteStringMap::hash(std::string_view text) const { return hash_bytes(text, seed_); }

bool ByteStringMap::insert(std::string_view text, uint32_t value) {
  R1_CHECK(texts_.size() * 2 < slots_.size(), "{} texts in {} slots", texts_.size(), slots_.size());
  const uint64_t h = hash(text);
  const auto tag = static_cast<uint32_t>(h >> 32);
  uint64_t i = h & mask_;
  for (; slots_[i].entry != kNone; i = (i + 1) & mask_) {
    const Text& t = texts_[slots_[i].entry];
    if (slots_[i].tag == tag && std::string_view(arena_).substr(t.offset, t.length) == text)
      return false;
  }
  slots_[i] = {tag, static_cast<uint32_t>(texts_.size())};
  texts_.push_back({arena_.size(), static_cast<uint32_t>(text.size()), value});
  arena_.append(text);
  return true;
}

uint32_t ByteStringMap::find(std::string_view text) const {
  if (slots_.empty()) return kNone;
  const uint64_t h = hash(text);
  const auto tag = static_cast<uint32_t>(h >> 32);
  for (uint64_t i = h & mask_; slots_[i].entry != kNone; i = (i + 1) & mask_) {
    if (slots_[i].tag != tag) continue;
    const Text& t = texts_[slots_[i].entry];
    if (t.length == text.size() &&
        std::memcmp(arena_.data() + t.offset, text.data(), text.size()) == 0) {
      return t.value;
    }
  }
  return kNone;
}

void BpeModel::build(ByteStringMap tokens, std::vector<Merge> merges,
                     const std::array<uint32_t, 256>& byte_ids, uint32_t vocab_size,
                     size_t max_token_bytes, bool ignore_merges, uint64_t seed) {
  tokens_ = std::move(tokens);
  merges_ = std::move(merges);
  byte_ids_ = byte_ids;
  max_token_bytes_ = max_token_bytes;
  ignore_merges_ = ignore_merges;
  seed_ = seed;
  whole_ = std::make_unique<std::atomic<uint8_t>[]>(vocab_size);

  slots_.assign(table_size(merges_.size()), Slot{0, kNone, kNone});
  slot_mask_ = slots_.size() - 1;
  for (uint32_t rank = 0; rank < merges_.size(); ++rank) {
    const Merge& m = merges_[rank];
    R1_CHECK(m.left < vocab_size && m.right < vocab_size && m.result < vocab_size,
             "merge {} out of range", rank);
    const uint64_t pair = static_cast<uint64_t>(m.left) << 32 | m.right;
    uint64_t i = mix(pair ^ seed_, kHashMix) & slot_mask_;
    while (slots_[i].rank != kNone && slots_[i].pair != pair) i = (i + 1) & slot_mask_;
    slots_[i] = {pair, rank, m.result};
  }
}

BpeModel::Found BpeModel::find_merge(uint32_t left, uint32_t right) const {
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | right;
  for (uint64_t i = mix(pair ^ seed_, kHashMix) & slot_mask_; slots_[i].rank != kNone;
       i = (i + 1) & slot_mask_) {
    if (slots_[i].pair == pair) return {slots_[i].rank, slots_[i].result};
  }
  return {};
}

void BpeModel::encode_piece(std::string_view piece, BpeScratch& scratch,
                            std::vector<int32_t>& ids) const {
  if (piece.size() == 1) {
    const uint32_t id = byte_ids_[static_cast<unsigned char>(piece[0])];
    if (id != kNone) ids.push_back(static_cast<int32_t>(id));
    return;
  }
  uint32_t token = kNone;
  if (piece.size() <= max_token_bytes_) token = tokens_.find(piece);
  if (token != kNone) {
    if (ignore_merges_ || whole_[token].load(std::memory_order_relaxed) == kWhole) {
      ids.push_back(static_cast<int32_t>(token));
      return;
    }
  }
  const size_t before = ids.size();
  if (piece.size() <= kShortBytes) {
    merge_short(piece, ids);
  } else {
    merge_long(piece, scratch, ids);
  }
  if (token != kNone) {
    const bool whole = ids.size() == before + 1 && ids.back() == static_cast<int32_t>(token);
    whole_[token].store(whole ? kWhole : kSplit, std::memory_order_relaxed);
  }
}

size_t BpeModel::start_symbols(std::string_view piece, uint32_t* out) const {
  size_t n = 0;
  for (const char c : piece) {
    out[n] = byte_ids_[static_cast<unsigned char>(c)];
    n += out[n] != kNone ? 1 : 0;
  }
  return n;
}

// n <= kShortBytes symbols: find the lowest rank, merge, close the gap. Quadratic, but of words
// that fit a cache line or two.
void BpeModel::merge_short(std::string_view piece, std::vector<int32_t>& ids) const {
  uint32_t symbols[kShortBytes];
  uint32_t ranks[kShortBytes];
  uint32_t results[kShortBytes];
  size_t n = start_symbols(piece, symbols);
  const auto look = [&](size_t i) {
    const Found found = find_merge(symbols[i], symbols[i + 1]);
    ranks[i] = found.rank;
    results[i] = found.result;
  };
  for (size_t i = 0; i + 1 < n; ++i) look(i);
  while (n > 1) {
    size_t best = 0;
    uint32_t lowest = ranks[0];
    for (size_t i = 1; i + 1 < n; ++i) {
      if (ranks[i] < lowest) {
        lowest = ranks[i];
        best = i;
      }
    }
    if (lowest == kNone) break;
    symbols[best] = results[best];
    std::memmove(symbols + best + 1, symbols + best + 2, (n - best - 2) * sizeof *symbols);
    std::memmove(ranks + best, ranks + best + 1, (n - best - 2) * sizeof *ranks);
    std::memmove(results + best, results + best + 1, (n - best - 2) * sizeof *results);
    --n;
    if (best > 0) look(best - 1);
    if (best + 1 < n) look(best);
  }
  ids.insert(ids.end(), symbols, symbols + n);
}

void BpeModel::merge_long(std::string_view piece, BpeScratch& scratch,
                          std::vector<int32_t>& ids) const {
  R1_CHECK(piece.size() < UINT32_MAX, "piece of {} bytes", piece.size());
  scratch.symbols.resize(piece.size());
  const size_t n = start_symbols(piece, scratch.symbols.data());
  scratch.lengths.assign(n, 1);
  if (n > kRankListBytes) {
    merge_by_rank(scratch, n);
  } else {
    merge_by_heap(scratch, n);
  }
  for (size_t i = 0; i < n; i += scratch.lengths[i])
    ids.push_back(static_cast<int32_t>(scratch.symbols[i]));
}

namespace {

// Symbols in place: symbol at `pos` covers lengths[pos] cells, and its last cell holds the length
// too, so that both neighbours are one step away and merging moves nothing.
struct Symbols {
  uint32_t* ids;
  uint32_t* lengths;
  size_t n;

  [[nodiscard]] size_t next(size_t pos) const { return pos + lengths[pos]; }
  [[nodiscard]] size_t previous(size_t pos) const { return pos - lengths[pos - 1]; }
  void merge(size_t pos, uint32_t result) const {
    const size_t right = next(pos);
    const uint32_t length = lengths[pos] + lengths[right];
    // Cells inside a symbol are never a start again: a stale position must not look like one.
    ids[right] = UINT32_MAX;
    ids[pos] = result;
    lengths[pos] = length;
    lengths[pos + length - 1] = length;
  }
};

}  // namespace

void BpeModel::merge_by_heap(BpeScratch& scratch, size_t n) const {
  const Symbols symbols{scratch.symbols.data(), scratch.lengths.data(), n};
  auto& heap = scratch.heap;
  heap.clear();
  const auto found_at = [&](size_t pos) -> Found {
    const size_t next = symbols.next(pos);
    return next < n ? find_merge(symbols.ids[pos], symbols.ids[next]) : Found{};
  };
  for (size_t pos = 0; pos + 1 < n; ++pos) {
    const Found found = found_at(pos);
    if (found.rank != kNone) heap.push_back(static_cast<uint64_t>(found.rank) << 32 | pos);
  }
  const std::greater<> order;
  std::make_heap(heap.begin(), heap.end(), order);
  const auto push = [&](size_t pos) {
    const Found found = found_at(pos);
    if (found.rank == kNone) return;
    heap.push_back(static_cast<uint64_t>(found.rank) << 32 | pos);
    std::push_heap(heap.begin(), heap.end(), order);
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), order);
    const uint64_t top = heap.back();
    heap.pop_back();
    const auto rank = static_cast<uint32_t>(top >> 32);
    const auto pos = static_cast<uint32_t>(top);
    // Stale when the pair is no longer there; a rank names one pair.
    const Merge& m = merges_[rank];
    if (symbols.ids[pos] != m.left) continue;
    const size_t next = symbols.next(pos);
    if (next >= n || symbols.ids[next] != m.right) continue;
    symbols.merge(pos, m.result);
    if (pos > 0) push(symbols.previous(pos));
    push(pos);
  }
}

namespace {

constexpr uint32_t kEnd = UINT32_MAX;

// One list of positions a rank, in BpeScratch's memory.
class RankLists {
 public:
  RankLists(BpeScratch& scratch, size_t ranks) : s_(scratch) {
    if (s_.first.size() != ranks) {
      s_.first.assign(ranks, kEnd);
      s_.last.assign(ranks, kEnd);
      s_.nonempty.assign(ranks / 64 + 1, 0);
    }
    s_.entries.clear();
  }

  void add(uint32_t rank, size_t pos) {
    const uint32_t entry = new_entry(static_cast<uint64_t>(pos) << 32 | kEnd);
    if (s_.first[rank] == kEnd) {
      s_.first[rank] = entry;
      s_.nonempty[rank / 64] |= uint64_t{1} << rank % 64;
    } else {
      uint64_t& tail = s_.entries[s_.last[rank]];
      tail = (tail >> 32) << 32 | entry;
    }
    s_.last[rank] = entry;
  }

  // Words of 64 ranks; the lowest rank of a word that has a list, or kEnd.
  [[nodiscard]] size_t words() const { return s_.nonempty.size(); }
  [[nodiscard]] uint32_t lowest(size_t word) const {
    if (s_.nonempty[word] == 0) return kEnd;
    return static_cast<uint32_t>(word * 64) +
           static_cast<uint32_t>(std::countr_zero(s_.nonempty[word]));
  }

  // Takes a rank's list out, ascending.
  [[nodiscard]] const std::vector<uint32_t>& take(uint32_t rank) {
    s_.nonempty[rank / 64] &= ~(uint64_t{1} << rank % 64);
    auto& positions = s_.positions;
    positions.clear();
    for (uint32_t entry = s_.first[rank]; entry != kEnd;) {
      const uint64_t value = s_.entries[entry];
      positions.push_back(static_cast<uint32_t>(value >> 32));
      s_.entries[entry] = free_entry_;
      free_entry_ = entry;
      entry = static_cast<uint32_t>(value);
    }
    s_.first[rank] = kEnd;
    s_.last[rank] = kEnd;
    // Different merges may have added to the list; the leftmost pair goes first.
    if (!std::is_sorted(positions.begin(), positions.end()))
      std::sort(positions.begin(), positions.end());
    return positions;
  }

 private:
  uint32_t new_entry(uint64_t value) {
    const uint32_t entry = free_entry_;
    if (entry == kEnd) {
      s_.entries.push_back(value);
      return static_cast<uint32_t>(s_.entries.size() - 1);
    }
    free_entry_ = static_cast<uint32_t>(s_.entries[entry]);
    s_.entries[entry] = value;
    return entry;
  }

  BpeScratch& s_;
  uint32_t free_entry_ = kEnd;
};

}  // namespace

// One list of positions a rank, the ranks visited in order: in most vocabularies a merge makes only
// pairs of higher rank, so that a list is complete, and sorted, when its rank's turn comes, and the
// time is linear. Pairs of the present rank or a lower one (in vocabularies made from token lists,
// where "a"+"bc" may rank below "b"+"c") wait in a heap, which they leave at once.
void BpeModel::merge_by_rank(BpeScratch& scratch, size_t n) const {
  const Symbols symbols{scratch.symbols.data(), scratch.lengths.data(), n};
  RankLists lists(scratch, merges_.size());
  auto& heap = scratch.heap;
  heap.clear();
  const std::greater<> order;
  int64_t present = -1;  // the rank whose list is being merged
  const auto add = [&](size_t pos) {
    const size_t next = symbols.next(pos);
    if (next >= n) return;
    const uint32_t rank = find_merge(symbols.ids[pos], symbols.ids[next]).rank;
    if (rank == kNone) return;
    if (rank > present) return lists.add(rank, pos);
    heap.push_back(static_cast<uint64_t>(rank) << 32 | pos);
    std::push_heap(heap.begin(), heap.end(), order);
  };
  const auto merge = [&](uint32_t rank, uint32_t pos) {
    const Merge& m = merges_[rank];
    if (symbols.ids[pos] != m.left) return;  // stale
    const size_t next = symbols.next(pos);
    if (next >= n || symbols.ids[next] != m.right) return;
    symbols.merge(pos, m.result);
    if (pos > 0) add(symbols.previous(pos));
    add(pos);
  };
  for (size_t pos = 0; pos + 1 < n; ++pos) add(pos);

  for (size_t word = 0; word < lists.words(); ++word) {
    for (uint32_t rank = lists.lowest(word); rank != kEnd; rank = lists.lowest(word)) {
      const std::vector<uint32_t>& positions = lists.take(rank);
      present = rank;
      for (size_t i = 0; i < positions.size() || !heap.empty();) {
        const uint64_t listed =
            i < positions.size() ? static_cast<uint64_t>(rank) << 32 | positions[i] : UINT64_MAX;
        if (!heap.empty() && heap.front() < listed) {
          const uint64_t top = heap.front();
          std::pop_heap(heap.begin(), heap.end(), order);
          heap.pop_back();
          merge(static_cast<uint32_t>(top >> 32), static_cast<uint32_t>(top));
        } else {
          merge(rank, positions[i++]);
        }
      }
    }
  }
}

}  // namespace r1::text
