// SPDX-License-Identifier: Apache-2.0
// What walks through a whole trace: check, describe, slice. Memory is bounded, whatever the size of
// the trace.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/trace/trace.h"

namespace kvspan {

// Full validation, values included. Returns what was checked, one line each, for `kvspan trace
// check`. Errors: TraceError on the first defect.
[[nodiscard]] std::vector<std::string> check_trace(const Trace& trace);

// What is in a trace, for `kvspan trace info`.
[[nodiscard]] nlohmann::json describe_trace(const Trace& trace);

// What a replay's bytes are of, where the model's own cache holds something else than the K and V
// that its attention reads (a latent that heads share, layers that share an entry); else empty.
[[nodiscard]] std::string cache_note(const Trace& trace);

// Keeps a prefix of `tokens` tokens and the named MODEL layers (empty: all that are stored); N =
// tokens, n = min(n, N); spans are clipped; a model's text that ends in ", layers LIST of N" gets
// the layers that are kept. Returns one line for each span that was clipped or dropped. Written
// atomically. Errors: ConfigError on a layer that the trace does not store or a token count outside
// [1, N].
std::vector<std::string> slice_trace(const Trace& trace, std::int64_t tokens,
                                     const std::vector<int>& model_layers,
                                     const std::filesystem::path& out);

}  // namespace kvspan
