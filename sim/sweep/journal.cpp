// SPDX-License-Identifier: Apache-2.0
#include "sim/sweep/journal.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fcntl.h>
#include <system_error>
#include <unistd.h>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/digest.h"
#include "sim/base/error.h"
#include "sim/base/file.h"

namespace kvspan::sweep {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr std::size_t kLength = 8, kSum = 16;
constexpr std::size_t kHead = kLength + 1 + kSum + 1;

std::string checksum(std::string_view text) { return sha256_of_text(text).substr(0, kSum); }

// The JSON of a line; empty if anything about it is wrong.
std::string_view sound(std::string_view line) {
  if (line.size() <= kHead || line[kLength] != ' ' || line[kHead - 1] != ' ') return {};
  std::size_t length = 0;
  const auto [stop, error] = std::from_chars(line.data(), line.data() + kLength, length, 16);
  const std::string_view text = line.substr(kHead);
  if (error != std::errc() || stop != line.data() + kLength || length != text.size()) return {};
  return checksum(text) == line.substr(kLength + 1, kSum) ? text : std::string_view();
}

[[noreturn]] void fail(const fs::path& path, int error) {
  throw Error(fmt::format("{}: cannot be written ({})", path_text(path), std::strerror(error)), 1);
}

// A new name survives a power failure only if its folder reaches the disk.
void sync_folder(const fs::path& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

}  // namespace

std::string journal_line(const json& record) {
  const std::string text = record.dump(-1, ' ', false, json::error_handler_t::replace);
  return fmt::format("{:08x} {} {}\n", text.size(), checksum(text), text);
}

std::size_t read_journal(std::string_view text, const std::function<void(const json&)>& take) {
  std::size_t damaged = 0;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == text.npos ? text.size() : end + 1);
    const std::string_view found = end == line.npos ? std::string_view() : sound(line);
    const json record = json::parse(found.begin(), found.end(), nullptr, false);
    if (record.is_object())
      take(record);
    else
      ++damaged;
  }
  return damaged;
}

std::vector<fs::path> journals_in(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder, none)) {
    if (entry.path().extension() == ".journal") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

Journal::~Journal() {
  if (fd_ >= 0) ::close(fd_);
}

void Journal::create() {
  std::string host(256, '\0');
  if (::gethostname(host.data(), host.size() - 1) != 0) host = "host";
  host.resize(std::strlen(host.c_str()));
  for (int attempt = 0; attempt < 100'000; ++attempt) {
    path_ = folder_ / fmt::format("{}-{}-{}.journal", host, ::getpid(), attempt);
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
    if (fd_ >= 0 || errno != EEXIST) break;
  }
  if (fd_ < 0) fail(path_, errno);
  sync_folder(folder_);
}

void Journal::append(std::span<const json> records) {
  std::string lines;
  for (const json& record : records) lines += journal_line(record);
  const std::lock_guard lock(mutex_);
  if (fd_ < 0) create();
  for (std::string_view left = lines; !left.empty();) {
    const ssize_t count = ::write(fd_, left.data(), left.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail(path_, errno);
    left.remove_prefix(static_cast<std::size_t>(count));
  }
  if (::fsync(fd_) != 0) fail(path_, errno);
}

}  // namespace kvspan::sweep
