// SPDX-License-Identifier: Apache-2.0
// KVzip's replay: after the context the model is asked to repeat it, chunk by chunk, with the chunk
// itself as the answer; queries and keys of these rows say which entries the context is made from.
//   pass i   "\n\nRepeat the previous context exactly." (later passes: the part of it that starts
//            with the last 8 tokens of the chunk before) + what ends a user's turn + chunk i
// Source: Kim et al., arXiv 2505.23416; code snu-mllab/KVzip (model/wrapper.py; chunks of 2,000).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen {

struct ReplayPass {
  std::int64_t begin = 0, end = 0;  // tokens that it asks for
  std::vector<std::int32_t> ids;    // that the model reads
};

struct ContextReplay {
  std::int64_t at = 0;  // tokens that the model has read before each pass
  std::vector<ReplayPass> passes;
  // L2 norms [rows] of what a layer's projections read of hidden [rows, hidden].
  std::function<void(int layer, std::span<const float> hidden, std::span<float> out)> norms;
  [[nodiscard]] std::int64_t rows() const;       // of all passes
  [[nodiscard]] std::int64_t most_rows() const;  // of one
  [[nodiscard]] std::vector<std::int32_t> ids() const;
};

// Token ids of the requests.
struct ReplayWords {
  std::vector<std::int32_t> first, later;  // of the first pass, of later ones
  std::vector<std::int32_t> suffix;        // what ends a user's turn
};

// Asks for tokens [begin, end) of `ids`, `chunk` of them a pass, when `end` tokens are read.
// Errors: ConfigError when there is no such token.
[[nodiscard]] ContextReplay make_replay(std::span<const std::int32_t> ids, std::int64_t begin,
                                        std::int64_t end, std::int64_t chunk,
                                        const ReplayWords& words);

// ContextReplay::norms of a checkpoint, which is kept alive.
[[nodiscard]] std::function<void(int, std::span<const float>, std::span<float>)> norms_of(
    const Checkpoint& checkpoint);

}  // namespace kvspan::tracegen
