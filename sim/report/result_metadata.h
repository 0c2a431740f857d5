// SPDX-License-Identifier: Apache-2.0
// What the two large results of a report, lifetimes and timelines, have in common: safetensors
// whose metadata say what was run.
//
// Metadata of both: format ("kvspan.lifetimes" or "kvspan.timeline"), version ("1"), program,
// trace.path, trace.sha256, tokens, prompt_tokens, evict_at (of run 0), chunk, model_layers,
// layer_ids (JSON list), query_heads, sliding_window (JSON list, one of each stored layer, 0: none;
// []: none at all), kv_bytes, layout, prefill ("whole" or "layerwise"), runs (their number), and
// per run r
//   runs.{r}.policy (canonical spec), runs.{r}.label, runs.{r}.class, runs.{r}.bound ("true" or
//   "false"),
//   runs.{r}.evict_at, only where it differs from that of run 0,
//   runs.{r}.representations (JSON list of {"name", "device_bytes", "host_bytes", "entries"}: [0]
//   is how entries are born; entries: as how many of the device it counts, -1: one if it has
//   bytes),
//   runs.{r}.charge (JSON {"entry", "once"}: overhead bytes per resident entry, and for the model),
//   runs.{r}.waits_for_layers ("true", only where at the evict point no layer is cut before all
//   have attended).
// Runs are numbered as in the report. Stored heads may differ from run to run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "sim/run/result.h"
#include "sim/trace/safetensors.h"

namespace kvspan {

inline constexpr std::string_view kLifetimesFormat = "kvspan.lifetimes";
inline constexpr std::string_view kTimelineFormat = "kvspan.timeline";

// Of an element of lifetimes' `changes`: layer, row, head, token, representation.
inline constexpr std::int64_t kChangeFields = 5;

// "runs.2.death": of run 2.
[[nodiscard]] std::string run_key(std::size_t run, std::string_view what);

[[nodiscard]] Metadata result_metadata(const RunReport& report, std::string_view format);

template <class T>
[[nodiscard]] constexpr Dtype dtype_of() {
  if (std::is_same_v<T, float>) return Dtype::f32;
  if (std::is_same_v<T, std::int32_t>) return Dtype::i32;
  if (std::is_same_v<T, std::uint32_t>) return Dtype::u32;
  return std::is_same_v<T, std::uint8_t> ? Dtype::u8 : Dtype::i64;
}

template <class T>
void write_tensor(SafetensorsWriter& writer, const std::string& name,
                  const std::vector<T>& values) {
  writer.write(name, 0, std::as_bytes(std::span(values)));
}

}  // namespace kvspan
