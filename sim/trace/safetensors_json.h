// SPDX-License-Identifier: Apache-2.0
// Internal to safetensors.h: the JSON of a file, header or index, read and written. All limits that
// keep a hostile one harmless are here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sim/trace/safetensors.h"

namespace kvspan {

inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // as the reference implementation
inline constexpr std::uint64_t kHeaderLengthBytes = 8;
inline constexpr std::string_view kMetadataName = "__metadata__";

// Whose file it is. Traces are ours: whatever is not as the format says is refused. For checkpoints
// see open_checkpoint_tensors().
enum class Rules : std::uint8_t { trace, checkpoint };

// What the header says of one tensor.
struct Declared {
  Dtype dtype = Dtype::f32;
  std::vector<std::int64_t> shape;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::string other_dtype;  // instead of dtype, under Rules::checkpoint
};

// {"__metadata__": {key: string}, tensor: {"dtype", "shape", "data_offsets"}, ...}
struct SafetensorsHeader {
  Metadata metadata;
  std::map<std::string, Declared> tensors;
};
// Types alone are checked; sizes and places are not. Errors: TraceError naming `file`.
[[nodiscard]] SafetensorsHeader parse_header(std::span<const std::byte> text,
                                             const std::string& file, Rules rules);
// In the order of `entries`, whose bytes follow one another. REQUIRES: data_offsets [entries + 1].
[[nodiscard]] std::string header_text(const Metadata& metadata,
                                      const std::vector<SafetensorsWriter::Entry>& entries,
                                      const std::vector<std::int64_t>& data_offsets);

// {"metadata": {key: string}, "weight_map": {tensor: file}}
struct SafetensorsIndex {
  Metadata metadata;
  Metadata weight_map;  // never empty
};
// Errors: TraceError naming `file`.
[[nodiscard]] SafetensorsIndex parse_index(std::span<const std::byte> text, const std::string& file,
                                           Rules rules);

// Throws TraceError.
[[noreturn]] void fail_file(const std::string& file, const std::string& what);
[[noreturn]] void fail_tensor(const std::string& file, std::string_view tensor,
                              const std::string& what);

}  // namespace kvspan
