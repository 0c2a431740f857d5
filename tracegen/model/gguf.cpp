// SPDX-License-Identifier: Apache-2.0
#include "tracegen/model/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/trace/safetensors.h"
#include "tracegen/model/gguf_cursor.h"

namespace kvspan::tracegen {

namespace {

using gguf::Cursor;
using gguf::info_of;
using gguf::kTypes;
using gguf::quoted;

constexpr std::uint64_t kDefaultAlignment = 32;
constexpr std::uint32_t kMaxDimensions = 4;
constexpr std::uint64_t kLargest = std::numeric_limits<std::int64_t>::max();
// The least that one metadata key, and one tensor, take in the file: bounds on their numbers.
constexpr std::uint64_t kLeastKeyBytes = 8 + 4 + 1;
constexpr std::uint64_t kLeastTensorBytes = 8 + 4 + 4 + 8;

struct TensorType {
  std::uint32_t number;
  std::string_view name;
};
// Those without a WeightType are here so that messages can name them.
constexpr std::array<TensorType, 34> kTensorTypes{
    {{0, "F32"},     {1, "F16"},    {2, "Q4_0"},     {3, "Q4_1"},    {6, "Q5_0"},     {7, "Q5_1"},
     {8, "Q8_0"},    {9, "Q8_1"},   {10, "Q2_K"},    {11, "Q3_K"},   {12, "Q4_K"},    {13, "Q5_K"},
     {14, "Q6_K"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"},
     {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},   {23, "IQ4_XS"}, {24, "I8"},      {25, "I16"},
     {26, "I32"},    {27, "I64"},   {28, "F64"},     {29, "IQ1_M"},  {30, "BF16"},    {34, "TQ1_0"},
     {35, "TQ2_0"},  {39, "MXFP4"}, {40, "NVFP4"},   {41, "Q1_0"}}};

std::string_view tensor_type_name(std::uint32_t number) {
  const auto* found = std::find_if(kTensorTypes.begin(), kTensorTypes.end(),
                                   [&](const TensorType& type) { return type.number == number; });
  return found == kTensorTypes.end() ? "unknown" : found->name;
}

Gguf::Type read_type(Cursor& in, const std::string& what) {
  const auto number = in.number<std::uint32_t>(what);
  if (number >= kTypes.size())
    in.fail(fmt::format("{} has value type {}; expected 0 to {}", what, number, kTypes.size() - 1));
  return static_cast<Gguf::Type>(number);
}

Gguf::Value read_value(Cursor& in, std::span<const std::byte> file, const std::string& what) {
  Gguf::Value value;
  value.type = read_type(in, what);
  if (value.type == Gguf::Type::array) {
    value.is_array = true;
    value.type = read_type(in, what);
    if (value.type == Gguf::Type::array)
      in.fail(what + " is an array of arrays, which is not read");
    const std::uint64_t least = std::max<std::uint64_t>(info_of(value.type).bytes, 1);
    value.count = in.count(value.type == Gguf::Type::string ? 8 : least, "elements of " + what);
  }
  const std::uint64_t begin = in.at();
  if (value.type == Gguf::Type::string) {
    for (std::uint64_t i = 0; i < value.count; ++i) static_cast<void>(in.text(what));
  } else {
    static_cast<void>(in.take(value.count * info_of(value.type).bytes, what));
  }
  value.bytes = file.subspan(begin, in.at() - begin);
  return value;
}

struct PlacedTensor {
  std::string_view name;
  Gguf::Tensor tensor;
  std::uint64_t offset = 0;  // in the data
  std::uint64_t bytes = 0;   // 0 without a type
};

PlacedTensor read_tensor(Cursor& in, std::uint64_t alignment) {
  PlacedTensor placed;
  placed.name = in.name("a tensor");
  const std::string what = "tensor " + quoted(placed.name);
  const auto dimensions = in.number<std::uint32_t>(what);
  if (dimensions == 0 || dimensions > kMaxDimensions) {
    in.fail(
        fmt::format("{} has {} dimensions; expected 1 to {}", what, dimensions, kMaxDimensions));
  }
  std::uint64_t elements = 1;
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    const auto extent = in.number<std::uint64_t>(what);
    if (extent == 0 || __builtin_mul_overflow(elements, extent, &elements) ||
        elements > kLargest / 8) {
      in.fail(
          fmt::format("{} has a dimension of {}; expected one > 0 that fits a file", what, extent));
    }
    placed.tensor.shape.insert(placed.tensor.shape.begin(), static_cast<std::int64_t>(extent));
  }
  const auto type = in.number<std::uint32_t>(what);
  placed.tensor.type_name = tensor_type_name(type);
  placed.tensor.type = weight_type_named(placed.tensor.type_name);
  placed.offset = in.number<std::uint64_t>(what);
  if (placed.offset % alignment != 0) {
    in.fail(fmt::format("{} begins at byte {} of the data; expected a multiple of the alignment {}",
                        what, placed.offset, alignment));
  }
  if (placed.tensor.type) {
    const std::int64_t block = weight_block(*placed.tensor.type);
    if (placed.tensor.shape.back() % block != 0) {
      in.fail(fmt::format("{} has rows of {} elements; expected a multiple of {} for {}", what,
                          placed.tensor.shape.back(), block, placed.tensor.type_name));
    }
    placed.bytes = elements / static_cast<std::uint64_t>(block) *
                   static_cast<std::uint64_t>(weight_block_bytes(*placed.tensor.type));
  }
  return placed;
}

// Cuts the data into the tensors, of which no two share a byte.
void place_tensors(Cursor& in, std::span<const std::byte> data, std::vector<PlacedTensor>& placed) {
  std::sort(placed.begin(), placed.end(),
            [](const PlacedTensor& a, const PlacedTensor& b) { return a.offset < b.offset; });
  std::uint64_t free = 0;
  for (PlacedTensor& p : placed) {
    const std::string what = "tensor " + quoted(p.name);
    if (p.offset > data.size() || p.bytes > data.size() - p.offset) {
      in.fail(
          fmt::format("{} has {} bytes at byte {} of the data, which has {}: the file is cut off",
                      what, p.bytes, p.offset, data.size()));
    }
    if (p.offset < free)
      in.fail(
          fmt::format("{} begins at byte {} of the data, inside another tensor", what, p.offset));
    free = p.offset + p.bytes;
    p.tensor.bytes = data.subspan(p.offset, p.bytes);
  }
}

}  // namespace

Gguf Gguf::open_one(const std::filesystem::path& path) {
  try {
    const MappedFile file = map_file(path);
    Gguf gguf = from_bytes(file.bytes, path.string());
    gguf.files_ = {path};
    gguf.owners_ = {file.owner};
    return gguf;
  } catch (const TraceError& error) {  // of map_file
    throw CheckpointError(error.what());
  }
}

Gguf Gguf::from_bytes(std::span<const std::byte> bytes, const std::string& name) {
  static_assert(std::endian::native == std::endian::little);
  Gguf gguf;
  gguf.name_ = one_line(name);
  Cursor in(bytes, gguf.name_);
  const auto magic = in.take(4, "the magic number of a GGUF file");
  if (std::memcmp(magic.data(), "GGUF", 4) != 0) {
    in.fail(fmt::format(
        "begins with {}; expected a GGUF file, or a folder with config.json and safetensors",
        quoted({reinterpret_cast<const char*>(magic.data()), magic.size()})));
  }
  const auto version = in.number<std::uint32_t>("the version");
  if (version != 2 && version != 3) {
    const bool swapped = (version & 0xFFFFU) == 0;
    in.fail(swapped ? std::string("is big-endian; expected a little-endian GGUF file")
                    : fmt::format("is GGUF version {}; expected 2 or 3", version));
  }
  const auto tensors = in.number<std::uint64_t>("the number of tensors");
  const std::uint64_t keys = in.count(kLeastKeyBytes, "metadata keys");
  for (std::uint64_t i = 0; i < keys; ++i) {
    const std::string_view key = in.name("a metadata key");
    const std::string what = "metadata key " + quoted(key);
    const Value value = read_value(in, bytes, what);
    if (!gguf.metadata_.try_emplace(std::string(key), value).second)
      in.fail(what + " appears twice");
  }
  const auto alignment = static_cast<std::uint64_t>(
      gguf.integer("general.alignment").value_or(std::int64_t{kDefaultAlignment}));
  if (!std::has_single_bit(alignment) || alignment > (1U << 20U)) {
    gguf.fail("general.alignment", fmt::format("is {}", alignment), "a power of two up to 2^20");
  }
  if (tensors > in.left() / kLeastTensorBytes) {
    in.fail(fmt::format("the header announces {} tensors; the file has only {} more bytes", tensors,
                        in.left()));
  }
  std::vector<PlacedTensor> placed;
  for (std::uint64_t i = 0; i < tensors; ++i) placed.push_back(read_tensor(in, alignment));
  const std::uint64_t padding = (alignment - in.at() % alignment) % alignment;
  place_tensors(in, bytes.subspan(in.at() + std::min(padding, in.left())), placed);
  for (PlacedTensor& p : placed) {
    if (!gguf.tensors_.try_emplace(std::string(p.name), std::move(p.tensor)).second)
      in.fail("tensor " + quoted(p.name) + " appears twice");
  }
  return gguf;
}

const Gguf::Value* Gguf::find(std::string_view key) const {
  const auto found = metadata_.find(key);
  return found == metadata_.end() ? nullptr : &found->second;
}

void Gguf::fail(std::string_view key, const std::string& found, const std::string& expected) const {
  constexpr std::size_t kMostFound = 300;  // it may hold any value of the file
  throw CheckpointError(fmt::format("{}: metadata key {} {}; expected {}", name_, quoted(key),
                                    one_line(std::string_view(found).substr(0, kMostFound)),
                                    expected));
}

}  // namespace kvspan::tracegen
