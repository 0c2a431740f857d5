// SPDX-License-Identifier: Apache-2.0
// What the traces of a capture are made of: which layers and rows, which tensors, which metadata.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "tracegen/capture/capture.h"
#include "tracegen/capture/trace_writer.h"
#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen {

[[nodiscard]] std::int64_t known_tokens(const CaptureOptions& options);  // given, not generated
[[nodiscard]] std::int64_t hidden_rows(const CaptureOptions& options);   // and replayed ones
[[nodiscard]] std::int64_t most_tokens(const CaptureOptions& options);
[[nodiscard]] std::vector<int> stored_layers(const ModelSpec& model, const CaptureOptions& options);
// Ends of the prefill passes.
[[nodiscard]] std::vector<std::int64_t> prompt_passes(const CaptureOptions& options);
// Rows of a score trace of `tokens` tokens.
[[nodiscard]] std::vector<std::int64_t> score_rows(const RowChoice& choice, std::int64_t prompt,
                                                   std::int64_t tokens);
[[nodiscard]] std::int64_t stored_top_k(const CaptureOptions& options);

[[nodiscard]] Metadata make_metadata(const ModelSpec& model, const CaptureOptions& options,
                                     std::int64_t tokens, bool scores);

[[nodiscard]] std::string tensor_name(int stored_layer, const char* name);
[[nodiscard]] std::vector<StoredTensor> qkv_tensors(const ModelSpec& model,
                                                    const CaptureOptions& options,
                                                    std::int64_t tokens, int stored_layer);
[[nodiscard]] std::vector<StoredTensor> score_tensors(const ModelSpec& model,
                                                      const CaptureOptions& options,
                                                      std::int64_t tokens, int stored_layer);

// The trace of q, k and v, or of scores, for `tokens` tokens.
//   text_bytes   of token_text; -1: the trace has none
[[nodiscard]] TraceParts make_parts(const ModelSpec& model, const CaptureOptions& options,
                                    std::int64_t tokens, std::int64_t text_bytes, bool scores);

// A trace that is written at the end.
struct Product {
  TraceParts parts;
  std::filesystem::path path;
};
// Of `journal`, which knows "tokens" and "text_bytes".
[[nodiscard]] std::vector<Product> products(const ModelSpec& model, const CaptureOptions& options,
                                            const nlohmann::json& journal);

}  // namespace kvspan::tracegen
