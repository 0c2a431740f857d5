// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/replay/attention_replay.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <vector>

#include "gpu_replay/attention/decode_row.h"
#include "gpu_replay/replay/sequence.h"
#include "sim/replay/fidelity.h"

namespace kvspan::gpu_replay {
namespace {

Ledger layer_of(const Ledger& ledger, int layer) {
  Ledger one;
  one.plan = ledger.plan;
  one.layers = 1;
  one.model_layers = ledger.model_layers;
  one.heads = ledger.heads;
  one.query_heads = ledger.query_heads;
  one.representations = ledger.representations;
  const auto begin = ledger.death.begin() + static_cast<std::ptrdiff_t>(ledger.offset(layer, 0));
  one.death.assign(begin, begin + static_cast<std::ptrdiff_t>(ledger.offset(1, 0)));
  if (!ledger.changes.empty()) one.changes = {ledger.changes[index(layer)]};
  return one;
}

// q, k and v of one layer. [tokens, heads, dim]
struct Vectors {
  std::vector<float> q, k, v;
};

std::vector<float> widened(const TensorView& tensor, std::size_t values, const char* name) {
  std::vector<float> out(values);
  widen(tensor, 0, out, name);
  return out;
}

Vectors vectors_of(const Trace& trace, int layer) {
  const TraceMeta& m = trace.meta();
  const std::size_t keys = index(m.tokens) * index(m.kv_heads);
  return {widened(*trace.q(layer), index(m.tokens) * index(m.query_heads) * index(m.head_dim), "q"),
          widened(*trace.k(layer), keys * index(m.head_dim), "k"),
          widened(*trace.v(layer), keys * index(m.v_head_dim), "v")};
}

// One layer on its way.
class Layer {
 public:
  Layer(const Trace& trace, const Ledger& ledger, int layer,
        const AttentionReplaySettings& settings)
      : meta_(&trace.meta()),
        heads_(ledger.heads),
        query_heads_(meta_->query_heads),
        window_(meta_->sliding_window.empty() ? 0 : meta_->sliding_window[index(layer)]),
        element_(settings.element),
        attend_(settings.attend),
        x_(vectors_of(trace, layer)),
        sinks_(trace.sink_logits(layer)) {
    for (int head = 0; head < heads_; ++head) {
      k_scale_.push_back(scale(x_.k, head, meta_->head_dim));
      v_scale_.push_back(scale(x_.v, head, meta_->v_head_dim));
    }
  }

  // The bytes of a newborn, in every head.
  void write(KvPool& pool, TokenIndex token) {
    for (int head = 0; head < heads_; ++head) {
      const std::span<const float> k = at(x_.k, kv_head(head), meta_->head_dim, token);
      const std::span<const float> v = at(x_.v, kv_head(head), meta_->v_head_dim, token);
      std::vector<std::byte> bytes((k.size() + v.size()) * index(bytes_of(element_)));
      const std::size_t of_key = k.size() * index(bytes_of(element_));
      encode(k, element_, k_scale_[index(head)], std::span(bytes).first(of_key));
      encode(v, element_, v_scale_[index(head)], std::span(bytes).subspan(of_key));
      (void)pool.write(0, head, token, bytes);
    }
  }

  void measure(const KvPool& pool, RowIndex row, AttentionReplay& out) {
    std::vector<HeadTable> tables;
    std::int64_t entries = 0;
    for (int head = 0; head < heads_; ++head) {
      tables.push_back(pool.table_of(0, head));
      if (window_ > 0) forget(tables.back(), row - window_);
      entries += std::ssize(tables.back().slots);
    }
    DecodeRow decode{
        .query_heads = query_heads_,
        .heads = heads_,
        .k_dim = meta_->head_dim,
        .v_dim = meta_->v_head_dim,
        .element = element_,
        .scale = meta_->score_scale,
        .softcap = meta_->logit_softcap,
        .q = std::span(x_.q).subspan(index(row) * index(query_heads_ * meta_->head_dim),
                                     index(query_heads_ * meta_->head_dim)),
        .tables = tables,
        .k_scale = k_scale_,
        .v_scale = v_scale_,
        .sinks = sinks_};
    out.seconds += attend(decode, pool.memory());
    out.bytes_read +=
        static_cast<double>(entries * (meta_->head_dim + meta_->v_head_dim) * bytes_of(element_));
    for (int head = 0; head < query_heads_; ++head) compare(head, row, out);
  }

