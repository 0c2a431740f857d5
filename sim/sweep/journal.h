// SPDX-License-Identifier: Apache-2.0
// What was finished, on disk: every process of a sweep appends to a journal of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

namespace kvspan::sweep {

// A record is a line: the length of its JSON in 8 hex digits, the first 16 digits of its SHA-256,
// the JSON. Whatever cuts or damages a journal, the other lines stay sound.
[[nodiscard]] std::string journal_line(const nlohmann::json& record);

// Every sound record of a journal's text, in order. Returns how many lines are not sound; what was
// cut off at the end is one.
std::size_t read_journal(std::string_view text,
                         const std::function<void(const nlohmann::json&)>& take);

// Files of a folder that end in ".journal", by name; none if there is no folder.
[[nodiscard]] std::vector<std::filesystem::path> journals_in(const std::filesystem::path& folder);

class Journal {
 public:
  // A file that no other process has is created in `folder` at the first append.
  explicit Journal(std::filesystem::path folder) : folder_(std::move(folder)) {}
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  // Returns when they are on disk; from any thread. Errors: Error when the disk refuses.
  void append(std::span<const nlohmann::json> records);

 private:
  void create();
  std::filesystem::path folder_, path_;
  std::mutex mutex_;
  int fd_ = -1;
};

}  // namespace kvspan::sweep
