// SPDX-License-Identifier: Apache-2.0
// Fidelity: what a policy's reads keep of the full-cache attention, gathered while the engine
// walks. Retained mass of a (layer, query head, row) = full-cache probability of the entries that
// it reads; output error = ||o_kept - o_full|| / ||o_full||. Teacher-forced proxies, not accuracy.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sim/base/distribution.h"
#include "sim/ledger/ledger.h"
#include "sim/replay/estimate.h"
#include "sim/replay/options.h"
#include "sim/trace/trace.h"

namespace kvspan {

// From a score trace, which stores the largest probabilities of a row only, follows an interval.
// Every figure is taken of the lower ends and of the upper ends: the true one lies between.
struct MassInterval {
  double low = 0, high = 0;
};
struct MassUpper {
  double mean = 0, p5 = 0, min = 0;
};

// Fidelity of one phase. Every (layer, query head, row) weighs the same.
struct PhaseFidelity {
  std::int64_t values = 0;
  double mass_mean = 0, mass_p5 = 0, mass_min = 0;  // retained mass; score traces: lower bounds
  bool has_error = false;
  double error_mean = 0, error_p95 = 0, error_max = 0;  // relative output error
  // Mean distance of logits in nats where keys are held altered or positions are renumbered.
  std::optional<double> logit_error;
  bool exact_percentiles = true;                       // false: from a histogram of 2^16 bins
  std::optional<MassUpper> mass_upper = std::nullopt;  // score traces
};

struct SpanResult {
  std::string name;
  double resident_share = 0;  // of its (layer, head, token) entries, at the end
  double mass_lost = 0;  // mean full-cache probability on its entries that were gone, rows after it
  std::optional<double> mass_lost_upper =
      std::nullopt;  // score traces, where mass_lost is a lower bound
};

struct Fidelity {
  std::int64_t rows_measured = 0;
  std::optional<RowIndex> prefill_sample, decode_sample;  // rows measured, where others were not
  // Of a random sample: mean retained mass of decode rows, or of all rows if there are none. On a
  // score trace from the lower end of the lower bounds to the upper end of the upper ones.
  std::optional<Estimate> estimate;
  FidelitySample::Of sampled = FidelitySample::Of::everything;
  // Absent: no rows measured there. all: a row of a sample counts for as many as it stands for.
  std::optional<PhaseFidelity> all, prefill, decode;
  std::vector<float> row_mass;  // [tokens] mean over layers and query heads, NaN: not measured
  // [layers] decode rows, or all rows if there are none; NaN: not measured
  std::vector<double> layer_mass;
  std::vector<std::vector<double>> head_mass;  // [layers][query_heads], likewise
  // The same of the upper ends; score traces only.
  std::vector<float> row_mass_upper;
  std::vector<double> layer_mass_upper;
  std::vector<std::vector<double>> head_mass_upper;
  std::vector<SpanResult> spans;
};

// Relative distance of two outputs that are not normalised yet: ||o_kept - o_full|| / ||o_full||;
// infinite where only o_full is zero. A kept_sum of 0 reads nothing: its output is zero.
[[nodiscard]] double relative_error(std::span<const double> full, double full_sum,
                                    std::span<const double> kept, double kept_sum);

// A row's output [dim], normalised; zero where nothing was read.
void normalise(std::span<const double> output, double sum, float* out);

// Which rows are measured.
struct FidelityPlan {
  std::vector<char> measured;  // [tokens]; empty: fidelity is off
  RowIndex prompt = 0;
  bool output_error = false;
  bool intervals = false;  // a score trace: mass has an upper end of its own
  std::vector<Span> spans;
  double weights[2] = {1, 1};  // rows that a measured row of the prompt, of decode stands for
  FidelitySample::Of sampled = FidelitySample::Of::everything;
  std::vector<std::vector<char>> heads;  // [layers][kv_heads] that are measured; empty: all
  [[nodiscard]] double weight(RowIndex row) const { return weights[row < prompt ? 0 : 1]; }
  [[nodiscard]] bool on() const { return !measured.empty(); }
  [[nodiscard]] bool measures(RowIndex row) const {
    return on() && measured[static_cast<std::size_t>(row)] != 0;
  }
  [[nodiscard]] bool measures_head(int layer, int kv_head) const {
    return heads.empty() || heads[index(layer)][index(kv_head)] != 0;
  }
  [[nodiscard]] bool measures_layer(int layer) const {
    return heads.empty() || std::ranges::count(heads[index(layer)], 1) > 0;
  }
};

// Measures so many rows of the prompt and of decode, at start + floor((2i + 1) len / 2K); 0: all.
[[nodiscard]] FidelityPlan plan_fidelity(RowIndex tokens, RowIndex prompt, RowIndex prompt_rows,
                                         RowIndex decode_rows);

// Draws a sample: rows anew, of those that the plan measures, or heads.
void draw_sample(const FidelitySample& sample, int layers, int kv_heads, FidelityPlan& plan);

// One layer of one policy. Sums run in row order within a query head, so they do not depend on
// blocks.
class LayerFidelity {
 public:
  LayerFidelity(const FidelityPlan& plan, int query_heads, int layer = 0);
  // REQUIRES: the plan measures row and head; rows ascending within a query head.
  void add_mass(int query_head, RowIndex row, MassInterval mass);
  void add_error(int query_head, RowIndex row, double error);
  // Mean distance of logits from the full cache's, nats, weighted by the full cache's
  // probabilities.
  void add_logit_error(int query_head, RowIndex row, double error);
  void add_unchanged(RowIndex row);  // every query head that is measured: mass 1, error 0
  // Probability lost on span `s` by one (query head, row).
  void add_span_loss(std::size_t s, RowIndex row, MassInterval lost) {
    span_lost_[s].low += lost.low * plan_->weight(row);
    span_lost_[s].high += lost.high * plan_->weight(row);
  }

