// SPDX-License-Identifier: Apache-2.0
// Shared by policies that read numbers of every layer, head and token from an external file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

struct LayerTable {
  std::int64_t heads = 0;
  std::int64_t tokens = 0;                  // of the trace, or of its prompt
  std::vector<std::vector<double>> layers;  // [stored layers][heads * tokens]
  // "layer 3, head 1, token 17": of layers[layer][at].
  [[nodiscard]] std::string place(std::size_t layer, std::size_t at) const;
};

// Tokens that a table has to have numbers of; a prompt is enough for what acts at its end.
enum class TokensOf : std::uint8_t { trace, prompt };

// Reads a tensor [layers, heads, tokens] of numbers of any type, the first of `tensors` that the
// file has, and picks the trace's layers: the file holds the stored layers, or all of the model.
// Errors: TraceError naming file, tensor and shape.
[[nodiscard]] LayerTable read_layer_table(const std::string& file,
                                          const std::vector<std::string>& tensors,
                                          const Geometry& geometry, const std::string& policy,
                                          TokensOf tokens = TokensOf::trace);

[[nodiscard]] Parameter own_name_parameter();
// The parameter `name` of a method that was run elsewhere: what reports call it.
// Errors: ConfigError when it would be no word of a specification, or one that is taken.
void check_own_name(const Arguments& arguments);

// Ranks entries by the numbers of a table, which are known at birth.
[[nodiscard]] Scoring table_scoring(const std::shared_ptr<const LayerTable>& table,
                                    const Geometry& geometry);

}  // namespace kvspan::policies
