// SPDX-License-Identifier: Apache-2.0
// Internal to trace.h: the metadata of a trace, validated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "sim/trace/trace.h"

namespace kvspan {

//   tensor_count  tensors that the trace holds: more layers than that are refused before anything
//                 is allocated for them
// Errors: TraceError naming `file` and the key.
[[nodiscard]] TraceMeta parse_trace_meta(const Metadata& metadata, std::size_t tensor_count,
                                         const std::string& file);

// [layers] elements that the model's own cache holds of a token (`cache_elements`), where they are
// others than those of K and V as the trace has them; empty: they are not.
// Errors: TraceError naming `file` and the key.
[[nodiscard]] std::vector<std::int64_t> read_cache_elements(const Metadata& metadata, int layers,
                                                            const std::string& file);

}  // namespace kvspan
