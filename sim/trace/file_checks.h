// SPDX-License-Identifier: Apache-2.0
// For whoever reads a safetensors file of ours (a trace, lifetimes): metadata and tensors of
// unknown origin, checked against what is expected. Every error is a TraceError that names the file
// and the key or the tensor, what was found and what was expected.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/base/json_fields.h"
#include "sim/trace/safetensors.h"

namespace kvspan {

// Typed access to metadata. REQUIRES: metadata and file outlive it.
class MetaReader {
 public:
  MetaReader(const Metadata& metadata, const std::string& file)
      : metadata_(metadata), file_(file) {}

  [[noreturn]] void fail(std::string_view key, const std::string& found,
                         const std::string& expected) const;
  // Errors: unless `format` is the one given and `version` at most the newest that is known.
  void check_format(std::string_view format, std::int64_t newest) const;
  [[nodiscard]] const std::string* find(const std::string& key) const;  // null: absent
  [[nodiscard]] const std::string& require(const std::string& key,
                                           const std::string& expected) const;
  [[nodiscard]] std::string text(const std::string& key) const;  // "": absent
  [[nodiscard]] std::int64_t integer(const std::string& key, std::int64_t low,
                                     std::int64_t high) const;
  [[nodiscard]] int small_integer(const std::string& key, std::int64_t low,
                                  std::int64_t high) const;
  // A finite number. REQUIRES: low >= 0.
  [[nodiscard]] double real(const std::string& key, double low, bool low_is_allowed) const;
  [[nodiscard]] nlohmann::json parse(const std::string& key, const std::string& expected) const;
  // A JSON list of integers in [low, high].
  [[nodiscard]] std::vector<std::int64_t> integers(const std::string& key, std::int64_t low,
                                                   std::int64_t high) const;
  [[nodiscard]] std::vector<std::int64_t> integers_of(const std::string& key,
                                                      const nlohmann::json& list, std::int64_t low,
                                                      std::int64_t high) const;

 private:
  const Metadata& metadata_;
  const std::string& file_;
};

using Dtypes = std::initializer_list<Dtype>;
inline constexpr std::int64_t kAnyExtent = -1;  // at least 1
inline constexpr std::int64_t kAnyOrNone = -2;  // at least 0

// Presence, dtype and shape of single tensors. REQUIRES: set and file outlive it.
class TensorChecker {
 public:
  TensorChecker(const TensorSet& set, const std::string& file) : set_(set), file_(file) {}

  [[noreturn]] void fail(const std::string& tensor, const std::string& what) const;
  // Null when it is absent.
  [[nodiscard]] const TensorView* find(const std::string& name,
                                       const std::vector<std::int64_t>& shape, Dtypes dtypes) const;
  [[nodiscard]] const TensorView& require(const std::string& name,
                                          const std::vector<std::int64_t>& shape,
                                          Dtypes dtypes) const;

 private:
  const TensorSet& set_;
  const std::string& file_;
};

}  // namespace kvspan
