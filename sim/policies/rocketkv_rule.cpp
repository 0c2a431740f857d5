// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/rocketkv_rule.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "sim/policies/shared/pages.h"

namespace kvspan::policies {
namespace {

using Queries = std::vector<std::vector<float>>;  // [group][k_dim]

// The channels with the largest |q|, mean of the group; ties to the lower one.
std::vector<std::size_t> largest_channels(const Queries& queries, int count) {
  std::vector<double> sizes(queries[0].size(), 0.0);
  for (const auto& q : queries) {
    for (std::size_t d = 0; d < sizes.size(); ++d) sizes[d] += std::abs(static_cast<double>(q[d]));
  }
  std::vector<std::size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return sizes[a] > sizes[b]; });
  order.resize(std::min(order.size(), index(count)));
  return order;
}

// What one query may attend to of a page, over the pages: temperature and softmax by entries.
//   promises [pages] of the chosen channels; entries of each page in `sizes`
void softmax_by_entries(std::span<double> promises, std::span<const TokenCount> sizes,
                        double temperature) {
  const double most = *std::max_element(promises.begin(), promises.end());
  double sum = 0;
  for (std::size_t p = 0; p < promises.size(); ++p) {
    promises[p] = std::exp((promises[p] - most) / temperature);
    sum += promises[p] * static_cast<double>(sizes[p]);
  }
  for (double& x : promises) x /= sum;
}

}  // namespace

RocketPlan rocket_plan(RowIndex tokens, RowIndex generated, TokenCount budget, int head_dim,
                       double exponent) {
  const auto all = static_cast<double>(tokens);
  const double saving = std::max(1.0, all / static_cast<double>(budget));
  if (exponent < 0) exponent = std::min(0.2 + std::log2(saving) * 0.06, 0.8);
  auto capacity = static_cast<TokenCount>(all / std::pow(saving, exponent));
  capacity = std::max(capacity, std::min<TokenCount>(2 * generated, tokens));
  const double left = std::max(1.0, static_cast<double>(capacity) / static_cast<double>(budget));
  RocketPlan plan;
  plan.prompt = std::max<TokenCount>(1, capacity - generated);
  plan.read = budget >= tokens ? tokens : std::max<TokenCount>(1, budget / 2);
  plan.page = static_cast<TokenCount>(std::ceil(std::sqrt(left)));
  if (static_cast<double>(plan.page) > left) plan.page = 1;
  plan.channels = std::max(1, static_cast<int>(head_dim * static_cast<double>(plan.page) / left));
  return plan;
}

void PagesAndChannels::select(const View& view, std::span<Reads> reads) {
  if (!generates(view.pass())) return;
  const LayerShape& shape = view.shape();
  for (int head = 0; head < shape.heads; ++head) {
    if (std::ssize(view.resident(head)) <= plan_.read) continue;
    const std::vector<TokenIndex> chosen = choose(view, head);
    for (int q = head * shape.group(); q < (head + 1) * shape.group(); ++q)
      reads[index(q)].attended = chosen;
  }
}

std::vector<TokenIndex> PagesAndChannels::choose(const View& view, int head) const {
  const LayerShape& shape = view.shape();
  const std::span<const TokenIndex> held = view.resident(head);
  const auto dim = index(shape.k_dim);
  Queries queries;
  for (int q = head * shape.group(); q < (head + 1) * shape.group(); ++q)
    queries.push_back(view.query(q, view.pass().begin));
  const std::vector<std::size_t> channels = largest_channels(queries, plan_.channels);
  // A page's largest coordinate in the direction of the group's queries.
  std::vector<double> sign(dim);
  for (std::size_t d = 0; d < dim; ++d) {
    double sum = 0;
    for (const auto& q : queries) sum += static_cast<double>(q[d]);
    sign[d] = sum > 0 ? 1 : -1;
  }
  const std::vector<float> keys = vectors_of(view, Vectors::keys, shape.kv_head(head), held);
  const auto page = index(plan_.page);
  const std::size_t pages = (held.size() + page - 1) / page;
  std::vector<double> highest(pages * channels.size(), -std::numeric_limits<double>::infinity());
  std::vector<TokenCount> sizes(pages, 0);
  for (std::size_t i = 0; i < held.size(); ++i) {
    ++sizes[i / page];
    double* const of = highest.data() + i / page * channels.size();
    for (std::size_t c = 0; c < channels.size(); ++c) {
      const std::size_t d = channels[c];
      of[c] = std::max(of[c], sign[d] * static_cast<double>(keys[i * dim + d]));
    }
  }
  std::vector<double> promise(pages), mean(pages, 0.0);
  for (const auto& q : queries) {
    double all = 0, some = 0;
    for (const float x : q) all += std::abs(static_cast<double>(x));
    for (const std::size_t d : channels) some += std::abs(static_cast<double>(q[d]));
    if (!(some > 0)) continue;  // it tells nothing apart
    for (std::size_t p = 0; p < pages; ++p) {
      promise[p] = 0;
      for (std::size_t c = 0; c < channels.size(); ++c) {
        const std::size_t d = channels[c];
        promise[p] += sign[d] * static_cast<double>(q[d]) * highest[p * channels.size() + c];
      }
    }
    softmax_by_entries(promise, sizes, std::sqrt(static_cast<double>(dim) * some / all));
    for (std::size_t p = 0; p < pages; ++p) mean[p] += promise[p];
  }
  std::vector<float> scores(held.size());
  for (std::size_t i = 0; i < held.size(); ++i) scores[i] = static_cast<float>(mean[i / page]);
  std::vector<TokenIndex> out;
  for (const std::int32_t i : best_of(scores, index(plan_.read))) out.push_back(held[index(i)]);
  return out;
}

}  // namespace kvspan::policies
