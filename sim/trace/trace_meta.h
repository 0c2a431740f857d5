// SPDX-License-Identifier: Apache-2.0
// Internal to the trace reader (safetensors.cpp, trace.cpp, trace_meta.cpp, trace_tools.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/base/text.h"
#include "sim/trace/safetensors.h"
#include "sim/trace/trace.h"

namespace kvspan {

// Most tokens of a trace: keys are I32.
inline constexpr std::int64_t kMaxTokens = std::numeric_limits<std::int32_t>::max();

// "[1880, 9, 64]", cut after eight dimensions.
[[nodiscard]] std::string shape_text(const std::vector<std::int64_t>& shape);

// Product of the dimensions times the bytes of an element.
// Errors: returns false on overflow or a negative dimension.
[[nodiscard]] bool tensor_size(Dtype dtype, const std::vector<std::int64_t>& shape,
                               std::int64_t* size_bytes);

// All metadata of a trace, validated.
//   tensor_count  tensors that the trace holds: more layers than that are refused before anything
//                 is allocated for them
// Errors: TraceError naming `file` and the key.
[[nodiscard]] TraceMeta parse_trace_meta(const Metadata& metadata, std::size_t tensor_count,
                                         const std::string& file);

// A tree of small values takes twenty times its text, which must not be a way to exhaust memory; and
// who walks a tree may recurse.
struct JsonLimits {
  std::size_t bytes = std::size_t{16} << 20U;
  int depth = 8;
};
// JSON within the limits that repeats no key.
// Errors: std::invalid_argument with half a sentence that says what was found.
[[nodiscard]] nlohmann::json parse_json_strict(std::string_view text,
                                               const JsonLimits& limits = {});

// Element of an I32 or I64 tensor, not necessarily aligned.
// REQUIRES: one of these dtypes, index inside the tensor.
[[nodiscard]] std::int64_t integer_at(const TensorView& tensor, std::int64_t index);

}  // namespace kvspan
