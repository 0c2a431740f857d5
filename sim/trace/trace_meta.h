// SPDX-License-Identifier: Apache-2.0
// Internal to trace.h: the metadata of a trace, validated.
#pragma once

#include <cstddef>
#include <string>

#include "sim/trace/trace.h"

namespace kvspan {

//   tensor_count  tensors that the trace holds: more layers than that are refused before anything
//                 is allocated for them
// Errors: TraceError naming `file` and the key.
[[nodiscard]] TraceMeta parse_trace_meta(const Metadata& metadata, std::size_t tensor_count,
                                         const std::string& file);

}  // namespace kvspan
