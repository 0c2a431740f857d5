// SPDX-License-Identifier: Apache-2.0
// Internal to the reader of config.json: what each layer of a model mixes tokens with, what
// follows, and how far it sees.
#pragma once

#include <cstdint>
#include <vector>

#include "sim/models/config_fields.h"
#include "sim/models/model_families.h"

namespace kvspan::config {

enum class Mixer : std::uint8_t {
  none,
  attention,
  reuse,  // attention to the KV of an earlier layer
  mamba1,
  mamba2,
  delta,
  kimi,  // delta net with a decay a channel
  convolution
};
enum class Block : std::uint8_t { none, dense, experts };

struct Layers {
  std::vector<Mixer> mixers;
  std::vector<Block> blocks;
  std::vector<Count> windows;  // 0: none
  bool mamba_beside = false;   // a Mamba 2 mixer in every layer, beside its attention
  // Indices, ascending.
  [[nodiscard]] std::vector<int> with(Mixer mixer) const;
  [[nodiscard]] std::vector<int> with(Block block) const;
};

// Mixers and windows. Errors: ConfigError naming the field.
void read_mixers(const Fields& c, const Family& family, Layers& layers);
// REQUIRES: read_mixers() before, which tells the blocks of some families.
void read_blocks(const Fields& c, const Family& family, Layers& layers);

// Whether config.json's layer_types name layers that are not attention.
[[nodiscard]] bool names_recurrent_layers(const nlohmann::json& config);

}  // namespace kvspan::config
