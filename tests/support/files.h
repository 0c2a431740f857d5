// SPDX-License-Identifier: Apache-2.0
// Files that tests write for policies, and take away again.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "tests/support/temporary_folder.h"
#include "tests/support/trace_builder.h"

namespace kvspan::test {

class Folder : public TemporaryFolder {
 public:
  [[nodiscard]] std::string write(const std::string& text) const {
    const std::string name = (path / "heads.json").string();
    std::ofstream(name) << text;
    return name;
  }
  [[nodiscard]] std::string write(const TraceSpec& spec) const {
    const auto name = path / fmt::format("{}.safetensors", spec.name);
    write_trace(name, spec);
    return name.string();
  }
};

// A file with one F32 tensor [layers, heads, tokens].
class Table {
 public:
  Table(const std::string& tensor, const std::vector<std::int64_t>& shape,
        const std::vector<double>& values) {
    write_tensors(name(), {}, {{tensor, {Dtype::f32, shape, encode(values, Dtype::f32)}}});
  }
  [[nodiscard]] std::string name() const { return (folder_.path / "table.safetensors").string(); }

 private:
  Folder folder_;
};

}  // namespace kvspan::test
