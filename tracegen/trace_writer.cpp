// SPDX-License-Identifier: Apache-2.0
#include "tracegen/trace_writer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include <Eigen/Core>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/error.h"

namespace kvspan::tracegen {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little);  // as safetensors stores numbers

constexpr std::int64_t kPieceBytes = 4 << 20;
constexpr const char* kSuffix = ".safetensors";

template <typename Stored>
void store(std::span<const float> values, std::vector<std::byte>& out) {
  out.resize(values.size() * sizeof(Stored));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Stored stored(values[i]);
    std::memcpy(out.data() + i * sizeof(Stored), &stored, sizeof(Stored));
  }
}

std::int64_t product(std::span<const std::int64_t> shape) {
  std::int64_t out = 1;
  for (const std::int64_t extent : shape) out *= extent;
  return out;
}

void copy(const WorkFolder& work, const StoredTensor& tensor, SafetensorsWriter& writer) {
  const std::int64_t columns = tensor.entry.shape.back();
  const bool padded = tensor.stored_columns >= 0 && tensor.stored_columns != columns;
  const std::int64_t rows =
      padded ? product(std::span(tensor.entry.shape).first(tensor.entry.shape.size() - 1)) : 1;
  const std::int64_t stride = rows == 0 ? 0 : tensor.bytes() / rows;
  const std::int64_t stored =
      padded ? tensor.stored_columns * dtype_bytes(tensor.entry.dtype) : stride;
  std::vector<std::byte> piece;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t at = 0; at < stored; at += kPieceBytes) {
      piece.resize(static_cast<std::size_t>(std::min(kPieceBytes, stored - at)));
      work.read(tensor.entry.name, row * stored + at, piece);
      writer.write(tensor.entry.name, row * stride + at, piece);
    }
  }
}

void write_file(const WorkFolder& work, const Metadata& metadata,
                const std::vector<StoredTensor>& tensors, const fs::path& path) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (const StoredTensor& tensor : tensors) entries.push_back(tensor.entry);
  SafetensorsWriter writer(path, metadata, entries);
  for (const StoredTensor& tensor : tensors) copy(work, tensor, writer);
  writer.finish();
}

fs::path index_of(const fs::path& out) {
  fs::path index = out;
  return index += ".index.json";
}

// Erases in order: whoever finds the first of them knows that the shard is not complete.
void erase(WorkFolder& work, const std::vector<StoredTensor>& tensors) {
  for (const StoredTensor& tensor : tensors) work.erase(tensor.entry.name);
}

std::vector<fs::path> publish_shards(WorkFolder& work, const TraceParts& parts,
                                     const fs::path& out) {
  // A reader must not take an older trace's index or file for what is being written.
  fs::remove(index_of(out));
  fs::remove(out);
  const std::string name = out.filename().string();
  const std::string stem = name.substr(0, name.size() - std::strlen(kSuffix));
  nlohmann::json weight_map = nlohmann::json::object();
  std::vector<fs::path> files{index_of(out)};
  for (std::size_t l = 0; l < parts.layers.size(); ++l) {
    std::vector<StoredTensor> tensors = parts.layers[l];
    if (l == 0) tensors.insert(tensors.end(), parts.common.begin(), parts.common.end());
    const std::string shard =
        fmt::format("{}-{:05}-of-{:05}{}", stem, l + 1, parts.layers.size(), kSuffix);
    files.push_back(out.parent_path() / shard);
    for (const StoredTensor& tensor : tensors) weight_map[tensor.entry.name] = shard;
    if (work.bytes(tensors.front().entry.name) < 0) continue;  // complete before an interruption
    write_file(work, parts.metadata, tensors, files.back());
    erase(work, parts.layers[l]);
  }
  const nlohmann::json index{{"metadata", parts.metadata}, {"weight_map", weight_map}};
  write_file_atomically(files.front(),
                        index.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  return files;
}

std::vector<fs::path> publish_one(WorkFolder& work, const TraceParts& parts, const fs::path& out) {
  std::vector<StoredTensor> tensors;
  for (const auto& layer : parts.layers) tensors.insert(tensors.end(), layer.begin(), layer.end());
  tensors.insert(tensors.end(), parts.common.begin(), parts.common.end());
  if (work.bytes(tensors.front().entry.name) >= 0) {
    write_file(work, parts.metadata, tensors, out);
    for (const auto& layer : parts.layers) erase(work, layer);
  }
  fs::remove(index_of(out));  // of an older, sharded trace
  return {out};
}

}  // namespace

void narrow(std::span<const float> values, Dtype dtype, const std::string& what,
            std::vector<std::byte>& out) {
  const float limit = dtype == Dtype::f16 ? 65504.0F : std::numeric_limits<float>::max();
  for (const float value : values) {
    if (std::abs(value) <= limit) continue;
    throw CheckpointError(
        std::isfinite(value)
            ? fmt::format("{} holds {}, which F16 cannot; --dtype bf16 or f32 can", what, value)
            : fmt::format("{} holds {}: the weights are damaged, or overflow fp32", what, value));
  }
  switch (dtype) {
    case Dtype::f16:
      return store<Eigen::half>(values, out);
    case Dtype::bf16:
      return store<Eigen::bfloat16>(values, out);
    default:
      return store<float>(values, out);
  }
}

std::int64_t StoredTensor::bytes() const { return product(entry.shape) * dtype_bytes(entry.dtype); }

std::int64_t StoredTensor::stored_bytes() const {
  return stored_columns < 0 ? bytes() : bytes() / entry.shape.back() * stored_columns;
}

std::int64_t TraceParts::bytes() const {
  std::int64_t sum = 0;
  for (const StoredTensor& tensor : common) sum += tensor.bytes();
  for (const auto& layer : layers) {
    for (const StoredTensor& tensor : layer) sum += tensor.bytes();
  }
  return sum;
}

std::vector<fs::path> publish_trace(WorkFolder& work, const TraceParts& parts, Shards shards,
                                    const fs::path& out) {
  const bool one =
      shards == Shards::one || (shards == Shards::automatic && parts.bytes() < kOneFileBytes);
  return one ? publish_one(work, parts, out) : publish_shards(work, parts, out);
}

}  // namespace kvspan::tracegen
