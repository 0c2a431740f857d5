// SPDX-License-Identifier: Apache-2.0
// Memory over time at full resolution, for a viewer, as safetensors. Metadata: result_metadata.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "sim/run/result.h"

namespace kvspan {

// Per run r, summed over layers and heads, at full resolution:
//   runs.{r}.entries, .bytes, .overhead, .host, .active  I64 [tokens]  (bytes = KV + overhead)
//   runs.{r}.mass  F32 [tokens]  retained attention, mean over layers and query heads, NaN: not
//                  measured; if the run has fidelity
// and of each of these, for k = 1, 2, ... while the level below has more than 64 points,
//   runs.{r}.NAME.min.{k}, runs.{r}.NAME.max.{k}  [ceil(points below / 64)]  over 64 points of the
//                  level below, the last of the rest; level 0 is the series itself; NaN is ignored.
// Per (layer, head) the points of its resident entries (see change_points), all heads in a row:
//   runs.{r}.change_rows, .change_entries  I64 [points]
//   runs.{r}.change_offsets  I64 [layers * heads + 1]  head h of layer l has the points
//                  [offsets[l * heads + h], offsets[l * heads + h + 1])
// Memory: O(tokens). Written atomically. Errors: Error when the disk refuses.
void write_timeline(const RunReport& report, const std::filesystem::path& path);

// One head's living entries R(row), those with token <= row < death (on the host, too), as a
// polygon that is exact at every row. A point (row, R(row)) is kept at the first row, at the last
// one, and wherever the slope changes: R(row + 1) - R(row) differs from R(row) - R(row - 1).
// Between two points R is linear, so that a head that only grows by one entry a row is two points,
// however long.
//   deaths [tokens], each greater than its index and at most tokens
struct ChangePoints {
  std::vector<std::int64_t> rows, entries;
};
[[nodiscard]] ChangePoints change_points(std::span<const std::uint32_t> deaths);

}  // namespace kvspan
