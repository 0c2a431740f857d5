// SPDX-License-Identifier: Apache-2.0
// Shared by policies that let their cache grow before they cut it.
#pragma once

#include "sim/policy/policy.h"

namespace kvspan::policies {

// The budget, once so many more than it are held. REQUIRES: Traits.competing.
class WhenOver final : public Budget {
 public:
  explicit WhenOver(TokenCount slack) : slack_(slack) {}
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& sizing) const override {
    return sizing.rows >= sizing.tokens + slack_ ? sizing.tokens : kAll;
  }

 private:
  TokenCount slack_;
};

}  // namespace kvspan::policies
