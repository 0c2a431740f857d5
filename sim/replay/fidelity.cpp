// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/fidelity.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <utility>

#include "sim/base/random.h"

namespace kvspan {
namespace {

double total(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

// Places of a sample among `of`, ascending: those with the smallest random numbers.
std::vector<std::int64_t> draw(const FidelitySample& sample, std::int64_t of) {
  std::vector<std::pair<double, std::int64_t>> keys;
  for (std::int64_t i = 0; i < of; ++i)
    keys.emplace_back(uniform(sample.seed, {static_cast<std::int64_t>(sample.of), i}), i);
  std::ranges::sort(keys);
  keys.resize(index(std::min(sample.count, of)));
  std::vector<std::int64_t> places;
  for (const auto& [key, place] : keys) places.push_back(place);
  std::ranges::sort(places);
  return places;
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

void draw_sample(const FidelitySample& sample, int layers, int kv_heads, FidelityPlan& plan) {
  using Of = FidelitySample::Of;
  plan.sampled = sample.of;
  if (sample.of == Of::rows) {
    const auto rows = static_cast<RowIndex>(plan.measured.size());
    const RowIndex ends[] = {0, plan.prompt, rows};
    for (int phase = 0; phase < 2; ++phase) {
      std::vector<std::int64_t> known;
      for (RowIndex row = ends[phase]; row < ends[phase + 1]; ++row) {
        if (plan.measures(row)) known.push_back(row);
        plan.measured[index(row)] = 0;
      }
      const std::vector<std::int64_t> drawn = draw(sample, std::ssize(known));
      for (const std::int64_t i : drawn) plan.measured[index(known[index(i)])] = 1;
      if (!drawn.empty())
        plan.weights[phase] *=
            static_cast<double>(known.size()) / static_cast<double>(drawn.size());
    }
  } else if (sample.of != Of::everything) {
    const int each = sample.of == Of::layers ? kv_heads : 1;  // drawn together
    plan.heads.assign(index(layers), std::vector<char>(index(kv_heads), 0));
    for (const std::int64_t i : draw(sample, std::int64_t{layers} * kv_heads / each)) {
      for (std::int64_t head = i * each; head < (i + 1) * each; ++head)
        plan.heads[index(head / kv_heads)][index(head % kv_heads)] = 1;
    }
  }
}

LayerFidelity::LayerFidelity(const FidelityPlan& plan, int query_heads, int layer)
    : plan_(&plan),
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
  const int kv_heads = plan.heads.empty() ? 1 : static_cast<int>(plan.heads.front().size());
  for (int q = 0; q < query_heads; ++q) {
    if (plan.measures_head(layer, q * kv_heads / query_heads)) measured_.push_back(q);
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
  const auto heads = std::ssize(measured_);
  const auto add = [&](Masses& masses, std::vector<double>& rows) {
    for (const int q : measured_) masses.heads[index(q)] += 1.0;
    masses.values.add_common(heads);
    rows[index(row)] += static_cast<double>(heads);
  };
  Phase& p = phase(row);
  add(p.low, row_mass_);
  if (plan_->intervals) add(p.high, row_mass_upper_);
  if (plan_->output_error) p.errors.add_common(heads);
}

FidelityTotal::FidelityTotal(const FidelityPlan& plan, int layers, int query_heads)
    : plan_(&plan),
      layers_(layers),
      measured_(static_cast<double>(layers) * query_heads),
      row_mass_(plan.measured.size(), 0.0),
      row_mass_upper_(plan.intervals ? plan.measured.size() : 0, 0.0),
      span_lost_(plan.spans.size()) {
  if (plan.heads.empty()) return;
  measured_ = 0;
  for (const std::vector<char>& layer : plan.heads) {
    measured_ += static_cast<double>(std::ranges::count(layer, 1)) * query_heads /
                 static_cast<double>(layer.size());
  }
}

void FidelityTotal::Masses::add(std::size_t phase, LayerFidelity::Masses&& layer) {
  sum[phase] += total(layer.heads);
  values[phase].merge(std::move(layer.values));
  heads[phase].push_back(std::move(layer.heads));
}

void FidelityTotal::Masses::by_head(const FidelityPlan& plan, std::size_t phase, double rows,
                                    std::vector<double>& layers,
                                    std::vector<std::vector<double>>& of_heads) const {
  for (std::vector<double> layer : heads[phase]) {
    const auto l = static_cast<int>(layers.size());
    const std::size_t group = plan.heads.empty() ? 1 : layer.size() / plan.heads[index(l)].size();
    double of_layer = 0, measured = 0;
    for (std::size_t q = 0; q < layer.size(); ++q) {
      const bool known = plan.measures_head(l, static_cast<int>(q / group));
      layer[q] = known ? layer[q] / rows : std::numeric_limits<double>::quiet_NaN();
      of_layer += known ? layer[q] : 0;
      measured += known ? 1 : 0;
    }
    layers.push_back(of_layer / measured);  // NaN where nothing is
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
  std::vector<float> out;
  for (std::size_t row = 0; row < sums.size(); ++row) {
    out.push_back(plan_->measured[row] != 0 ? static_cast<float>(sums[row] / measured_)
                                            : std::numeric_limits<float>::quiet_NaN());
  }
  return out;
}

Estimate FidelityTotal::estimate(std::size_t phase, const std::vector<double>& rows_of_all,
                                 const std::vector<double>& layers,
                                 const std::vector<std::vector<double>>& heads) const {
  using Of = FidelitySample::Of;
  std::vector<double> values;
  if (plan_->sampled == Of::rows) {
    const RowIndex end = phase == 0 ? plan_->prompt : std::ssize(rows_of_all);
    for (RowIndex row = phase == 0 ? 0 : plan_->prompt; row < end; ++row) {
      if (plan_->measures(row)) values.push_back(rows_of_all[index(row)] / measured_);
    }
    return estimate_mean(values,
                         std::llround(static_cast<double>(values.size()) * plan_->weights[phase]));
  }
  if (plan_->sampled == Of::layers) {
    std::ranges::copy_if(layers, std::back_inserter(values),
                         [](double x) { return !std::isnan(x); });
    return estimate_mean(values, layers_);
  }
  const std::size_t kv_heads = plan_->heads.front().size();
  for (const std::vector<double>& layer : heads) {
    const auto group = std::ssize(layer) / static_cast<std::ptrdiff_t>(kv_heads);
    for (auto q = layer.begin(); q < layer.end(); q += group) {
      const double mean = std::accumulate(q, q + group, 0.0) / static_cast<double>(group);
      if (!std::isnan(mean)) values.push_back(mean);
    }
  }
  return estimate_mean(values, std::int64_t{layers_} * static_cast<std::int64_t>(kv_heads));
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
  const double cells = after * measured_;
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
  low_.by_head(*plan_, judged, judged_rows, out.layer_mass, out.head_mass);
  out.row_mass = row_means(row_mass_);
  if (plan_->intervals) {
    high_.by_head(*plan_, judged, judged_rows, out.layer_mass_upper, out.head_mass_upper);
    out.row_mass_upper = row_means(row_mass_upper_);
  }
  out.sampled = plan_->sampled;
  if (out.sampled != FidelitySample::Of::everything && judged_rows > 0) {
    out.estimate = estimate(judged, row_mass_, out.layer_mass, out.head_mass);
    if (plan_->intervals) {
      out.estimate->high =
          estimate(judged, row_mass_upper_, out.layer_mass_upper, out.head_mass_upper).high;
    }
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
