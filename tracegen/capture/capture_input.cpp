// SPDX-License-Identifier: Apache-2.0
#include "tracegen/capture/capture_input.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/trace/safetensors.h"

namespace kvspan::tracegen {
namespace {

namespace fs = std::filesystem;

std::vector<std::int32_t> ids_of_tensors(const fs::path& path) {
  const TensorSet set = TensorSet::open(path);
  const TensorView* ids = set.find("token_ids");
  if (ids == nullptr || ids->shape.size() != 1 ||
      (ids->dtype != Dtype::i32 && ids->dtype != Dtype::i64)) {
    throw CheckpointError(path.string() +
                          ": expected a tensor 'token_ids', I32 or I64 with one dimension");
  }
  std::vector<std::int32_t> out(static_cast<std::size_t>(ids->shape[0]));
  const auto width = static_cast<std::size_t>(dtype_bytes(ids->dtype));
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::int64_t id = 0;  // little-endian; an I32 leaves the upper half
    std::memcpy(&id, ids->bytes.data() + i * width, width);
    if (id < 0 || id > std::numeric_limits<std::int32_t>::max())
      throw CheckpointError(fmt::format("{}: token_ids[{}] is {}", path.string(), i, id));
    out[i] = static_cast<std::int32_t>(id);
  }
  return out;
}

bool holds_tensors(const fs::path& path) {
  const std::string name = path.string();
  return name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
}

constexpr std::string_view kBetween = " \t\r\n,";

// The text between the brackets of a JSON list, or all of it.
std::string_view without_brackets(std::string_view text) {
  const std::size_t first = text.find_first_not_of(kBetween);
  const std::size_t last = text.find_last_not_of(kBetween);
  if (first != std::string_view::npos && last > first && text[first] == '[' && text[last] == ']')
    return text.substr(first + 1, last - first - 1);
  return text;
}

}  // namespace

std::string read_text(const fs::path& path) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) throw CheckpointError(path.string() + ": is a folder");
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw CheckpointError(
        fmt::format("{}: cannot be read ({})", path.string(), std::strerror(errno)));
  }
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (text.empty()) throw CheckpointError(path.string() + ": is empty");
  return text;
}

std::vector<fs::path> token_id_files(const fs::path& path) {
  return holds_tensors(path) ? TensorSet::open(path).files() : std::vector<fs::path>{path};
}

std::vector<std::int32_t> read_token_ids(const fs::path& path) {
  if (holds_tensors(path)) return ids_of_tensors(path);
  const std::string name = path.string();
  const std::string file = read_text(path);
  const std::string_view text = without_brackets(file);
  std::vector<std::int32_t> out;
  for (std::size_t at = text.find_first_not_of(kBetween); at != std::string_view::npos;
       at = text.find_first_not_of(kBetween, at)) {
    const std::size_t end = std::min(text.find_first_of(kBetween, at), text.size());
    const std::string_view word = text.substr(at, end - at);
    std::int32_t id = 0;
    const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc{} || stop != word.data() + word.size() || id < 0) {
      std::string shown(word.substr(0, 20));
      std::replace_if(
          shown.begin(), shown.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
      throw CheckpointError(
          fmt::format("{}: token {} is '{}', not a token id; expected a JSON list, numbers with "
                      "spaces between, or a .safetensors file with token_ids",
                      name, out.size(), shown));
    }
    out.push_back(id);
    at = end;
  }
  if (out.empty()) throw CheckpointError(name + ": holds no token ids");
  return out;
}

std::string provenance(const std::string& weights, bool cuda, bool half) {
  return fmt::format("kvspan capture, {} forward pass{} of {} weights",
                     half ? "BF16 (attention F16)" : "fp32", cuda ? " on a GPU" : "", weights);
}

Span parse_span(const std::string& option, std::span<const std::string> pieces) {
  const std::size_t equals = option.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == option.size()) {
    throw ConfigError(
        fmt::format("--span: found '{}', expected NAME=TEXT or NAME=BEGIN:END", option));
  }
  Span out{option.substr(0, equals), 0, 0};
  if (const std::string shown = valid_utf8(out.name); shown != out.name)
    throw ConfigError(fmt::format("--span: the name '{}' is not valid UTF-8", shown));
  const std::string value = option.substr(equals + 1);
  const char* end = value.data() + value.size();
  const auto begin = std::from_chars(value.data(), end, out.begin);
  if (begin.ec == std::errc{} && begin.ptr != end && *begin.ptr == ':' &&
      std::from_chars(begin.ptr + 1, end, out.end).ptr == end && begin.ptr + 1 != end) {
    return out;
  }
  std::string text;
  for (const std::string& piece : pieces) text += piece;
  const std::size_t found = text.find(value);
  if (found == std::string::npos) {
    throw ConfigError(fmt::format("--span {}: '{}' does not stand in the {} tokens of the text",
                                  out.name, value, pieces.size()));
  }
  std::size_t at = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const std::size_t next = at + pieces[i].size();
    if (next > found && at <= found) out.begin = static_cast<std::int64_t>(i);
    if (next >= found + value.size() && at < found + value.size())
      out.end = static_cast<std::int64_t>(i) + 1;
    at = next;
  }
  return out;
}

}  // namespace kvspan::tracegen
