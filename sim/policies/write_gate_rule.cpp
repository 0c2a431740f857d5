// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/write_gate_rule.h"

#include <algorithm>
#include <functional>
#include <limits>

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>
#include <tbb/task_group.h>

#include "sim/base/error.h"
#include "sim/base/random.h"
#include "sim/policies/shared/entry_values.h"
#include "sim/policies/shared/groups.h"
#include "sim/policy/passes.h"

namespace kvspan::policies {
namespace {

constexpr RowIndex kCapRows = 256;

// Values of one stored layer, larger is better; infinity: always admitted. Layers run side by side.
using LayerGates = std::function<HeadValues(int layer)>;

HeadValues random_gates(const WriteGate::Settings& s, int layer) {
  HeadValues out(index(s.geometry.kv_heads));
  for (int h = 0; h < s.geometry.kv_heads; ++h) {
    for (RowIndex i = 0; i < s.geometry.tokens; ++i) {
      out[index(h)].push_back(
          static_cast<float>(uniform(s.fit.seed, {s.geometry.layer_ids[index(layer)], h, i})));
    }
  }
  return out;
}

HeadValues given_gates(const LayerTable& table, int layer) {
  HeadValues out;
  for (std::int64_t h = 0; h < table.heads; ++h) {
    const auto row = table.layers[index(layer)].begin() + h * table.tokens;
    out.emplace_back(row, row + table.tokens);
  }
  return out;
}

// Every call takes its first positions for sinks.
void add_call_sinks(const Geometry& g, HeadValues& gates) {
  RowIndex begin = 0;
  for (const RowIndex end : make_passes(g.tokens, g.prompt, g.evict_point, g.chunk).ends) {
    for (auto& head : gates) {
      for (RowIndex i = begin; i < std::min(begin + kAdaSinks, end); ++i)
        head[index(i)] = std::numeric_limits<float>::infinity();
    }
    begin = end;
  }
}

// Fits what has to be fitted. REQUIRES: a trace.
LayerGates layer_gates(const WriteGate::Settings& s) {
  const Trace& trace = *s.geometry.trace;
  if (s.gate == "oracle") {
    return [&trace, window = s.fit.window](int layer) {
      return largest_future(trace, layer, window, 0, trace.meta().tokens);
    };
  }
  if (s.gate == "oracle_out") {
    return
        [&trace, window = s.fit.window](int layer) { return output_change(trace, layer, window); };
  }
  if (s.gate == "adaea") {
    return [&trace, &s](int layer) {
      HeadValues out = expected_attention(trace, layer, s.geometry.evict_point, s.outside());
      if (s.call_sinks) add_call_sinks(s.geometry, out);
      return out;
    };
  }
  if (s.gate == "random") return [s](int layer) { return random_gates(s, layer); };
  if (s.gate == "file") return [s](int layer) { return given_gates(*s.table, layer); };
  const FitSource source{s.weights, s.fit, s.geometry.evict_point / 2, &trace};
  return [gates = LearnedGates(source, s.geometry)](int layer) { return gates.of_layer(layer); };
}

int kv_head_of(const LayerShape& shape, int head) { return shape.kv_head(head); }

}  // namespace

std::ptrdiff_t WriteGate::Settings::outside() const {
  const RowIndex n = geometry.evict_point;
  return n > fit.window ? n - fit.window : n;
}

const std::vector<float>& WriteGate::admitted(int layer, int kv_head) {
  ready();
  return admitted_[index(layer)][index(kv_head)];
}

double WriteGate::margin(int layer, int kv_head, RowIndex token) {
  ready();
  const float value = values_[index(layer)][index(kv_head)][index(token)];
  return value == std::numeric_limits<float>::infinity() ? std::numeric_limits<double>::infinity()
                                                         : static_cast<double>(value) - threshold_;
}

void WriteGate::ready() {
  // Whoever computes may not run another policy's layer meanwhile, which might wait for this one.
  std::call_once(once_, [&] {
    tbb::this_task_arena::isolate([&] { compute(); });
    // Where somebody else has failed, or Ctrl-C came, loops end early.
    if (tbb::is_current_task_group_canceling()) throw Interrupted();
    admitted_ = values_;
    for (HeadValues& layer : admitted_) {
      for (auto& head : layer) {
        for (float& value : head) value = static_cast<double>(value) > threshold_ ? 1.0F : 0.0F;
      }
    }
  });
}

void WriteGate::compute() {
  const int layers = settings_.geometry.layers();
  const LayerGates of_layer = layer_gates(settings_);
  values_.resize(index(layers));
  tbb::parallel_for(0, layers, [&](int l) { values_[index(l)] = of_layer(l); });
  if (settings_.threshold) {
    threshold_ = static_cast<double>(static_cast<float>(*settings_.threshold));  // as gates are
    return;
  }
  std::vector<float> all;
  for (const HeadValues& layer : values_) {
    for (const auto& head : layer)
      all.insert(all.end(), head.begin(), head.begin() + settings_.outside());
  }
  threshold_ = value_exceeded_by(all, settings_.rate);
}

double Gate::score(const View& view, int head, std::span<const TokenIndex> entries,
                   std::span<double> out) {
  const LayerShape& shape = view.shape();
  for (std::size_t i = 0; i < entries.size(); ++i)
    out[i] = gates_->margin(shape.layer, kv_head_of(shape, head), entries[i]);
  return 0;
}

void WindowAndAdmitted::mask(const View& view, int query_head, RowIndex row,
                             std::span<float> mask) {
  const LayerShape& shape = view.shape();
  const int kv_head = shape.kv_head_of_query(query_head);
  const float* admitted = gates_->admitted(shape.layer, kv_head).data();
  float* out = mask.data();
  const RowIndex first = row - row % block_;
  for (RowIndex i = 0; i <= first - window_; ++i) out[i] *= admitted[i];
}

bool Cap::exceeded(const Pass& pass, TokenCount beyond, int heads) {
  if (!gates_) return beyond > most_ * heads;
  const std::lock_guard lock(mutex_);
  while (exceeded_.size() < pass.ends.size()) {
    const std::size_t i = exceeded_.size();
    count_pass(i > 0 ? pass.ends[i - 1] : 0, pass.ends[i]);
  }
  return exceeded_[pass.ends.size() - 1] != 0;
}

void Cap::count_pass(RowIndex begin, RowIndex end) {
  TokenCount all = 0;
  for (std::size_t i = 0; i < held_.size(); ++i) {
    const auto heads = index(geometry_.kv_heads);
    const std::vector<float>& admitted =
        gates_->admitted(static_cast<int>(i / heads), static_cast<int>(i % heads));
    const auto from = std::max<RowIndex>(0, begin - window_);
    for (RowIndex t = from; t < end - window_; ++t) held_[i] += admitted[index(t)] > 0 ? 1 : 0;
    all += held_[i];
  }
  exceeded_.push_back(all > most_ * std::ssize(held_) ? 1 : 0);
  if (exceeded_.back() == 0) return;
  for (TokenCount& held : held_) held -= held / 10;
}

Needs CapScorer::needs() const { return {.last_rows = kCapRows}; }

double CapScorer::score(const View& view, int head, std::span<const TokenIndex> entries,
                        std::span<double> out) {
  std::fill(out.begin(), out.end(), 0.0);
  const LayerShape& shape = view.shape();
  const RowIndex end = view.pass().end;
  TokenCount beyond = 0;
  for (int h = 0; h < shape.heads; ++h) {
    const auto all = view.resident(h);
    beyond += std::lower_bound(all.begin(), all.end(), end - cap_->window()) - all.begin();
  }
  if (!cap_->exceeded(view.pass(), beyond, shape.heads)) return 0;  // nobody will be asked
  const RowIndex rows = std::min(kCapRows, end);
  std::vector<double> p(entries.size());
  std::vector<double> best(entries.size());
  double slack = 0;
  for (RowIndex row = end - rows; row < end; ++row) {
    std::fill(best.begin(), best.end(), 0.0);
    for (int q = head * shape.group(); q < (head + 1) * shape.group(); ++q) {
      const double s = view.probabilities(q, row, entries, p);
      double sum = 0;
      for (const double value : p) sum += value;
      if (!(sum > 0)) continue;
      slack += s / sum;
      for (std::size_t i = 0; i < p.size(); ++i) best[i] = std::max(best[i], p[i] / sum);
    }
    for (std::size_t i = 0; i < p.size(); ++i) out[i] += best[i] / static_cast<double>(rows);
  }
  pool(Pool::max, 5, out);
  round_sums(out);
  return slack / static_cast<double>(rows);
}

void CapBudget::counts(const View& view, const Scores& scores, const Sizing& /*sizing*/,
                       std::span<TokenCount> keep) const {
  TokenCount total = 0;
  for (const auto& e : scores.entries) total += static_cast<TokenCount>(e.size());
  const bool over = cap_->exceeded(view.pass(), total, static_cast<int>(keep.size()));
  for (std::size_t h = 0; h < keep.size(); ++h) {
    const auto own = static_cast<TokenCount>(scores.entries[h].size());
    keep[h] = scores.protected_[h] + own - (over ? own / 10 : 0);
  }
}

}  // namespace kvspan::policies
