// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/cake_rule.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "sim/policies/shared/groups.h"

namespace kvspan::policies {
namespace {

// p' of the window's rows at some entries, for one query head.
struct RowMoments {
  std::vector<double> mean, variance;  // [entries] over the rows; the variance is unbiased
  double entropy = 0;                  // -sum of p' ln(p' + 1e-10)
  double slack = 0;                    // of one p'
  double rows = 0;
};

RowMoments moments_of(const View& view, int query_head, RowIndex window,
                      std::span<const TokenIndex> entries) {
  RowMoments out;
  out.mean.assign(entries.size(), 0.0);
  out.variance.assign(entries.size(), 0.0);
  std::vector<double> p(entries.size());
  const RowIndex end = view.pass().end;
  for (RowIndex row = std::max<RowIndex>(0, end - window); row < end; ++row) {
    out.slack = std::max(out.slack, view.probabilities(query_head, row, entries, p));
    out.rows += 1;
    for (std::size_t i = 0; i < p.size(); ++i) {
      const double off = p[i] - out.mean[i];
      out.mean[i] += off / out.rows;
      out.variance[i] += off * (p[i] - out.mean[i]);
      out.entropy -= p[i] * std::log(p[i] + 1e-10);
    }
  }
  for (double& v : out.variance) v /= std::max(1.0, out.rows - 1);
  return out;
}

}  // namespace

double CakeVotes::score(const View& view, int head, std::span<const TokenIndex> entries,
                        std::span<double> out) {
  const double slack =
      reduce_group(view.shape(), head, Group::mean, out, [&](int q, std::span<double> votes) {
        const RowMoments x = moments_of(view, q, settings_.window, entries);
        for (std::size_t i = 0; i < votes.size(); ++i)
          votes[i] = x.mean[i] + settings_.gamma * x.variance[i];
        pool(Pool::avg, settings_.kernel, votes);
        // Each of rows / (rows - 1) squares moves by at most 4 slack (1 + slack).
        const double spread = x.rows / std::max(1.0, x.rows - 1) * 4 * x.slack * (1 + x.slack);
        return x.slack + settings_.gamma * spread;
      });
  round_sums(out);
  return slack;
}

double CakeRow::score(const View& view, int head, std::span<const TokenIndex> entries,
                      std::span<double> out) {
  const double slack =
      reduce_group(view.shape(), head, Group::mean, out, [&](int q, std::span<double> votes) {
        const double s = view.votes(q, 1, entries, votes);
        pool(Pool::avg, kernel_, votes);
        return s;
      });
  round_sums(out);
  return slack;
}

TokenCount CakeShares::capacity(const LayerShape& shape, int /*head*/, const Sizing& sizing) const {
  if (sizing.tokens == kAll || settings_.leaves_alone(sizing)) return kAll;
  const TokenCount base = sizing.tokens - settings_.window;
  if (base <= 0 || even_) return sizing.tokens;
  return settings_.window + base * shape.layers;
}

std::vector<double> CakeShares::figures(const View& view) const {
  const LayerShape& shape = view.shape();
  double entropy = 0;
  double variance = 0;
  for (int q = 0; q < shape.query_heads; ++q) {
    const auto all = view.resident(q / shape.group());
    const auto before =
        std::lower_bound(all.begin(), all.end(), view.pass().end - settings_.window);
    const RowMoments x = moments_of(view, q, settings_.window, {all.begin(), before});
    entropy += x.entropy;
    variance = std::accumulate(x.variance.begin(), x.variance.end(), variance);
  }
  return {std::pow(std::max(0.0, entropy), 1 / settings_.tau1) *
          std::pow(variance, 1 / settings_.tau2)};
}

Shares CakeShares::share_out(std::span<const LayerShow> layers, const Sizing& sizing) const {
  const TokenCount base = sizing.tokens - settings_.window;
  const auto even = [&](TokenCount keep) {
    Shares out;
    for (const LayerShow& layer : layers) out.emplace_back(layer.scores.size(), keep);
    return out;
  };
  if (settings_.leaves_alone(sizing)) return even(kAll);
  if (base <= 0) return even(sizing.tokens);
  std::vector<double> preferences;
  for (const LayerShow& layer : layers) {
    if (!layer.figures.empty()) preferences.push_back(layer.figures[0]);
  }
  const auto taking_part = std::ssize(preferences);
  const std::vector<TokenCount> of_layers =
      cake_shares(preferences, base * taking_part, sizing.rows - settings_.window);
  Shares out;
  for (std::size_t next = 0; const LayerShow& layer : layers) {
    const bool shares = !layer.figures.empty();
    out.emplace_back(layer.scores.size(), shares ? settings_.window + of_layers[next] : 0);
    if (shares) ++next;
  }
  return out;
}

TokenCount CakeSharesInDecode::capacity(const LayerShape& shape, int head,
                                        const Sizing& sizing) const {
  return settings_.leaves_alone(sizing) ? sizing.tokens : CakeShares::capacity(shape, head, sizing);
}

void CakeSharesInDecode::counts(const View& view, const Scores& scores, const Sizing& sizing,
                                std::span<TokenCount> keep) const {
  if (settings_.leaves_alone(sizing)) {
    std::ranges::fill(keep, sizing.tokens);
  } else {
    CakeShares::counts(view, scores, sizing, keep);
  }
}

std::vector<TokenCount> cake_shares(std::span<const double> preferences, TokenCount total,
                                    TokenCount most) {
  const double sum = std::accumulate(preferences.begin(), preferences.end(), 0.0);
  std::vector<TokenCount> out;
  for (const double x : preferences) {
    const double share = sum > 0 ? x / sum : 1.0 / static_cast<double>(preferences.size());
    out.push_back(std::min(most, static_cast<TokenCount>(share * static_cast<double>(total))));
  }
  // What was cut off at `most`, and then what was rounded off: evenly, the first ones one more.
  const auto hand_out = [&](TokenCount rest) {
    std::vector<std::size_t> open;
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (out[i] < most) open.push_back(i);
    }
    const auto count = std::ssize(open);
    for (std::ptrdiff_t i = 0; i < count; ++i)
      out[open[index(i)]] += rest / count + (i < rest % count ? 1 : 0);
  };
  TokenCount over = 0;
  for (const double x : preferences) {
    const double share = sum > 0 ? x / sum : 1.0 / static_cast<double>(preferences.size());
    over +=
        std::max<TokenCount>(0, static_cast<TokenCount>(share * static_cast<double>(total)) - most);
  }
  if (over > 0) hand_out(over);
  const TokenCount rest = total - std::accumulate(out.begin(), out.end(), TokenCount{0});
  if (rest > 0) hand_out(rest);
  for (TokenCount& share : out) share = std::min(share, most);
  return out;
}

}  // namespace kvspan::policies