 private:
  double attend(const DecodeRow& row, const DeviceMemory& memory) {
    if (attend_) return attend_(row, kept_);
    const auto begin = std::chrono::steady_clock::now();
    attend_on_host(row, memory, kept_);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  [[nodiscard]] int kv_head(int head) const { return head * meta_->kv_heads / heads_; }
  [[nodiscard]] std::span<const float> at(const std::vector<float>& x, int head, int dim,
                                          RowIndex token) const {
    return std::span(x).subspan((index(token) * index(meta_->kv_heads) + index(head)) * index(dim),
                                index(dim));
  }
  [[nodiscard]] float scale(const std::vector<float>& x, int head, int dim) const {
    float largest = 0;
    for (RowIndex token = 0; token < meta_->tokens; ++token) {
      for (const float value : at(x, kv_head(head), dim, token))
        largest = std::max(largest, std::fabs(value));
    }
    return scale_of(largest, element_);
  }
  // Rows do not read what lies at or before `last`.
  static void forget(HeadTable& table, RowIndex last) {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < table.slots.size(); ++i) {
      if (table.tokens[i] <= last) continue;
      table.tokens[kept] = table.tokens[i];
      table.slots[kept++] = table.slots[i];
    }
    table.tokens.resize(kept);
    table.slots.resize(kept);
  }

  // The full cache's attention of one query head, in double, and what is left of it.
  void compare(int query_head, RowIndex row, AttentionReplay& out) const {
    const int head = query_head * meta_->kv_heads / query_heads_;
    const std::span<const float> q = std::span(x_.q).subspan(
        (index(row) * index(query_heads_) + index(query_head)) * index(meta_->head_dim),
        index(meta_->head_dim));
    std::vector<double> logits;
    const RowIndex first = window_ > 0 ? std::max<RowIndex>(0, row - window_ + 1) : 0;
    double max = -std::numeric_limits<double>::infinity();
    for (RowIndex token = first; token <= row; ++token) {
      const std::span<const float> k = at(x_.k, head, meta_->head_dim, token);
      double sum = 0;
      for (std::size_t i = 0; i < k.size(); ++i) sum += double{q[i]} * double{k[i]};
      sum *= meta_->score_scale;
      if (meta_->logit_softcap > 0)
        sum = meta_->logit_softcap * std::tanh(sum / meta_->logit_softcap);
      logits.push_back(sum);
      max = std::max(max, sum);
    }
    const double sink = sinks_.empty() ? 0 : std::exp(double{sinks_[index(query_head)]} - max);
    double sum = 0;
    std::vector<double> output(index(meta_->v_head_dim), 0);
    for (RowIndex token = first; token <= row; ++token) {
      const double weight = std::exp(logits[index(token - first)] - max);
      sum += weight;
      const std::span<const float> v = at(x_.v, head, meta_->v_head_dim, token);
      for (std::size_t i = 0; i < v.size(); ++i) output[i] += weight * double{v[i]};
    }
    const std::span<const float> kept =
        std::span(kept_.output).subspan(index(query_head) * output.size(), output.size());
    out.retained += (std::exp(double{kept_.lse[index(query_head)]} - max) - sink) / sum;
    const std::vector<double> wide(kept.begin(), kept.end());
    out.error += relative_error(output, sum + sink, wide, 1);
  }

  const TraceMeta* meta_;
  int heads_, query_heads_;
  std::int64_t window_;
  Element element_;
  std::function<double(const DecodeRow&, DecodeResult&)> attend_;
  Vectors x_;
  std::vector<float> sinks_, k_scale_, v_scale_;
  DecodeResult kept_;
};

}  // namespace

AttentionReplay replay_attention(const Trace& trace, const Ledger& ledger, DeviceMemory& memory,
                                 const AttentionReplaySettings& settings) {
  AttentionReplay out;
  out.layout = settings.layout;
  out.element = settings.element;
  const RowIndex prompt = ledger.plan.prompt;
  const FidelityPlan plan = plan_fidelity(ledger.plan.tokens, prompt, settings.rows, settings.rows);
  const Layout layout = parse_layout(settings.layout);
  for (int l = 0; l < ledger.layers; ++l) {
    const Ledger one = layer_of(ledger, l);
    const std::vector<LayerSteps> steps = steps_of(one);
    ArenaSet arenas(memory);
    Layer layer(trace, ledger, l, settings);
    KvPool* pool = nullptr;
    Sequence::Hooks hooks;
    hooks.appended = [&](int, TokenIndex token) { layer.write(*pool, token); };
    hooks.moment = [&](const Pass&, RowIndex row) {
      if (row >= prompt && plan.measures(row)) layer.measure(*pool, row, out);
    };
    hooks.pass_ended = [&](const Pass& pass) {
      if (settings.cancelled && settings.cancelled()) throw Interrupted();
      if (settings.progress)
        settings.progress(
            (l + static_cast<double>(pass.end) / static_cast<double>(ledger.plan.tokens)) /
            ledger.layers);
    };
    Sequence sequence(one, steps, layout, false, arenas, hooks);
    pool = &sequence.pool();
    while (!sequence.done()) sequence.advance();
  }
  for (RowIndex row = prompt; row < ledger.plan.tokens; ++row)
    out.rows += plan.measures(row) ? 1 : 0;
  if (out.rows == 0) return out;
  const auto rows = static_cast<double>(out.rows);
  const double values = rows * ledger.layers * trace.meta().query_heads;
  out.retained /= values;
  out.error /= values;
  out.bytes_read /= rows;
  out.seconds /= rows;
  return out;
}

}  // namespace kvspan::gpu_replay
