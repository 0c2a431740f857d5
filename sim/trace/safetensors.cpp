// SPDX-License-Identifier: Apache-2.0
#include "sim/trace/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/trace/checkpoint_files.h"
#include "sim/trace/trace_meta.h"

namespace kvspan {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // as the reference implementation has it
constexpr std::uint64_t kLengthBytes = 8;
constexpr std::size_t kMaxDimensions = 32;
constexpr std::uint64_t kDataAlignment = 64;
constexpr std::string_view kIndexSuffix = ".index.json";
constexpr std::string_view kMetadataName = "__metadata__";

struct DtypeInfo {
  Dtype dtype;
  std::string_view name;
  std::int64_t bytes;
};
constexpr std::array<DtypeInfo, 7> kDtypes{{{Dtype::f32, "F32", 4},
                                            {Dtype::f16, "F16", 2},
                                            {Dtype::bf16, "BF16", 2},
                                            {Dtype::i32, "I32", 4},
                                            {Dtype::i64, "I64", 8},
                                            {Dtype::u8, "U8", 1},
                                            {Dtype::u32, "U32", 4}}};

const DtypeInfo& info_of(Dtype dtype) { return kDtypes[static_cast<std::size_t>(dtype)]; }

[[noreturn]] void fail(const std::string& file, const std::string& what) {
  throw TraceError(file + ": " + what);
}

[[noreturn]] void fail_tensor(const std::string& file, std::string_view tensor,
                              const std::string& what) {
  fail(file, "tensor " + in_quotes(tensor) + ": " + what);
}

std::string accepted_dtypes() {
  std::string text;
  for (const DtypeInfo& info : kDtypes) {
    if (!text.empty()) text += ", ";
    text += info.name;
  }
  return text;
}

// What the header says of one tensor.
struct Declared {
  Dtype dtype = Dtype::f32;
  std::vector<std::int64_t> shape;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::string other_dtype;  // instead of dtype, under Rules::checkpoint
};

// Whose file it is. Traces are ours: whatever is not as the format says is refused. For checkpoints
// see open_checkpoint_tensors().
enum class Rules : std::uint8_t { trace, checkpoint };

// Base of the two readers: an event handler, so that neither memory nor the stack grows with the
// nesting of a hostile header. Every event that a reader does not override is an error.
class StrictSax : public nlohmann::json_sax<json> {
 public:
  explicit StrictSax(std::string file) : file_(std::move(file)) {}

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a boolean"); }
  bool number_integer(number_integer_t value) override {
    unexpected(fmt::format("the negative number {}", value));
  }
  bool number_unsigned(number_unsigned_t value) override {
    unexpected(fmt::format("the number {}", value));
  }
  bool number_float(number_float_t, const string_t& text) override {
    unexpected("the number " + in_quotes(text) + ", which is no 64-bit integer");
  }
  bool string(string_t& value) override { unexpected("the string " + in_quotes(value)); }
  bool binary(binary_t&) override { unexpected("binary data"); }
  bool start_object(std::size_t) override { unexpected("an object"); }
  bool start_array(std::size_t) override { unexpected("an array"); }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    // The library's own text repeats the offending token, which may be as long as the header.
    const bool overflow = error.id == 406;
    fail(file_, fmt::format("{} at byte {} of the JSON",
                            overflow ? "number out of range" : "invalid JSON", position));
  }

 protected:
  [[noreturn]] void unexpected(const std::string& found) const {
    fail(file_, where() + ": found " + found + "; expected " + wanted());
  }
  [[nodiscard]] virtual std::string where() const = 0;
  [[nodiscard]] virtual std::string wanted() const = 0;

  std::string file_;
};

// Reads {"__metadata__": {key: string}, tensor: {"dtype", "shape", "data_offsets"}, ...}.
class HeaderReader final : public StrictSax {
 public:
  HeaderReader(const std::string& file, Rules rules) : StrictSax(file), rules_(rules) {}
  Metadata metadata;
  std::map<std::string, Declared> tensors;

