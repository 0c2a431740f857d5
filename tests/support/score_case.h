// SPDX-License-Identifier: Apache-2.0
// A layer of random attention under random death vectors, and what rows reach of it, in double, by
// the definition.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "sim/base/types.h"
#include "sim/replay/score_pass.h"
#include "tests/support/trace_builder.h"

namespace kvspan::test {

struct ScoreShape {
  int tokens = 100;
  int kv_heads = 1, group = 1;
  int head_dim = 8, v_head_dim = 8;
  Dtype dtype = Dtype::f32;
  int window = 0;
  double softcap = 0;
  bool sinks = false;
  double spread = 2;  // standard deviation of the logits
  int vectors = 4;    // all kinds, in turn; every second has outputs
};

class ScoreCase {
 public:
  ScoreCase(const ScoreShape& shape, unsigned seed)
      : shape_(shape),
        spec_(random_spec({.tokens = shape.tokens,
                           .query_heads = shape.kv_heads * shape.group,
                           .kv_heads = shape.kv_heads,
                           .head_dim = shape.head_dim,
                           .v_head_dim = shape.v_head_dim,
                           .seed = seed,
                           .dtype = shape.dtype})),
        trace_(make_trace(finish(spec_))) {
    const auto rounded = [&](std::vector<double> values) {
      for (double& x : values) x = rounded_to(x, shape.dtype);
      return values;
    };
    q_ = rounded(spec_.layers[0].q);
    k_ = rounded(spec_.layers[0].k);
    v_ = rounded(spec_.layers[0].v);
    sinks_ = spec_.layers[0].sink_logits;  // exact in every type
    std::mt19937 random(seed);
    for (int v = 0; v < shape.vectors; ++v) {
      deaths_.push_back(v % 5 == 3 ? std::vector<std::uint32_t>() : random_deaths(v % 5, random));
      DeathVector& vector = vectors_.emplace_back();
      vector.heads = heads_of(v % 5);
      vector.end = shape.tokens;
      vector.outputs = v % 2 == 0;
      if (v % 5 == 3) {  // a span of the full cache
        vector.begin = shape.tokens / 4;
        vector.end = shape.tokens / 2;
      }
    }
    for (std::size_t v = 0; v < deaths_.size(); ++v) vectors_[v].deaths = deaths_[v];
  }

  [[nodiscard]] const Trace& trace() const { return trace_; }
  [[nodiscard]] std::vector<DeathVector>& vectors() { return vectors_; }
  // Every `step`-th row, from `first` on.
  [[nodiscard]] std::vector<RowIndex> rows(RowIndex first, RowIndex step) const {
    std::vector<RowIndex> out;
    for (RowIndex row = first; row < shape_.tokens; row += step) out.push_back(row);
    return out;
  }

  // The largest difference of retained attention and of output errors.
  struct Worst {
    double retained = 0, error = 0;
  };
  [[nodiscard]] Worst worst(ScorePass& pass, const std::vector<RowIndex>& rows) const {
    Worst out;
    const auto differ = [](double& worst, double a, double b) {
      const double by = a == b ? 0 : std::fabs(a - b);
      worst = std::isnan(by) ? std::numeric_limits<double>::infinity() : std::max(worst, by);
    };
    std::vector<RowIndex> seen;
    pass.measure({trace_, 0, rows, vectors_}, [&](const ScorePiece& piece) {
      for (std::size_t i = 0; i < piece.rows.size(); ++i) {
        seen.push_back(piece.rows[i]);
        for (int q = 0; q < piece.query_heads; ++q) {
          const std::vector<Worst> want = reference(q, piece.rows[i]);
          for (std::size_t v = 0; v < vectors_.size(); ++v) {
            differ(out.retained, piece.retained[piece.at(v, q, i)], want[v].retained);
            differ(out.error, piece.error[piece.at(v, q, i)], want[v].error);
          }
        }
      }
    });
    if (seen != rows) out.retained = std::numeric_limits<double>::infinity();
    return out;
  }

