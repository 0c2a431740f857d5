// SPDX-License-Identifier: Apache-2.0
// One tensor of a file: its type, its shape, its bytes as they lie there, and how values are read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvspan {

enum class Dtype : std::uint8_t { f32, f16, bf16, i32, i64, u8, u32 };

[[nodiscard]] std::string_view dtype_name(Dtype dtype);  // "F32", "F16", ...
[[nodiscard]] std::int64_t dtype_bytes(Dtype dtype);
[[nodiscard]] std::optional<Dtype> dtype_of(std::string_view name);
[[nodiscard]] std::string dtype_names();  // "F32, F16, ..."

// "[1880, 9, 64]", cut after eight dimensions.
[[nodiscard]] std::string shape_text(const std::vector<std::int64_t>& shape);

// Product of the dimensions times the bytes of an element.
// Errors: returns false on overflow or a negative dimension.
[[nodiscard]] bool tensor_size(Dtype dtype, const std::vector<std::int64_t>& shape,
                               std::int64_t* size_bytes);

// A tensor that somebody else owns: dtype, shape (outermost first) and its raw little-endian bytes,
// not necessarily aligned.
struct TensorView {
  Dtype dtype = Dtype::f32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
  [[nodiscard]] std::int64_t elements() const;
};

// Element of an I32 or I64 tensor, not necessarily aligned.
// REQUIRES: one of these dtypes, index inside the tensor.
[[nodiscard]] std::int64_t integer_at(const TensorView& tensor, std::int64_t index);

// Elements [first, first + out.size()) of a tensor of floating type, widened to float.
// Errors: TraceError naming `name` on NaN or infinity.
void widen(const TensorView& tensor, std::int64_t first, std::span<float> out,
           const std::string& name);

}  // namespace kvspan