  bool start_object(std::size_t) override {
    if (depth_ == 0) {
      depth_ = 1;
      return true;
    }
    if (depth_ != 1) unexpected("an object");
    depth_ = 2;
    field_ = Field::none;
    seen_ = {};
    return true;
  }
  bool key(string_t& name) override {
    if (depth_ == 1) {
      in_metadata_ = name == kMetadataName;
      if (in_metadata_) {
        if (has_metadata_) fail(file_, "'__metadata__' appears twice in the header");
        has_metadata_ = true;
        name_ = name;
        return true;
      }
      const auto [entry, inserted] = tensors.try_emplace(name);
      if (!inserted) fail_tensor(file_, name, "the name appears twice in the header");
      name_ = name;
      tensor_ = &entry->second;
      return true;
    }
    if (in_metadata_) {
      const auto [entry, inserted] = metadata.try_emplace(name);
      if (!inserted) fail(file_, "metadata key " + in_quotes(name) + " appears twice");
      value_ = &entry->second;
      metadata_key_ = name;
      return true;
    }
    field_ = name == "dtype"          ? Field::dtype
             : name == "shape"        ? Field::shape
             : name == "data_offsets" ? Field::offsets
                                      : Field::none;
    if (field_ == Field::none) {
      fail_tensor(file_, name_,
                  "found key " + in_quotes(name) + "; expected dtype, shape and data_offsets only");
    }
    bool& seen = seen_[static_cast<std::size_t>(field_)];
    if (seen) fail_tensor(file_, name_, "key '" + name + "' appears twice");
    seen = true;
    return true;
  }
  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) {
      *value_ = std::move(value);
      return true;
    }
    if (depth_ != 2 || field_ != Field::dtype) unexpected("the string " + in_quotes(value));
    const auto* info = std::find_if(kDtypes.begin(), kDtypes.end(),
                                    [&](const DtypeInfo& known) { return known.name == value; });
    if (info == kDtypes.end()) {
      if (rules_ == Rules::checkpoint && !value.empty()) {
        tensor_->other_dtype = std::move(value);
        return true;
      }
      fail_tensor(file_, name_, "dtype is " + in_quotes(value) + "; expected " + accepted_dtypes());
    }
    tensor_->dtype = info->dtype;
    return true;
  }
  bool start_array(std::size_t) override {
    if (depth_ != 2 || in_metadata_ || (field_ != Field::shape && field_ != Field::offsets)) {
      unexpected("an array");
    }
    depth_ = 3;
    offsets_ = 0;
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (depth_ != 3) unexpected(fmt::format("the number {}", value));
    if (value > static_cast<number_unsigned_t>(std::numeric_limits<std::int64_t>::max())) {
      unexpected(fmt::format("the number {}, which is past the largest 64-bit integer", value));
    }
    const auto number = static_cast<std::int64_t>(value);
    if (field_ == Field::shape) {
      if (tensor_->shape.size() == kMaxDimensions) {
        unexpected(fmt::format("more than {} dimensions", kMaxDimensions));
      }
      tensor_->shape.push_back(number);
    } else if (offsets_++ < 2) {
      (offsets_ == 1 ? tensor_->begin : tensor_->end) = number;
    } else {
      unexpected("a third number");
    }
    return true;
  }
  bool end_array() override {
    depth_ = 2;
    if (field_ == Field::offsets && offsets_ != 2) {
      unexpected(fmt::format("{} numbers", offsets_));
    }
    return true;
  }
  bool end_object() override {
    if (depth_ == 2 && !in_metadata_) {
      for (const Field field : {Field::dtype, Field::shape, Field::offsets}) {
        if (!seen_[static_cast<std::size_t>(field)]) {
          fail_tensor(file_, name_, fmt::format("has no {}", field_name(field)));
        }
      }
    }
    --depth_;
    return true;
  }

 private:
  enum class Field { dtype, shape, offsets, none };
  static std::string_view field_name(Field field) {
    switch (field) {
      case Field::dtype:
        return "dtype";
      case Field::shape:
        return "shape";
      case Field::offsets:
        return "data_offsets";
      case Field::none:
        break;
    }
    return "value";
  }
  [[nodiscard]] std::string where() const override {
    if (depth_ == 0) return "header";
    if (depth_ >= 2 && in_metadata_) return "metadata key " + in_quotes(metadata_key_);
    std::string text = (in_metadata_ ? "header key " : "tensor ") + in_quotes(name_);
    if (depth_ >= 2) text += fmt::format(", {}", field_name(field_));
    return text;
  }
  [[nodiscard]] std::string wanted() const override {
    if (depth_ <= 1) return "an object";
    if (in_metadata_) return "a string";
    if (field_ == Field::dtype) return "a string";
    if (field_ == Field::shape) return "a list of integers >= 0";
    return "two integers >= 0, [begin, end]";
  }

  Rules rules_;
  int depth_ = 0;
  bool in_metadata_ = false;
  bool has_metadata_ = false;
  std::string name_;
  std::string metadata_key_;
  std::string* value_ = nullptr;
  Declared* tensor_ = nullptr;
  Field field_ = Field::none;
  std::array<bool, 3> seen_{};
  int offsets_ = 0;
};

