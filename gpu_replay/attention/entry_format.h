// SPDX-License-Identifier: Apache-2.0
// How K and V of an entry are written where a policy's store holds them otherwise than they were
// born: in a few bits, or without some channels.
//
//   whole            a number for every channel
//   channels         numbers of the channels that are left; which, the entries of a head agree on
//   channel_groups   codes; then scale and zero of every `group` channels
//   entry_groups     codes; then a share of what `group` entries have in common, scale and zero of
//                    every channel: that table's bytes, cut into as many equal pieces as entries
//
// A code c, the first in the lowest bits of a byte, stands for c * scale + zero, both fp16.
// Source of the groups: Liu et al., KIVI, arXiv 2402.02750; code jy-yuan/KIVI (quant/new_pack.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "gpu_replay/attention/element.h"

namespace kvspan::gpu_replay {

struct VectorFormat {
  enum class Kind : std::uint8_t { whole, channels, channel_groups, entry_groups };
  Kind kind = Kind::whole;
  std::int32_t bits = 0;   // of a code: 1, 2, 4 or 8
  std::int32_t group = 0;  // channels, or entries
  std::int32_t left = 0;   // channels
  bool operator==(const VectorFormat&) const = default;
};

struct EntryFormat {
  VectorFormat k, v;
  bool operator==(const EntryFormat&) const = default;
};

// Bytes of a vector of `dim` channels, and of the codes that it begins with.
[[nodiscard]] std::int64_t bytes_of(const VectorFormat& format, std::int64_t dim, Element element);
[[nodiscard]] std::int64_t code_bytes(const VectorFormat& format, std::int64_t dim);

// What a vector needs beside its format.
struct VectorCoding {
  Element element = Element::f16;
  float scale = 1;                             // see Element
  std::span<const std::int16_t> channel = {};  // [dim] place among those that are left; -1: gone
};

// One vector, whatever its format but entry_groups. REQUIRES: finite; out has bytes_of() bytes.
void encode(std::span<const float> x, const VectorFormat& format, const VectorCoding& coding,
            std::span<std::byte> out);
void decode(std::span<const std::byte> bytes, const VectorFormat& format,
            const VectorCoding& coding, std::span<float> out);

// Vectors [format.group] that share scales: the bytes of each.
[[nodiscard]] std::vector<std::vector<std::byte>> encode_group(
    std::span<const std::span<const float>> vectors, const VectorFormat& format);
// One of them, by the table that all shares side by side make. table [dim][scale, zero]
void decode_grouped(std::span<const std::byte> codes, std::span<const std::byte> table, int bits,
                    std::span<float> out);

}  // namespace kvspan::gpu_replay
