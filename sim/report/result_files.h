// SPDX-License-Identifier: Apache-2.0
// The two large results of a report, as safetensors: lifetimes, and timelines for a viewer.
//
// Metadata of both: format ("kvspan.lifetimes" or "kvspan.timeline"), version ("1"), program,
// trace.path, trace.sha256, tokens, prompt_tokens, evict_at (of run 0), chunk, model_layers,
// layer_ids (JSON list), query_heads, sliding_window (JSON list, one of each stored layer, 0: none;
// []: none at all), kv_bytes, layout, prefill ("whole" or "layerwise"), runs (their number), and per
// run r
//   runs.{r}.policy (canonical spec), runs.{r}.label, runs.{r}.class, runs.{r}.bound ("true" or
//   "false"),
//   runs.{r}.evict_at, only where it differs from that of run 0,
//   runs.{r}.representations (JSON list of {"name", "device_bytes", "host_bytes", "entries"}: [0] is
//   how entries are born; entries: as how many of the device it counts, -1: one if it has bytes),
//   runs.{r}.charge (JSON {"entry", "once"}: overhead bytes per resident entry, and for the model).
// Runs are numbered as in the report. Stored heads may differ from run to run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "sim/run/result.h"

namespace kvspan {

// Bytes of EngineOptions::keep_reads for a lifetimes file: a sample that a viewer shows.
inline constexpr std::int64_t kKeptReadsBytes = std::int64_t{64} << 20U;

// Per run r, those with elements only:
//   runs.{r}.passes    I64 [passes]  ends of all passes, ascending; the last is tokens
//   runs.{r}.death     U32 [layers, heads, tokens]  row at which the entry dies; tokens: never
//   runs.{r}.score     F32 [layers, heads, tokens]  at eviction, NaN: none
//   runs.{r}.rank      I32 [layers, heads, tokens]  at eviction, -1: none
//   runs.{r}.changes   I64 [count, 5]  layer, row, head, token, representation: from that row on
//                      the entry is held so; by layer, then row
//   runs.{r}.state     I64 [tokens]  overhead bytes of the model beside `charge`, row by row
// and where a selector chose what is read
//   runs.{r}.selected  I64 [tokens]  entries read in each row
//   runs.{r}.read_rows I64 [R]  rows of which `reads` tells, ascending
//   runs.{r}.reads     U8 [layers, heads, R, ceil(tokens / 8)]  the row attended to entry t: bit
//                      t % 8 of byte t / 8; union over the query heads of a stored head
// LifetimesFile (lifetimes_file.h) reads it back. Written atomically.
// Errors: Error when the disk refuses.
void write_lifetimes(const RunReport& report, const std::filesystem::path& path);

// Per run r, summed over layers and heads, at full resolution:
//   runs.{r}.entries, .bytes, .overhead, .host, .active  I64 [tokens]  (bytes = KV + overhead)
//   runs.{r}.mass  F32 [tokens]  retained mass, mean over layers and query heads, NaN: not
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
