// SPDX-License-Identifier: Apache-2.0
// Shared by policies that hold entries in fewer bits: rounding to fp16, the asymmetric min/max
// quantiser, and the bytes of what it packs.
#pragma once

#include <cstdint>
#include <span>

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

// The nearest fp16 value, ties to even; beyond the largest one (65504) that one.
[[nodiscard]] float round_half(float x);

// Replaces values by what min/max quantisation to 2^bits levels gives back:
//   scale = fp16((max - min) / (2^bits - 1)), zero = fp16(min), code = round((x - zero) / scale)
void round_trip(std::span<float> values, int bits);
// The same for each run of `group` values; the last one may be shorter.
void round_trip_groups(std::span<float> values, int bits, std::int64_t group);

// Bytes of one vector: codes, padded to a whole byte, and fp16 scale and zero of every group.
[[nodiscard]] std::int64_t packed_bytes(std::int64_t dim, int bits, std::int64_t group);

// floor(share * n), exact; may be 0 (Amount::share_of is at least 1).
[[nodiscard]] std::int64_t floor_share(const Amount& share, std::int64_t n);
// A share as a number. Errors: ConfigError unless the argument is written in per cent.
[[nodiscard]] double share_argument(const Arguments& arguments, const std::string& name);

// What is alive after the decision so far, without a copy where nothing has left.
class Alive {
 public:
  Alive(const View& view, int head, const Decision& so_far);
  [[nodiscard]] std::span<const TokenIndex> tokens() const { return tokens_; }
  [[nodiscard]] std::span<const TokenIndex> from(TokenIndex token) const;

 private:
  std::vector<TokenIndex> storage_;
  std::span<const TokenIndex> tokens_;
};

}  // namespace kvspan::policies
