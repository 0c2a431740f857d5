// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/chunkkv_rule.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "sim/policies/shared/groups.h"

namespace kvspan::policies {
namespace {

// The scores of the paper: votes summed over all heads of the layer.
void paper_scores(const View& view, const ChunkScores::Settings& settings,
                  std::span<const TokenIndex> entries, std::span<double> out, double& slack) {
  LayerShape whole = view.shape();
  whole.heads = 1;
  slack = reduce_group(whole, 0, Group::sum, out, [&](int q, std::span<double> votes) {
    return view.votes(q, settings.window, entries, votes);
  });
}

// kvpress: SnapKV's scores with its sentinel (the layer's highest score, plus 1) at the window's
// tokens, summed over KV heads.
void kvpress_scores(const View& view, const ChunkScores::Settings& settings,
                    std::span<const TokenIndex> entries, std::span<double> out, double& slack) {
  const LayerShape& shape = view.shape();
  const RowIndex rows = std::min(settings.window, view.pass().end);
  const auto window = std::lower_bound(entries.begin(), entries.end(), view.pass().end - rows);
  const auto before = static_cast<std::size_t>(window - entries.begin());
  double highest = 0;
  std::vector<double> one(before);
  std::fill(out.begin(), out.end(), 0.0);
  for (int h = 0; h < shape.heads && before > 0; ++h) {
    slack += reduce_group(shape, h, Group::mean, one, [&](int q, std::span<double> votes) {
      const double s = view.votes(q, settings.window, entries.first(before), votes);
      for (double& vote : votes) vote /= static_cast<double>(rows);
      pool(Pool::avg, 5, votes);
      return s / static_cast<double>(rows);
    });
    for (std::size_t i = 0; i < before; ++i) {
      highest = std::max(highest, one[i]);
      out[i] += one[i];
    }
  }
  std::fill(out.begin() + static_cast<std::ptrdiff_t>(before), out.end(),
            (highest + 1) * shape.heads);
}

// What the layer that decides for this one decided; null if this one decides.
const Decision* leader_of(const View& view, const ChunkScores::Settings& settings) {
  const int leader = settings.leaders[index(view.shape().layer)];
  return leader == view.shape().layer ? nullptr : view.lower(leader);
}

}  // namespace

double ChunkScores::score(const View& view, int /*head*/, std::span<const TokenIndex> entries,
                          std::span<double> out) {
  if (leader_of(view, settings_) != nullptr) {  // its scores are not asked for
    std::fill(out.begin(), out.end(), 0.0);
    return 0;
  }
  double slack = 0;
  (settings_.kvpress ? kvpress_scores : paper_scores)(view, settings_, entries, out, slack);
  round_sums(out);
  return slack;
}

void pick_chunks(const ChunkScores::Settings& settings, const View& view, int head,
                 std::span<const TokenIndex> entries, std::span<const double> scores,
                 TokenCount places, std::vector<char>& leaves) {
  if (const Decision* decided = leader_of(view, settings)) {
    for (const Eviction& e : decided->evictions) {
      const auto at = std::lower_bound(entries.begin(), entries.end(), e.token);
      if (e.head == head && at != entries.end() && *at == e.token)
        leaves[index(at - entries.begin())] = 1;
    }
    return;
  }
  const auto size = static_cast<TokenCount>(entries.size());
  const TokenCount length = settings.kvpress && size < settings.length ? 1 : settings.length;
  const RowIndex window = settings.kvpress ? view.pass().end - settings.window : view.pass().end;
  struct Chunk {
    double score;
    TokenCount first;  // place among the entries
    bool newest;       // all inside the window: equals are kept from the end
  };
  std::vector<Chunk> chunks;
  for (TokenCount first = 0; first < size; first += length) {
    const TokenCount end = std::min(first + length, size);
    double score = std::accumulate(scores.begin() + first, scores.begin() + end, 0.0);
    if (settings.kvpress) score /= static_cast<double>(end - first);
    chunks.push_back({score, first, entries[index(first)] >= window});
  }
  // Sums of equal terms are equal up to rounding.
  for (Chunk& chunk : chunks) round_sums({&chunk.score, 1});
  std::sort(chunks.begin(), chunks.end(), [](const Chunk& a, const Chunk& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.newest && b.newest ? a.first > b.first : a.first < b.first;
  });
  // `places` holds whole chunks, or what is left of them in a shorter last one.
  const TokenCount stay = settings.kvpress ? (places + length - 1) / length : places / length;
  std::fill(leaves.begin(), leaves.end(), 1);
  for (TokenCount i = 0; i < std::min<TokenCount>(stay, std::ssize(chunks)); ++i) {
    const TokenCount first = chunks[index(i)].first;
    std::fill(leaves.begin() + first, leaves.begin() + std::min(first + length, size), 0);
  }
}

namespace {

struct GatedChunk {
  double score = 0, entropy = 0;  // mean; in [0, 1]
  std::size_t first = 0, size = 0;
  bool newest = false;  // all inside the window: equals are kept from the end
};

GatedChunk gated_chunk(std::span<const double> scores, std::size_t first, std::size_t size) {
  GatedChunk out{0, 0, first, size};
  double lowest = 0;
  for (std::size_t i = first; i < first + size; ++i) {
    out.score += scores[i] / static_cast<double>(size);
    lowest = std::min(lowest, scores[i]);
  }
  round_sums({&out.score, 1});
  if (size == 1) return out;
  double sum = 0;
  for (std::size_t i = first; i < first + size; ++i) sum += scores[i] - lowest;
  for (std::size_t i = first; i < first + size; ++i) {
    const double p = (scores[i] - lowest) / (sum + 1e-8);
    out.entropy -= p * std::log(p + 1e-8);
  }
  out.entropy = std::clamp(out.entropy / std::log(static_cast<double>(size)), 0.0, 1.0);
  round_sums({&out.entropy, 1});
  return out;
}

// torch's: the lower one of two in the middle.
double lower_median(std::vector<double> values) {
  const auto middle = values.begin() + (std::ssize(values) - 1) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

void pick_by_entropy(const ChunkScores::Settings& settings, std::span<const TokenIndex> entries,
                     std::span<const double> scores, TokenCount places, RowIndex end,
                     std::vector<char>& leaves) {
  std::vector<GatedChunk> chunks;
  std::vector<double> means, entropies;
  for (std::size_t first = 0; first < entries.size(); first += index(settings.length)) {
    const std::size_t size = std::min(index(settings.length), entries.size() - first);
    chunks.push_back(gated_chunk(scores, first, size));
    chunks.back().newest = entries[first] >= end - settings.window;
    means.push_back(chunks.back().score);
    entropies.push_back(chunks.back().entropy);
  }
  const double important = lower_median(means);
  const double coherent = lower_median(entropies);
  std::sort(chunks.begin(), chunks.end(), [](const GatedChunk& a, const GatedChunk& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.newest && b.newest ? a.first > b.first : a.first < b.first;
  });
  std::fill(leaves.begin(), leaves.end(), 1);
  // The best `count` of some places that still leave.
  const auto keep_best = [&](std::size_t first, std::size_t size, TokenCount count) {
    std::vector<std::size_t> order;
    for (std::size_t i = first; i < first + size; ++i) {
      if (leaves[i] != 0) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
    order.resize(std::min(order.size(), index(count)));
    for (const std::size_t i : order) leaves[i] = 0;
    places -= std::ssize(order);
  };
  for (const GatedChunk& chunk : chunks) {
    const bool spiky = chunk.score >= important && chunk.entropy < coherent;
    const TokenCount most = std::min<TokenCount>(places, std::ssize(leaves));
    keep_best(chunk.first, chunk.size, spiky ? std::min(most, settings.spiky) : most);
  }
  keep_best(0, leaves.size(), places);
}

}  // namespace kvspan::policies
