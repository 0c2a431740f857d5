// SPDX-License-Identifier: Apache-2.0
// Files: mapped for reading, hashed, and written so that they appear only when they are complete.
// Every error names the path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvspan {

// A path in a message: whole and in one line, without what a terminal would obey or cannot show.
[[nodiscard]] std::string path_text(const std::filesystem::path& path);

struct MappedFile {
  std::shared_ptr<const void> owner;  // null for an empty file
  std::span<const std::byte> bytes;
};

// Errors: TraceError naming the path when it is not a regular file or cannot be read.
[[nodiscard]] MappedFile map_file(const std::filesystem::path& path);

// Tells the kernel that the pages which lie wholly inside mapped bytes are not needed for now.
void release_pages(std::span<const std::byte> mapped);

// Lower-case hex SHA-256 of the files' contents, one after the other in the given order.
[[nodiscard]] std::string sha256_of_files(const std::vector<std::filesystem::path>& files);

// A file that appears under its name only when it is complete: a temporary file beside it, which
// commit() renames and a destructor without commit() removes. What no file can replace (standard
// output, a pipe, a device) is written at once, from front to back. Errors: Error when the disk
// refuses.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  void resize(std::uint64_t size) const;
  void write(std::span<const std::byte> bytes, std::uint64_t offset) const;
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int fd_ = -1;
};

// Writes a small text file atomically: a temporary file beside it, then rename.
void write_file_atomically(const std::filesystem::path& path, std::string_view content);

}  // namespace kvspan
