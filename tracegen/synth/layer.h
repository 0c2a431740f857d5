// SPDX-License-Identifier: Apache-2.0
// Inside of SynthLayer: synth.cpp makes the vectors of a token, masses.cpp the gains that are
// fitted. Private to tracegen/synth.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "tracegen/synth/channels.h"
#include "tracegen/synth/synth.h"

namespace kvspan::tracegen {

// A layer of a profile of kinds: every kind gets its share of the heads, in random order.
[[nodiscard]] LayerProfile draw_layer(const SynthProfile& profile, const SynthOptions& options,
                                      std::uint64_t layer);

struct DistanceGrid;

struct SynthLayer::Impl {
  SynthOptions options;
  SynthPlan plan;
  Channels channels;
  std::uint64_t stream = 0;         // of the layer
  LayerProfile profile;             // one for each query head
  double root = 0;                  // sqrt(head_dim) = 1 / score_scale
  std::vector<double> frequency;    // [rope / 2], turns per token
  std::vector<float> needle_codes;  // [needles, channels.needles], unit, orthogonal if they can be
  struct Gains {
    std::vector<double> cosines, sines;  // [rope / 2]: locality = sum c cos(w d) + s sin(w d)
    double sink = 0, needle = 0;
  };
  std::vector<Gains> gains;  // [query_heads]

  Impl(const SynthOptions& o, const SynthPlan& p, const SynthProfile& from, int layer);

  [[nodiscard]] std::uint64_t bits(Stream what, std::int64_t a, std::int64_t b = 0) const;

  // Zipf's law with exponent 1: log-uniform in [1, 4096).
  [[nodiscard]] std::int64_t word(std::int64_t token) const;
  [[nodiscard]] bool turn_marker(std::int64_t token) const;
  // Which needle a token is part of, or -1.
  [[nodiscard]] int needle_of(std::int64_t token) const;
  // Which needle a row looks for, or -1.
  [[nodiscard]] int asked(std::int64_t row) const;

  [[nodiscard]] double hitter(int kv_head, std::int64_t token) const;

  void topic(std::int64_t token, std::span<float> out) const;

  void make_needle_codes();
  [[nodiscard]] std::span<const float> needle_code(int needle) const;

  // Everything of a key but its rotary part; sinks have nothing but the sink channel.
  void key_content(int kv_head, std::int64_t token, std::span<float> k) const;

  // Everything of a query but its rotary part.
  void query_content(int head, std::int64_t row, std::span<float> q) const;

  [[nodiscard]] std::size_t head_index(int kv_head, int of_group) const;

  // Least squares over distances, each octave with the same weight: the wanted curve as a mixture
  // of the rotary frequencies, and a constant that the softmax does not see.
  void fit_locality();

  // Gains of sinks and needles, from rows and keys that are sampled.
  void calibrate();

  void calibrate_group(int kv_head, const DistanceGrid& grid, const std::vector<double>& waves,
                       const std::vector<std::int64_t>& rows,
                       const std::vector<std::int64_t>& answers);
};

}  // namespace kvspan::tracegen
