// SPDX-License-Identifier: Apache-2.0
#include "tracegen/forward/rope_table.h"

#include <cmath>

namespace kvspan::tracegen {

RopeTable rope_table(const ModelSpec& spec, std::int64_t first, std::int64_t rows) {
  RopeTable table;
  const auto& frequencies = spec.rope.inverse_frequencies;
  table.pairs = static_cast<std::int64_t>(frequencies.size());
  table.cosine.reserve(static_cast<std::size_t>(rows) * frequencies.size());
  table.sine.reserve(table.cosine.capacity());
  for (std::int64_t position = first; position < first + rows; ++position) {
    for (const double frequency : frequencies) {
      const auto angle = double{static_cast<float>(frequency) * static_cast<float>(position)};
      table.cosine.push_back(static_cast<float>(std::cos(angle) * spec.rope_attention_factor));
      table.sine.push_back(static_cast<float>(std::sin(angle) * spec.rope_attention_factor));
    }
  }
  return table;
}

}  // namespace kvspan::tracegen
