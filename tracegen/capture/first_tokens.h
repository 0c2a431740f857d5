// SPDX-License-Identifier: Apache-2.0
// Does a model read what it was trained to read? Some were trained with a bos token in front that
// their tokenizer never adds, and are at a loss without it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "tracegen/forward/runner.h"

namespace kvspan::tracegen {

// How well the first tokens of a text are predicted, in nats.
struct FirstLoss {
  std::int64_t tokens = 0;  // predicted ones
  double without = 0, with_bos = 0;
  double guessing = 0;  // ln of the vocabulary: all tokens alike
};

// Whether a bos in front turns predictions that are worse than guessing into better ones: mean nll
// of the first 64 tokens above ln(vocabulary) without it, and below with it. A model that is at a
// loss either way (random weights, the tokens of another one) needs something else. The runner's
// keys and values are overwritten.
// REQUIRES: the runner holds ids.size() rows. Null: no, or too few tokens to tell.
[[nodiscard]] std::optional<FirstLoss> misses_bos(const ModelSpec& model, Runner& runner,
                                                  std::span<const std::int32_t> ids,
                                                  std::int32_t bos);

}  // namespace kvspan::tracegen
