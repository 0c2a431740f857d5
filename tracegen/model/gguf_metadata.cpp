// SPDX-License-Identifier: Apache-2.0
// The metadata of a GGUF file, by kind.
#include <concepts>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "tracegen/model/gguf.h"
#include "tracegen/model/gguf_cursor.h"

namespace kvspan::tracegen {
namespace {

using gguf::info_of;

// Calls use(value) with the number that `type` puts at `at`.
template <typename Use>
void with_number(Gguf::Type type, const std::byte* at, Use use) {
  const auto read = [&](auto value) {
    std::memcpy(&value, at, sizeof(value));
    use(value);
  };
  switch (type) {
    case Gguf::Type::u8:
      return read(std::uint8_t{});
    case Gguf::Type::i8:
      return read(std::int8_t{});
    case Gguf::Type::u16:
      return read(std::uint16_t{});
    case Gguf::Type::i16:
      return read(std::int16_t{});
    case Gguf::Type::u32:
      return read(std::uint32_t{});
    case Gguf::Type::i32:
      return read(std::int32_t{});
    case Gguf::Type::u64:
      return read(std::uint64_t{});
    case Gguf::Type::i64:
      return read(std::int64_t{});
    case Gguf::Type::f32:
      return read(float{});
    case Gguf::Type::f64:
      return read(double{});
    case Gguf::Type::boolean:
    case Gguf::Type::string:
    case Gguf::Type::array:
      return;
  }
}

bool is_integer(Gguf::Type type) {
  return info_of(type).bytes > 0 && type != Gguf::Type::boolean && type != Gguf::Type::f32 &&
         type != Gguf::Type::f64;
}
bool is_real(Gguf::Type type) { return type == Gguf::Type::f32 || type == Gguf::Type::f64; }

std::string described(const Gguf::Value& value) {
  return value.is_array
             ? fmt::format("is an array of {} of type {}", value.count, info_of(value.type).name)
             : fmt::format("is of type {}", info_of(value.type).name);
}

// Elements of an integer value; nullopt past 63 bits.
std::optional<std::int64_t> integer_at(const Gguf::Value& value, std::uint64_t index) {
  std::optional<std::int64_t> out;
  with_number(value.type, value.bytes.data() + index * info_of(value.type).bytes, [&](auto number) {
    if constexpr (std::integral<decltype(number)>) {
      if (std::in_range<std::int64_t>(number)) out = static_cast<std::int64_t>(number);
    }
  });
  return out;
}

double real_at(const Gguf::Value& value, std::uint64_t index) {
  double out = 0;
  with_number(value.type, value.bytes.data() + index * info_of(value.type).bytes,
              [&](auto number) { out = static_cast<double>(number); });
  return out;
}

}  // namespace

std::optional<std::string_view> Gguf::text(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || value->type != Type::string) fail(key, described(*value), "a string");
  return std::string_view(reinterpret_cast<const char*>(value->bytes.data()) + 8,
                          value->bytes.size() - 8);
}

std::optional<std::int64_t> Gguf::integer(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || !is_integer(value->type)) fail(key, described(*value), "an integer");
  const auto number = integer_at(*value, 0);
  if (!number) fail(key, "is past 63 bits", "a smaller integer");
  return number;
}

std::optional<double> Gguf::real(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || (!is_real(value->type) && !is_integer(value->type)))
    fail(key, described(*value), "a number");
  return real_at(*value, 0);
}

std::optional<bool> Gguf::flag(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || value->type != Type::boolean || value->bytes[0] > std::byte{1})
    fail(key, described(*value), "a boolean of 0 or 1");
  return value->bytes[0] == std::byte{1};
}

std::optional<std::vector<std::string_view>> Gguf::texts(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array || value->type != Type::string)
    fail(key, described(*value), "an array of strings");
  std::vector<std::string_view> out;
  out.reserve(value->count);
  gguf::Cursor in(value->bytes, name_);
  for (std::uint64_t i = 0; i < value->count; ++i) out.push_back(in.text("a string"));
  return out;
}

std::optional<std::vector<std::int64_t>> Gguf::integers(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array || !is_integer(value->type))
    fail(key, described(*value), "an array of integers");
  std::vector<std::int64_t> out;
  out.reserve(value->count);
  for (std::uint64_t i = 0; i < value->count; ++i) {
    const auto number = integer_at(*value, i);
    if (!number) fail(key, "holds an integer past 63 bits", "smaller ones");
    out.push_back(*number);
  }
  return out;
}

std::optional<std::vector<float>> Gguf::reals(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array || !is_real(value->type))
    fail(key, described(*value), "an array of floating-point numbers");
  std::vector<float> out;
  out.reserve(value->count);
  for (std::uint64_t i = 0; i < value->count; ++i)
    out.push_back(static_cast<float>(real_at(*value, i)));
  return out;
}

}  // namespace kvspan::tracegen
