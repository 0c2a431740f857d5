// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/pages.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace kvspan::policies {

bool generates(const Pass& pass) { return pass.rows() == 1 && pass.end > pass.prompt_end; }

std::vector<std::int32_t> best_of(std::span<const float> scores, std::size_t count) {
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  if (count >= order.size()) return order;
  std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                   [&](std::int32_t a, std::int32_t b) {
                     const float x = scores[index(a)];
                     const float y = scores[index(b)];
                     return x != y ? x > y : a < b;
                   });
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

PageBounds::PageBounds(int dim, int page, std::int64_t places)
    : dim_(dim),
      page_(page),
      pages_(index((places + page - 1) / page)),
      low_(index(dim) * pages_, std::numeric_limits<float>::infinity()),
      high_(index(dim) * pages_, -std::numeric_limits<float>::infinity()) {}

void PageBounds::extend(const View& view, int kv_head, TokenIndex end) {
  if (end_ >= end) return;
  std::vector<TokenIndex> born(index(end - end_));
  std::iota(born.begin(), born.end(), end_);
  const std::vector<float> keys = vectors_of(view, Vectors::keys, kv_head, born);
  for (std::size_t at = 0; end_ < end; ++end_, at += index(dim_))
    add(end_, std::span(keys).subspan(at, index(dim_)));
}

void PageBounds::add(RowIndex place, std::span<const float> key) {
  const std::size_t p = index(place / page_);
  for (std::size_t i = 0; i < key.size(); ++i) {
    low_[i * pages_ + p] = std::min(low_[i * pages_ + p], key[i]);
    high_[i * pages_ + p] = std::max(high_[i * pages_ + p], key[i]);
  }
}

void PageBounds::score(std::span<const float> q, std::span<float> out) const {
  std::fill(out.begin(), out.end(), 0.0F);
  for (std::size_t i = 0; i < index(dim_); ++i) {
    const float x = q[i];
    const float* bound = (x >= 0 ? high_.data() : low_.data()) + i * pages_;
    for (std::size_t p = 0; p < out.size(); ++p) out[p] += x * bound[p];
  }
}

std::vector<Parameter> page_parameters(const std::string& budget,
                                       const std::vector<std::string>& per) {
  using Kind = Parameter::Kind;
  Parameter read = budget_parameter(budget);
  read.help = "what a query head reads in a row; nothing is evicted";
  return {read,
          {.name = "page",
           .fallback = "16",
           .unit = "tokens",
           .help = "tokens of a page",
           .range = {1, 65536}},
          {.name = "skip",
           .fallback = "2",
           .unit = "layers",
           .help = "first layers of the model, read in full",
           .range = {0, 1e6}},
          {.name = "last_page",
           .kind = Kind::flag,
           .fallback = "true",
           .help = "the newest page is always read (kernels), or competes (evaluation code)"},
          {.name = "least",
           .fallback = "3",
           .unit = "pages",
           .help = "pages read at least",
           .range = {0, 1e9}},
          {.name = "per",
           .kind = Kind::word,
           .fallback = per.front(),
           .help = "one choice per query head, or per KV head (max)",
           .choices = per}};
}

PageRule page_rule(const Arguments& arguments, const Geometry& geometry) {
  PageRule rule;
  rule.page = static_cast<int>(arguments.count("page"));
  if (arguments.has("skip")) rule.skip = static_cast<int>(arguments.count("skip"));
  rule.last_page = arguments.flag("last_page");
  if (arguments.has("least")) rule.least = arguments.count("least");
  rule.per_kv_head = arguments.is("per", "kv");
  rule.budget = entries_of(arguments, "budget", geometry);
  rule.tokens = geometry.tokens;
  return rule;
}

std::function<std::int64_t(RowIndex)> page_bytes(const PageRule& rule, const Geometry& geometry) {
  // Minimum and maximum of every key element, for layers that are read in full too.
  const std::int64_t per_page =
      std::int64_t{geometry.layers()} * geometry.kv_heads * 2 * geometry.k_dim * geometry.kv_bytes;
  return [per_page, page = rule.page](RowIndex row) { return (row + page) / page * per_page; };
}

