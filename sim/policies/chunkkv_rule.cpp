// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/chunkkv_rule.h"

#include <algorithm>
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

}  // namespace kvspan::policies
