// SPDX-License-Identifier: Apache-2.0
// Every entry's death, as safetensors. Metadata: result_metadata.h.
#pragma once

#include <cstdint>
#include <filesystem>

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
// LifetimesFile (lifetimes_reader.h) reads it back. Written atomically.
// Errors: Error when the disk refuses.
void write_lifetimes(const RunReport& report, const std::filesystem::path& path);

}  // namespace kvspan
