// Reading part of a stored tensor into part of a dense buffer, in bounded memory.
#pragma once

#include <cstdint>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/checkpoint/slice.h"

namespace r1::checkpoint {

/// Most that a read stages at once.
inline constexpr size_t kChunkBytes = 4u << 20;

/// Reads `part` of the tensor `entry`, which holds `stored` (a box of some global tensor, dense),
/// into `dst`, which holds the box `want` as `dtype`. `part` lies in both. Only the bytes of `part`
/// are read. entry.dtype must be convertible.
void read_part(const SafetensorsFile& file, const TensorEntry& entry, const Box& stored,
               const Box& part, const Box& want, DType dtype, void* dst);
/// The same, but reads the whole entry and returns its CRC-32C.
[[nodiscard]] uint32_t read_part_checked(const SafetensorsFile& file, const TensorEntry& entry,
                                         const Box& stored, const Box& part, const Box& want,
                                         DType dtype, void* dst);

}  // namespace r1::checkpoint
