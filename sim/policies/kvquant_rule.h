// SPDX-License-Identifier: Apache-2.0
// The store of KVQuant: ranges, codebooks, and what entries become at the end of their pass.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "sim/policy/policy.h"

namespace kvspan::policies {

// A range: fp16 centre and half width. Elements outside are outliers.
struct Range {
  float low = 0, high = 0, centre = 0, width = 0;
  [[nodiscard]] bool holds(float x) const { return x >= low && x <= high; }
  [[nodiscard]] float normal(float x) const { return width > 0 ? (x - centre) / width : 0.0F; }
};

// Levels in [-1, 1], ascending.
using Codebook = std::vector<float>;

class NonUniform final : public Store {
 public:
  struct Settings {
    int bits = 4;
    double tails = 0.005;  // outliers at either end
    bool fit = true;
    double bytes = 0;  // of an entry, on average
    [[nodiscard]] std::int64_t bytes_below(RowIndex tokens) const {
      return static_cast<std::int64_t>(std::floor(bytes * static_cast<double>(tokens) + 1e-6));
    }
  };
  explicit NonUniform(const Settings& settings) : settings_(settings) {}
  void age(const View& view, Decision& out) override;

 private:
  // On the first half of the prompt, without the first token.
  void calibrate(const View& view);
  [[nodiscard]] Codebook key_codebook(const View& view, RowIndex begin, RowIndex end);
  [[nodiscard]] Codebook value_codebook(const View& view, RowIndex begin, RowIndex end) const;
  void quantise_key(Rewrite& rewrite) const;
  // A token's values share one range over all heads.
  void quantise_value(std::vector<Rewrite>& heads) const;

  Settings settings_;
  std::vector<std::vector<Range>> key_ranges_;  // [heads][channels]
  Codebook key_levels_, value_levels_;
};

}  // namespace kvspan::policies
