// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include <Eigen/Core>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/kernels.h"
#include "sim/policies/shared/replay_scores.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {
namespace {

std::vector<float> widened(const Trace& trace, const TensorView& tensor, std::int64_t first,
                           std::int64_t count) {
  std::vector<float> out(index(count));
  widen(tensor, first, out, trace.name());
  return out;
}

// One head of vectors that lie [rows][heads][dim], at the end of `out`.
void append_head(const std::vector<float>& from, int heads, int head, int dim,
                 std::vector<float>& out) {
  const auto width = index(heads) * index(dim);
  for (std::size_t at = index(head) * index(dim); at < from.size(); at += width)
    out.insert(out.end(), from.data() + at, from.data() + at + dim);
}

// Of a layer's output projections, one for each query head: Wo' Wo, so that ||Wo v||^2 = v' W v.
using Grams = std::vector<Eigen::MatrixXd>;

Grams grams_of(const Trace& trace, int layer) {
  const TraceMeta& m = trace.meta();
  const TensorView& wo = *trace.tensors().find(layer_tensor(layer, "wo"));
  const Eigen::Index hidden = wo.shape[0], dim = m.v_head_dim, width = m.query_heads * dim;
  const std::vector<float> all = widened(trace, wo, 0, hidden * width);
  // Row-major [hidden, width] is column-major [width, hidden].
  const Eigen::Map<const Eigen::MatrixXf> columns(all.data(), width, hidden);
  Grams out;
  for (int q = 0; q < m.query_heads; ++q) {
    const Eigen::MatrixXd part = columns.middleRows(q * dim, dim).cast<double>();
    out.emplace_back(part * part.transpose());
  }
  return out;
}

// What one pass of the replay gives to the entries of one layer; taken into `scores`.
class PassOfReplay {
 public:
  //   grams   empty: not weighed
  PassOfReplay(const Trace& trace, int layer, const Probe& probe, const ReplaySettings& settings,
               const Grams& grams)
      : trace_(trace), m_(trace.meta()), layer_(layer), probe_(probe), grams_(grams) {
    if (settings.of_model) {
      softcap_ = m_.logit_softcap;
      sink_logits_ = trace.sink_logits(layer);
      if (!m_.sliding_window.empty()) window_ = m_.sliding_window[index(layer)];
    }
    const ProbeLayer asked = probe_layer(trace, layer);
    const std::int64_t q_row = std::int64_t{m_.query_heads} * m_.head_dim;
    const std::int64_t k_row = std::int64_t{m_.kv_heads} * m_.head_dim;
    q_ = widened(trace, *asked.q, probe.first * q_row, probe.rows * q_row);
    own_ = widened(trace, *asked.k, probe.first * k_row, probe.rows * k_row);
    sinks_ = std::min<RowIndex>(settings.sinks, probe.begin);
    first_ = read_vectors(trace, layer, 'k', 0, sinks_).data;
    chunk_ = read_vectors(trace, layer, 'k', probe.begin, probe.end).data;
    if (grams.empty()) return;
    norms_ = widened(trace, *asked.norm, probe.first, probe.rows);
    values_ = read_vectors(trace, layer, 'v', probe.begin, probe.end);
  }

  // Takes what the pass asks for into the scores of a KV head.
  void add_head(int kv_head, Group group, std::span<double> scores) const {
    std::vector<float> keys;
    for (const std::vector<float>* part : {&first_, &chunk_, &own_})
      append_head(*part, m_.kv_heads, kv_head, m_.head_dim, keys);
    const LayerShape shape{
        .query_heads = m_.query_heads, .kv_heads = m_.kv_heads, .heads = m_.kv_heads};
    std::vector<double> asked(index(probe_.end - probe_.begin));
    (void)reduce_group(shape, kv_head, group, asked, [&](int q, std::span<double> most) {
      look_at(q, keys, most);
      return 0.0;
    });
    for (std::size_t i = 0; i < asked.size(); ++i) {
      double& score = scores[index(probe_.begin) + i];
      score = std::max(score, asked[i]);
    }
  }

