// SPDX-License-Identifier: Apache-2.0
// What a replay says of a policy that also ran on the model: the proxies, to be held against what
// came of it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "sim/policy/spec.h"
#include "sim/replay/options.h"
#include "sim/run/result.h"

namespace kvspan::tracegen {

// Of a replay of the full cache's own reading of the reference answer.
struct OpenLoop {
  double retained = 0;                 // attention left, decode rows
  std::optional<double> output_error;  // relative, decode rows
  std::optional<double> spans;         // share of the named spans' entries still held, their mean
  // Of the entries that this replay or the model's run held at the end, the share that both did.
  double agreement = 0;
  std::vector<double> drift = {};  // [decode rows] the same of those that were held in the row
};

// Of the entries that either run held in a row, the share that both did, for rows [first, end).
//   a, b  death rows, `rows` for each head, by token
[[nodiscard]] std::vector<double> agreement_by_row(const std::vector<std::uint32_t>& a,
                                                   const std::vector<std::uint32_t>& b,
                                                   RowIndex rows, RowIndex first);

// Of each specification; nullopt: the trace cannot serve it.
//   full     the full cache's reading: prompt and reference
//   deaths   [specs] of the same rows, of the ledger that the model's run wrote
[[nodiscard]] std::vector<std::optional<OpenLoop>> open_loop(
    const Trace& full, const std::vector<RecipeSpec>& specs, const EngineOptions& options,
    std::span<const std::vector<std::uint32_t>> deaths);

// Spearman's rank correlation; ties share their mean rank. 0 where one side is constant.
// REQUIRES: as many x as y.
[[nodiscard]] double rank_correlation(const std::vector<double>& x, const std::vector<double>& y);

}  // namespace kvspan::tracegen
