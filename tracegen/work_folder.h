// SPDX-License-Identifier: Apache-2.0
// The folder OUT.partial of a job that is not finished: named raw files, and a journal that says how
// far they are complete, so that the same command goes on after an interruption or a power failure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include <nlohmann/json_fwd.hpp>

namespace kvspan::tracegen {

class WorkFolder {
 public:
  // Creates the folder beside `out`, or takes over the one that an earlier process left.
  // Errors: Error when it cannot be created, or another process works in it.
  explicit WorkFolder(const std::filesystem::path& out);
  // Removes the folder if there is no journal.
  ~WorkFolder();
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  // An empty folder in it, for files that no later process needs.
  [[nodiscard]] const std::filesystem::path& scratch() const { return scratch_; }

  // nullopt: none, or not readable.
  [[nodiscard]] std::optional<nlohmann::json> journal() const;
  // Atomic; whatever it vouches for must have been synced before.
  void write_journal(const nlohmann::json& journal);

  // Disk space for a file of `bytes`, so that a full disk is noticed here and not in the middle.
  void reserve(const std::string& name, std::int64_t bytes);
  void write(const std::string& name, std::int64_t offset, std::span<const std::byte> bytes);
  // Errors: Error also when the file is shorter.
  void read(const std::string& name, std::int64_t offset, std::span<std::byte> bytes) const;
  void sync(const std::string& name);
  [[nodiscard]] std::int64_t bytes(const std::string& name) const;  // -1: no such file
  void erase(const std::string& name);

  [[nodiscard]] std::int64_t total_bytes() const;  // of all files
  [[nodiscard]] std::int64_t free_bytes() const;   // of the file system
  void clear();                                    // the journal first, then all files
  void remove();                                   // the job is done

 private:
  std::filesystem::path path_, scratch_;
  int lock_ = -1;
};

// fp32 numbers in a reserved file of the folder: under pressure the kernel writes them out.
class MappedFloats {
 public:
  MappedFloats(WorkFolder& work, std::string name, std::int64_t count);
  ~MappedFloats();
  MappedFloats(const MappedFloats&) = delete;
  MappedFloats& operator=(const MappedFloats&) = delete;
  [[nodiscard]] std::span<float> values() const { return values_; }
  void sync();

 private:
  WorkFolder& work_;
  std::string name_;
  std::span<float> values_;
};

}  // namespace kvspan::tracegen
