// SPDX-License-Identifier: Apache-2.0
// Rules that let entries leave in whole blocks only, as memory in blocks gives space back.
#pragma once

#include "sim/policy/policy.h"

namespace kvspan {

// Block b of a head holds tokens [b size, (b + 1) size); the last one, not full yet, always stays,
// and comes on top of the rule's budget, which is rounded down to blocks, one at least. What the
// rule protects is rounded up to blocks, the newest as far as the budget goes. The blocks with the
// largest sums of scores stay, of equal ones the older.
// REQUIRES: rule.sizing fills in Sizing::born; before the rule only whole blocks have left.
[[nodiscard]] Rule in_whole_blocks(Rule rule, TokenCount size);

}  // namespace kvspan
