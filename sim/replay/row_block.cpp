// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/row_block.h"

#include "sim/attention/kernels.h"

namespace kvspan {

using kernels::padded;

// Below this the readable keys lie some 57 nats under the row's maximum, and their fp32 terms lose
// digits: the row is redone with its maximum taken over the readable keys.
constexpr double kUnderflow = 1e-25;

AttendedRow attend_row(const RowBlock& block, int query_head, RowIndex row, const float* mask,
                       RowScratch& scratch) {
  const auto keys = static_cast<std::size_t>(padded(block.tokens));
  RowTerms terms;
  if (block.has(row)) {
    terms = block.full(query_head, row);
  } else {
    scratch.row.resize(keys);
    terms = block.scores->row(query_head, row, scratch.row);
  }
  AttendedRow out{terms.terms, terms.sum, terms.sink, 1.0, terms.slack};
  if (mask == nullptr) return out;
  out.sum = kernels::masked_sum(terms.terms, mask, padded(row + 1));
  if (out.sum < kUnderflow && block.scores->is_qkv()) {
    scratch.rescue.resize(keys);
    double scale = 0;
    terms = block.scores->rescued(query_head, row, mask, scratch.rescue, terms.max, scale);
    if (terms.sum > 0) out = {terms.terms, terms.sum, terms.sink, scale, 0.0};
  }
  return out;
}

}  // namespace kvspan
