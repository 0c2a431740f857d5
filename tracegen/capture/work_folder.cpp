// SPDX-License-Identifier: Apache-2.0
#include "tracegen/capture/work_folder.h"

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

#include "sim/base/error.h"
#include "sim/trace/safetensors.h"

namespace kvspan::tracegen {
namespace {

namespace fs = std::filesystem;

constexpr const char* kJournal = "journal.json";
constexpr const char* kLock = "kvspan.lock";  // its presence tells that the folder is ours

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

WorkFolder::Descriptor::~Descriptor() {
  if (fd >= 0) ::close(fd);
}

WorkFolder::WorkFolder(const fs::path& out) : path_(out) {
  path_ += ".partial";
  data_ = path_ / "data";
  scratch_ = path_ / "scratch";
  while (!take_lock()) {
  }
  std::error_code error;
  fs::remove_all(scratch_, error);
  for (const fs::path& folder : {data_, scratch_}) {
    fs::create_directory(folder, error);
    if (error) fail(folder, "cannot be created", error.value());
  }
}

// False: whoever held the folder removed it meanwhile.
bool WorkFolder::take_lock() {
  std::error_code error;
  const bool created = fs::create_directory(path_, error);
  if (error) fail(path_, "cannot be created", error.value());
  // Between its creation and that of the lock a folder is empty.
  const bool ours =
      created || (fs::symlink_status(path_, error).type() == fs::file_type::directory &&
                  (fs::exists(path_ / kLock, error) || fs::is_empty(path_, error)));
  if (error && fs::exists(path_)) fail(path_, "cannot be read", error.value());
  if (error) return false;
  if (!ours) {
    throw Error(
        path_.string() +
            ": exists, and is not a folder of an interrupted capture; expected no such name",
        1);
  }
  const fs::path path = path_ / kLock;
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd < 0 && errno == ENOENT) return false;
  if (fd < 0) fail(path, "cannot be created", errno);
  lock_.fd = fd;
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0)
    throw Error(path_.string() + ": another process is writing this output", 1);
  struct stat locked = {}, named = {};
  if (::fstat(fd, &locked) == 0 && ::stat(path.c_str(), &named) == 0 &&
      locked.st_ino == named.st_ino && locked.st_dev == named.st_dev) {
    return true;
  }
  ::close(fd);
  lock_.fd = -1;
  return false;
}

WorkFolder::~WorkFolder() {
  if (removed_) return;
  std::error_code ignored;
  fs::remove_all(scratch_, ignored);
  if (!fs::exists(path_ / kJournal, ignored)) remove();
}

fs::path WorkFolder::staging(const fs::path& target) const {
  struct stat here = {}, there = {};
  const fs::path folder = fs::absolute(target).parent_path();
  const bool same = ::stat(scratch_.c_str(), &here) == 0 && ::stat(folder.c_str(), &there) == 0 &&
                    here.st_dev == there.st_dev;
  return same ? scratch_ / target.filename() : target;
}

std::optional<nlohmann::json> WorkFolder::journal() const {
  std::ifstream file(path_ / kJournal);
  nlohmann::json journal = nlohmann::json::parse(file, nullptr, false);
  if (!journal.is_object()) return std::nullopt;
  return journal;
}

void WorkFolder::write_journal(const nlohmann::json& journal) {
  // What a process leaves that dies here is scratch.
  const fs::path written = scratch_ / kJournal;
  write_file_atomically(
      written, journal.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  rename_durably(written, path_ / kJournal);
}

void WorkFolder::reserve(const std::string& name, std::int64_t bytes) {
  const File file(data_ / name, O_RDWR | O_CREAT);
  const int error = bytes > 0 ? ::posix_fallocate(file.get(), 0, bytes) : 0;
  if (error != 0) fail(file.path(), fmt::format("no room for {} bytes", bytes), error);
}

void WorkFolder::write(const std::string& name, std::int64_t offset,
                       std::span<const std::byte> bytes) {
  const File file(data_ / name, O_WRONLY);
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
  const File file(data_ / name, O_RDONLY);
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
  const File file(data_ / name, O_RDONLY);
  if (::fdatasync(file.get()) != 0) fail(file.path(), "cannot be written", errno);
}

std::int64_t WorkFolder::bytes(const std::string& name) const {
  std::error_code error;
  const auto size = fs::file_size(data_ / name, error);
  return error ? -1 : static_cast<std::int64_t>(size);
}

void WorkFolder::erase(const std::string& name) {
  std::error_code ignored;
  fs::remove(data_ / name, ignored);
}

std::int64_t WorkFolder::free_bytes() const {
  return static_cast<std::int64_t>(fs::space(path_).available);
}

void WorkFolder::clear() {
  fs::remove(path_ / kJournal);
  fs::remove_all(data_);
  fs::create_directory(data_);
}

void WorkFolder::remove() {
  // Only what this class makes; the lock last, and the folder unless somebody put a file there.
  std::error_code ignored;
  fs::remove(path_ / kJournal, ignored);
  fs::remove_all(data_, ignored);
  fs::remove_all(scratch_, ignored);
  fs::remove(path_ / kLock, ignored);
  fs::remove(path_, ignored);
  removed_ = true;
}

void rename_durably(const fs::path& from, const fs::path& to) {
  if (from == to) return;
  std::error_code error;
  const fs::file_status status = fs::status(to, error);
  if (fs::exists(status) && !fs::is_regular_file(status)) {
    throw Error(to.string() + (fs::is_directory(status) ? ": is a directory; expected a file name"
                                                        : ": is not a regular file"),
                1);
  }
  if (::rename(from.c_str(), to.c_str()) != 0) fail(to, "cannot be written", errno);
  const fs::path parent = to.has_parent_path() ? to.parent_path() : fs::path(".");
  const File folder(parent, O_RDONLY | O_DIRECTORY);
  ::fsync(folder.get());
}

MappedFloats::MappedFloats(WorkFolder& work, std::string name, std::int64_t count)
    : work_(work), name_(std::move(name)) {
  const auto bytes = static_cast<std::size_t>(count) * sizeof(float);
  work.reserve(name_, static_cast<std::int64_t>(bytes));
  const File file(work.file(name_), O_RDWR);
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (at == MAP_FAILED) fail(file.path(), "cannot be mapped", errno);
  values_ = {static_cast<float*>(at), static_cast<std::size_t>(count)};
}

MappedFloats::~MappedFloats() { ::munmap(values_.data(), values_.size_bytes()); }

void MappedFloats::sync() {
  if (::msync(values_.data(), values_.size_bytes(), MS_SYNC) != 0)
    fail(work_.file(name_), "cannot be written", errno);
}

}  // namespace kvspan::tracegen
