// SPDX-License-Identifier: Apache-2.0
#include "sim/predict/paper_formulas.h"

#include <algorithm>
#include <cmath>

namespace kvspan {
namespace {

std::int64_t triangle(std::int64_t x) { return x * (x + 1) / 2; }

}  // namespace

HeadArea streaming_head(std::int64_t n, std::int64_t m, std::int64_t chunk, std::int64_t sinks,
                        std::int64_t window) {
  HeadArea out;
  const auto held = [&](std::int64_t a) {
    const std::int64_t local = std::min(a, window);
    return local + std::min(a - local, sinks);
  };
  for (std::int64_t a = 0; a < n; a += chunk) {
    const std::int64_t c = std::min(chunk, n - a);
    out.entry_rows += triangle(c) + c * held(a);
    out.peak_points.push_back(c + held(a));
  }
  for (std::int64_t a = n; a < n + m; ++a) out.entry_rows += 1 + held(a);
  if (m > 0) out.peak_points.push_back(1 + held(n + m - 1));
  return out;
}

namespace {

// Every chunk keeps min(round_half_even((1 - s) c) + w, c) of its own.
HeadArea add_only_head(const std::vector<std::int64_t>& chunks, std::int64_t m, double s,
                       std::int64_t w) {
  HeadArea out;
  std::int64_t past = 0;
  for (const std::int64_t c : chunks) {
    out.entry_rows += triangle(c) + past * c;
    out.peak_points.push_back(past + c);
    past += std::min<std::int64_t>(std::llrint((1.0 - s) * static_cast<double>(c)) + w, c);
  }
  if (m > 0) {
    out.entry_rows += triangle(m) + past * m;
    out.peak_points.push_back(past + m);
  }
  return out;
}

std::vector<std::int64_t> chunks_of(std::int64_t n, std::int64_t chunk) {
  std::vector<std::int64_t> out;
  for (std::int64_t a = 0; a < n; a += chunk) out.push_back(std::min(chunk, n - a));
  return out;
}

}  // namespace

HeadArea evicting_head(std::int64_t n, std::int64_t m, std::int64_t chunk, double s,
                       std::int64_t w) {
  return add_only_head(chunks_of(n, chunk), m, s, w);
}

HeadArea locret_head(std::int64_t n, std::int64_t m, std::int64_t chunk, double s,
                     std::int64_t local, std::int64_t stabilizers) {
  std::vector<std::int64_t> chunks = chunks_of(n - std::min(local, n), chunk);
  chunks.push_back(std::min(local, n));
  return add_only_head(chunks, m, s, stabilizers);
}

FootprintAndPeak mixed(const HeadArea& streaming, const HeadArea& evicting, double h,
                       std::int64_t n, std::int64_t m) {
  FootprintAndPeak out;
  const auto full = static_cast<double>(triangle(n + m));
  out.footprint = h * (static_cast<double>(streaming.entry_rows) / full) +
                  (1.0 - h) * (static_cast<double>(evicting.entry_rows) / full);
  for (std::size_t j = 0; j < streaming.peak_points.size(); ++j) {
    const double point = h * static_cast<double>(streaming.peak_points[j]) +
                         (1.0 - h) * static_cast<double>(evicting.peak_points[j]);
    out.peak = std::max(out.peak, point);
  }
  out.peak /= static_cast<double>(n + m);
  return out;
}

}  // namespace kvspan
