// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/fastgen_rule.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace kvspan::policies {

TokenCount percent_of(double percent, RowIndex length) {
  return static_cast<TokenCount>(std::ceil(percent / 100 * static_cast<double>(length) - 1e-9));
}

void Profile::observe(const View& view, RowIndex begin, RowIndex end) {
  const RowIndex prompt = view.pass().evict_point;
  const TokenCount width = percent_of(settings_.recent, prompt);
  for (RowIndex row = begin; row < std::min(end, prompt); ++row) {
    const auto from = static_cast<TokenIndex>(std::max<RowIndex>(0, row + 1 - width));
    std::vector<TokenIndex> entries(index(row + 1 - from));
    std::iota(entries.begin(), entries.end(), from);
    std::vector<double> p(entries.size());
    for (int q = 0; q < view.shape().query_heads; ++q) {
      (void)view.probabilities(q, row, entries, p);
      auto& sums = band_[index(q)];
      sums.resize(index(prompt), 0.0);
      for (std::size_t i = 0; i < p.size(); ++i) sums[index(from) + i] += p[i];
    }
  }
}

double Profile::score(const View& view, int head, std::span<const TokenIndex> entries,
                      std::span<double> out) {
  if (view.pass().is_evict_point()) choose_class(view, head, entries);
  const bool certain =
      mark(view, head, entries, class_[index(head)], out) && sure_[index(head)] != 0;
  return certain ? 0.0 : std::numeric_limits<double>::infinity();
}

bool Profile::mark(const View& view, int head, std::span<const TokenIndex> entries, Class chosen,
                   std::span<double> out) const {
  std::fill(out.begin(), out.end(), chosen == Class::full ? 1.0 : 0.0);
  if (chosen == Class::full) return true;
  const RowIndex length = view.pass().end;
  const TokenIndex local =
      chosen == Class::local
          ? static_cast<TokenIndex>(length - percent_of(settings_.recent, length))
          : static_cast<TokenIndex>(length);
  std::vector<std::size_t> others;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::size_t t = index(entries[i]);
    const bool in =
        entries[i] >= local || is_special(t) || (chosen >= Class::punctuation && is_punctuation(t));
    out[i] = in ? 1.0 : 0.0;
    if (!in) others.push_back(i);
  }
  if (chosen < Class::frequent) return true;
  return mark_frequent(view, head, entries, std::move(others), out);
}

bool Profile::mark_frequent(const View& view, int head, std::span<const TokenIndex> entries,
                            std::vector<std::size_t> others, std::span<double> out) const {
  const std::size_t count =
      std::min(others.size(), index(percent_of(settings_.frequent, view.pass().end)));
  std::vector<double> sums(entries.size());
  const double slack =
      reduce_group(view.shape(), head, Group::sum, sums,
                   [&](int q, std::span<double> one) { return view.column_sum(q, entries, one); });
  round_sums(sums);
  const auto cut = others.begin() + static_cast<std::ptrdiff_t>(count);
  const auto better = [&](std::size_t a, std::size_t b) {
    return sums[a] != sums[b] ? sums[a] > sums[b] : a < b;
  };
  if (cut != others.end()) std::nth_element(others.begin(), cut, others.end(), better);
  double lowest = std::numeric_limits<double>::infinity();
  for (auto it = others.begin(); it != cut; ++it) {
    out[*it] = 1.0;
    lowest = std::min(lowest, sums[*it]);
  }
  return slack == 0 || cut == others.end() || count == 0 || lowest - sums[*cut] > 2 * slack;
}

void Profile::choose_class(const View& view, int head, std::span<const TokenIndex> entries) {
  const int group = view.shape().group();
  std::vector<double> in(entries.size());
  std::vector<double> sums(entries.size());
  bool sure = true;
  for (int c = 0; c < static_cast<int>(Class::full); ++c) {
    const auto candidate = static_cast<Class>(c);
    if (candidate == Class::punctuation && !settings_.punctuation) continue;
    sure = mark(view, head, entries, candidate, in) && sure;
    bool enough = true;
    for (int q = head * group; q < (head + 1) * group; ++q) {
      const double slack = view.column_sum(q, entries, sums);
      double all = 0;
      double kept = 0;
      for (std::size_t i = 0; i < entries.size(); ++i) {
        all += sums[i];
        if (in[i] > 0 && !(candidate == Class::local && moves(view, entries[i]))) {
          kept += sums[i];
        } else if (candidate == Class::local) {
          kept += band_[index(q)][index(entries[i])];
        }
      }
      const double mass = all > 0 ? kept / all : 1.0;
      enough = enough && static_cast<float>(mass) >= static_cast<float>(settings_.recovery);
      // `slack` bounds each sum; so many entries may be off by it.
      const double doubt = slack * static_cast<double>(entries.size()) / std::max(all, 1e-30);
      sure = sure && (slack == 0 || std::abs(mass - settings_.recovery) > doubt);
    }
    if (!enough) continue;
    class_[index(head)] = candidate;
    sure_[index(head)] = sure ? 1 : 0;
    return;
  }
  class_[index(head)] = Class::full;
  sure_[index(head)] = sure ? 1 : 0;
}

bool Profile::moves(const View& view, TokenIndex token) const {
  const RowIndex length = view.pass().end;
  return token >= length - percent_of(settings_.recent, length) && !is_special(index(token)) &&
         !is_punctuation(index(token));
}

}  // namespace kvspan::policies
