// SPDX-License-Identifier: Apache-2.0
// How much memory a GPU has: as a user writes it, or by the GPU's name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvspan {

// Names of --gpu: H100, A100-40GB, ...
[[nodiscard]] std::vector<std::string> gpu_names();
// Bytes that the runtime of that GPU reports, which are less than on its data sheet; upper and
// lower case alike. Errors: ConfigError naming the nearest.
[[nodiscard]] std::int64_t gpu_memory(const std::string& name);
// "80GiB", "80G" (powers of two) or "80GB" (powers of ten).
// Errors: ConfigError, also for a bare number: nobody has a GPU of 80 bytes.
[[nodiscard]] std::int64_t parse_gpu_memory(const std::string& text, const std::string& what);

}  // namespace kvspan
