// SPDX-License-Identifier: Apache-2.0
// The files that a command writes: refused before its work where they are in the way, written after
// it one by one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace kvspan::cli {

// What makes two names one file: device and inode where it exists, else those of its folder, and
// its name there. nullopt: /dev/null, which nothing is lost in.
using FileKey = std::tuple<std::uint64_t, std::uint64_t, std::string>;
[[nodiscard]] std::optional<FileKey> file_key(const std::filesystem::path& path);

struct Output {
  std::string option;   // "--csv"
  std::string path;     // empty: not given
  bool streams = true;  // false: not written from front to back, so that it cannot go into a pipe
};

// What --json says in place of --out. Errors: ConfigError when both are given.
[[nodiscard]] std::string json_output(const std::string& out);

class Outputs {
 public:
  // Where a file goes to standard output, all that is printed goes to standard error from now on.
  // Errors: ConfigError when an output is one of `inputs` or another output, or when no file can be
  // created there.
  Outputs(std::vector<Output> outputs, const std::vector<std::filesystem::path>& inputs);
  // Errors: ConfigError when what is known to be written, at least `bytes`, does not fit there.
  void need(std::string_view option, std::uint64_t bytes) const;
  // Writes what was asked for, and keeps what goes wrong for finish(): the others are written.
  void write(std::string_view option,
             const std::function<void(const std::filesystem::path&)>& writer);
  void write_text(std::string_view option, const std::function<std::string()>& text);
  // Says what was written and what was not. Errors: the last failure, if there is one.
  void finish(bool quiet);

 private:
  [[nodiscard]] const Output* find(std::string_view option) const;
  std::vector<Output> outputs_;
  std::vector<std::string> written_, failed_;
};

}  // namespace kvspan::cli