// Reads {"metadata": {key: string}, "weight_map": {tensor: file}}.
class IndexReader final : public StrictSax {
 public:
  IndexReader(const std::string& file, Rules rules) : StrictSax(file), rules_(rules) {}
  Metadata metadata;
  Metadata weight_map;
  bool has_weight_map = false;

  bool start_object(std::size_t) override {
    if (depth_ == 2 || (depth_ == 1 && part_ == nullptr)) unexpected("an object");
    ++depth_;
    return true;
  }
  bool end_object() override {
    --depth_;
    return true;
  }
  bool end_array() override { return false; }  // start_array is refused
  bool key(string_t& name) override {
    key_ = name;
    if (depth_ == 1) {
      if (name != "metadata" && name != "weight_map") {
        fail(file_, "found key " + in_quotes(name) + "; expected metadata and weight_map");
      }
      part_ = name == "metadata" ? &metadata : &weight_map;
      bool& seen = name == "metadata" ? has_metadata_ : has_weight_map;
      if (seen) fail(file_, "key '" + name + "' appears twice");
      seen = true;
      return true;
    }
    const auto [entry, inserted] = part_->try_emplace(name);
    if (!inserted) fail(file_, "key " + in_quotes(name) + " appears twice");
    value_ = &entry->second;
    return true;
  }
  bool string(string_t& value) override {
    if (depth_ != 2) unexpected("the string " + in_quotes(value));
    *value_ = std::move(value);
    return true;
  }
  // Hugging Face tools add a numeric total_size to the index (never to the shards).
  bool number_unsigned(number_unsigned_t value) override {
    if (!is_number_of_checkpoint() && (depth_ != 2 || part_ != &metadata || key_ != "total_size")) {
      unexpected(fmt::format("the number {}", value));
    }
    return true;
  }
  bool number_float(number_float_t value, const string_t& text) override {
    return is_number_of_checkpoint() || StrictSax::number_float(value, text);
  }

 private:
  [[nodiscard]] bool is_number_of_checkpoint() const {
    return rules_ == Rules::checkpoint && depth_ == 2 && part_ == &metadata;
  }
  [[nodiscard]] std::string where() const override {
    return depth_ == 0 ? "index" : "key " + in_quotes(key_);
  }
  [[nodiscard]] std::string wanted() const override {
    return depth_ < 2 ? "an object" : "a string";
  }

  Rules rules_;
  int depth_ = 0;
  bool has_metadata_ = false;
  std::string key_;
  Metadata* part_ = nullptr;
  std::string* value_ = nullptr;
};

void parse_sax(std::span<const std::byte> text, StrictSax* reader) {
  const char* begin = reinterpret_cast<const char*>(text.data());
  json::sax_parse(begin, begin + text.size(), reader);
}

// Sizes, bounds and order of all tensors of one file. The data must be covered exactly: a hole
// hides bytes that nobody checks, an overlap lets one tensor stand in for another.
void check_layout(const std::map<std::string, Declared>& tensors, std::uint64_t data_bytes,
                  const std::string& file) {
  using Entry = std::map<std::string, Declared>::value_type;
  std::vector<const Entry*> order;
  order.reserve(tensors.size());
  for (const Entry& entry : tensors) {
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
    order.push_back(&entry);
    if (!tensor.other_dtype.empty()) continue;
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
    fail(file, fmt::format("{} bytes of data after the header; the tensors cover {}", data_bytes,
                           covered));
  }
}

