// SPDX-License-Identifier: Apache-2.0
// What a capture is told to read: files of text or token ids, and named spans of them; and what the
// trace says of its making.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sim/trace/trace.h"

namespace kvspan::tracegen {

// A whole file. Errors: CheckpointError when it cannot be read, or is empty.
[[nodiscard]] std::string read_text(const std::filesystem::path& path);

// Token ids: `token_ids` of a trace or another safetensors file, a JSON list, or numbers with white
// space or commas between. Errors: CheckpointError naming what is no token id, and where.
[[nodiscard]] std::vector<std::int32_t> read_token_ids(const std::filesystem::path& path);

// The files that read_token_ids(path) reads: shards, too.
[[nodiscard]] std::vector<std::filesystem::path> token_id_files(const std::filesystem::path& path);

// What a trace names as its source.
//   weights   storage types, as ModelSpec::weights
//   half      RunnerOptions::half_precision
[[nodiscard]] std::string provenance(const std::string& weights, bool cuda, bool half);

// NAME=BEGIN:END, in tokens, or NAME=TEXT: the tokens that cover the first occurrence of TEXT.
//   pieces   text of each token; their concatenation is searched
// Errors: ConfigError naming the form, or the text that is not there.
[[nodiscard]] Span parse_span(const std::string& option, std::span<const std::string> pieces);

}  // namespace kvspan::tracegen
