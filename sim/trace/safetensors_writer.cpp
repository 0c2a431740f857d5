// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <stdexcept>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/text.h"
#include "sim/trace/safetensors.h"
#include "sim/trace/safetensors_json.h"

namespace kvspan {

namespace fs = std::filesystem;

namespace {

constexpr std::uint64_t kDataAlignment = 64;

}  // namespace

struct SafetensorsWriter::Impl {
  struct Place {
    std::uint64_t offset = 0;  // in the file
    std::uint64_t size = 0;
  };
  explicit Impl(fs::path path) : file(std::move(path)) {}
  AtomicFile file;
  std::map<std::string, Place> places;
  bool finished = false;
};

SafetensorsWriter::SafetensorsWriter(fs::path path, const Metadata& metadata,
                                     const std::vector<Entry>& entries)
    : impl_(std::make_unique<Impl>(std::move(path))) {
  std::vector<std::int64_t> data_offsets = {0};
  for (const Entry& entry : entries) {
    const std::int64_t offset = data_offsets.back();
    std::int64_t size = 0;
    std::int64_t end = 0;
    if (!tensor_size(entry.dtype, entry.shape, &size) ||
        __builtin_add_overflow(offset, size, &end)) {
      throw std::logic_error("SafetensorsWriter: shape of " + in_quotes(entry.name));
    }
    const Impl::Place place{static_cast<std::uint64_t>(offset), static_cast<std::uint64_t>(size)};
    if (entry.name == kMetadataName || !impl_->places.emplace(entry.name, place).second) {
      throw std::logic_error("SafetensorsWriter: name " + in_quotes(entry.name));
    }
    data_offsets.push_back(end);
  }
  std::string text = header_text(metadata, entries, data_offsets);
  const std::uint64_t unpadded = kHeaderLengthBytes + text.size();
  text.append((kDataAlignment - unpadded % kDataAlignment) % kDataAlignment, ' ');
  if (text.size() > kMaxHeaderBytes) {
    throw Error(fmt::format("{}: a header of {} bytes; readers accept {}",
                            path_text(impl_->file.path()), text.size(), kMaxHeaderBytes),
                1);
  }
  const std::uint64_t data_start = kHeaderLengthBytes + text.size();
  for (auto& [name, place] : impl_->places) place.offset += data_start;

  std::array<std::byte, kHeaderLengthBytes> length{};
  for (std::size_t i = 0; i < kHeaderLengthBytes; ++i) {
    length[i] = static_cast<std::byte>((text.size() >> (8 * i)) & 0xFFU);
  }
  impl_->file.resize(data_start + static_cast<std::uint64_t>(data_offsets.back()));
  impl_->file.write(length, 0);
  impl_->file.write(std::as_bytes(std::span(text)), kHeaderLengthBytes);
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(const std::string& name, std::int64_t byte_offset,
                              std::span<const std::byte> bytes) {
  const auto found = impl_->places.find(name);
  if (impl_->finished || found == impl_->places.end()) {
    throw std::logic_error("SafetensorsWriter: write to " + in_quotes(name) +
                           (impl_->finished ? " after finish" : ", which was not declared"));
  }
  const Impl::Place& place = found->second;
  const auto offset = static_cast<std::uint64_t>(byte_offset);
  if (byte_offset < 0 || offset > place.size || bytes.size() > place.size - offset) {
    throw std::logic_error("SafetensorsWriter: write past the end of " + in_quotes(name));
  }
  impl_->file.write(bytes, place.offset + offset);
}

void SafetensorsWriter::finish() {
  if (impl_->finished) throw std::logic_error("SafetensorsWriter: finished twice");
  impl_->finished = true;
  impl_->file.commit();
}

}  // namespace kvspan