struct ParsedFile {
  Metadata metadata;
  std::map<std::string, TensorView> tensors;
  std::map<std::string, std::string> other_dtypes;
};

ParsedFile parse_file(std::span<const std::byte> bytes, const std::string& file, Rules rules) {
  if (bytes.size() < kLengthBytes) {
    fail(file, fmt::format("{} bytes; expected a safetensors file, which begins with an 8-byte "
                           "header length",
                           bytes.size()));
  }
  std::uint64_t header_bytes = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i) {
    header_bytes |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  }
  if (header_bytes > kMaxHeaderBytes) {
    fail(file, fmt::format("header of {} bytes; expected at most {} (is this a safetensors file?)",
                           header_bytes, kMaxHeaderBytes));
  }
  if (header_bytes > bytes.size() - kLengthBytes) {
    fail(file, fmt::format("header of {} bytes; the file has only {} after its header length",
                           header_bytes, bytes.size() - kLengthBytes));
  }
  const auto header = bytes.subspan(kLengthBytes, header_bytes);
  if (header.empty() || header[0] != std::byte{'{'}) fail(file, "header does not begin with '{'");
  HeaderReader reader(file, rules);
  parse_sax(header, &reader);
  const auto data = bytes.subspan(kLengthBytes + header_bytes);
  check_layout(reader.tensors, data.size(), file);

  ParsedFile parsed;
  parsed.metadata = std::move(reader.metadata);
  for (auto it = reader.tensors.begin(); it != reader.tensors.end();) {
    auto node = reader.tensors.extract(it++);  // frees what has been read: memory never doubles
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
      fail(file,
           "metadata key " + in_quotes(key) + " is missing; the index has " + in_quotes(value));
    }
    if (found->second != value) {
      fail(file, "metadata key " + in_quotes(key) + " is " + in_quotes(found->second) +
                     "; the index has " + in_quotes(value));
    }
  }
  for (const auto& [key, value] : shard) {
    if (!index.contains(key)) {
      fail(file, "metadata key " + in_quotes(key) + " is " + in_quotes(value) +
                     "; the index does not have it");
    }
  }
}

struct Opened : CheckpointTensors {
  Metadata metadata;
};

Opened open_files(const fs::path& path, Rules rules) {
  std::error_code ignored;
  fs::path index = path;
  const std::string name = path.string();
  bool sharded = name.size() > kIndexSuffix.size() && name.ends_with(kIndexSuffix);
  if (!sharded && !fs::exists(path, ignored)) {
    index += kIndexSuffix;
    sharded = fs::exists(index, ignored);
  }
  Opened set;
  if (!sharded) {
    const MappedFile mapping = map_file(path);
    ParsedFile parsed = parse_file(mapping.bytes, path_text(path), rules);
    set.metadata = std::move(parsed.metadata);
    set.tensors = std::move(parsed.tensors);
    set.other_dtypes = std::move(parsed.other_dtypes);
    set.files.push_back(path);
    set.owners.push_back(mapping.owner);
    return set;
  }

  const std::string index_name = path_text(index);
  IndexReader reader(index_name, rules);
  {
    const MappedFile mapping = map_file(index);
    if (mapping.bytes.size() > kMaxHeaderBytes) {
      fail(index_name, fmt::format("{} bytes; expected an index of at most {}",
                                   mapping.bytes.size(), kMaxHeaderBytes));
    }
    parse_sax(mapping.bytes, &reader);
  }
  reader.metadata.erase("total_size");
  if (!reader.has_weight_map || reader.weight_map.empty()) {
    fail(index_name, "weight_map is missing or empty; expected the shard of every tensor");
  }
  set.files.push_back(index);
  std::set<std::string_view> shards;
  for (const auto& [tensor, shard] : reader.weight_map) {
    // A shard lies beside its index; anything else would let an index point anywhere.
    if (shard.empty() || shard == "." || shard == ".." || shard.find('/') != std::string::npos ||
        shard.find('\0') != std::string::npos) {
      fail_tensor(
          index_name, tensor,
          "shard is " + in_quotes(shard) + "; expected the name of a file beside the index");
    }
    shards.insert(shard);
  }
  for (const std::string_view shard : shards) {
    const fs::path shard_path = index.parent_path() / shard;
    const std::string shard_name = path_text(shard_path);
    std::error_code error;
    if (!fs::exists(shard_path, error)) {
      fail(shard_name, "shard is missing; " + index_name + " names it");
    }
    const MappedFile mapping = map_file(shard_path);
    ParsedFile parsed = parse_file(mapping.bytes, shard_name, rules);
    if (rules == Rules::trace) check_same_metadata(reader.metadata, parsed.metadata, shard_name);
    const auto check_place = [&](const std::string& tensor) {
      const auto expected = reader.weight_map.find(tensor);
      if (expected == reader.weight_map.end()) {
        fail_tensor(shard_name, tensor, "is in this shard; the index does not have it");
      }
      if (expected->second != shard) {
        fail_tensor(shard_name, tensor,
                    "is in this shard; the index puts it into " + in_quotes(expected->second));
      }
    };
    for (const auto& entry : parsed.tensors) check_place(entry.first);
    for (const auto& entry : parsed.other_dtypes) check_place(entry.first);
    set.tensors.merge(parsed.tensors);
    set.other_dtypes.merge(parsed.other_dtypes);
    set.files.push_back(shard_path);
    set.owners.push_back(mapping.owner);
  }
  for (const auto& [tensor, shard] : reader.weight_map) {
    if (!set.tensors.contains(tensor) && !set.other_dtypes.contains(tensor)) {
      fail_tensor(path_text(index.parent_path() / shard), tensor,
                  "is missing; the index puts it into this shard");
    }
  }
  set.metadata = std::move(reader.metadata);
  return set;
}

}  // namespace

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) out += ", ";
    if (i == 8) {
      out += "...";
      break;
    }
    out += std::to_string(shape[i]);
  }
  return out + "]";
}

