// SPDX-License-Identifier: Apache-2.0
// Internal to the reader of config.json: the mixers without KV, and what they keep of a request.
#pragma once

#include <array>

#include "sim/models/config_fields.h"
#include "sim/models/model_families.h"
#include "sim/models/model_layers.h"

namespace kvspan::config {

// All of them are a projection in, a short convolution, and a projection out; `state` is what a
// request keeps between tokens.
struct Recurrence {
  Count projected = 0;            // columns of the projection in
  Count convolved = 0, taps = 1;  // channels and taps of the convolution
  bool convolution_bias = false;
  bool in_bias = false, out_bias = false;
  Count out = 0;    // rows of the projection out
  Count small = 0;  // decays, norms and the like
  Count state = 0;  // elements of the recurrence
};

constexpr std::array<Mixer, 5> kRecurrent{Mixer::mamba1, Mixer::mamba2, Mixer::delta, Mixer::kimi,
                                          Mixer::convolution};
// REQUIRES: one of kRecurrent. Errors: ConfigError naming the field.
[[nodiscard]] Recurrence recurrence_of(const Fields& c, const Family& family, Mixer mixer);

// Bytes of the recurrent states of one request, in all layers without KV.
[[nodiscard]] Count state_bytes(const Fields& c, const Family& family, const Layers& layers);

}  // namespace kvspan::config