 private:
  friend class FidelityTotal;
  // One end of the interval of retained mass.
  struct Masses {
    std::vector<double> heads;  // [query_heads] sums
    Distribution values{1.0F};
  };
  struct Phase {
    Masses low, high;           // high: where the plan has intervals
    std::vector<double> error;  // [query_heads] sums
    Distribution errors{0.0F};
    std::vector<double> logit_error;  // [query_heads] sums
    std::int64_t logit_rows = 0;
  };
  Phase& phase(RowIndex row) { return phases_[row < plan_->prompt ? 0 : 1]; }
  const FidelityPlan* plan_;
  std::vector<int> measured_;                      // query heads
  std::vector<double> row_mass_, row_mass_upper_;  // [tokens]
  std::vector<Phase> phases_;
  std::vector<MassInterval> span_lost_;
};

// All layers of one policy; layers are added in order.
class FidelityTotal {
 public:
  FidelityTotal(const FidelityPlan& plan, int layers, int query_heads);
  void add(LayerFidelity&& layer);
  // `resident_share` is filled from the ledger. REQUIRES: plan.on().
  [[nodiscard]] Fidelity finish(const Ledger& ledger);

 private:
  // One end of the interval of retained mass, by phase.
  struct Masses {
    void add(std::size_t phase, LayerFidelity::Masses&& layer);
    // Of the phase that is judged.
    void by_head(const FidelityPlan& plan, std::size_t phase, double rows,
                 std::vector<double>& layers, std::vector<std::vector<double>>& heads) const;
    double sum[2] = {0, 0};
    Distribution values[2] = {Distribution(1.0F), Distribution(1.0F)};
    std::vector<std::vector<double>> heads[2];  // [layers][query_heads]
  };
  [[nodiscard]] std::int64_t rows(int phase) const;
  [[nodiscard]] PhaseFidelity summary(std::size_t phase);
  // Both phases, by the rows that they stand for.
  [[nodiscard]] PhaseFidelity weighted(const PhaseFidelity& prefill,
                                       const PhaseFidelity& decode) const;
  void merge_phases();
  [[nodiscard]] std::vector<float> row_means(const std::vector<double>& sums) const;
  // From one end of the interval of retained mass.
  [[nodiscard]] Estimate estimate(std::size_t phase, const std::vector<double>& rows,
                                  const std::vector<double>& layers,
                                  const std::vector<std::vector<double>>& heads) const;
  [[nodiscard]] SpanResult span_result(std::size_t s, const Ledger& ledger) const;
  const FidelityPlan* plan_;
  int layers_;
  double measured_;  // query heads of all layers
  std::vector<double> row_mass_, row_mass_upper_;
  Masses low_, high_;
  double error_[2] = {0, 0}, logit_error_[2] = {0, 0};
  std::int64_t logit_rows_[2] = {0, 0};
  Distribution errors_[2] = {Distribution(0.0F), Distribution(0.0F)};
  std::vector<MassInterval> span_lost_;
};

}  // namespace kvspan
