// SPDX-License-Identifier: Apache-2.0
// Small traces that have everything, and what readers say of broken ones.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "tests/support/trace_builder.h"

namespace kvspan::test {

// Three tokens, everything present, small enough to try every byte.
[[nodiscard]] TraceSpec full_spec(Dtype dtype = Dtype::f16);
// Rows 1 and 3 of four tokens, two query heads; prefill passes [0, 2) and [2, 3).
[[nodiscard]] TraceSpec largest_spec();
[[nodiscard]] TraceSpec dense_spec();

[[nodiscard]] std::vector<std::byte> read_bytes(const std::filesystem::path& path);
void write_text(const std::filesystem::path& path, const std::string& text);

// The message of the TraceError that an action throws; empty when it throws none.
[[nodiscard]] std::string error_of(const std::function<void()>& action);
// Everything that a reader may do with a trace; returns the TraceError's message, or "".
[[nodiscard]] std::string use_error(const std::vector<std::byte>& bytes);

// REQUIRES: a floating type.
[[nodiscard]] std::vector<float> widened(const TensorView& tensor);
[[nodiscard]] std::vector<double> widened_doubles(const TensorView* tensor);

}  // namespace kvspan::test
