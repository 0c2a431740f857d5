// SPDX-License-Identifier: Apache-2.0
// Two parts of h2o.
// weight=value: heavy hitters of the output rather than of the attention. What a row adds to
// an entry is its share of the row's p |v|, p summed over the query heads of the group first.
// Source: code awslabs/keys_values (VLengthH2OKVCache), a row at a time: there the weights of all
// rows of a chunk are summed before they become shares, for want of the single ones.
#pragma once

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

// normalise: divided by the rows that saw the entry.
[[nodiscard]] Scoring value_sum_scoring(bool normalise);

// variant=ratio: a generated token does not read the one that leaves the window with it.
[[nodiscard]] SelectorFactory all_but_the_leaver(TokenCount budget, TokenCount recent);

}  // namespace kvspan::policies
