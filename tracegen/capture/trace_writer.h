// SPDX-License-Identifier: Apache-2.0
// From raw files of a work folder to a trace. A capture knows the number of tokens only when it is
// done, and safetensors needs it first: rows gather in one raw file a tensor, and become shards
// when the number is known.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "sim/trace/safetensors.h"
#include "tracegen/capture/work_folder.h"

namespace kvspan::tracegen {

// Little-endian bytes of fp32 numbers, rounded to nearest even; `out` is overwritten.
// REQUIRES: f32, f16 or bf16. Errors: CheckpointError naming `what` on a number that is not finite,
// or that f16 cannot hold.
void narrow(std::span<const float> values, Dtype dtype, const std::string& what,
            std::vector<std::byte>& out);

// A tensor of the trace, and where its bytes are: in a file of the work folder with the tensor's
// name, in order. The file may be longer (rows that were never generated); with `stored_columns`
// the last dimension is that short in the file, and the rest of it is zero in the trace.
struct StoredTensor {
  SafetensorsWriter::Entry entry;
  std::int64_t stored_columns = -1;          // -1: all
  [[nodiscard]] std::int64_t bytes() const;  // in the trace
  [[nodiscard]] std::int64_t stored_bytes() const;
};

enum class Shards : std::uint8_t { automatic, one, layers };

// A trace that is whole but for its form.
struct TraceParts {
  Metadata metadata;
  std::vector<StoredTensor> common;               // token_ids, nll, ...; in the first shard
  std::vector<std::vector<StoredTensor>> layers;  // in the order of the trace
  [[nodiscard]] std::int64_t bytes() const;
};

// One file below this; above it one shard a layer.
inline constexpr std::int64_t kOneFileBytes = std::int64_t{1} << 30;

// Every file that publishing a trace of `layers` layers as `out` may write or remove.
std::vector<std::filesystem::path> trace_files(const std::filesystem::path& out, std::size_t layers,
                                               Shards shards);

// A raw file that is needed, and missing or too short; empty: the trace can be published.
std::string missing_part(const WorkFolder& work, const TraceParts& parts, Shards shards,
                         const std::filesystem::path& out);

// Writes `out`, NAME.safetensors, or its shards NAME-00001-of-0000K.safetensors and, last of all,
// NAME.safetensors.index.json. Whatever stood under these names is replaced; files of the layers
// are erased as soon as their shard is complete. May be called again after an interruption.
//   progress   is told the share that is written, and may throw
// REQUIRES: missing_part() is empty. Returns the files.
std::vector<std::filesystem::path> publish_trace(WorkFolder& work, const TraceParts& parts,
                                                 Shards shards, const std::filesystem::path& out,
                                                 const std::function<void(double)>& progress);

}  // namespace kvspan::tracegen
