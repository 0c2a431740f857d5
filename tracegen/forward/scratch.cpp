// SPDX-License-Identifier: Apache-2.0
#include "tracegen/forward/scratch.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan::tracegen {
namespace {

// A file without a name, all of its blocks reserved, so that a full disk is found here and not by a
// signal later.
int unnamed_file(const std::filesystem::path& folder, std::int64_t bytes) {
  std::string name = (folder / ".kvspan-scratch-XXXXXX").string();
  const int file = mkstemp(name.data());
  if (file < 0) {
    throw Error(fmt::format("cannot write scratch memory to '{}': {}", folder.string(),
                            std::strerror(errno)),
                1);
  }
  unlink(name.c_str());
  if (const int error = posix_fallocate(file, 0, bytes); error != 0) {
    close(file);
    throw Error(fmt::format("no room for {} bytes of scratch memory in '{}': {}", bytes,
                            folder.string(), std::strerror(error)),
                1);
  }
  return file;
}

}  // namespace

Scratch::Scratch(std::int64_t elements, const std::filesystem::path& folder)
    : bytes_(elements * static_cast<std::int64_t>(sizeof(float))), in_file_(!folder.empty()) {
  if (bytes_ == 0) return;
  const int file = in_file_ ? unnamed_file(folder, bytes_) : -1;
  void* mapped = mmap(nullptr, static_cast<std::size_t>(bytes_), PROT_READ | PROT_WRITE,
                      in_file_ ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, file, 0);
  if (file >= 0) close(file);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<float*>(mapped);
}

Scratch::~Scratch() {
  if (data_ != nullptr) munmap(data_, static_cast<std::size_t>(bytes_));
}

Scratch::Scratch(Scratch&& other) noexcept { *this = std::move(other); }

Scratch& Scratch::operator=(Scratch&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(in_file_, other.in_file_);
  return *this;
}

}  // namespace kvspan::tracegen
