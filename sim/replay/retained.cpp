// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/retained.h"

#include <algorithm>

namespace kvspan {

MassInterval KeyGroup::mass(const RowCut& cut) const {
  const double flushed = cut.absolute * static_cast<double>(stored);
  return {std::max(0.0, sum * (1 - cut.relative) - flushed),
          sum * (1 + cut.relative) + flushed + cut.most * static_cast<double>(open)};
}

KeyGroup group_of(const RowTerms& row, const float* mask, bool read, std::int64_t begin,
                  std::int64_t end) {
  KeyGroup out;
  for (std::int64_t j = begin; j < end; ++j) {
    if ((mask[j] != 0.0F) != read) continue;
    const float term = row.terms[j];
    out.sum += static_cast<double>(term);
    (term != 0.0F ? out.stored : out.open) += 1;
  }
  return out;
}

MassInterval retained_interval(const RowTerms& row, const float* mask, std::int64_t begin,
                               std::int64_t end) {
  const RowCut& cut = row.cut;
  const KeyGroup read = group_of(row, mask, true, begin, end);
  const KeyGroup gone{std::max(0.0, cut.captured - read.sum), cut.keys - read.stored,
                      end - begin - cut.keys - read.open};
  const MassInterval in = read.mass(cut);
  const MassInterval out = gone.mass(cut);
  const auto share = [](double part, double rest) {
    return part + rest > 0 ? part / (part + rest) : 1.0;
  };
  if (cut.total <= 0) return {share(in.low, out.high), share(in.high, out.low)};
  const double low = std::max(in.low, cut.total - out.high) / cut.total;
  const double high = std::min(in.high, cut.total - out.low) / cut.total;
  // Stored rows add up to their total within rounding only.
  return {std::clamp(low, 0.0, 1.0), std::clamp(std::max(low, high), 0.0, 1.0)};
}

}  // namespace kvspan
