// SPDX-License-Identifier: Apache-2.0
// Which keys say what others say already: cosines among all keys of a head.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "sim/policies/shared/groups.h"

namespace kvspan::policies {

// Unit keys in panels of kWide tokens, [panels][dim][kWide]: a dot product is one sum in the order
// of the dimensions, and the compiler works on a panel at a time.
class UnitKeys {
 public:
  static constexpr std::size_t kWide = 16;
  UnitKeys(const View& view, int kv_head, std::span<const TokenIndex> tokens);
  [[nodiscard]] std::size_t size() const { return count_; }
  // Sum over all i of c_ij, the diagonal left out.
  [[nodiscard]] double column(std::size_t j);
  // The last column whose c_ij is above the line, and c_ij; column 0 if there is none.
  [[nodiscard]] std::pair<std::size_t, double> last_above(std::size_t i, double line);

 private:
  float& at(std::size_t j, std::size_t d) {
    return panels_[j / kWide * dim_ * kWide + d * kWide + j % kWide];
  }
  std::size_t count_, dim_;
  std::vector<float> panels_;
  std::vector<double> total_, squares_;
};

}  // namespace kvspan::policies