 private:
  // The most that each asked entry gets from a row of one query head.
  void look_at(int query_head, std::span<const float> keys, std::span<double> most) const {
    const std::size_t before = index(sinks_), asked = most.size();
    std::vector<double> z(keys.size() / index(m_.head_dim)), q;
    std::fill(most.begin(), most.end(), 0.0);
    for (std::size_t row = 0; row < index(probe_.rows); ++row) {
      const float* raw =
          q_.data() + (row * index(m_.query_heads) + index(query_head)) * index(m_.head_dim);
      q.assign(raw, raw + m_.head_dim);
      const std::size_t count = before + asked + row + 1;
      kernels::dots(keys.data(), static_cast<std::int64_t>(count), m_.head_dim, q.data(), z.data());
      shape_logits(row, std::span(z).first(count));
      double top = *std::max_element(z.begin(), z.begin() + static_cast<std::ptrdiff_t>(count));
      if (!sink_logits_.empty())
        top = std::max(top, static_cast<double>(sink_logits_[index(query_head)]));
      double sum = 0;
      for (std::size_t i = 0; i < count; ++i) sum += z[i] = std::exp(z[i] - top);
      if (!sink_logits_.empty())
        sum += std::exp(static_cast<double>(sink_logits_[index(query_head)]) - top);
      if (!norms_.empty()) sum *= norm_of(row);
      for (std::size_t i = 0; i < asked; ++i) most[i] = std::max(most[i], z[before + i] / sum);
    }
    for (std::size_t i = 0; i < asked; ++i)
      most[i] *= weight_of(query_head, probe_.begin + static_cast<RowIndex>(i));
  }

  // From products to logits.
  void shape_logits(std::size_t row, std::span<double> z) const {
    for (double& x : z) {
      x *= m_.score_scale;
      if (softcap_ > 0) x = softcap_ * std::tanh(x / softcap_);
    }
    if (window_ == 0) return;
    const RowIndex first = probe_.at + static_cast<RowIndex>(row) - window_ + 1;  // that it sees
    const auto asked = probe_.end - probe_.begin;
    for (std::size_t i = 0; i < z.size(); ++i) {
      auto position = static_cast<RowIndex>(i);
      if (position >= sinks_ + asked) {
        position += probe_.at - sinks_ - asked;
      } else if (position >= sinks_) {
        position += probe_.begin - sinks_;
      }
      if (position < first) z[i] = -std::numeric_limits<double>::infinity();
    }
  }

  // ||Wo v||, where entries are weighed.
  [[nodiscard]] double weight_of(int query_head, RowIndex token) const {
    if (grams_.empty()) return 1;
    const std::span<const float> x = values_.at(token, query_head * m_.kv_heads / m_.query_heads);
    const Eigen::VectorXd v =
        Eigen::Map<const Eigen::VectorXf>(x.data(), m_.v_head_dim).cast<double>();
    return std::sqrt(std::max(0.0, v.dot(grams_[index(query_head)] * v)));
  }

  [[nodiscard]] double norm_of(std::size_t row) const {
    const auto norm = static_cast<double>(norms_[row]);
    if (norm > 0) return norm;
    throw TraceError(fmt::format("{}: layers.{}.probe.norm: row {} has {}, expected a number > 0",
                                 trace_.name(), layer_, index(probe_.first) + row, norm));
  }

  const Trace& trace_;
  const TraceMeta& m_;
  int layer_;
  const Probe& probe_;
  const Grams& grams_;
  RowIndex sinks_ = 0, window_ = 0;
  double softcap_ = 0;
  std::vector<float> sink_logits_;
  std::vector<float> q_, own_, first_, chunk_, norms_;
  LayerVectors values_;
};

}  // namespace

ReplayColumns look_at_layer(const Trace& trace, int layer, const ReplaySettings& settings) {
  ReplayColumns out(index(trace.meta().kv_heads), std::vector<double>(index(settings.at)));
  const Grams grams = settings.plus ? grams_of(trace, layer) : Grams{};
  for (const Probe& probe : settings.probes) {
    const PassOfReplay pass(trace, layer, probe, settings, grams);
    for (int h = 0; h < trace.meta().kv_heads; ++h) pass.add_head(h, settings.group, out[index(h)]);
  }
  return out;
}

}  // namespace kvspan::policies
