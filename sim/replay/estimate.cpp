// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/estimate.h"

#include <algorithm>
#include <cmath>

#include <boost/math/distributions/students_t.hpp>

namespace kvspan {

Estimate estimate_mean(std::span<const double> values, std::int64_t of) {
  const auto n = static_cast<double>(values.size());
  Estimate out;
  out.drawn = std::ssize(values);
  out.of = of;
  for (const double value : values) out.mean += value / n;
  if (out.drawn == of) {
    out.low = out.high = out.mean;
    return out;
  }
  out.high = 1;
  if (out.drawn == 1) return out;
  double squares = 0;
  for (const double value : values) squares += (value - out.mean) * (value - out.mean);
  const double t = boost::math::quantile(boost::math::students_t(n - 1), 0.975);
  const double half = t * std::sqrt(squares / (n - 1) / n * (1 - n / static_cast<double>(of)));
  out.low = std::max(0.0, out.mean - half);
  out.high = std::min(1.0, out.mean + half);
  return out;
}

}  // namespace kvspan
