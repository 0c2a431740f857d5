// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/calibration.h"

#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan::policies {
namespace {

// What the vectors of two traces must have in common.
bool same_rotation(const Trace& a, const Trace& b) {
  const auto& x = a.meta().rope;
  const auto& y = b.meta().rope;
  if (a.meta().head_dim != b.meta().head_dim || x.has_value() != y.has_value()) return false;
  return !x || (x->dim == y->dim && x->interleaved == y->interleaved);
}

}  // namespace

bool QueryCalibration::readable() const {
  return source_.trace != nullptr && source_.trace->is_qkv();
}

int QueryCalibration::layer(int stored) const {
  if (!other() || source_.other->meta().layer_ids == geometry_.layer_ids) return stored;
  return geometry_.layer_ids[index(stored)];
}

RowIndex QueryCalibration::rows() const {
  return other() ? source_.other->meta().tokens : geometry_.evict_point;
}

void QueryCalibration::note(Recipe& recipe) const {
  if (!other()) {
    recipe.notes.emplace_back(
        "stand-in: calibrated on the queries of this prompt, not on a text of its own");
  } else if (source_.future) {
    recipe.bound = true;
    recipe.notes.emplace_back("bound: calibrated on this trace, rows to come included");
  }
}

Parameter calibration_parameter() {
  return {.name = "calibration",
          .kind = Parameter::Kind::text,
          .fallback = "auto",
          .unit = "trace",
          .help = "whose queries are looked at; auto: this prompt's"};
}

QueryCalibration calibration_of(const Arguments& arguments, const Geometry& geometry) {
  HeadSource source = head_source(arguments, "calibration", geometry);
  if (!arguments.has("calibration")) return {std::move(source), geometry};
  const std::string found = fmt::format("{}(calibration): found '{}', expected ",
                                        arguments.policy(), arguments.text("calibration"));
  if (!source.other || !source.other->is_qkv())
    throw ConfigError(found + "a trace that holds q, a .safetensors file");
  if (geometry.trace != nullptr && !same_rotation(*source.other, *geometry.trace))
    throw ConfigError(found + "the head_dim and the rope_* fields of the trace that is replayed");
  return {std::move(source), geometry};
}

}  // namespace kvspan::policies
