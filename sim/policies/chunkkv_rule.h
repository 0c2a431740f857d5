// SPDX-License-Identifier: Apache-2.0
// How ChunkKV scores and picks chunks.
#pragma once

#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "sim/policy/policy.h"
#include "sim/policy/spec.h"

namespace kvspan::policies {

class ChunkScores final : public Scorer {
 public:
  struct Settings {
    bool kvpress;
    TokenCount spiky;   // preset=entropy: tokens kept of a chunk that one token makes important
    TokenCount length;  // tokens in a chunk
    RowIndex window;
    int reuse;
    std::vector<int> leaders;      // [stored layers] who decides
    std::optional<Amount> budget;  // as given
  };
  explicit ChunkScores(Settings settings) : settings_(std::move(settings)) {}
  Needs needs() const override { return {.last_rows = settings_.window}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  Settings settings_;
};

// Whole chunks leave: all but the best that `places` holds.
void pick_chunks(const ChunkScores::Settings& settings, const View& view, int head,
                 std::span<const TokenIndex> entries, std::span<const double> scores,
                 TokenCount places, std::vector<char>& leaves);

// preset=entropy: chunk by chunk, the best first, until `places` are filled; of an important chunk
// with little entropy only the best `spiky` entries.
void pick_by_entropy(const ChunkScores::Settings& settings, std::span<const TokenIndex> entries,
                     std::span<const double> scores, TokenCount places, RowIndex end,
                     std::vector<char>& leaves);

}  // namespace kvspan::policies