PageChooser::PageChooser(const PageRule& rule, const LayerShape& shape)
    : rule_(rule), shape_(shape) {
  if (shape.model_layer < rule.skip) return;
  for (int h = 0; h < shape.kv_heads; ++h)
    bounds_.emplace_back(shape.k_dim, rule.page, rule.tokens);
}

// Pages with a resident entry, and those that are written up to `row`; ascending.
std::vector<std::int32_t> PageChooser::living(const View& view, int head, RowIndex row) const {
  const std::span<const TokenIndex> list = view.resident(head);
  const RowIndex now = view.pass().end;
  std::vector<std::int32_t> out;
  const auto add = [&](RowIndex page) {
    if (out.empty() || out.back() < page) out.push_back(static_cast<std::int32_t>(page));
  };
  if (static_cast<RowIndex>(list.size()) == now) {
    for (RowIndex p = 0; p * rule_.page < now; ++p) add(p);
  } else {
    for (const TokenIndex t : list) add(t / rule_.page);
  }
  for (RowIndex p = now / rule_.page; p <= row / rule_.page; ++p) add(p);
  return out;
}

std::vector<std::vector<std::int32_t>> PageChooser::choose(const View& view, RowIndex row) {
  std::vector<std::vector<std::int32_t>> out(index(shape_.query_heads));
  if (bounds_.empty()) return out;
  const int per_kv = shape_.query_heads / shape_.kv_heads;
  for (int h = 0; h < shape_.kv_heads; ++h)
    bounds_[index(h)].extend(view, h, static_cast<TokenIndex>(row) + 1);
  const RowIndex last = row / rule_.page;
  std::vector<float> scores(index(last + 1));
  std::vector<float> group_scores;
  std::vector<float> candidates;
  for (int head = 0; head < shape_.heads; ++head) {
    const std::vector<std::int32_t> pages = living(view, head, row);
    std::size_t places = rule_.count();
    if (pages.size() <= places) continue;
    const std::size_t competing = pages.size() - (rule_.last_page ? 1 : 0);
    if (rule_.last_page) --places;
    const int first = head * shape_.group();
    group_scores.assign(scores.size(), -std::numeric_limits<float>::infinity());
    for (int q = first; q < first + shape_.group(); ++q) {
      bounds_[index(q / per_kv)].score(view.query(q, row), scores);
      if (rule_.per_kv_head) {
        for (std::size_t p = 0; p < scores.size(); ++p)
          group_scores[p] = std::max(group_scores[p], scores[p]);
        if (q + 1 < first + shape_.group()) continue;
      }
      const std::vector<float>& by = rule_.per_kv_head ? group_scores : scores;
      candidates.clear();
      for (std::size_t i = 0; i < competing; ++i) candidates.push_back(by[index(pages[i])]);
      std::vector<std::int32_t> chosen;
      for (const std::int32_t i : best_of(candidates, places)) chosen.push_back(pages[index(i)]);
      if (rule_.last_page) chosen.push_back(pages.back());
      out[index(q)] = std::move(chosen);
    }
    for (int q = first; rule_.per_kv_head && q + 1 < first + shape_.group(); ++q)
      out[index(q)] = out[index(first + shape_.group() - 1)];
  }
  return out;
}

std::vector<TokenIndex> PageChooser::entries(const View& view, int query_head,
                                             std::span<const std::int32_t> pages,
                                             RowIndex row) const {
  const std::span<const TokenIndex> list = view.resident(query_head / shape_.group());
  const bool whole = static_cast<RowIndex>(list.size()) == view.pass().end;
  std::vector<TokenIndex> out;
  for (const std::int32_t p : pages) {
    const RowIndex begin = RowIndex{p} * rule_.page;
    const RowIndex end = std::min<RowIndex>(begin + rule_.page, row + 1);
    if (whole) {
      for (RowIndex t = begin; t < end; ++t) out.push_back(static_cast<TokenIndex>(t));
      continue;
    }
    const auto from = std::lower_bound(list.begin(), list.end(), begin);
    out.insert(out.end(), from, std::lower_bound(from, list.end(), end));
  }
  return out;
}

}  // namespace kvspan::policies
