// SPDX-License-Identifier: Apache-2.0
#include "tracegen/work_folder.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/error.h"
#include "sim/safetensors.h"

namespace kvspan::tracegen {
namespace {

namespace fs = std::filesystem;

constexpr const char* kJournal = "journal.json";
constexpr const char* kLock = "lock";

[[noreturn]] void fail(const fs::path& path, const std::string& what, int error) {
  throw Error(fmt::format("{}: {} ({})", path.string(), what, std::strerror(error)), 1);
}

// An open file that closes itself.
class File {
 public:
  File(fs::path path, int flags) : path_(std::move(path)) {
    fd_ = ::open(path_.c_str(), flags | O_CLOEXEC, 0666);
    if (fd_ < 0) fail(path_, "cannot be opened", errno);
  }
  ~File() { ::close(fd_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
  int fd_ = -1;
};

}  // namespace

WorkFolder::WorkFolder(const fs::path& out) : path_(out), scratch_(out) {
  path_ += ".partial";
  scratch_ = path_ / "scratch";
  std::error_code error;
  fs::create_directory(path_, error);
  if (!error && !fs::is_directory(path_)) error = std::make_error_code(std::errc::not_a_directory);
  if (error) fail(path_, "cannot be created", error.value());
  const fs::path lock = path_ / kLock;
  lock_ = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (lock_ < 0) fail(lock, "cannot be created", errno);
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock_);
    throw Error(path_.string() + ": another process is writing this output", 1);
  }
  fs::remove_all(scratch_, error);
  fs::create_directory(scratch_, error);
  if (error) fail(scratch_, "cannot be created", error.value());
}

WorkFolder::~WorkFolder() {
  std::error_code ignored;
  fs::remove_all(scratch_, ignored);
  if (!fs::exists(path_ / kJournal, ignored)) fs::remove_all(path_, ignored);
  ::close(lock_);
}

std::optional<nlohmann::json> WorkFolder::journal() const {
  std::ifstream file(path_ / kJournal);
  nlohmann::json journal = nlohmann::json::parse(file, nullptr, false);
  if (!journal.is_object()) return std::nullopt;
  return journal;
}

void WorkFolder::write_journal(const nlohmann::json& journal) {
  write_file_atomically(
      path_ / kJournal,
      journal.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

void WorkFolder::reserve(const std::string& name, std::int64_t bytes) {
  const File file(path_ / name, O_RDWR | O_CREAT);
  const int error = bytes > 0 ? ::posix_fallocate(file.get(), 0, bytes) : 0;
  if (error != 0) fail(file.path(), fmt::format("no room for {} bytes", bytes), error);
}

void WorkFolder::write(const std::string& name, std::int64_t offset,
                       std::span<const std::byte> bytes) {
  const File file(path_ / name, O_WRONLY | O_CREAT);
  while (!bytes.empty()) {
    const ssize_t count = ::pwrite(file.get(), bytes.data(), bytes.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail(file.path(), "cannot be written", errno);
    bytes = bytes.subspan(static_cast<std::size_t>(count));
    offset += count;
  }
}

void WorkFolder::read(const std::string& name, std::int64_t offset,
                      std::span<std::byte> bytes) const {
  const File file(path_ / name, O_RDONLY);
  while (!bytes.empty()) {
    const ssize_t count = ::pread(file.get(), bytes.data(), bytes.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(file.path(), "cannot be read", errno);
    if (count == 0) fail(file.path(), "is shorter than it was", EIO);
    bytes = bytes.subspan(static_cast<std::size_t>(count));
    offset += count;
  }
}

void WorkFolder::sync(const std::string& name) {
  const File file(path_ / name, O_RDONLY);
  if (::fdatasync(file.get()) != 0) fail(file.path(), "cannot be written", errno);
}

std::int64_t WorkFolder::bytes(const std::string& name) const {
  std::error_code error;
  const auto size = fs::file_size(path_ / name, error);
  return error ? -1 : static_cast<std::int64_t>(size);
}

void WorkFolder::erase(const std::string& name) {
  std::error_code ignored;
  fs::remove(path_ / name, ignored);
}

std::int64_t WorkFolder::total_bytes() const {
  std::int64_t sum = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(path_)) {
    if (entry.is_regular_file()) sum += static_cast<std::int64_t>(entry.file_size());
  }
  return sum;
}

std::int64_t WorkFolder::free_bytes() const {
  return static_cast<std::int64_t>(fs::space(path_).available);
}

void WorkFolder::clear() {
  erase(kJournal);
  for (const fs::directory_entry& entry : fs::directory_iterator(path_)) {
    if (entry.is_regular_file() && entry.path().filename() != kLock) fs::remove(entry.path());
  }
}

void WorkFolder::remove() {
  erase(kJournal);
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

MappedFloats::MappedFloats(WorkFolder& work, std::string name, std::int64_t count)
    : work_(work), name_(std::move(name)) {
  const auto bytes = static_cast<std::size_t>(count) * sizeof(float);
  work.reserve(name_, static_cast<std::int64_t>(bytes));
  const File file(work.path() / name_, O_RDWR);
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (at == MAP_FAILED) fail(file.path(), "cannot be mapped", errno);
  values_ = {static_cast<float*>(at), static_cast<std::size_t>(count)};
}

MappedFloats::~MappedFloats() { ::munmap(values_.data(), values_.size_bytes()); }

void MappedFloats::sync() {
  if (::msync(values_.data(), values_.size_bytes(), MS_SYNC) != 0)
    fail(work_.path() / name_, "cannot be written", errno);
}

}  // namespace kvspan::tracegen
