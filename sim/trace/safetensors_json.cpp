// SPDX-License-Identifier: Apache-2.0
#include "sim/trace/safetensors_json.h"

#include <array>
#include <limits>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/text.h"

namespace kvspan {

using nlohmann::json;

void fail_file(const std::string& file, const std::string& what) {
  throw TraceError(file + ": " + what);
}

void fail_tensor(const std::string& file, std::string_view tensor, const std::string& what) {
  fail_file(file, "tensor " + in_quotes(tensor) + ": " + what);
}

namespace {

constexpr std::size_t kMaxDimensions = 32;

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
    fail_file(file_, fmt::format("{} at byte {} of the JSON",
                                 overflow ? "number out of range" : "invalid JSON", position));
  }

 protected:
  [[noreturn]] void unexpected(const std::string& found) const {
    fail_file(file_, where() + ": found " + found + "; expected " + wanted());
  }
  [[nodiscard]] virtual std::string where() const = 0;
  [[nodiscard]] virtual std::string wanted() const = 0;

  std::string file_;
};

class HeaderReader final : public StrictSax {
 public:
  HeaderReader(const std::string& file, Rules rules) : StrictSax(file), rules_(rules) {}
  SafetensorsHeader header;

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
      name_ = name;
      begin_entry(name);
    } else if (in_metadata_) {
      const auto [entry, inserted] = header.metadata.try_emplace(name);
      if (!inserted) fail_file(file_, "metadata key " + in_quotes(name) + " appears twice");
      value_ = &entry->second;
      metadata_key_ = name;
    } else {
      begin_field(name);
    }
    return true;
  }
  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) {
      *value_ = std::move(value);
      return true;
    }
    if (depth_ != 2 || field_ != Field::dtype) unexpected("the string " + in_quotes(value));
    const std::optional<Dtype> known = dtype_of(value);
    if (known) {
      tensor_->dtype = *known;
    } else if (rules_ == Rules::checkpoint && !value.empty()) {
      tensor_->other_dtype = std::move(value);
    } else {
      fail_tensor(file_, name_, "dtype is " + in_quotes(value) + "; expected " + dtype_names());
    }
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
  void begin_entry(const std::string& name) {
    in_metadata_ = name == kMetadataName;
    if (in_metadata_) {
      if (has_metadata_) fail_file(file_, "'__metadata__' appears twice in the header");
      has_metadata_ = true;
      return;
    }
    const auto [entry, inserted] = header.tensors.try_emplace(name);
    if (!inserted) fail_tensor(file_, name, "the name appears twice in the header");
    tensor_ = &entry->second;
  }
  void begin_field(const std::string& name) {
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
  }
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

class IndexReader final : public StrictSax {
 public:
  IndexReader(const std::string& file, Rules rules) : StrictSax(file), rules_(rules) {}
  SafetensorsIndex index;
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
        fail_file(file_, "found key " + in_quotes(name) + "; expected metadata and weight_map");
      }
      part_ = name == "metadata" ? &index.metadata : &index.weight_map;
      bool& seen = name == "metadata" ? has_metadata_ : has_weight_map;
      if (seen) fail_file(file_, "key '" + name + "' appears twice");
      seen = true;
      return true;
    }
    const auto [entry, inserted] = part_->try_emplace(name);
    if (!inserted) fail_file(file_, "key " + in_quotes(name) + " appears twice");
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
    if (!is_number_of_checkpoint() &&
        (depth_ != 2 || part_ != &index.metadata || key_ != "total_size")) {
      unexpected(fmt::format("the number {}", value));
    }
    return true;
  }
  bool number_float(number_float_t value, const string_t& text) override {
    return is_number_of_checkpoint() || StrictSax::number_float(value, text);
  }

 private:
  [[nodiscard]] bool is_number_of_checkpoint() const {
    return rules_ == Rules::checkpoint && depth_ == 2 && part_ == &index.metadata;
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

std::string dump(const json& any) {
  return any.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace

SafetensorsHeader parse_header(std::span<const std::byte> text, const std::string& file,
                               Rules rules) {
  HeaderReader reader(file, rules);
  parse_sax(text, &reader);
  return std::move(reader.header);
}

std::string header_text(const Metadata& metadata,
                        const std::vector<SafetensorsWriter::Entry>& entries,
                        const std::vector<std::int64_t>& data_offsets) {
  // Joined by hand: the order is that of the declaration.
  std::string text = "{";
  const auto add = [&text](std::string_view name, const json& value) {
    text += (text.size() > 1 ? "," : "") + dump(json(name)) + ":" + dump(value);
  };
  if (!metadata.empty()) add(kMetadataName, metadata);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    add(entries[i].name, {{"dtype", dtype_name(entries[i].dtype)},
                          {"shape", entries[i].shape},
                          {"data_offsets", {data_offsets[i], data_offsets[i + 1]}}});
  }
  return text + "}";
}

SafetensorsIndex parse_index(std::span<const std::byte> text, const std::string& file,
                             Rules rules) {
  IndexReader reader(file, rules);
  parse_sax(text, &reader);
  if (!reader.has_weight_map || reader.index.weight_map.empty())
    fail_file(file, "weight_map is missing or empty; expected the shard of every tensor");
  reader.index.metadata.erase("total_size");
  return std::move(reader.index);
}

}  // namespace kvspan
