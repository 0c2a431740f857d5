// SPDX-License-Identifier: Apache-2.0
// GGUF files, versions 2 and 3, little-endian: header, metadata, tensor infos, aligned tensor data.
// The file is mapped; metadata and tensors are views into it.
// Source: the GGUF specification in the ggml repository.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen {

class Gguf {
 public:
  // As the file numbers them.
  enum class Type : std::uint32_t {
    u8,
    i8,
    u16,
    i16,
    u32,
    i32,
    f32,
    boolean,
    string,
    array,
    u64,
    i64,
    f64
  };
  // A metadata value as it lies in the file: one element, or `count` elements of an array.
  struct Value {
    Type type = Type::u8;  // of an element; never array (arrays of arrays are refused)
    bool is_array = false;
    std::uint64_t count = 1;
    std::span<const std::byte> bytes;  // whole elements, checked; a string is u64 length and bytes
  };
  struct Tensor {
    std::string_view type_name;        // "Q4_K"
    std::optional<WeightType> type;    // none: a type that we do not read
    std::vector<std::int64_t> shape;   // outermost first (the file has it innermost first)
    std::span<const std::byte> bytes;  // empty without a type
  };

  // A file, or all parts of a split one, whichever of them `path` names: the metadata of the first
  // part and the tensors of all.
  // Errors: CheckpointError naming file, key or tensor, what was found and what was expected. The
  // whole header is checked: every length, name, alignment and offset. A part that is missing, or
  // that the others do not belong to.
  [[nodiscard]] static Gguf open(const std::filesystem::path& path);
  // The bytes of a whole file, which must outlive the result; `name` stands for it in messages.
  [[nodiscard]] static Gguf from_bytes(std::span<const std::byte> bytes, const std::string& name);

  [[nodiscard]] const Value* find(std::string_view key) const;  // null: the file does not have it
  // The value of a key; nullopt where it is absent. Views point into the file.
  // Errors: CheckpointError naming file and key when the value is of another kind: a number where a
  // text is expected, an array where one value is, an integer past 63 bits.
  [[nodiscard]] std::optional<std::string_view> text(std::string_view key) const;
  [[nodiscard]] std::optional<std::int64_t> integer(std::string_view key) const;  // any int type
  [[nodiscard]] std::optional<double> real(std::string_view key) const;  // floats and integers
  [[nodiscard]] std::optional<bool> flag(std::string_view key) const;
  [[nodiscard]] std::optional<std::vector<std::string_view>> texts(std::string_view key) const;
  [[nodiscard]] std::optional<std::vector<std::int64_t>> integers(std::string_view key) const;
  [[nodiscard]] std::optional<std::vector<float>> reals(std::string_view key) const;  // f32, f64

  [[nodiscard]] const std::map<std::string, Tensor, std::less<>>& tensors() const {
    return tensors_;
  }
  [[nodiscard]] const std::map<std::string, Value, std::less<>>& metadata() const {
    return metadata_;
  }
  [[nodiscard]] const std::string& name() const { return name_; }  // path as given, for messages
  // All parts in order; empty for from_bytes.
  [[nodiscard]] const std::vector<std::filesystem::path>& files() const { return files_; }
  // "FILE: metadata key 'KEY' FOUND; expected EXPECTED"
  [[noreturn]] void fail(std::string_view key, const std::string& found,
                         const std::string& expected) const;

 private:
  static Gguf open_one(const std::filesystem::path& path);
  // Takes over the tensors of a later part.
  void add(Gguf part);

  std::string name_;
  std::vector<std::filesystem::path> files_;
  std::vector<std::shared_ptr<const void>> owners_;  // of the mappings; none for from_bytes
  std::map<std::string, Value, std::less<>> metadata_;
  std::map<std::string, Tensor, std::less<>> tensors_;
};

}  // namespace kvspan::tracegen
