// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "sim/base/file.h"
#include "sim/base/text.h"
#include "sim/trace/safetensors.h"
#include "sim/trace/safetensors_json.h"

namespace kvspan {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kIndexSuffix = ".index.json";

using Entry = std::map<std::string, Declared>::value_type;

// Its place lies inside the data, and is as large as dtype and shape say.
void check_size(const Entry& entry, std::uint64_t data_bytes, const std::string& file) {
  const auto& [name, tensor] = entry;
  if (tensor.begin > tensor.end) {
    fail_tensor(file, name,
                fmt::format("data_offsets are reversed: [{}, {}]", tensor.begin, tensor.end));
  }
  if (static_cast<std::uint64_t>(tensor.end) > data_bytes) {
    fail_tensor(file, name,
                fmt::format("data_offsets are [{}, {}], past the end of the file; expected at "
                            "most its {} bytes of data",
                            tensor.begin, tensor.end, data_bytes));
  }
  if (!tensor.other_dtype.empty()) return;
  std::int64_t expected = 0;
  if (!tensor_size(tensor.dtype, tensor.shape, &expected)) {
    fail_tensor(file, name, "shape " + shape_text(tensor.shape) + " is too large for any file");
  }
  if (tensor.end - tensor.begin != expected) {
    fail_tensor(file, name,
                fmt::format("{} bytes of data; expected {} for {} {}", tensor.end - tensor.begin,
                            expected, dtype_name(tensor.dtype), shape_text(tensor.shape)));
  }
}

// Sizes, bounds and order of all tensors of one file. The data must be covered exactly: a hole
// hides bytes that nobody checks, an overlap lets one tensor stand in for another.
void check_layout(const std::map<std::string, Declared>& tensors, std::uint64_t data_bytes,
                  const std::string& file) {
  std::vector<const Entry*> order;
  order.reserve(tensors.size());
  for (const Entry& entry : tensors) {
    check_size(entry, data_bytes, file);
    order.push_back(&entry);
  }
  std::sort(order.begin(), order.end(), [](const Entry* a, const Entry* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  std::int64_t covered = 0;
  for (const Entry* entry : order) {
    const std::int64_t begin = entry->second.begin;
    if (begin != covered) {
      fail_tensor(file, entry->first,
                  fmt::format("data begin at byte {}, {}; expected {}", begin,
                              begin < covered ? "inside another tensor" : "after a hole", covered));
    }
    covered = entry->second.end;
  }
  if (static_cast<std::uint64_t>(covered) != data_bytes) {
    fail_file(file, fmt::format("{} bytes of data after the header; the tensors cover {}",
                                data_bytes, covered));
  }
}

// The header's text and the data after it.
struct FileParts {
  std::span<const std::byte> header, data;
};

FileParts split_file(std::span<const std::byte> bytes, const std::string& file) {
  if (bytes.size() < kHeaderLengthBytes) {
    fail_file(file,
              fmt::format("{} bytes; expected a safetensors file, which begins with an 8-byte "
                          "header length",
                          bytes.size()));
  }
  std::uint64_t header_bytes = 0;
  for (std::size_t i = 0; i < kHeaderLengthBytes; ++i) {
    header_bytes |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  }
  if (header_bytes > kMaxHeaderBytes) {
    fail_file(file,
              fmt::format("header of {} bytes; expected at most {} (is this a safetensors file?)",
                          header_bytes, kMaxHeaderBytes));
  }
  if (header_bytes > bytes.size() - kHeaderLengthBytes) {
    fail_file(file, fmt::format("header of {} bytes; the file has only {} after its header length",
                                header_bytes, bytes.size() - kHeaderLengthBytes));
  }
  const auto header = bytes.subspan(kHeaderLengthBytes, header_bytes);
  if (header.empty() || header[0] != std::byte{'{'})
    fail_file(file, "header does not begin with '{'");
  return {header, bytes.subspan(kHeaderLengthBytes + header_bytes)};
}

struct ParsedFile {
  Metadata metadata;
  std::map<std::string, TensorView> tensors;
  std::map<std::string, std::string> other_dtypes;
};

ParsedFile parse_file(std::span<const std::byte> bytes, const std::string& file, Rules rules) {
  const auto [text, data] = split_file(bytes, file);
  SafetensorsHeader header = parse_header(text, file, rules);
  check_layout(header.tensors, data.size(), file);

  ParsedFile parsed;
  parsed.metadata = std::move(header.metadata);
  for (auto it = header.tensors.begin(); it != header.tensors.end();) {
    auto node = header.tensors.extract(it++);  // frees what has been read: memory never doubles
    Declared& tensor = node.mapped();
    if (!tensor.other_dtype.empty()) {
      parsed.other_dtypes.emplace_hint(parsed.other_dtypes.end(), std::move(node.key()),
                                       std::move(tensor.other_dtype));
      continue;
    }
    TensorView view;
    view.dtype = tensor.dtype;
    view.bytes = data.subspan(static_cast<std::size_t>(tensor.begin),
                              static_cast<std::size_t>(tensor.end - tensor.begin));
    view.shape = std::move(tensor.shape);
    parsed.tensors.emplace_hint(parsed.tensors.end(), std::move(node.key()), std::move(view));
  }
  return parsed;
}

// The shards' metadata must be the index's, whole and unchanged.
void check_same_metadata(const Metadata& index, const Metadata& shard, const std::string& file) {
  for (const auto& [key, value] : index) {
    const auto found = shard.find(key);
    if (found == shard.end()) {
      fail_file(file, "metadata key " + in_quotes(key) + " is missing; the index has " +
                          in_quotes(value));
    }
    if (found->second != value) {
      fail_file(file, "metadata key " + in_quotes(key) + " is " + in_quotes(found->second) +
                          "; the index has " + in_quotes(value));
    }
  }
  for (const auto& [key, value] : shard) {
    if (!index.contains(key)) {
      fail_file(file, "metadata key " + in_quotes(key) + " is " + in_quotes(value) +
                          "; the index does not have it");
    }
  }
}

struct Opened : CheckpointTensors {
  Metadata metadata;
};

Opened open_single(const fs::path& path, Rules rules) {
  Opened set;
  const MappedFile mapping = map_file(path);
  ParsedFile parsed = parse_file(mapping.bytes, path_text(path), rules);
  set.metadata = std::move(parsed.metadata);
  set.tensors = std::move(parsed.tensors);
  set.other_dtypes = std::move(parsed.other_dtypes);
  set.files.push_back(path);
  set.owners.push_back(mapping.owner);
  return set;
}

SafetensorsIndex read_index(const fs::path& path, Rules rules) {
  const std::string name = path_text(path);
  const MappedFile mapping = map_file(path);
  if (mapping.bytes.size() > kMaxHeaderBytes) {
    fail_file(name, fmt::format("{} bytes; expected an index of at most {}", mapping.bytes.size(),
                                kMaxHeaderBytes));
  }
  return parse_index(mapping.bytes, name, rules);
}

// A file beside its index, and the tensors that the index puts into it.
void add_shard(const fs::path& path, const SafetensorsIndex& index, const std::string& index_name,
               Rules rules, Opened& set) {
  const std::string shard = path.filename().string();
  const std::string name = path_text(path);
  std::error_code error;
  if (!fs::exists(path, error)) fail_file(name, "shard is missing; " + index_name + " names it");
  const MappedFile mapping = map_file(path);
  ParsedFile parsed = parse_file(mapping.bytes, name, rules);
  if (rules == Rules::trace) check_same_metadata(index.metadata, parsed.metadata, name);
  const auto check_place = [&](const std::string& tensor) {
    const auto expected = index.weight_map.find(tensor);
    if (expected == index.weight_map.end()) {
      fail_tensor(name, tensor, "is in this shard; the index does not have it");
    }
    if (expected->second != shard) {
      fail_tensor(name, tensor,
                  "is in this shard; the index puts it into " + in_quotes(expected->second));
    }
  };
  for (const auto& entry : parsed.tensors) check_place(entry.first);
  for (const auto& entry : parsed.other_dtypes) check_place(entry.first);
  set.tensors.merge(parsed.tensors);
  set.other_dtypes.merge(parsed.other_dtypes);
  set.files.push_back(path);
  set.owners.push_back(mapping.owner);
}

// The shards that an index names. It lies beside them; anything else would let it point anywhere.
std::set<std::string> shards_of(const SafetensorsIndex& index, const std::string& index_name) {
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : index.weight_map) {
    if (shard.empty() || shard == "." || shard == ".." || shard.find('/') != std::string::npos ||
        shard.find('\0') != std::string::npos) {
      fail_tensor(
          index_name, tensor,
          "shard is " + in_quotes(shard) + "; expected the name of a file beside the index");
    }
    shards.insert(shard);
  }
  return shards;
}

Opened open_sharded(const fs::path& path, Rules rules) {
  SafetensorsIndex index = read_index(path, rules);
  const std::string name = path_text(path);
  Opened set;
  set.files.push_back(path);
  for (const std::string& shard : shards_of(index, name))
    add_shard(path.parent_path() / shard, index, name, rules, set);
  for (const auto& [tensor, shard] : index.weight_map) {
    if (!set.tensors.contains(tensor) && !set.other_dtypes.contains(tensor)) {
      fail_tensor(path_text(path.parent_path() / shard), tensor,
                  "is missing; the index puts it into this shard");
    }
  }
  set.metadata = std::move(index.metadata);
  return set;
}

Opened open_files(const fs::path& path, Rules rules) {
  const std::string name = path.string();
  if (name.size() > kIndexSuffix.size() && name.ends_with(kIndexSuffix))
    return open_sharded(path, rules);
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    fs::path index = path;
    index += kIndexSuffix;
    if (fs::exists(index, ignored)) return open_sharded(index, rules);
  }
  return open_single(path, rules);
}

}  // namespace

