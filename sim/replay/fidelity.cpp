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

// `sum` of what `values` holds.
MassUpper mass_figures(double sum, const Distribution& values) {
  return {sum / static_cast<double>(values.count()), values.percentile(0.05), values.min()};
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

void normalise(std::span<const double> output, double sum, float* out) {
  for (std::size_t d = 0; d < output.size(); ++d)
    out[d] = sum > 0 ? static_cast<float>(output[d] / sum) : 0.0F;
}

FidelityPlan plan_fidelity(RowIndex tokens, RowIndex prompt, RowIndex prompt_rows,
                           RowIndex decode_rows) {
  FidelityPlan plan;
  plan.prompt = prompt;
  plan.measured.assign(static_cast<std::size_t>(tokens), 0);
  const auto measure = [&](RowIndex start, RowIndex end, RowIndex rows, double& weight) {
    if (rows == 0 || rows > end - start) rows = end - start;
    for (const RowIndex row : spread_rows(start, end, rows))
      plan.measured[static_cast<std::size_t>(row)] = 1;
    if (rows > 0) weight = static_cast<double>(end - start) / static_cast<double>(rows);
  };
  measure(0, prompt, prompt_rows, plan.weights[0]);
  measure(prompt, tokens, decode_rows, plan.weights[1]);
  return plan;
}

LayerFidelity::LayerFidelity(const FidelityPlan& plan, int query_heads)
    : plan_(&plan),
      query_heads_(query_heads),
      row_mass_(plan.measured.size(), 0.0),
      row_mass_upper_(plan.intervals ? plan.measured.size() : 0, 0.0),
      phases_(2),
      span_lost_(plan.spans.size()) {
  for (Phase& p : phases_) {
    p.low.heads.assign(static_cast<std::size_t>(query_heads), 0.0);
    p.high.heads = p.low.heads;
    p.error.assign(static_cast<std::size_t>(query_heads), 0.0);
    p.logit_error.assign(static_cast<std::size_t>(query_heads), 0.0);
  }
}

void LayerFidelity::add_mass(int query_head, RowIndex row, MassInterval mass) {
  const auto add = [&](Masses& masses, std::vector<double>& rows, double value) {
    masses.heads[static_cast<std::size_t>(query_head)] += value;
    masses.values.add(static_cast<float>(value));
    rows[static_cast<std::size_t>(row)] += value;
  };
  Phase& p = phase(row);
  add(p.low, row_mass_, mass.low);
  if (plan_->intervals) add(p.high, row_mass_upper_, mass.high);
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
  const auto add = [&](Masses& masses, std::vector<double>& rows) {
    for (double& mass : masses.heads) mass += 1.0;
    masses.values.add_common(query_heads_);
    rows[static_cast<std::size_t>(row)] += query_heads_;
  };
  Phase& p = phase(row);
  add(p.low, row_mass_);
  if (plan_->intervals) add(p.high, row_mass_upper_);
  if (plan_->output_error) p.errors.add_common(query_heads_);
}

FidelityTotal::FidelityTotal(const FidelityPlan& plan, int layers, int query_heads)
    : plan_(&plan),
      layers_(layers),
      query_heads_(query_heads),
      row_mass_(plan.measured.size(), 0.0),
      row_mass_upper_(plan.intervals ? plan.measured.size() : 0, 0.0),
      span_lost_(plan.spans.size()) {}

void FidelityTotal::Masses::add(std::size_t phase, LayerFidelity::Masses&& layer) {
  sum[phase] += total(layer.heads);
  values[phase].merge(std::move(layer.values));
  heads[phase].push_back(std::move(layer.heads));
}

void FidelityTotal::Masses::by_head(std::size_t phase, double rows, std::vector<double>& layers,
                                    std::vector<std::vector<double>>& of_heads) const {
  for (std::vector<double> layer : heads[phase]) {
    for (double& mass : layer) mass /= rows;
    layers.push_back(total(layer) / static_cast<double>(layer.size()));
    of_heads.push_back(std::move(layer));
  }
}

void FidelityTotal::add(LayerFidelity&& layer) {
  for (std::size_t i = 0; i < row_mass_.size(); ++i) row_mass_[i] += layer.row_mass_[i];
  for (std::size_t i = 0; i < row_mass_upper_.size(); ++i)
    row_mass_upper_[i] += layer.row_mass_upper_[i];
  for (std::size_t s = 0; s < span_lost_.size(); ++s) {
    span_lost_[s].low += layer.span_lost_[s].low;
    span_lost_[s].high += layer.span_lost_[s].high;
  }
  for (std::size_t p = 0; p < 2; ++p) {
    LayerFidelity::Phase& phase = layer.phases_[p];
    low_.add(p, std::move(phase.low));
    high_.add(p, std::move(phase.high));
    error_[p] += total(phase.error);
    logit_error_[p] += total(phase.logit_error);
    logit_rows_[p] += phase.logit_rows;
    errors_[p].merge(std::move(phase.errors));
  }
}

std::int64_t FidelityTotal::rows(int phase) const {
  const auto prompt = plan_->measured.begin() + plan_->prompt;
  return phase == 0 ? std::count(plan_->measured.begin(), prompt, 1)
                    : std::count(prompt, plan_->measured.end(), 1);
}

PhaseFidelity FidelityTotal::summary(std::size_t phase) {
  PhaseFidelity out;
  const Distribution& masses = low_.values[phase];
  const Distribution& errors = errors_[phase];
  out.values = masses.count();
  const auto count = static_cast<double>(out.values);
  const MassUpper lower = mass_figures(low_.sum[phase], masses);
  out.mass_mean = lower.mean;
  out.mass_p5 = lower.p5;
  out.mass_min = lower.min;
  if (plan_->intervals) out.mass_upper = mass_figures(high_.sum[phase], high_.values[phase]);
  out.exact_percentiles = masses.exact() && errors.exact();
  out.has_error = plan_->output_error;
  if (out.has_error) {
    out.error_mean = error_[phase] / count;
    out.error_p95 = errors.percentile(0.95);
    out.error_max = errors.max();
  }
  if (logit_rows_[phase] > 0) out.logit_error = logit_error_[phase] / count;
  return out;
}

std::vector<float> FidelityTotal::row_means(const std::vector<double>& sums) const {
  const double per_row = static_cast<double>(layers_) * query_heads_;
  std::vector<float> out;
  for (std::size_t row = 0; row < sums.size(); ++row) {
    out.push_back(plan_->measured[row] != 0 ? static_cast<float>(sums[row] / per_row)
                                            : std::numeric_limits<float>::quiet_NaN());
  }
  return out;
}

SpanResult FidelityTotal::span_result(std::size_t s, const Ledger& ledger) const {
  const Span& span = plan_->spans[s];
  std::int64_t resident = 0;
  for (int l = 0; l < ledger.layers; ++l) {
    for (int h = 0; h < ledger.heads; ++h) {
      const auto deaths = ledger.deaths(l, h);
      resident += std::count(deaths.begin() + span.begin, deaths.begin() + span.end,
                             static_cast<std::uint32_t>(ledger.plan.tokens));
    }
  }
  const double entries = static_cast<double>(ledger.layers) * ledger.heads *
                         static_cast<double>(span.end - span.begin);
  double after = 0;  // rows
  for (RowIndex row = span.end; row < ledger.plan.tokens; ++row)
    after += plan_->measures(row) ? plan_->weight(row) : 0;
  const double cells = after * static_cast<double>(layers_) * query_heads_;
  SpanResult out{span.name, entries > 0 ? static_cast<double>(resident) / entries : 0.0, 0.0, {}};
  if (plan_->intervals) out.mass_lost_upper = 0.0;
  if (cells == 0) return out;
  out.mass_lost = span_lost_[s].low / cells;
  if (plan_->intervals) out.mass_lost_upper = span_lost_[s].high / cells;
  return out;
}

void FidelityTotal::merge_phases() {
  for (Masses* masses : {&low_, &high_}) {
    masses->sum[0] += masses->sum[1];
    masses->values[0].merge(std::move(masses->values[1]));
  }
  error_[0] += error_[1];
  errors_[0].merge(std::move(errors_[1]));
  logit_error_[0] += logit_error_[1];
  logit_rows_[0] += logit_rows_[1];
}

PhaseFidelity FidelityTotal::weighted(const PhaseFidelity& prefill,
                                      const PhaseFidelity& decode) const {
  const double rows[2] = {static_cast<double>(prefill.values) * plan_->weights[0],
                          static_cast<double>(decode.values) * plan_->weights[1]};
  const auto mean = [&](double a, double b) {
    return (a * rows[0] + b * rows[1]) / (rows[0] + rows[1]);
  };
  const auto percentile = [&](const Distribution(&of)[2], double share) {
    const Distribution::Part parts[2] = {{&of[0], plan_->weights[0]}, {&of[1], plan_->weights[1]}};
    return Distribution::percentile(parts, share);
  };
  PhaseFidelity out = prefill;
  out.values = prefill.values + decode.values;
  out.mass_mean = mean(prefill.mass_mean, decode.mass_mean);
  out.mass_p5 = percentile(low_.values, 0.05);
  out.mass_min = std::min(prefill.mass_min, decode.mass_min);
  if (out.mass_upper) {
    out.mass_upper = MassUpper{mean(prefill.mass_upper->mean, decode.mass_upper->mean),
                               percentile(high_.values, 0.05),
                               std::min(prefill.mass_upper->min, decode.mass_upper->min)};
  }
  out.exact_percentiles = prefill.exact_percentiles && decode.exact_percentiles;
  if (out.has_error) {
    out.error_mean = mean(prefill.error_mean, decode.error_mean);
    out.error_p95 = percentile(errors_, 0.95);
    out.error_max = std::max(prefill.error_max, decode.error_max);
  }
  if (prefill.logit_error || decode.logit_error)
    out.logit_error = mean(prefill.logit_error.value_or(0), decode.logit_error.value_or(0));
  return out;
}

Fidelity FidelityTotal::finish(const Ledger& ledger) {
  Fidelity out;
  const std::int64_t measured[2] = {rows(0), rows(1)};
  out.rows_measured = measured[0] + measured[1];
  if (measured[0] > 0) out.prefill = summary(0);
  if (measured[1] > 0) out.decode = summary(1);
  const std::size_t judged = measured[1] > 0 ? 1 : 0;
  const auto judged_rows = static_cast<double>(measured[judged]);
  low_.by_head(judged, judged_rows, out.layer_mass, out.head_mass);
  out.row_mass = row_means(row_mass_);
  if (plan_->intervals) {
    high_.by_head(judged, judged_rows, out.layer_mass_upper, out.head_mass_upper);
    out.row_mass_upper = row_means(row_mass_upper_);
  }
  if (plan_->weights[0] > 1) out.prefill_sample = measured[0];
  if (plan_->weights[1] > 1) out.decode_sample = measured[1];
  if (out.prefill && out.decode && plan_->weights[0] != plan_->weights[1]) {
    out.all = weighted(*out.prefill, *out.decode);
  } else {
    merge_phases();
    out.all = summary(0);
  }
  for (std::size_t s = 0; s < plan_->spans.size(); ++s) out.spans.push_back(span_result(s, ledger));
  return out;
}

}  // namespace kvspan
