// SPDX-License-Identifier: Apache-2.0
// How much memory one request needs under a policy, for any prompt and at any token of its answer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sim/fleet/requests.h"
#include "sim/predict/capacity.h"

namespace kvspan {

// What asks for a request's bytes, and how they are rounded.
struct CurveRequest {
  const RecipeSpec& spec;
  const ModelGeometry& model;
  const Accounting& accounting;
  std::int64_t tp = 1;
  std::int64_t chunk = 0;  // of the prompt, as in Workload
  std::int64_t block = 0;  // bytes that are handed out at a time; 0: any number
  const Calibration* calibration = nullptr;
};

// Bytes of one request on one GPU, from predictions at some lengths and straight lines between
// them: exact where the policy's bytes are linear there (full, post-fill, fixed sizes), and
// everywhere if the requests have at most kKnots lengths.
class MemoryCurve {
 public:
  static constexpr std::size_t kKnots = 32;
  // Errors: ConfigError as of predict().
  MemoryCurve(const CurveRequest& request, std::span<const FleetRequest> requests);

  // While the prompt is read.
  [[nodiscard]] std::int64_t prefill(std::int64_t prompt) const;
  // The most that is held while tokens 1 to `token` of the answer are generated.
  [[nodiscard]] std::int64_t decode(std::int64_t prompt, std::int64_t token) const;
  [[nodiscard]] Basis basis() const { return basis_; }  // the weakest of all

 private:
  [[nodiscard]] std::int64_t rounded(double bytes) const;

  std::int64_t block_;
  Basis basis_ = Basis::closed_form;
  std::vector<std::int64_t> prompts_, tokens_;  // knots, ascending
  std::vector<double> prefill_;                 // [prompts]
  std::vector<double> decode_;                  // [prompts][tokens]
};

}  // namespace kvspan