TensorSet TensorSet::open(const fs::path& path) {
  Opened opened = open_files(path, Rules::trace);
  TensorSet set;
  set.mapped_ = true;
  set.metadata_ = std::move(opened.metadata);
  set.tensors_ = std::move(opened.tensors);
  set.files_ = std::move(opened.files);
  set.owners_ = std::move(opened.owners);
  return set;
}

CheckpointTensors open_checkpoint_tensors(const fs::path& path) {
  return open_files(path, Rules::checkpoint);
}

TensorSet TensorSet::from_bytes(std::span<const std::byte> file, const std::string& name) {
  auto copy = std::make_shared<const std::vector<std::byte>>(file.begin(), file.end());
  ParsedFile parsed = parse_file(*copy, name, Rules::trace);
  TensorSet set;
  set.metadata_ = std::move(parsed.metadata);
  set.tensors_ = std::move(parsed.tensors);
  set.owners_.push_back(std::move(copy));
  return set;
}

TensorSet TensorSet::from_memory(Metadata metadata, std::map<std::string, Owned> tensors) {
  auto owned = std::make_shared<const std::map<std::string, Owned>>(std::move(tensors));
  TensorSet set;
  set.metadata_ = std::move(metadata);
  for (const auto& [name, tensor] : *owned) {
    std::int64_t expected = 0;
    if (!tensor_size(tensor.dtype, tensor.shape, &expected) ||
        static_cast<std::uint64_t>(expected) != tensor.bytes.size()) {
      fail_tensor("(memory)", name,
                  fmt::format("{} bytes of data; expected {} {}", tensor.bytes.size(),
                              dtype_name(tensor.dtype), shape_text(tensor.shape)));
    }
    set.tensors_.emplace(name, TensorView{tensor.dtype, tensor.shape, tensor.bytes});
  }
  set.owners_.push_back(std::move(owned));
  return set;
}

TensorSet TensorSet::from_views(Metadata metadata, std::map<std::string, TensorView> tensors,
                                std::shared_ptr<const void> owner) {
  TensorSet set;
  set.metadata_ = std::move(metadata);
  set.tensors_ = std::move(tensors);
  set.owners_.push_back(std::move(owner));
  return set;
}

const TensorView* TensorSet::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

void TensorSet::release(const TensorView& tensor) const {
  if (mapped_) release_pages(tensor.bytes);
}

}  // namespace kvspan
