// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/fidelity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace kvspan {
namespace {

double total(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

PhaseFidelity summary(double mass, double error, bool has_error, Distribution masses,
                      Distribution errors) {
  PhaseFidelity out;
  out.values = masses.count();
  const auto count = static_cast<double>(out.values);
  out.mass_mean = mass / count;
  out.mass_p5 = masses.percentile(0.05);
  out.mass_min = masses.min();
  out.exact_percentiles = masses.exact() && errors.exact();
  out.has_error = has_error;
  if (has_error) {
    out.error_mean = error / count;
    out.error_p95 = errors.percentile(0.95);
    out.error_max = errors.max();
  }
  return out;
}

}  // namespace

double relative_error(std::span<const double> full, double full_sum, std::span<const double> kept,
                      double kept_sum) {
  double difference = 0;
  double norm = 0;
  for (std::size_t d = 0; d < full.size(); ++d) {
    const double o_full = full[d] / full_sum;
    const double o_kept = kept_sum > 0 ? kept[d] / kept_sum : 0.0;
    difference += (o_kept - o_full) * (o_kept - o_full);
    norm += o_full * o_full;
  }
  if (difference == 0) return 0.0;
  return norm > 0 ? std::sqrt(difference / norm) : std::numeric_limits<double>::infinity();
}

FidelityPlan plan_fidelity(RowIndex tokens, RowIndex prompt, RowIndex per_phase) {
  FidelityPlan plan;
  plan.prompt = prompt;
  plan.measured.assign(static_cast<std::size_t>(tokens), per_phase == 0 ? 1 : 0);
  if (per_phase == 0) return plan;
  for (const auto& [start, end] : {std::pair<RowIndex, RowIndex>{0, prompt}, {prompt, tokens}}) {
    for (const RowIndex row : spread_rows(start, end, std::min(per_phase, end - start)))
      plan.measured[static_cast<std::size_t>(row)] = 1;
  }
  return plan;
}

LayerFidelity::LayerFidelity(const FidelityPlan& plan, int query_heads)
    : plan_(&plan),
      query_heads_(query_heads),
      row_mass_(plan.measured.size(), 0.0),
      phases_(2),
      span_lost_(plan.spans.size(), 0.0) {
  for (Phase& p : phases_) {
    p.mass.assign(static_cast<std::size_t>(query_heads), 0.0);
    p.error.assign(static_cast<std::size_t>(query_heads), 0.0);
    p.logit_error.assign(static_cast<std::size_t>(query_heads), 0.0);
  }
}

void LayerFidelity::add_mass(int query_head, RowIndex row, double mass) {
  Phase& p = phase(row);
  p.mass[static_cast<std::size_t>(query_head)] += mass;
  p.masses.add(static_cast<float>(mass));
  row_mass_[static_cast<std::size_t>(row)] += mass;
}

void LayerFidelity::add_error(int query_head, RowIndex row, double error) {
  Phase& p = phase(row);
  p.error[static_cast<std::size_t>(query_head)] += error;
  p.errors.add(static_cast<float>(error));
}

void LayerFidelity::add_logit_error(int query_head, RowIndex row, double error) {
  Phase& p = phase(row);
  p.logit_error[static_cast<std::size_t>(query_head)] += error;
  ++p.logit_rows;
}

void LayerFidelity::add_unchanged(RowIndex row) {
  Phase& p = phase(row);
  for (double& mass : p.mass) mass += 1.0;
  p.masses.add_common(query_heads_);
  if (plan_->output_error) p.errors.add_common(query_heads_);
  row_mass_[static_cast<std::size_t>(row)] += query_heads_;
}

FidelityTotal::FidelityTotal(const FidelityPlan& plan, int layers, int query_heads)
    : plan_(&plan),
      layers_(layers),
      query_heads_(query_heads),
      row_mass_(plan.measured.size(), 0.0),
      span_lost_(plan.spans.size(), 0.0) {}

void FidelityTotal::add(LayerFidelity&& layer) {
  for (std::size_t i = 0; i < row_mass_.size(); ++i) row_mass_[i] += layer.row_mass_[i];
  for (std::size_t s = 0; s < span_lost_.size(); ++s) span_lost_[s] += layer.span_lost_[s];
  for (std::size_t p = 0; p < 2; ++p) {
    LayerFidelity::Phase& phase = layer.phases_[p];
    mass_[p] += total(phase.mass);
    error_[p] += total(phase.error);
    logit_error_[p] += total(phase.logit_error);
    logit_rows_[p] += phase.logit_rows;
    masses_[p].merge(std::move(phase.masses));
    errors_[p].merge(std::move(phase.errors));
    head_mass_[p].push_back(std::move(phase.mass));
  }
}

std::int64_t FidelityTotal::rows(int phase) const {
  const auto prompt = plan_->measured.begin() + plan_->prompt;
  return phase == 0 ? std::count(plan_->measured.begin(), prompt, 1)
                    : std::count(prompt, plan_->measured.end(), 1);
}

Fidelity FidelityTotal::finish(const Ledger& ledger) {
  Fidelity out;
  const std::int64_t measured[2] = {rows(0), rows(1)};
  out.rows_measured = measured[0] + measured[1];
  const auto of = [&](int p) -> std::optional<PhaseFidelity> {
    if (measured[p] == 0) return std::nullopt;
    PhaseFidelity phase = summary(mass_[p], error_[p], plan_->output_error, masses_[p], errors_[p]);
    if (logit_rows_[p] > 0) phase.logit_error = logit_error_[p] / static_cast<double>(phase.values);
    return phase;
  };
  out.prefill = of(0);
  out.decode = of(1);
  const std::size_t judged = measured[1] > 0 ? 1 : 0;
  for (int l = 0; l < layers_; ++l) {
    std::vector<double> heads = head_mass_[judged][static_cast<std::size_t>(l)];
    for (double& mass : heads) mass /= static_cast<double>(measured[judged]);
    out.layer_mass.push_back(total(heads) / query_heads_);
    out.head_mass.push_back(std::move(heads));
  }
  masses_[0].merge(std::move(masses_[1]));
  errors_[0].merge(std::move(errors_[1]));
  out.all = summary(mass_[0] + mass_[1], error_[0] + error_[1], plan_->output_error,
                    std::move(masses_[0]), std::move(errors_[0]));
  if (logit_rows_[0] + logit_rows_[1] > 0) {
    out.all->logit_error =
        (logit_error_[0] + logit_error_[1]) / static_cast<double>(out.all->values);
  }
  const double per_row = static_cast<double>(layers_) * query_heads_;
  for (std::size_t row = 0; row < row_mass_.size(); ++row) {
    out.row_mass.push_back(plan_->measured[row] != 0 ? static_cast<float>(row_mass_[row] / per_row)
                                                     : std::numeric_limits<float>::quiet_NaN());
  }
  for (std::size_t s = 0; s < plan_->spans.size(); ++s) {
    const Span& span = plan_->spans[s];
    std::int64_t resident = 0;
    for (int l = 0; l < ledger.layers; ++l) {
      for (int h = 0; h < ledger.heads; ++h) {
        const auto deaths = ledger.deaths(l, h);
        for (std::int64_t t = span.begin; t < span.end; ++t) {
          resident +=
              static_cast<std::int64_t>(deaths[static_cast<std::size_t>(t)]) == ledger.plan.tokens
                  ? 1
                  : 0;
        }
      }
    }
    const double entries = static_cast<double>(ledger.layers) * ledger.heads *
                           static_cast<double>(span.end - span.begin);
    const auto after = static_cast<double>(
        std::count(plan_->measured.begin() + span.end, plan_->measured.end(), 1));
    out.spans.push_back({span.name, entries > 0 ? static_cast<double>(resident) / entries : 0.0,
                         after > 0 ? span_lost_[s] / (after * per_row) : 0.0});
  }
  return out;
}

}  // namespace kvspan
