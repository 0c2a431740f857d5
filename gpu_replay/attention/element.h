// SPDX-License-Identifier: Apache-2.0
// How the numbers of an entry are written: K, then V, in one format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace kvspan::gpu_replay {

// fp8 is e4m3 with a scale for all K, and one for all V, of a head: x is stored as x / scale.
enum class Element : std::uint8_t { f32, f16, bf16, fp8 };

// Of so many bytes each; bf16: which of the two 16-bit formats. Errors: ConfigError.
[[nodiscard]] Element element_of(std::int64_t bytes, bool bf16 = false);
[[nodiscard]] std::int64_t bytes_of(Element element);
[[nodiscard]] std::string name_of(Element element);

// The nearest value of e4m3 (OCP: 448 is the largest, no infinity), ties to even; beyond 448: 448.
[[nodiscard]] std::uint8_t to_e4m3(float x);
[[nodiscard]] float from_e4m3(std::uint8_t bits);

// out: as many elements as x. REQUIRES: finite.
void encode(std::span<const float> x, Element element, float scale, std::span<std::byte> out);
void decode(std::span<const std::byte> bytes, Element element, float scale, std::span<float> out);

// The scale with which the largest of them is the largest number of the format.
[[nodiscard]] float scale_of(float largest, Element element);

}  // namespace kvspan::gpu_replay
