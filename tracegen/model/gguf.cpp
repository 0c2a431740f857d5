// SPDX-License-Identifier: Apache-2.0
#include "tracegen/model/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstring>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/trace/safetensors.h"

namespace kvspan::tracegen {

namespace {

constexpr std::uint64_t kDefaultAlignment = 32;
constexpr std::uint32_t kMaxDimensions = 4;
constexpr std::uint64_t kMaxName = 65535;
constexpr std::uint64_t kLargest = std::numeric_limits<std::int64_t>::max();
// The least that one metadata key, and one tensor, take in the file: bounds on their numbers.
constexpr std::uint64_t kLeastKeyBytes = 8 + 4 + 1;
constexpr std::uint64_t kLeastTensorBytes = 8 + 4 + 4 + 8;

// A name from the file, which may be any bytes, in a message.
std::string quoted(std::string_view name) { return in_quotes(valid_utf8(name)); }

struct TypeInfo {
  std::string_view name;
  std::uint64_t bytes;  // 0: of no fixed size
};
constexpr std::array<TypeInfo, 13> kTypes{{{"u8", 1},
                                           {"i8", 1},
                                           {"u16", 2},
                                           {"i16", 2},
                                           {"u32", 4},
                                           {"i32", 4},
                                           {"f32", 4},
                                           {"boolean", 1},
                                           {"string", 0},
                                           {"array", 0},
                                           {"u64", 8},
                                           {"i64", 8},
                                           {"f64", 8}}};
const TypeInfo& info_of(Gguf::Type type) { return kTypes[static_cast<std::size_t>(type)]; }

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

std::optional<WeightType> weight_type(std::string_view name) {
  for (const WeightType type :
       {WeightType::f32, WeightType::f16, WeightType::bf16, WeightType::q8_0, WeightType::q4_0,
        WeightType::q4_1, WeightType::q5_0, WeightType::q5_1, WeightType::q4_k, WeightType::q5_k,
        WeightType::q6_k}) {
    if (weight_type_name(type) == name) return type;
  }
  return std::nullopt;
}

// Reads the file from front to back; nothing is read past its end.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& file) : bytes_(bytes), file_(file) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw CheckpointError(file_ + ": " + what);
  }
  [[nodiscard]] std::uint64_t at() const { return at_; }
  [[nodiscard]] std::uint64_t left() const { return bytes_.size() - at_; }

  std::span<const std::byte> take(std::uint64_t count, const std::string& what) {
    if (count > left()) {
      fail(fmt::format("{} needs {} bytes at byte {}; the file has {} more", what, count, at_,
                       left()));
    }
    const auto taken = bytes_.subspan(at_, count);
    at_ += count;
    return taken;
  }
  template <typename T>
  T number(const std::string& what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }
  std::string_view text(const std::string& what) {
    const auto length = number<std::uint64_t>(what);
    const auto taken = take(length, what);
    return {reinterpret_cast<const char*>(taken.data()), taken.size()};
  }
  std::string_view name(const std::string& what) {
    const std::string_view name = text(what);
    if (name.empty() || name.size() > kMaxName) {
      fail(fmt::format("{} has a name of {} bytes; expected 1 to {}", what, name.size(), kMaxName));
    }
    return name;
  }
  // How many of something follow, each of at least `least` bytes.
  std::uint64_t count(std::uint64_t least, const std::string& what) {
    const auto count = number<std::uint64_t>("the number of " + what);
    if (count > left() / least) {
      fail(fmt::format("the header announces {} {}; the file has only {} more bytes", count, what,
                       left()));
    }
    return count;
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& file_;
  std::uint64_t at_ = 0;
};

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
  placed.tensor.type = weight_type(placed.tensor.type_name);
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

// Calls use(value) with the number that `type` puts at `at`.
template <typename Use>
void with_number(Gguf::Type type, const std::byte* at, Use use) {
  const auto read = [&](auto value) {
    std::memcpy(&value, at, sizeof(value));
    use(value);
  };
  switch (type) {
    case Gguf::Type::u8:
      return read(std::uint8_t{});
    case Gguf::Type::i8:
      return read(std::int8_t{});
    case Gguf::Type::u16:
      return read(std::uint16_t{});
    case Gguf::Type::i16:
      return read(std::int16_t{});
    case Gguf::Type::u32:
      return read(std::uint32_t{});
    case Gguf::Type::i32:
      return read(std::int32_t{});
    case Gguf::Type::u64:
      return read(std::uint64_t{});
    case Gguf::Type::i64:
      return read(std::int64_t{});
    case Gguf::Type::f32:
      return read(float{});
    case Gguf::Type::f64:
      return read(double{});
    case Gguf::Type::boolean:
    case Gguf::Type::string:
    case Gguf::Type::array:
      return;
  }
}

bool is_integer(Gguf::Type type) {
  return info_of(type).bytes > 0 && type != Gguf::Type::boolean && type != Gguf::Type::f32 &&
         type != Gguf::Type::f64;
}
bool is_real(Gguf::Type type) { return type == Gguf::Type::f32 || type == Gguf::Type::f64; }

std::string described(const Gguf::Value& value) {
  return value.is_array
             ? fmt::format("is an array of {} of type {}", value.count, info_of(value.type).name)
             : fmt::format("is of type {}", info_of(value.type).name);
}

}  // namespace

