// SPDX-License-Identifier: Apache-2.0
// The folder OUT.partial of a job that is not finished: named raw files, and a journal that says
// how far they are complete, so that the same command goes on after an interruption or a power
// failure.
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
  // Errors: Error when it cannot be created, another process works in it, or a folder of that name
  // is somebody else's: nothing is touched then.
  explicit WorkFolder(const std::filesystem::path& out);
  // Removes the folder if there is no journal.
  ~WorkFolder();
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  // An empty folder in it, for files that no later process needs.
  [[nodiscard]] const std::filesystem::path& scratch() const { return scratch_; }
  // Where a file is written before it gets the name `target`: in scratch(), or, where that is
  // another file system, there.
  [[nodiscard]] std::filesystem::path staging(const std::filesystem::path& target) const;
  // Where a raw file is.
  [[nodiscard]] std::filesystem::path file(const std::string& name) const { return data_ / name; }

  // nullopt: none, or not readable.
  [[nodiscard]] std::optional<nlohmann::json> journal() const;
  // Atomic; whatever it vouches for must have been synced before.
  void write_journal(const nlohmann::json& journal);

  // Makes a file, with disk space for `bytes`, so that a full disk is noticed here and not in the
  // middle. Files that were never reserved cannot be written.
  void reserve(const std::string& name, std::int64_t bytes);
  void write(const std::string& name, std::int64_t offset, std::span<const std::byte> bytes);
  // Errors: Error also when the file is shorter.
  void read(const std::string& name, std::int64_t offset, std::span<std::byte> bytes) const;
  void sync(const std::string& name);
  [[nodiscard]] std::int64_t bytes(const std::string& name) const;  // -1: no such file
  void erase(const std::string& name);

  [[nodiscard]] std::int64_t free_bytes() const;  // of the file system
  void clear();                                   // the journal first, then all raw files
  void remove();                                  // the job is done

 private:
  struct Descriptor {
    int fd = -1;
    Descriptor() = default;
    ~Descriptor();
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
  };
  bool take_lock();

  std::filesystem::path path_, data_, scratch_;
  Descriptor lock_;
  bool removed_ = false;
};

// Gives a file that is complete and on the disk another name in the same file system, atomically;
// it may have it already.
// Errors: Error when the name is that of something other than a file.
void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to);

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
