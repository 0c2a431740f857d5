// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/replay/attention_replay.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <vector>

#include "gpu_replay/replay/entry_writer.h"
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
        x_(trace, layer),
        writer_(
            x_, heads_, element_,
            stored_forms(settings.policy, ledger, meta_->head_dim, meta_->v_head_dim, element_)),
        sinks_(trace.sink_logits(layer)) {}

  [[nodiscard]] EntryWriter& writer() { return writer_; }

  // False: the pool holds what cannot be read (see EntryWriter::codings()).
  [[nodiscard]] bool measure(const KvPool& pool, RowIndex row, AttentionReplay& out) {
    std::vector<HeadTable> tables;
    std::vector<std::int64_t> first;
    for (int head = 0; head < heads_; ++head) {
      tables.push_back(pool.table_of(0, head));
      const std::vector<TokenIndex>& tokens = tables.back().tokens;
      first.push_back(window_ > 0 ? std::upper_bound(tokens.begin(), tokens.end(), row - window_) -
                                        tokens.begin()
                                  : 0);
      for (std::size_t at = index(first.back()); at < tokens.size(); ++at) {
        const int form = pool.held_as(0, head, tokens[at]);
        out.bytes_read +=
            static_cast<double>(pool.shape().representations[index(form)].device_bytes);
      }
    }
    std::vector<HeadCoding> codings;
    if (!writer_.codings(pool, tables, codings)) return false;
    const DecodeRow decode{
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
        .k_scale = writer_.k_scale(),
        .v_scale = writer_.v_scale(),
        .sinks = sinks_,
        .first = first,
        .formats = writer_.formats(),
        .codings = codings};
    out.seconds += attend(decode, pool.memory());
    for (int head = 0; head < query_heads_; ++head) compare(head, row, out);
    return true;
  }

 private:
  double attend(const DecodeRow& row, const DeviceMemory& memory) {
    if (attend_) return attend_(row, kept_);
    const auto begin = std::chrono::steady_clock::now();
    attend_on_host(row, memory, kept_);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  // The full cache's attention of one query head, in double, and what is left of it.
  void compare(int query_head, RowIndex row, AttentionReplay& out) const {
    const int head = query_head * meta_->kv_heads / query_heads_;
    const std::span<const float> q = x_.query(query_head, row);
    std::vector<double> logits;
    const RowIndex first = window_ > 0 ? std::max<RowIndex>(0, row - window_ + 1) : 0;
    double max = -std::numeric_limits<double>::infinity();
    for (RowIndex token = first; token <= row; ++token) {
      const std::span<const float> k = x_.key(head, token);
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
      const std::span<const float> v = x_.value(head, token);
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
  LayerVectors x_;
  EntryWriter writer_;
  std::vector<float> sinks_;
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
    hooks.appended = [&](int, TokenIndex token) { layer.writer().born(*pool, token); };
    hooks.changed = [&](int, const Step& step) { layer.writer().changed(step); };
    hooks.moment = [&](const Pass&, RowIndex row) {
      if (row < prompt || !plan.measures(row) || layer.measure(*pool, row, out)) return;
      out.why_not =
          "an entry has left a group of keys that share scales, and took its part of them along";
    };
    hooks.pass_ended = [&](const Pass& pass) {
      layer.writer().pass_ended(*pool, pass.end);
      if (settings.cancelled && settings.cancelled()) throw Interrupted();
      if (settings.progress)
        settings.progress(
            (l + static_cast<double>(pass.end) / static_cast<double>(ledger.plan.tokens)) /
            ledger.layers);
    };
    Sequence sequence(one, steps, layout, false, arenas, hooks);
    pool = &sequence.pool();
    while (!sequence.done() && out.why_not.empty()) sequence.advance();
    if (!out.why_not.empty()) return out;
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
