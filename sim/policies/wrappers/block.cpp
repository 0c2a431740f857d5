// SPDX-License-Identifier: Apache-2.0
// block(policy): streaming top-k. It starts from the first B candidates, takes in `size` more at a
// time, scores what it holds together with them, and keeps the best B.
// Source: kvpress BlockPress (after KeyDiff, arXiv 2504.15364). What a policy protects is taken out
// before, once: kvpress' wrapper protects the sinks and the window of every block. Attention scores
// are those of the whole prompt's rows.
#include <algorithm>

#include "sim/policies/shared/wrapping.h"

namespace kvspan::policies {
namespace {

// Scores at birth are the given ones; others are taken anew from what is held.
Pick pick_by_block(std::size_t size, const Scoring& scoring) {
  return [size, make = scoring.at_birth ? ScorerFactory() : scoring.make](
             const View& view, int head, std::span<const TokenIndex> entries,
             std::span<const double> scores, TokenCount keep, std::vector<char>& leaves) {
    const std::unique_ptr<Scorer> scorer = make ? make(view.shape()) : nullptr;
    std::vector<std::size_t> held;  // ascending
    for (std::size_t i = 0; i < index(keep); ++i) held.push_back(i);
    for (std::size_t next = index(keep); next < entries.size();) {
      for (const std::size_t end = std::min(next + size, entries.size()); next < end; ++next)
        held.push_back(next);
      std::vector<TokenIndex> tokens;
      std::vector<double> values;
      for (const std::size_t i : held) {
        tokens.push_back(entries[i]);
        values.push_back(scores[i]);
      }
      if (scorer) scorer->score(view, head, tokens, values);
      std::vector<char> out(held.size(), 0);
      pick_top(view, head, tokens, values, keep, out);
      std::size_t kept = 0;
      for (std::size_t i = 0; i < held.size(); ++i) {
        if (out[i] == 0) held[kept++] = held[i];
      }
      held.resize(kept);
    }
    std::fill(leaves.begin(), leaves.end(), char{1});
    for (const std::size_t i : held) leaves[i] = 0;
  };
}

}  // namespace

PolicyEntry block() {
  PolicyEntry entry;
  entry.name = "block";
  entry.kind = MethodKind::wrapper;
  entry.summary = "decides block by block: the best of what is held and the next block stay";
  entry.source = "NVIDIA/kvpress, BlockPress; after KeyDiff, arXiv 2504.15364";
  entry.evidence = "code read";
  entry.needs = "what the inner policy needs";
  entry.wrapper = true;
  entry.parameters = {{.name = "size",
                       .fallback = "128",
                       .unit = "candidates",
                       .help = "taken in at a time",
                       .range = {1, 1e9}}};
  entry.wrap = [](Arguments& arguments, const Geometry& geometry, Recipe inner) {
    require_plain_pick(arguments, inner);
    if (!inner.scorer.value.at_birth && needs_of(inner, geometry).observe != Observe::never) {
      refuse(
          arguments, inner,
          fmt::format("{} builds its scores up row by row and cannot take them anew", inner.name));
    }
    inner.pick =
        own_of(arguments, pick_by_block(index(arguments.count("size")), inner.scorer.value));
    inner.terms = wrapped_terms(inner, arguments);
    return inner;
  };
  return entry;
}

}  // namespace kvspan::policies
