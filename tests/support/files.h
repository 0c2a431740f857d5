// SPDX-License-Identifier: Apache-2.0
// Files that tests write for policies, and take away again.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "tests/support/trace_builder.h"

namespace kvspan::test {

class Folder {
 public:
  Folder()
      : path_(std::filesystem::temp_directory_path() /
              fmt::format("kvspan_test_{}", std::random_device{}())) {
    std::filesystem::create_directories(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] std::string write(const std::string& text) const {
    const std::string name = (path_ / "heads.json").string();
    std::ofstream(name) << text;
    return name;
  }
  [[nodiscard]] std::string write(const TraceSpec& spec) const {
    const auto name = path_ / fmt::format("{}.safetensors", spec.name);
    write_trace(name, spec);
    return name.string();
  }

 private:
  std::filesystem::path path_;
};

// A file with one F32 tensor [layers, heads, tokens].
class Table {
 public:
  Table(const std::string& tensor, const std::vector<std::int64_t>& shape,
        const std::vector<double>& values) {
    std::filesystem::create_directories(path_.parent_path());
    write_tensors(path_, {}, {{tensor, {Dtype::f32, shape, encode(values, Dtype::f32)}}});
  }
  ~Table() { std::filesystem::remove_all(path_.parent_path()); }
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;
  [[nodiscard]] std::string name() const { return path_.string(); }

 private:
  std::filesystem::path path_ = std::filesystem::temp_directory_path() /
                                fmt::format("kvspan_table_{}", std::random_device{}()) /
                                "table.safetensors";
};

}  // namespace kvspan::test
