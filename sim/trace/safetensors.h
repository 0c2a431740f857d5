// SPDX-License-Identifier: Apache-2.0
// safetensors files: 8-byte little-endian header length, JSON header, raw tensors.
// The readers (of traces and other files of ours, of checkpoints) map the file and copy nothing;
// the writer streams tensors into a temporary file and renames it when it is complete. Format:
// traces/README.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "sim/base/file.h"
#include "sim/trace/tensor.h"

namespace kvspan {

using Metadata = std::map<std::string, std::string>;

// The tensors of one file, of all shards of an index, or of memory: an immutable value that keeps
// whatever it points into alive.
class TensorSet {
 public:
  // Opens NAME.safetensors, or NAME.safetensors.index.json with its shards.
  // Errors: TraceError naming file, tensor, what was found and what was expected.
  [[nodiscard]] static TensorSet open(const std::filesystem::path& path);
  // The bytes of one safetensors file, which are copied; `name` stands for the file in messages.
  [[nodiscard]] static TensorSet from_bytes(std::span<const std::byte> file,
                                            const std::string& name);
  // Tensors in memory (tests, synthetic traces). Errors: TraceError when bytes and shape disagree.
  struct Owned {
    Dtype dtype;
    std::vector<std::int64_t> shape;
    std::vector<std::byte> bytes;
  };
  [[nodiscard]] static TensorSet from_memory(Metadata metadata,
                                             std::map<std::string, Owned> tensors);
  // Tensors in memory that somebody goes on writing (a model at work), which `owner` keeps alive.
  [[nodiscard]] static TensorSet from_views(Metadata metadata,
                                            std::map<std::string, TensorView> tensors,
                                            std::shared_ptr<const void> owner);

  [[nodiscard]] const Metadata& metadata() const { return metadata_; }
  [[nodiscard]] const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  [[nodiscard]] const TensorView* find(const std::string& name) const;
  [[nodiscard]] const std::vector<std::filesystem::path>& files() const { return files_; }
  // Tells the kernel that the pages of a mapped tensor are not needed for now (no-op in memory).
  void release(const TensorView& tensor) const;

 private:
  Metadata metadata_;
  std::map<std::string, TensorView> tensors_;
  std::vector<std::filesystem::path> files_;
  std::vector<std::shared_ptr<const void>> owners_;
  bool mapped_ = false;
};

// What a TensorSet is for traces, under the rules of checkpoints: other programs write them, so
// metadata may hold numbers and differ between index and shards, and tensors that nobody reads may
// have any dtype.
struct CheckpointTensors {
  std::map<std::string, TensorView> tensors;
  std::map<std::string, std::string> other_dtypes;  // of tensors with a dtype that we do not read
  std::vector<std::filesystem::path> files;
  std::vector<std::shared_ptr<const void>> owners;
};

// Opens NAME.safetensors, or NAME.safetensors.index.json with its shards. Errors: TraceError.
[[nodiscard]] CheckpointTensors open_checkpoint_tensors(const std::filesystem::path& path);

// Writes one safetensors file of known layout; tensors may be filled in any order and in pieces.
// The file appears under its name only after finish(); a destructor without finish() removes the
// temporary file. Memory: the header only.
class SafetensorsWriter {
 public:
  struct Entry {
    std::string name;
    Dtype dtype;
    std::vector<std::int64_t> shape;
  };
  SafetensorsWriter(std::filesystem::path path, const Metadata& metadata,
                    const std::vector<Entry>& entries);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;
  // Writes `bytes` at `byte_offset` inside tensor `name`. Errors: std::logic_error on a name that
  // was not declared or a write past its end; Error when the disk refuses.
  void write(const std::string& name, std::int64_t byte_offset, std::span<const std::byte> bytes);
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvspan
