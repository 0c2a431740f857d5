// SPDX-License-Identifier: Apache-2.0
#include "tracegen/forward/stable_dense.h"

#include <algorithm>

#include <tbb/parallel_for.h>

#include "sim/attention/kernels.h"

namespace kvspan::tracegen {
namespace {

constexpr std::int64_t kOutputs = 4 * kvspan::kernels::kPanel;  // of W in one tile

// Outputs [first, first + count) of all rows. Weights stand where keys stand in attention: packed
// in panels, whose products have one order.
void tile(const float* x, std::int64_t rows, const WeightMatrix& w, const std::vector<float>& bias,
          std::int64_t first, std::int64_t count, float* y, std::int64_t ldy) {
  namespace k = kvspan::kernels;
  const auto columns = static_cast<int>(w.columns);
  std::vector<float> widened(static_cast<std::size_t>(count * w.columns));
  widen_rows(w, first, count, widened.data());
  std::vector<float> panels(static_cast<std::size_t>(k::padded(count) * w.columns));
  k::pack_keys(widened.data(), count, w.columns, columns, panels.data());
  std::vector<float> sums(static_cast<std::size_t>(rows * k::padded(count)));
  std::vector<const float*> from;
  std::vector<float*> to;
  for (std::int64_t r = 0; r < rows; ++r) {
    from.push_back(x + r * w.columns);
    to.push_back(sums.data() + r * k::padded(count));
  }
  k::logits(from.data(), rows, columns, panels.data(), 0, k::padded(count) / k::kPanel, 1, 0,
            to.data());
  for (std::int64_t r = 0; r < rows; ++r) {
    float* out = y + r * ldy + first;
    std::copy_n(to[static_cast<std::size_t>(r)], count, out);
    for (std::int64_t i = 0; i < count && !bias.empty(); ++i)
      out[i] += bias[static_cast<std::size_t>(first + i)];
  }
}

}  // namespace

void stable_dense(const float* x, std::int64_t rows, const WeightMatrix& w,
                  const std::vector<float>& bias, float* y, std::int64_t ldy) {
  constexpr std::int64_t kMostRows = 256;  // so that a tile's sums stay in the cache
  tbb::parallel_for(std::int64_t{0}, (w.rows + kOutputs - 1) / kOutputs, [&](std::int64_t t) {
    const std::int64_t first = t * kOutputs;
    const std::int64_t count = std::min(kOutputs, w.rows - first);
    for (std::int64_t r = 0; r < rows; r += kMostRows) {
      tile(x + r * w.columns, std::min(kMostRows, rows - r), w, bias, first, count, y + r * ldy,
           ldy);
    }
  });
}

}  // namespace kvspan::tracegen