  // In double: retained attention and output error of one row, under every vector.
  [[nodiscard]] std::vector<Worst> reference(int query_head, RowIndex row) const {
    const int kv_head = query_head / shape_.group;
    const double* const q =
        q_.data() + (row * shape_.kv_heads * shape_.group + query_head) * shape_.head_dim;
    const RowIndex first = shape_.window > 0 ? std::max<RowIndex>(0, row - shape_.window + 1) : 0;
    std::vector<double> terms;  // of keys first ... row
    for (RowIndex key = first; key <= row; ++key) {
      const double* const k = k_.data() + (key * shape_.kv_heads + kv_head) * shape_.head_dim;
      double logit = 0;
      for (int i = 0; i < shape_.head_dim; ++i) logit += q[i] * k[i];
      logit *= spec_.meta.score_scale;
      if (shape_.softcap > 0) logit = shape_.softcap * std::tanh(logit / shape_.softcap);
      terms.push_back(std::exp(logit));
    }
    const double sink = shape_.sinks ? std::exp(sinks_[index(query_head)]) : 0;
    const auto output = [&](const auto& there, double& sum) {
      std::vector<double> out(index(shape_.v_head_dim));
      sum = 0;
      for (RowIndex key = first; key <= row; ++key) {
        if (!there(key)) continue;
        const double term = terms[index(key - first)];
        const double* const v = v_.data() + (key * shape_.kv_heads + kv_head) * shape_.v_head_dim;
        sum += term;
        for (std::size_t i = 0; i < out.size(); ++i) out[i] += term * v[i];
      }
      for (double& x : out) x = sum + sink > 0 ? x / (sum + sink) : 0;  // nothing is read: nothing
      return out;
    };
    double full_sum = 0;
    const std::vector<double> full = output([](RowIndex) { return true; }, full_sum);
    std::vector<Worst> all;
    for (std::size_t m = 0; m < vectors_.size(); ++m) {
      double kept_sum = 0, difference = 0, norm = 0;
      const std::vector<double> kept =
          output([&](RowIndex key) { return reads(m, query_head, row, key); }, kept_sum);
      for (std::size_t i = 0; i < full.size(); ++i) {
        difference += (kept[i] - full[i]) * (kept[i] - full[i]);
        norm += full[i] * full[i];
      }
      all.push_back({kept_sum / full_sum, vectors_[m].outputs ? std::sqrt(difference / norm) : 0});
    }
    return all;
  }

 private:
  const TraceSpec& finish(TraceSpec& spec) {
    spec.meta.score_scale = shape_.spread / std::sqrt(shape_.head_dim);
    spec.meta.logit_softcap = shape_.softcap;
    if (shape_.window > 0) spec.meta.sliding_window = {shape_.window};
    if (shape_.sinks) {
      for (int q = 0; q < shape_.kv_heads * shape_.group; ++q)
        spec.layers[0].sink_logits.push_back(q % 2 == 0 ? 1.5 : -2.0);
    }
    return spec;
  }

  [[nodiscard]] int heads_of(int kind) const {
    return shape_.kv_heads * (kind == 2 ? shape_.group : 1);
  }

  // 0: any time; 1: four of five in the middle; 2: any time, a set for each query head; 4: at once.
  std::vector<std::uint32_t> random_deaths(int kind, std::mt19937& random) const {
    std::vector<std::uint32_t> out;
    const int tokens = shape_.tokens;
    for (int head = 0; head < heads_of(kind); ++head) {
      for (int t = 0; t < tokens; ++t) {
        int death = std::uniform_int_distribution<int>(t + 1, 2 * tokens)(random);
        if (kind == 1) {
          const bool leaves = t < tokens / 2 && std::bernoulli_distribution(0.8)(random);
          death = leaves ? tokens / 2 : tokens;
        }
        if (kind == 4) death = t + 1;
        out.push_back(static_cast<std::uint32_t>(std::min(death, tokens)));
      }
    }
    return out;
  }

  [[nodiscard]] bool reads(std::size_t v, int query_head, RowIndex row, RowIndex key) const {
    const DeathVector& vector = vectors_[v];
    if (key < vector.begin || key >= vector.end) return false;
    if (vector.deaths.empty()) return true;
    const int head = query_head * vector.heads / (shape_.kv_heads * shape_.group);
    return row < static_cast<RowIndex>(vector.deaths[index(head * shape_.tokens + key)]);
  }

  ScoreShape shape_;
  TraceSpec spec_;
  Trace trace_;
  std::vector<double> q_, k_, v_, sinks_;  // as the trace holds them
  std::vector<std::vector<std::uint32_t>> deaths_;
  std::vector<DeathVector> vectors_;
};

}  // namespace kvspan::test
