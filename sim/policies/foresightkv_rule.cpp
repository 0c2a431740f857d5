// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/foresightkv_rule.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "sim/base/random.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {

// Blocks end where decisions fall in decode: after rows that the interval divides.
Golden::Golden(const Geometry& geometry, int layer, RowIndex interval)
    : trace_(geometry.trace),
      layer_(layer),
      interval_(interval),
      // With chunks, somebody may ask before the prompt's end.
      origin_(geometry.chunk == 0 ? geometry.evict_point - (geometry.evict_point - 1) % interval
                                  : 1) {}

double Golden::score(const View& view, int head, std::span<const TokenIndex> entries,
                     std::span<double> out) {
  const RowIndex tokens = trace_->meta().tokens;
  if (!known_) {
    future_ = largest_block_means(*trace_, layer_, origin_, tokens, interval_);
    known_ = true;
  }
  const RowIndex now = view.pass().end;
  const auto label = [&](const Blocks& blocks, std::size_t block) {
    if (block >= blocks.size()) return;
    const auto& means = blocks[block][index(head)];
    for (std::size_t i = 0; i < entries.size(); ++i)
      out[i] = std::max(out[i], static_cast<double>(means[index(entries[i])]));
  };
  std::fill(out.begin(), out.end(), 0.0);
  const RowIndex blocks = (now - origin_ + interval_ - 1) / interval_;
  label(future_, index(blocks));
  const RowIndex next = std::min(origin_ + blocks * interval_, tokens);
  if (now < next && rest_from_ != now) {
    rest_ = largest_block_means(*trace_, layer_, now, next, interval_);
    rest_from_ = now;
  }
  if (now < next) label(rest_, 0);
  return 0;
}

Foresight::Foresight(const LayerShape& shape, const Settings& settings)
    : shape_(shape),
      settings_(settings),
      sums_(index(shape.query_heads)),
      heads_(index(shape.heads)),
      models_("foresightkv", settings) {}

Needs Foresight::needs() const {
  // Maxima and minima of truncated probabilities have no bound: k refuses score traces.
  return {.last_rows = settings_.interval,
          .column_sums = true,
          .observe = Observe::from_prompt_end,
          .k = true,
          .v = settings_.vectors};
}

void Foresight::observe(const View& view, RowIndex /*begin*/, RowIndex end) {
  if (end != view.pass().end || !settings_.schedule.due(view.pass())) return;
  for (int h = 0; h < shape_.heads; ++h) {
    const auto held = static_cast<TokenCount>(view.resident(h).size());
    if (heads_[index(h)].started || held >= settings_.budget) update(view, h);
  }
}

double Foresight::score(const View& view, int head, std::span<const TokenIndex> entries,
                        std::span<double> out) {
  const Head& state = update(view, head);
  const std::vector<Regressor>& models = models_.of(view.shape(), shape_.heads, width());
  const std::size_t group = index(shape_.group());
  const std::size_t width = models.front().width;
  const bool vectors = width > kStats * group;
  std::vector<float> x;
  x.reserve(entries.size() * width);
  std::size_t at = 0;
  for (const TokenIndex t : entries) {
    while (state.tokens[at] != t) ++at;
    const auto first = state.features.begin() + static_cast<std::ptrdiff_t>(at * kStats * group);
    x.insert(x.end(), first, first + static_cast<std::ptrdiff_t>(kStats * group));
    if (!vectors) continue;
    for (const std::vector<float>& part : {view.key(head, t), view.value(head, t)})
      x.insert(x.end(), part.begin(), part.end());
  }
  models[index(head)].evaluate(x, out);
  for (double& drop : out) drop = -drop;
  return 0;
}

const Foresight::Head& Foresight::update(const View& view, int head) {
  Head& state = heads_[index(head)];
  const RowIndex end = view.pass().end;
  if (state.when == end) return state;
  state.when = end;
  const bool first = !state.started;
  state.started = true;
  const auto resident = view.resident(head);
  state.tokens.assign(resident.begin(), resident.end());
  const std::size_t n = resident.size();
  const std::size_t group = index(shape_.group());
  state.features.assign(n * kStats * group, 0.0F);
  const RowIndex rows = std::min(settings_.interval, end);
  std::vector<double> p(n);
  for (std::size_t g = 0; g < group; ++g) {
    const std::size_t q = index(head) * group + g;
    IntervalStats stats(n, rows);
    for (RowIndex row = end - rows; row < end; ++row) {
      (void)view.probabilities(static_cast<int>(q), row, resident, p);
      for (std::size_t i = 0; i < n; ++i) stats.add(i, static_cast<float>(p[i]), end - row);
    }
    if (first) {  // all rows so far
      (void)view.column_sum(static_cast<int>(q), resident, p);
      for (std::size_t i = 0; i < n; ++i) stats.values[2][i] = static_cast<float>(p[i]);
    }
    RunningSums& sums = sums_[q];
    sums.plain.resize(index(end), 0.0F);
    sums.decayed.resize(index(end), 0.0F);
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t token = index(resident[i]);
      sums.add(token, stats.values[2][i]);
      float* out = state.features.data() + i * kStats * group + g;
      for (std::size_t s = 0; s < 6; ++s) out[s * group] = stats.values[s][i];
      out[6 * group] = sums.plain[token];
      out[7 * group] = sums.decayed[token];
    }
  }
  return state;
}

// Features of the models: a file may be without k and v.
std::size_t Foresight::width() const {
  const std::size_t attention = kStats * index(shape_.group());
  const bool vectors =
      !settings_.weights || settings_.weights->regressors.front().front().width != attention;
  return attention + (vectors && settings_.vectors ? index(shape_.k_dim + shape_.v_dim) : 0);
}

Pick sampled(std::uint64_t seed) {
  return [seed](const View& view, int head, std::span<const TokenIndex> entries,
                std::span<const double> scores, TokenCount keep, std::vector<char>& leaves) {
    const std::size_t drop = entries.size() - index(keep);
    const std::size_t pool = std::min(2 * drop, entries.size());
    std::vector<char> worst(entries.size(), 0);
    pick_top(view, head, entries, scores, static_cast<TokenCount>(entries.size() - pool), worst);
    std::vector<std::pair<double, std::size_t>> order;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (worst[i] == 0) continue;
      const double u = uniform(seed, {view.shape().model_layer, head, view.pass().end, entries[i]});
      order.emplace_back(scores[i] + std::log(-std::log(u)), i);  // minus Gumbel noise
    }
    std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first < b.first : a.second > b.second;
    });
    for (std::size_t i = 0; i < drop; ++i) leaves[order[i].second] = 1;
  };
}

}  // namespace kvspan::policies
