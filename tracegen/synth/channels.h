// SPDX-License-Identifier: Apache-2.0
// What a logit is made of: random numbers by what they are for, and the subspaces that they fill.
// Private to tracegen/synth; files that include this are compiled without contraction (portable.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <span>

#include "tracegen/synth/portable.h"

namespace kvspan::tracegen {

// First word of every random number's key: what it is for.
enum Stream : std::uint64_t {
  kPlan = 1,
  kWord,        // of a token
  kHitterWord,  // strength of a word, of a token
  kHitterToken,
  kKeyWord,  // code of a word
  kSought,   // code that a row looks for
  kNull,     // what no query reads
  kTopic,
  kNeedle,
  kSpread,
  kValueMean,
  kValueWord,
  kValueToken,
  kHeads,
  kGrid
};

inline constexpr double kLn2 = 0.69314718055994531;

// Subspaces of head_dim, one after the other.
struct Channels {
  int rope = 0;  // rotary pairs (i, i + rope / 2)
  int sink = 0, hitter = 0, null = 0;
  int topic = 0, topics = 0, word = 0, words = 0, needle = 0, needles = 0;  // first, count
  explicit Channels(int head_dim) {
    rope = head_dim / 4 * 2;
    sink = rope;
    hitter = sink + 1;
    null = hitter + 1;
    const int rest = head_dim - null - 1;
    topic = null + 1;
    topics = rest / 4;
    needle = topic + topics;
    needles = rest / 4;
    word = needle + needles;
    words = head_dim - word;
  }
};

inline double synth_theta(std::int64_t tokens) {
  return static_cast<double>(std::max<std::int64_t>(10000, 8 * tokens));
}

// `out` of +-size / sqrt(count), one bit each.
inline void sign_code(std::initializer_list<std::uint64_t> key, double norm, std::span<float> out) {
  const auto size = static_cast<float>(norm / std::sqrt(static_cast<double>(out.size())));
  const std::uint64_t first = portable::random_bits(key);
  std::uint64_t bits = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    bits = i % 64 == 0 ? portable::random_bits({first, i / 64}) : bits >> 1U;
    out[i] = (bits & 1U) != 0 ? size : -size;
  }
}

}  // namespace kvspan::tracegen
