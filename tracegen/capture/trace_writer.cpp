// SPDX-License-Identifier: Apache-2.0
#include "tracegen/capture/trace_writer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include <Eigen/Core>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"

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

//   written   is told the bytes of each piece
void copy(const WorkFolder& work, const StoredTensor& tensor, SafetensorsWriter& writer,
          const std::function<void(std::int64_t)>& written) {
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
      written(static_cast<std::int64_t>(piece.size()));
    }
  }
}

fs::path index_of(const fs::path& out) {
  fs::path index = out;
  return index += ".index.json";
}

std::vector<fs::path> shard_paths(const fs::path& out, std::size_t layers) {
  const std::string name = out.filename().string();
  const std::string stem = name.substr(0, name.size() - std::strlen(kSuffix));
  std::vector<fs::path> paths;
  for (std::size_t l = 1; l <= layers; ++l)
    paths.push_back(out.parent_path() /
                    fmt::format("{}-{:05}-of-{:05}{}", stem, l, layers, kSuffix));
  return paths;
}

bool one_file(const TraceParts& parts, Shards shards) {
  return shards == Shards::one || (shards == Shards::automatic && parts.bytes() < kOneFileBytes);
}

// A file of the trace.
struct Shard {
  fs::path path;
  std::vector<StoredTensor> layers;  // whose raw files are erased when it is complete
  std::vector<StoredTensor> tensors;
  // A raw file that tells that it is complete.
  [[nodiscard]] std::string mark() const { return "published." + layers.front().entry.name; }
};

std::vector<Shard> shards_of(const TraceParts& parts, Shards shards, const fs::path& out) {
  std::vector<Shard> files;
  if (one_file(parts, shards)) {
    files.push_back({out, {}, {}});
    for (const auto& layer : parts.layers)
      files[0].layers.insert(files[0].layers.end(), layer.begin(), layer.end());
  } else {
    const std::vector<fs::path> paths = shard_paths(out, parts.layers.size());
    for (std::size_t l = 0; l < paths.size(); ++l) files.push_back({paths[l], parts.layers[l], {}});
  }
  for (Shard& file : files) file.tensors = file.layers;
  files[0].tensors.insert(files[0].tensors.end(), parts.common.begin(), parts.common.end());
  return files;
}

bool is_published(const WorkFolder& work, const Shard& shard) {
  return work.bytes(shard.mark()) >= 0 && fs::exists(shard.path);
}

// What a process leaves that dies here lies in the work folder, where the next one removes it.
void publish_shard(WorkFolder& work, const Metadata& metadata, const Shard& shard,
                   const std::function<void(std::int64_t)>& written) {
  const fs::path whole = work.staging(shard.path);
  std::vector<SafetensorsWriter::Entry> entries;
  for (const StoredTensor& tensor : shard.tensors) entries.push_back(tensor.entry);
  SafetensorsWriter writer(whole, metadata, entries);
  for (const StoredTensor& tensor : shard.tensors) copy(work, tensor, writer, written);
  writer.finish();
  rename_durably(whole, shard.path);
  work.reserve(shard.mark(), 0);
  work.sync(shard.mark());
  for (const StoredTensor& tensor : shard.layers) work.erase(tensor.entry.name);
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

std::vector<fs::path> trace_files(const fs::path& out, std::size_t layers, Shards shards) {
  std::vector<fs::path> paths{out, index_of(out)};
  if (shards == Shards::one) return paths;
  const std::vector<fs::path> more = shard_paths(out, layers);
  paths.insert(paths.end(), more.begin(), more.end());
  return paths;
}

std::string missing_part(const WorkFolder& work, const TraceParts& parts, Shards shards,
                         const fs::path& out) {
  for (const Shard& shard : shards_of(parts, shards, out)) {
    if (is_published(work, shard)) continue;
    for (const StoredTensor& tensor : shard.tensors) {
      if (work.bytes(tensor.entry.name) < tensor.stored_bytes()) return tensor.entry.name;
    }
  }
  return "";
}

std::vector<fs::path> publish_trace(WorkFolder& work, const TraceParts& parts, Shards shards,
                                    const fs::path& out,
                                    const std::function<void(double)>& progress) {
  const std::vector<Shard> files = shards_of(parts, shards, out);
  std::int64_t total = 0, done = 0;
  for (const Shard& shard : files) {
    if (is_published(work, shard)) continue;
    for (const StoredTensor& tensor : shard.tensors) total += tensor.stored_bytes();
  }
  const auto written = [&](std::int64_t bytes) {
    done += bytes;
    if (progress) progress(static_cast<double>(done) / static_cast<double>(total));
  };
  const bool one = one_file(parts, shards);
  if (!one) {
    // A reader must not take an older trace's index or file for what is being written.
    fs::remove(index_of(out));
    fs::remove(out);
  }
  std::vector<fs::path> paths;
  nlohmann::json weight_map = nlohmann::json::object();
  for (const Shard& shard : files) {
    if (!is_published(work, shard)) publish_shard(work, parts.metadata, shard, written);
    paths.push_back(shard.path);
    for (const StoredTensor& tensor : shard.tensors)
      weight_map[tensor.entry.name] = shard.path.filename().string();
  }
  if (one) {
    fs::remove(index_of(out));  // of an older, sharded trace
    return paths;
  }
  const nlohmann::json index{{"metadata", parts.metadata}, {"weight_map", weight_map}};
  const fs::path whole = work.staging(index_of(out));
  write_file_atomically(whole,
                        index.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  rename_durably(whole, index_of(out));
  paths.insert(paths.begin(), index_of(out));
  return paths;
}

}  // namespace kvspan::tracegen
