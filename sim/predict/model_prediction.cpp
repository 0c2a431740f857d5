// SPDX-License-Identifier: Apache-2.0
#include "sim/predict/model_prediction.h"

#include <algorithm>
#include <vector>

namespace kvspan {
namespace {

void add(PeakBytes& sum, const PeakBytes& part) {
  sum.total += part.total;
  sum.kv += part.kv;
  sum.overhead += part.overhead;
  sum.prefill += part.prefill;
  sum.decode += part.decode;
}

// Bounds are less than estimates, these less than what was measured, and all less than a formula.
Basis weaker(Basis a, Basis b) {
  for (const Basis basis : {Basis::bound, Basis::scaled, Basis::measured}) {
    if (a == basis || b == basis) return basis;
  }
  return Basis::closed_form;
}

void add(Prediction& sum, const Prediction& part) {
  sum.basis = weaker(sum.basis, part.basis);
  if (sum.peak_bytes.row != part.peak_bytes.row) {
    sum.basis = Basis::bound;
    sum.notes.emplace_back("groups of layers peak in different rows: their peaks are added up");
  }
  sum.entry_rows += part.entry_rows;
  sum.full_entry_rows += part.full_entry_rows;
  add(sum.peak_bytes, part.peak_bytes);
  if (sum.byte_rows && part.byte_rows) *sum.byte_rows += *part.byte_rows;
  for (auto& [name, peak] : sum.layouts) add(peak, part.layouts.at(name));
  for (std::size_t i = 0; i < std::min(sum.held.size(), part.held.size()); ++i)
    sum.held[i] += part.held[i];
  sum.after.insert(sum.after.end(), part.after.begin(), part.after.end());
  sum.after_bytes.insert(sum.after_bytes.end(), part.after_bytes.begin(), part.after_bytes.end());
}

}  // namespace

std::span<const ModelGeometry> parts_of(const ModelGeometry& model) {
  if (model.parts.empty()) return {&model, 1};
  return model.parts;
}

PartPrediction predict_part(const RecipeSpec& spec, const ModelGeometry& part, const Workload& w,
                            const Accounting& accounting, bool every_layout,
                            const Calibration* calibration) {
  const Geometry geometry = geometry_of(part, w.prompt, w.generated, w.chunk, accounting.kv_bytes);
  const Policy policy = make_policy(spec, geometry);
  if (calibration == nullptr)
    return {predict(policy, geometry, accounting, every_layout), policy.per_query_head};
  return {calibration->predict({spec, policy, geometry, part.name, accounting}, every_layout),
          policy.per_query_head};
}

Prediction united(const ModelGeometry& model, const Workload& w,
                  std::span<const PartPrediction> parts) {
  Prediction out = parts.front().prediction;
  if (parts.size() == 1) return out;
  double slots = 0;
  double peak = 0;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const ModelGeometry& part = model.parts[p];
    const int heads = parts[p].per_query_head ? part.query_heads : part.kv_heads;
    const double own = static_cast<double>(part.layer_ids.size()) * heads *
                       static_cast<double>(w.prompt + w.generated);
    slots += own;
    peak += own * parts[p].prediction.peak_kv;
    if (p > 0) add(out, parts[p].prediction);
  }
  out.footprint = static_cast<double>(out.entry_rows) / static_cast<double>(out.full_entry_rows);
  out.peak_kv = peak / slots;
  return out;
}

Prediction predict_model(const RecipeSpec& spec, const ModelGeometry& model, const Workload& w,
                         const Accounting& accounting, const Calibration* calibration) {
  std::vector<PartPrediction> parts;
  for (const ModelGeometry& part : parts_of(model))
    parts.push_back(predict_part(spec, part, w, accounting, true, calibration));
  return united(model, w, parts);
}

}  // namespace kvspan
