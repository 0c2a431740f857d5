// SPDX-License-Identifier: Apache-2.0
// BaKlaVa-like: fixed budgets per (layer, KV head) from how much a head changes what it reads;
// sinks and a recent window in every head, after every pass. A labelled stand-in: of BaKlaVa only
// the abstract and secondary accounts could be read, and they leave open what a head's input is,
// how importance becomes tokens, and which eviction runs inside.
//
//   importance   I = mean over the group of 1 - mean over rows of cos(v_row, o_row), from the
//                values and the full cache's outputs; in a trace without values 1 - mean attention
//                of a row to itself
//   budgets      B heads I^p / sum I^p, at least sinks + 4 and at most the prompt (water-filling:
//                what the bounds cut off goes to the others), rounded by largest remainder: the
//                sum is B heads. A bound that B itself does not meet gives way
//   power        p from a grid: least attention mass lost outside sinks and windows, the windows
//                scaled to the calibration's length (in place of the perplexity that the authors
//                search with)
//
// The calibration is the first half of the replayed prompt, or the whole prompt of another trace
// that profile= names: at most 256 rows of it, evenly spaced.
// Source: Gulhan et al., arXiv 2502.13176. No code was published.
#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <mutex>
#include <numeric>

#include <fmt/format.h>
#include <tbb/parallel_for.h>

#include "sim/base/error.h"
#include "sim/policies/shared/gates.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/kernels.h"
#include "sim/policies/shared/whole_trace.h"

namespace kvspan::policies {
namespace {

constexpr std::array<double, 9> kPowers = {0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4};
constexpr std::int64_t kCalibrationRows = 256;
constexpr TokenCount kLeastRecent = 4;

struct Calibration {
  RowIndex rows = 0;  // it covers the prompt's rows before this one
  Gates importance;   // [stored layers][kv_heads]
  // Mean mass of keys more than `distance` rows back, sinks excluded.
  //   [stored layers][kv_heads][distance]
  std::vector<std::vector<std::vector<double>>> lost;
};

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
        const std::int64_t stride = std::int64_t{meta.kv_heads} * meta.v_head_dim;
        const float* values = scores.values() + h * meta.v_head_dim;
        kernels::weighted_values(&terms.terms, 1, keys.data(), row + 1, values, stride,
                                 meta.v_head_dim, &to);
        change +=
            (1 - cosine(output, {values + row * stride, dim})) / static_cast<double>(count * group);
      }
    }
    for (std::size_t d = back.size() - 1; d-- > 0;) back[d] += back[d + 1];
    back.erase(back.begin());  // back[d]: more than d rows back
    out.importance[index(layer)][index(h)] = std::max(0.0, change);
    out.lost[index(layer)][index(h)] = std::move(back);
  }
}

// On rows [0, end) of a trace of the same heads.
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

// Numbers proportional to the weights, between `least` and `most`, whose sum is `mean` each.
//   REQUIRES: least <= mean <= most, weights >= 0.
std::vector<TokenCount> water_fill(std::vector<double> weights, TokenCount mean, TokenCount least,
                                   TokenCount most) {
  const double heaviest = *std::max_element(weights.begin(), weights.end());
  for (double& w : weights) w = heaviest > 0 ? std::max(w / heaviest, 1e-12) : 1.0;
  const auto lowest = static_cast<double>(least);
  const auto highest = static_cast<double>(most);
  const TokenCount total = mean * std::ssize(weights);
  const auto level = [&](double factor, double w) {
    return std::clamp(factor * w, lowest, highest);
  };
  double low = 0;
  double high = highest * 1e12;
  for (int i = 0; i < 200; ++i) {
    const double middle = (low + high) / 2;
    double sum = 0;
    for (const double w : weights) sum += level(middle, w);
    (sum < static_cast<double>(total) ? low : high) = middle;
  }
  std::vector<TokenCount> out;
  std::vector<double> fraction;
  for (const double w : weights) {
    const double exact = level(high, w);
    out.push_back(static_cast<TokenCount>(std::floor(exact + 1e-9)));
    fraction.push_back(exact - static_cast<double>(out.back()));
  }
  std::vector<std::size_t> order(weights.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::llround(fraction[a] * 1e6) > std::llround(fraction[b] * 1e6);
  });
  TokenCount rest = total - std::accumulate(out.begin(), out.end(), TokenCount{0});
  for (std::size_t i = 0; rest > 0; i = (i + 1) % order.size()) {
    if (out[order[i]] >= most) continue;
    ++out[order[i]];
    --rest;
  }
  return out;
}

class Allocation final : public Budget {
 public:
  //   importance [stored layers][kv_heads]; calibration: null if there is none
  Allocation(Gates importance, std::shared_ptr<const Calibration> calibration, TokenCount sinks,
             std::optional<double> power, RowIndex prompt)
      : importance_(std::move(importance)),
        calibration_(std::move(calibration)),
        sinks_(sinks),
        power_(power),
        prompt_(prompt) {}

  TokenCount capacity(const LayerShape& shape, int head, const Sizing& sizing) const override {
    if (sizing.tokens == kAll) return kAll;
    const std::scoped_lock lock(mutex_);
    auto known = known_.find(sizing.tokens);
    if (known == known_.end())
      known = known_.emplace(sizing.tokens, spread(sizing.tokens, power_of(sizing.tokens))).first;
    return known->second[index(shape.layer) * importance_[0].size() + index(head)];
  }