Gguf Gguf::open(const std::filesystem::path& path) {
  try {
    const MappedFile file = map_file(path);
    Gguf gguf = from_bytes(file.bytes, path.string());
    gguf.owner_ = file.owner;
    return gguf;
  } catch (const TraceError& error) {  // of map_file
    throw CheckpointError(error.what());
  }
}

Gguf Gguf::from_bytes(std::span<const std::byte> bytes, const std::string& name) {
  static_assert(std::endian::native == std::endian::little);
  Gguf gguf;
  gguf.name_ = one_line(valid_utf8(name));
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
  throw CheckpointError(
      fmt::format("{}: metadata key {} {}; expected {}", name_, quoted(key),
                  one_line(valid_utf8(std::string_view(found).substr(0, kMostFound))), expected));
}

std::optional<std::string_view> Gguf::text(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || value->type != Type::string) fail(key, described(*value), "a string");
  return std::string_view(reinterpret_cast<const char*>(value->bytes.data()) + 8,
                          value->bytes.size() - 8);
}

namespace {

// Elements of an integer value; nullopt past 63 bits.
std::optional<std::int64_t> integer_at(const Gguf::Value& value, std::uint64_t index) {
  std::optional<std::int64_t> out;
  with_number(value.type, value.bytes.data() + index * info_of(value.type).bytes, [&](auto number) {
    if constexpr (std::integral<decltype(number)>) {
      if (std::in_range<std::int64_t>(number)) out = static_cast<std::int64_t>(number);
    }
  });
  return out;
}

double real_at(const Gguf::Value& value, std::uint64_t index) {
  double out = 0;
  with_number(value.type, value.bytes.data() + index * info_of(value.type).bytes,
              [&](auto number) { out = static_cast<double>(number); });
  return out;
}

}  // namespace

std::optional<std::int64_t> Gguf::integer(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || !is_integer(value->type)) fail(key, described(*value), "an integer");
  const auto number = integer_at(*value, 0);
  if (!number) fail(key, "is past 63 bits", "a smaller integer");
  return number;
}

std::optional<double> Gguf::real(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || (!is_real(value->type) && !is_integer(value->type)))
    fail(key, described(*value), "a number");
  return real_at(*value, 0);
}

std::optional<bool> Gguf::flag(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || value->type != Type::boolean || value->bytes[0] > std::byte{1})
    fail(key, described(*value), "a boolean of 0 or 1");
  return value->bytes[0] == std::byte{1};
}

std::optional<std::vector<std::string_view>> Gguf::texts(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array || value->type != Type::string)
    fail(key, described(*value), "an array of strings");
  std::vector<std::string_view> out;
  out.reserve(value->count);
  Cursor in(value->bytes, name_);
  for (std::uint64_t i = 0; i < value->count; ++i) out.push_back(in.text("a string"));
  return out;
}

std::optional<std::vector<std::int64_t>> Gguf::integers(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array || !is_integer(value->type))
    fail(key, described(*value), "an array of integers");
  std::vector<std::int64_t> out;
  out.reserve(value->count);
  for (std::uint64_t i = 0; i < value->count; ++i) {
    const auto number = integer_at(*value, i);
    if (!number) fail(key, "holds an integer past 63 bits", "smaller ones");
    out.push_back(*number);
  }
  return out;
}

std::optional<std::vector<float>> Gguf::reals(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array || !is_real(value->type))
    fail(key, described(*value), "an array of floating-point numbers");
  std::vector<float> out;
  out.reserve(value->count);
  for (std::uint64_t i = 0; i < value->count; ++i)
    out.push_back(static_cast<float>(real_at(*value, i)));
  return out;
}

}  // namespace kvspan::tracegen
