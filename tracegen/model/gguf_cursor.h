// SPDX-License-Identifier: Apache-2.0
// What the parts of the GGUF reader share: a file read from front to back, and the types of its
// values. Private to tracegen/model.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "tracegen/model/gguf.h"

namespace kvspan::tracegen::gguf {

inline constexpr std::uint64_t kMaxNameBytes = 65535;

// A name from the file, which may be any bytes, in a message.
inline std::string quoted(std::string_view name) { return in_quotes(valid_utf8(name)); }

struct TypeInfo {
  std::string_view name;
  std::uint64_t bytes;  // 0: of no fixed size
};
inline constexpr std::array<TypeInfo, 13> kTypes{{{"u8", 1},
                                                  {"i8", 1},
                                                  {"u16", 2},
                                                  {"i16", 2},
                                                  {"u32", 4},
                                                  {"i32", 4},
                                                  {"f32", 4},
                                                  {"boolean", 1},
                                                  {"string", 0},
                                                  {"array", 0},
                                                  {"u64", 8},
                                                  {"i64", 8},
                                                  {"f64", 8}}};
inline const TypeInfo& info_of(Gguf::Type type) { return kTypes[static_cast<std::size_t>(type)]; }

// Reads the file from front to back; nothing is read past its end.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& file) : bytes_(bytes), file_(file) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw CheckpointError(file_ + ": " + what);
  }
  [[nodiscard]] std::uint64_t at() const { return at_; }
  [[nodiscard]] std::uint64_t left() const { return bytes_.size() - at_; }

  std::span<const std::byte> take(std::uint64_t count, const std::string& what) {
    if (count > left()) {
      fail(fmt::format("{} needs {} bytes at byte {}; the file has {} more", what, count, at_,
                       left()));
    }
    const auto taken = bytes_.subspan(at_, count);
    at_ += count;
    return taken;
  }
  template <typename T>
  T number(const std::string& what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }
  std::string_view text(const std::string& what) {
    const auto length = number<std::uint64_t>(what);
    const auto taken = take(length, what);
    return {reinterpret_cast<const char*>(taken.data()), taken.size()};
  }
  std::string_view name(const std::string& what) {
    const std::string_view name = text(what);
    if (name.empty() || name.size() > kMaxNameBytes) {
      fail(fmt::format("{} has a name of {} bytes; expected 1 to {}", what, name.size(),
                       kMaxNameBytes));
    }
    return name;
  }
  // How many of something follow, each of at least `least` bytes.
  std::uint64_t count(std::uint64_t least, const std::string& what) {
    const auto count = number<std::uint64_t>("the number of " + what);
    if (count > left() / least) {
      fail(fmt::format("the header announces {} {}; the file has only {} more bytes", count, what,
                       left()));
    }
    return count;
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& file_;
  std::uint64_t at_ = 0;
};

}  // namespace kvspan::tracegen::gguf
