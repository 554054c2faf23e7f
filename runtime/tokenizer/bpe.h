// The byte-pair-encoding model: a vocabulary of byte strings, ranked merges, and the ids of a piece
// of text.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace r1::text {

/// Working memory of BpeModel::encode_piece, to be reused from piece to piece by one caller.
struct BpeScratch {
  std::vector<uint32_t> symbols;  // [piece bytes] id of the symbol that starts here
  std::vector<uint32_t>
      lengths;                 // [piece bytes] length of the symbol, at its first and its last byte
  std::vector<uint64_t> heap;  // rank << 32 | position
  std::vector<uint32_t> first;      // [merges] head of the rank's list in `entries`
  std::vector<uint32_t> last;       // [merges] its tail
  std::vector<uint64_t> nonempty;   // bit set over ranks
  std::vector<uint64_t> entries;    // position << 32 | next entry
  std::vector<uint32_t> positions;  // of the rank being merged
};

/// Byte strings with ids, found by hashing. Open addressing; the seed comes from the content that
/// is hashed into it, so that a file cannot be made to collide by choosing strings for a fixed
/// hash.
class ByteStringMap {
 public:
  static constexpr uint32_t kNone = 0xFFFFFFFF;
  void reserve(size_t count, uint64_t seed);
  /// Adds text -> value. False when the text is there already.
  bool insert(std::string_view text, uint32_t value);
  [[nodiscard]] uint32_t find(std::string_view text) const;
  [[nodiscard]] size_t size() const { return texts_.size(); }

 private:
  struct Slot {
    uint32_t tag = 0;
    uint32_t entry = kNone;
  };
  struct Text {
    uint64_t offset;
    uint32_t length;
    uint32_t value;
  };
  [[nodiscard]] uint64_t hash(std::string_view text) const;
  std::vector<Slot> slots_;
  std::vector<Text> texts_;
  std::string arena_;
  uint64_t seed_ = 0;
  uint64_t mask_ = 0;
};

/// A merge of two ids into one; its rank is its place in the list.
struct Merge {
  uint32_t left;
  uint32_t right;
  uint32_t result;
};

class BpeModel {
 public:
  static constexpr uint32_t kNone = 0xFFFFFFFF;

  /// `tokens`: byte strings -> ids. `merges` by rank; of equal pairs the last one counts, as in
  /// Hugging Face. `byte_ids`: id of each single byte, kNone where there is none. ids <
  /// `vocab_size`.
  void build(ByteStringMap tokens, std::vector<Merge> merges,
             const std::array<uint32_t, 256>& byte_ids, uint32_t vocab_size, size_t max_token_bytes,
             bool ignore_merges, uint64_t seed);

  /// The token of these bytes, if any.
  [[nodiscard]] std::optional<int32_t> find_token(std::string_view bytes) const {
    const uint32_t id = tokens_.find(bytes);
    return id == kNone ? std::nullopt : std::optional(static_cast<int32_t>(id));
  }

  /// Appends the ids of one piece. Lowest rank first, leftmost among equals. Bytes without a token
  /// give nothing.
  void encode_piece(std::string_view piece, BpeScratch& scratch, std::vector<int32_t>& ids) const;

 private:
  struct Found {
    uint32_t rank = kNone;
    uint32_t result = kNone;
  };
  struct Slot {
    uint64_t pair;
    uint32_t rank = kNone;
    uint32_t result = kNone;
  };
  [[nodiscard]] Found find_merge(uint32_t left, uint32_t right) const;
  [[nodiscard]] size_t start_symbols(std::string_view piece, uint32_t* out) const;
  void merge_short(std::string_view piece, std::vector<int32_t>& ids) const;
  void merge_long(std::string_view piece, BpeScratch& scratch, std::vector<int32_t>& ids) const;
  void merge_by_heap(BpeScratch& scratch, size_t n) const;
  void merge_by_rank(BpeScratch& scratch, size_t n) const;

  ByteStringMap tokens_;
  std::vector<Merge> merges_;
  std::vector<Slot> slots_;
  uint64_t slot_mask_ = 0;
  uint64_t seed_ = 0;
  std::array<uint32_t, 256> byte_ids_{};
  size_t max_token_bytes_ = 0;
  bool ignore_merges_ = false;
  // Every token is complete before it is used in a merge: each merge that makes it ranks below each
  // that consumes it. True of every vocabulary that training made; lets long pieces be merged rank
  // by rank.
  bool ranks_ascend_ = true;
  // Per id: whether the token's own bytes encode to it alone. Found out at first use; any thread
  // finds the same.
  enum : uint8_t { kUnknown = 0, kWhole = 1, kSplit = 2 };
  mutable std::unique_ptr<std::atomic<uint8_t>[]> whole_;
};

}  // namespace r1::text
