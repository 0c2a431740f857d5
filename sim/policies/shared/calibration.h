// SPDX-License-Identifier: Apache-2.0
// Shared by policies that are calibrated on queries: whose they are.
#pragma once

#include "sim/policies/shared/head_masks.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {

// Another trace, all of it, or the prompt of this one (a stand-in).
class QueryCalibration {
 public:
  QueryCalibration(HeadSource source, const Geometry& geometry)
      : source_(std::move(source)), geometry_(geometry) {}
  [[nodiscard]] bool other() const { return source_.other != nullptr; }
  // False in the analytic model, and for a trace without q, which the replay refuses.
  [[nodiscard]] bool readable() const;
  [[nodiscard]] const Trace& trace() const { return *source_.trace; }
  [[nodiscard]] int layer(int stored) const;  // of that trace
  [[nodiscard]] RowIndex rows() const;        // of it that are looked at
  // Says in the recipe what it is.
  void note(Recipe& recipe) const;

 private:
  HeadSource source_;
  Geometry geometry_;
};

[[nodiscard]] Parameter calibration_parameter();
// Errors: ConfigError, TraceError when what is named is not a trace with q of the same model.
[[nodiscard]] QueryCalibration calibration_of(const Arguments& arguments, const Geometry& geometry);

}  // namespace kvspan::policies
