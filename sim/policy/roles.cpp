// SPDX-License-Identifier: Apache-2.0
#include "sim/policy/roles.h"

#include <algorithm>
#include <stdexcept>

#include "sim/policy/model_budget.h"

namespace kvspan {

void Needs::merge(const Needs& other) {
  last_rows = std::max(last_rows, other.last_rows);
  column_sums = column_sums || other.column_sums;
  observe = std::max(observe, other.observe);
  q = q || other.q;
  k = k || other.k;
  v = v || other.v;
  rope = rope || other.rope;
}

void View::keys(int kv_head, std::span<const TokenIndex> entries, std::span<float> out) const {
  for (auto to = out.begin(); const TokenIndex t : entries)
    to = std::ranges::copy(key(kv_head, t), to).out;
}

void View::values(int kv_head, std::span<const TokenIndex> entries, std::span<float> out) const {
  for (auto to = out.begin(); const TokenIndex t : entries)
    to = std::ranges::copy(value(kv_head, t), to).out;
}

void View::key_rows(TokenIndex begin, TokenIndex end, std::span<float> out) const {
  auto to = out.begin();
  for (TokenIndex t = begin; t < end; ++t) {
    for (int h = 0; h < shape().kv_heads; ++h) to = std::ranges::copy(key(h, t), to).out;
  }
}

void View::value_rows(TokenIndex begin, TokenIndex end, std::span<float> out) const {
  auto to = out.begin();
  for (TokenIndex t = begin; t < end; ++t) {
    for (int h = 0; h < shape().kv_heads; ++h) to = std::ranges::copy(value(h, t), to).out;
  }
}

Sizing Sizing::of_competing(TokenCount most) {
  Sizing out(most);
  out.competing_rows = true;
  return out;
}

Sizing Sizing::among(RowIndex competing) const {
  Sizing out = *this;
  if (competing_rows) out.rows = competing + discount;
  return out;
}

void Budget::counts(const View& /*view*/, const Scores& /*scores*/, const Sizing& /*sizing*/,
                    std::span<TokenCount> /*keep*/) const {
  throw std::logic_error("a content-free budget is asked for capacities, not for counts");
}

void ModelBudget::counts(const View& view, const Scores& /*scores*/, const Sizing& /*sizing*/,
                         std::span<TokenCount> keep) const {
  std::ranges::copy(view.allotted(), keep.begin());
}

TokenCount Budget::kept(const LayerShape& shape, int head, const Sizing& sizing) const {
  const TokenCount most = capacity(shape, head, sizing);
  return most == kAll ? kAll : std::max<TokenCount>(0, most - sizing.discount);
}

std::vector<TokenIndex> survivors(const View& view, int head, const Decision& so_far) {
  std::vector<TokenIndex> gone;
  for (const Eviction& e : so_far.evictions) {
    if (e.head == head) gone.push_back(e.token);
  }
  std::sort(gone.begin(), gone.end());
  std::vector<TokenIndex> out;
  for (const TokenIndex t : view.resident(head)) {
    if (!std::binary_search(gone.begin(), gone.end(), t)) out.push_back(t);
  }
  return out;
}

}  // namespace kvspan
