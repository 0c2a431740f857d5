// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/forked_memory.h"

#include <new>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

namespace kvspan::tracegen {

struct ForkedMemory::File {
  explicit File(std::int64_t floats)
      : bytes(static_cast<std::size_t>(floats) * sizeof(float)),
        descriptor(memfd_create("kvspan", MFD_CLOEXEC)) {
    if (descriptor < 0) throw std::bad_alloc();
    if (ftruncate(descriptor, static_cast<off_t>(bytes)) == 0) return;
    close(descriptor);
    throw std::bad_alloc();
  }
  ~File() { close(descriptor); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  std::size_t bytes;
  int descriptor;
};

ForkedMemory::ForkedMemory(std::int64_t floats)
    : ForkedMemory(std::make_shared<const File>(floats), true) {}

ForkedMemory::ForkedMemory(std::shared_ptr<const File> file, bool shared) : file_(std::move(file)) {
  if (file_->bytes == 0) return;
  void* mapped = mmap(nullptr, file_->bytes, PROT_READ | PROT_WRITE,
                      shared ? MAP_SHARED : MAP_PRIVATE | MAP_NORESERVE, file_->descriptor, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<float*>(mapped);
}

ForkedMemory::~ForkedMemory() {
  if (data_ != nullptr) munmap(data_, file_->bytes);
}

ForkedMemory::ForkedMemory(ForkedMemory&& other) noexcept
    : file_(std::move(other.file_)), data_(std::exchange(other.data_, nullptr)) {}

ForkedMemory ForkedMemory::fork() const { return {file_, false}; }

}  // namespace kvspan::tracegen
