// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/baklava_fit.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <utility>

#include <fmt/format.h>
#include <tbb/parallel_for.h>

#include "sim/base/error.h"
#include "sim/policies/shared/kernels.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {
namespace {

constexpr std::int64_t kCalibrationRows = 256;

double cosine(std::span<const double> a, std::span<const float> b) {
  double dot = 0;
  double aa = 0;
  double bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const auto y = static_cast<double>(b[i]);
    dot += a[i] * y;
    aa += a[i] * a[i];
    bb += y * y;
  }
  return aa > 0 && bb > 0 ? dot / std::sqrt(aa * bb) : 0.0;
}

// One layer: mean change and lost mass of every KV head.
void calibrate_layer(const Trace& trace, int layer, TokenCount sinks, Calibration& out) {
  const TraceMeta& meta = trace.meta();
  const LayerScores scores(trace, layer);
  std::vector<RowIndex> rows;
  for (RowIndex row = 0; row < out.rows; ++row) {
    if (scores.has_row(row)) rows.push_back(row);
  }
  if (rows.empty()) {
    throw TraceError(fmt::format(
        "{}: baklava needs rows of the prompt before row {}, and layers.{}.scores.rows has none",
        trace.name(), out.rows, layer));
  }
  const auto count = std::min<std::int64_t>(kCalibrationRows, std::ssize(rows));
  const int group = meta.query_heads / meta.kv_heads;
  const auto dim = index(meta.v_head_dim);
  std::vector<float> buffer(index(kernels::padded(out.rows)));
  std::vector<TokenIndex> keys(index(out.rows));
  std::iota(keys.begin(), keys.end(), 0);
  for (int h = 0; h < meta.kv_heads; ++h) {
    double change = 0;
    std::vector<double> back(index(out.rows) + 1, 0.0);  // mass by distance
    for (std::int64_t i = 0; i < count; ++i) {
      const RowIndex row = rows[index(i * std::ssize(rows) / count)];
      for (int q = h * group; q < (h + 1) * group; ++q) {
        const RowTerms terms = scores.row(q, row, buffer);
        const double scale = 1 / ((terms.sum + terms.sink) * static_cast<double>(count * group));
        for (RowIndex j = sinks; j <= row; ++j)
          back[index(row - j)] += static_cast<double>(terms.terms[j]) * scale;
        if (!trace.has_v()) {
          change += 1 / static_cast<double>(count * group) -
                    static_cast<double>(terms.terms[row]) * scale;
          continue;
        }
        std::vector<double> output(dim, 0.0);
        double* to = output.data();
        const float* values = scores.values(h);
        kernels::weighted_values(&terms.terms, 1, keys.data(), row + 1, values, meta.v_head_dim,
                                 meta.v_head_dim, &to);
        change += (1 - cosine(output, {values + row * meta.v_head_dim, dim})) /
                  static_cast<double>(count * group);
      }
    }
    for (std::size_t d = back.size() - 1; d-- > 0;) back[d] += back[d + 1];
    back.erase(back.begin());  // back[d]: more than d rows back
    out.importance[index(layer)][index(h)] = std::max(0.0, change);
    out.lost[index(layer)][index(h)] = std::move(back);
  }
}

}  // namespace

Calibration calibrate(const Trace& trace, RowIndex end, TokenCount sinks,
                      const Geometry& geometry) {
  const int layers = trace.meta().layers;
  Calibration out;
  out.rows = std::max<RowIndex>(1, end);
  out.importance.assign(index(layers), std::vector<double>(index(geometry.kv_heads), 0.0));
  out.lost.assign(index(layers), std::vector<std::vector<double>>(index(geometry.kv_heads)));
  tbb::parallel_for(0, layers, [&](int layer) { calibrate_layer(trace, layer, sinks, out); });
  out.importance = stored_layers(out.importance, geometry);
  out.lost = stored_layers(out.lost, geometry);
  return out;
}

}  // namespace kvspan::policies
