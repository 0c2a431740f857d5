// SPDX-License-Identifier: Apache-2.0
// Internal: files mapped into memory, and the safetensors files of checkpoints, for tracegen.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "sim/trace/safetensors.h"

namespace kvspan {

// What a TensorSet is for traces, under the rules of checkpoints: other programs write them, so
// metadata may hold numbers and differ between index and shards, and tensors that nobody reads may
// have any dtype.
struct CheckpointTensors {
  std::map<std::string, TensorView> tensors;
  std::map<std::string, std::string> other_dtypes;  // of tensors with a dtype that we do not read
  std::vector<std::filesystem::path> files;
  std::vector<std::shared_ptr<const void>> owners;
};

// Opens NAME.safetensors, or NAME.safetensors.index.json with its shards. Errors: TraceError.
[[nodiscard]] CheckpointTensors open_checkpoint_tensors(const std::filesystem::path& path);

}  // namespace kvspan