bool tensor_size(Dtype dtype, const std::vector<std::int64_t>& shape, std::int64_t* size_bytes) {
  std::int64_t size = dtype_bytes(dtype);
  for (const std::int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(size, extent, &size)) return false;
  }
  *size_bytes = size;
  return true;
}

std::string_view dtype_name(Dtype dtype) { return info_of(dtype).name; }
std::int64_t dtype_bytes(Dtype dtype) { return info_of(dtype).bytes; }

std::int64_t TensorView::elements() const {
  return static_cast<std::int64_t>(bytes.size()) / dtype_bytes(dtype);
}

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

const TensorView* TensorSet::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

void TensorSet::release(const TensorView& tensor) const {
  if (mapped_) release_pages(tensor.bytes);
}

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
  // Text joined by hand: the order is that of the declaration.
  std::string text = "{";
  const auto add = [&text](std::string_view name, const json& value) {
    const auto dump = [](const json& any) {
      return any.dump(-1, ' ', false, json::error_handler_t::replace);
    };
    text += (text.size() > 1 ? "," : "") + dump(json(name)) + ":" + dump(value);
  };
  if (!metadata.empty()) add(kMetadataName, metadata);
  std::int64_t offset = 0;
  for (const Entry& entry : entries) {
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
    add(entry.name, {{"dtype", dtype_name(entry.dtype)},
                     {"shape", entry.shape},
                     {"data_offsets", {offset, end}}});
    offset = end;
  }
  text += "}";
  const std::uint64_t unpadded = kLengthBytes + text.size();
  text.append((kDataAlignment - unpadded % kDataAlignment) % kDataAlignment, ' ');
  if (text.size() > kMaxHeaderBytes) {
    throw Error(fmt::format("{}: a header of {} bytes; readers accept {}",
                            path_text(impl_->file.path()), text.size(), kMaxHeaderBytes),
                1);
  }
  const std::uint64_t data_start = kLengthBytes + text.size();
  for (auto& [name, place] : impl_->places) place.offset += data_start;

  std::array<std::byte, kLengthBytes> length{};
  for (std::size_t i = 0; i < kLengthBytes; ++i) {
    length[i] = static_cast<std::byte>((text.size() >> (8 * i)) & 0xFFU);
  }
  impl_->file.resize(data_start + static_cast<std::uint64_t>(offset));
  impl_->file.write(length, 0);
  impl_->file.write(std::as_bytes(std::span(text)), kLengthBytes);
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