  // The exponent: given, or the one of the grid that loses least; the first of equals.
  [[nodiscard]] double power_of(TokenCount budget) const {
    if (power_) return *power_;
    if (calibration_ == nullptr) return 1;
    double best = kPowers[0];
    double least = HUGE_VAL;
    for (const double power : kPowers) {
      const double lost = lost_mass(spread(budget, power));
      if (lost < least - 1e-12) {
        least = lost;
        best = power;
      }
    }
    return best;
  }

 private:
  [[nodiscard]] std::vector<TokenCount> spread(TokenCount budget, double power) const {
    std::vector<double> weights;
    double heaviest = 0;
    for (const auto& layer : importance_) {
      for (const double i : layer) heaviest = std::max(heaviest, i);
    }
    for (const auto& layer : importance_) {
      for (const double i : layer)
        weights.push_back(heaviest > 0 ? std::pow(i / heaviest, power) : 1.0);
    }
    return water_fill(std::move(weights), budget, std::min(budget, sinks_ + kLeastRecent),
                      std::max<TokenCount>(budget, prompt_));
  }

  // Over all heads, with windows in proportion to the calibration's length.
  [[nodiscard]] double lost_mass(const std::vector<TokenCount>& budgets) const {
    double lost = 0;
    std::size_t i = 0;
    for (const auto& layer : calibration_->lost) {
      for (const auto& by_distance : layer) {
        const TokenCount window = std::max<TokenCount>(0, budgets[i++] - sinks_) *
                                  calibration_->rows / std::max<RowIndex>(1, prompt_);
        if (window < std::ssize(by_distance)) lost += by_distance[index(window)];
      }
    }
    return lost;
  }

  Gates importance_;
  std::shared_ptr<const Calibration> calibration_;
  TokenCount sinks_;
  std::optional<double> power_;
  RowIndex prompt_;
  mutable std::mutex mutex_;                                     // layers run side by side
  mutable std::map<TokenCount, std::vector<TokenCount>> known_;  // [layers * kv_heads] by budget
};

}  // namespace

PolicyEntry baklava() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "baklava";
  entry.kind = MethodKind::head_budget;
  entry.summary = "baklava-like: sinks and recent windows, longer in heads that change values more";
  entry.source = "Gulhan et al. 2025, arXiv 2502.13176";
  entry.evidence = "secondary";
  entry.differs =
      "no public code; the cosine's input, the GQA operator and the map from importance to "
      "tokens are unpublished, so that this is a stand-in by name";
  entry.needs =
      "nothing with profile=TRACE, or profile=FILE and power; else q, k and v, or probabilities of "
      "the prompt's first half";
  entry.parameters = {
      budget_parameter(),
      {.name = "profile",
       .kind = Kind::text,
       .fallback = "auto",
       .help = "file of importance, [layers][kv_heads], JSON or TSV, or a trace to "
               "calibrate on; auto: this trace"},
      {.name = "power",
       .kind = Kind::real,
       .fallback = "auto",
       .help = "exponent of the importance; auto: least mass lost on a grid",
       .range = {0, 100}},
      {.name = "sinks", .fallback = "4", .unit = "tokens", .help = "first tokens, always kept"}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const TokenCount sinks = arguments.count("sinks");
    const HeadSource source = head_source(arguments, "profile", geometry);
    const Trace* base = source.other ? source.other.get() : geometry.trace;
    const std::optional<double> power =
        arguments.has("power") ? std::optional(arguments.real("power")) : std::nullopt;
    Recipe recipe =
        budgeted(arguments, geometry, own(position_scoring()), own(Schedule::every_pass()));
    Gates importance(index(geometry.layers()), std::vector<double>(index(geometry.kv_heads), 1.0));
    std::shared_ptr<const Calibration> calibration;
    const bool known = !source.fitted() && power;  // nothing to calibrate
    if (base != nullptr && !known) {
      const RowIndex end = source.other ? base->meta().prompt_tokens : geometry.evict_at / 2;
      calibration = std::make_shared<Calibration>(calibrate(*base, end, sinks, geometry));
      importance = calibration->importance;
      recipe.notes.push_back(fmt::format(
          "baklava-like stand-in: {} calibrated on the {}{}", source.fitted() ? "budgets" : "power",
          source.other ? "prompt of " + source.fitted_on()
                       : "first half of this prompt" + truncation(base),
          !source.fitted() || base->has_v() ? "" : " by self mass, for lack of values"));
    } else {
      recipe.notes.emplace_back("baklava-like stand-in");
    }
    if (!source.fitted()) {
      importance = stored_layers(read_gates("baklava", source.file, geometry), geometry);
      for (const auto& layer : importance) {
        for (const double i : layer) {
          if (i < 0) {
            throw TraceError(
                fmt::format("baklava: '{}' holds the importance {:g}, expected none "
                            "below 0",
                            source.file, i));
          }
        }
      }
    }
    if (base == nullptr && !known) {
      recipe.closed_form = false;
      recipe.notes.emplace_back(source.fitted() ? "importance is fitted on a trace; equal here"
                                                : "the power is fitted on a trace; 1 here");
    }
    const auto allocation = std::make_shared<Allocation>(std::move(importance), calibration, sinks,
                                                         power, geometry.evict_at);
    if (calibration != nullptr && !power) {
      recipe.notes.back() += fmt::format(
          ", power {:g}", allocation->power_of(entries_of(arguments, "budget", geometry)));
    }
    recipe.shape = own(allocation);
    recipe.protect = own(ProtectRule([sinks](TokenCount budget) {
      const TokenCount first = std::min(sinks, budget);
      return Protect{first, budget - first};
    }));
    recipe.charge.once = 4LL * geometry.layers() * geometry.kv_heads;  // the length of every head
    recipe.knob->monotone = power.has_value();
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
