// SPDX-License-Identifier: Apache-2.0
#include "sim/base/file.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

#include <fmt/format.h>
#include <openssl/evp.h>

#include "sim/base/error.h"
#include "sim/base/text.h"

namespace kvspan {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void fail_read(const std::string& file, const std::string& what) {
  throw TraceError(file + ": " + what);
}

std::string errno_text(int error) { return std::strerror(error); }

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

// Opens a regular file for reading. O_NONBLOCK: a FIFO must be refused, not waited for.
struct InputFile {
  FileDescriptor fd;
  std::uint64_t size = 0;
  explicit InputFile(const fs::path& path)
      : fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    const int error = errno;
    const std::string file = path_text(path);
    if (fd.get() < 0) fail_read(file, "cannot be opened (" + errno_text(error) + ")");
    struct stat status {};
    if (::fstat(fd.get(), &status) != 0)
      fail_read(file, "cannot be read (" + errno_text(errno) + ")");
    if (S_ISDIR(status.st_mode)) {
      fail_read(file,
                "is a directory; expected a .safetensors file or its .safetensors.index.json");
    }
    if (!S_ISREG(status.st_mode)) {
      fail_read(file, S_ISFIFO(status.st_mode)
                          ? "is a pipe; this is read in place, so give a file, or '< FILE'"
                          : "is not a regular file");
    }
    size = static_cast<std::uint64_t>(status.st_size);
  }
};

[[noreturn]] void fail_write(const fs::path& path, const std::string& what) {
  throw Error(path_text(path) + ": " + what, 1);
}

void write_all(int fd, std::span<const std::byte> bytes, std::uint64_t offset,
               const fs::path& path) {
  while (!bytes.empty()) {
    const ssize_t count = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail_write(path, "cannot be written (" + errno_text(errno) + ")");
    bytes = bytes.subspan(static_cast<std::size_t>(count));
    offset += static_cast<std::uint64_t>(count);
  }
}

// The open descriptor behind names such as /dev/stdout and /dev/fd/3; -1: a file of its own.
int descriptor_of(const fs::path& path) {
  const std::string text = path.string();
  if (text == "/dev/stdout") return STDOUT_FILENO;
  if (text == "/dev/stderr") return STDERR_FILENO;
  for (const std::string_view folder : {"/dev/fd/", "/proc/self/fd/"}) {
    if (!text.starts_with(folder)) continue;
    int number = -1;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + folder.size(), end, number);
    if (error == std::errc() && stop == end) return number;
  }
  return -1;
}

// Opens what cannot be replaced by another file: standard output, a pipe, a device. -1: it can.
int open_stream(const fs::path& path) {
  int fd = -1;
  if (const int known = descriptor_of(path); known >= 0) {
    std::fflush(stdout);  // what was printed comes first
    fd = ::fcntl(known, F_DUPFD_CLOEXEC, 0);
  } else {
    std::error_code ignored;
    const fs::file_status status = fs::status(path, ignored);
    if (!fs::exists(status) || fs::is_regular_file(status)) return -1;
    if (fs::is_directory(status)) fail_write(path, "is a directory; expected a file name");
    if (!fs::is_fifo(status) && !fs::is_character_file(status))
      fail_write(path, "is neither a file nor a pipe");
    fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  }
  if (fd < 0) fail_write(path, "cannot be opened (" + errno_text(errno) + ")");
  return fd;
}

void write_stream(int fd, std::span<const std::byte> bytes, const fs::path& path) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(fd, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail_write(path, "cannot be written (" + errno_text(errno) + ")");
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
}

}  // namespace

std::string path_text(const fs::path& path) { return one_line(path.string()); }

MappedFile map_file(const fs::path& path) {
  const InputFile input(path);
  if (input.size == 0) return {};
  const std::size_t size = input.size;
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, input.fd.get(), 0);
  if (address == MAP_FAILED) {
    fail_read(path_text(path), "cannot be mapped into memory (" + errno_text(errno) + ")");
  }
  MappedFile mapping;
  mapping.owner = std::shared_ptr<const void>(
      address, [size](const void* p) { ::munmap(const_cast<void*>(p), size); });
  mapping.bytes = {static_cast<const std::byte*>(address), size};
  return mapping;
}

void release_pages(std::span<const std::byte> mapped) {
  // Only pages that lie wholly inside: the neighbours may still be in use.
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<std::uintptr_t>(mapped.data());
  const std::uintptr_t begin = (first + page - 1) / page * page;
  const std::uintptr_t end = (first + mapped.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

std::string sha256_of_files(const std::vector<fs::path>& files) {
  const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(),
                                                                   EVP_MD_CTX_free);
  if (!context || EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) != 1) {
    throw Error("SHA-256 is not available in this libcrypto", 1);
  }
  std::vector<unsigned char> buffer(1U << 20U);
  for (const fs::path& path : files) {
    const InputFile input(path);
    while (true) {
      const ssize_t count = ::read(input.fd.get(), buffer.data(), buffer.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail_read(path_text(path), "cannot be read (" + errno_text(errno) + ")");
      if (count == 0) break;
      EVP_DigestUpdate(context.get(), buffer.data(), static_cast<std::size_t>(count));
    }
  }
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  EVP_DigestFinal_ex(context.get(), digest.data(), &size);
  std::string hex;
  for (unsigned int i = 0; i < size; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)) {
  fd_ = open_stream(path_);
  if (fd_ >= 0) return;
  // Not mkstemp: the file is to have the permissions that the umask asks for.
  static std::atomic<unsigned> counter{0};
  for (int attempt = 0; attempt < 1000; ++attempt) {
    temporary_ = path_.parent_path() / fmt::format(".kvspan-{}-{}.tmp", ::getpid(), counter++);
    fd_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ >= 0 || errno != EEXIST) break;
  }
  if (fd_ < 0) fail_write(path_, "cannot be created (" + errno_text(errno) + ")");
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::resize(std::uint64_t size) const {
  if (temporary_.empty()) {
    struct stat status {};
    if (::fstat(fd_, &status) == 0 && S_ISCHR(status.st_mode)) return;  // such as /dev/null
    fail_write(path_, "is a stream; this is not written from front to back, so give a file");
  }
  if (::ftruncate(fd_, static_cast<off_t>(size)) != 0) {
    fail_write(path_, fmt::format("cannot be made {} bytes long ({})", size, errno_text(errno)));
  }
}

void AtomicFile::write(std::span<const std::byte> bytes, std::uint64_t offset) const {
  if (temporary_.empty()) return write_stream(fd_, bytes, path_);
  write_all(fd_, bytes, offset, path_);
}

void AtomicFile::commit() {
  if (temporary_.empty()) {
    const int closed = ::close(fd_);
    fd_ = -1;
    if (closed != 0) fail_write(path_, "cannot be written (" + errno_text(errno) + ")");
    return;
  }
  if (::fsync(fd_) != 0) fail_write(path_, "cannot be written (" + errno_text(errno) + ")");
  const int closed = ::close(fd_);
  fd_ = -1;
  if (closed != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary_.c_str());
    fail_write(path_, "cannot be written (" + errno_text(error) + ")");
  }
  // The new name survives a power failure only if the directory reaches the disk too.
  const fs::path parent = path_.has_parent_path() ? path_.parent_path() : fs::path(".");
  const FileDescriptor directory(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() >= 0) ::fsync(directory.get());
}

void write_file_atomically(const fs::path& path, std::string_view content) {
  AtomicFile file(path);
  file.write(std::as_bytes(std::span(content)), 0);
  file.commit();
}

}  // namespace kvspan
