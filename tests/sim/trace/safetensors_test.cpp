// SPDX-License-Identifier: Apache-2.0
#include "sim/trace/safetensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <stdexcept>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/trace/trace_tools.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/trace_cases.h"

namespace kvspan::test {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;
using nlohmann::json;

namespace {

std::string open_error(const fs::path& path) {
  return error_of([&] { static_cast<void>(TensorSet::open(path)); });
}

std::vector<std::byte> file_bytes(const std::string& header, std::size_t data_bytes) {
  std::vector<std::byte> out(8 + header.size() + data_bytes);
  const std::uint64_t length = header.size();
  std::memcpy(out.data(), &length, 8);
  std::memcpy(out.data() + 8, header.data(), header.size());
  return out;
}

std::string header_error(const std::string& header, std::size_t data_bytes = 0) {
  return error_of([&] {
    static_cast<void>(TensorSet::from_bytes(file_bytes(header, data_bytes), "x.safetensors"));
  });
}

}  // namespace

TEST_CASE("safetensors keep every dtype and shape, written in pieces and in any order", "[trace]") {
  const TemporaryFolder dir;
  const std::vector<Dtype> dtypes = {Dtype::u8,  Dtype::f32, Dtype::f16, Dtype::bf16,
                                     Dtype::i32, Dtype::i64, Dtype::u32};
  std::vector<SafetensorsWriter::Entry> entries;
  for (const Dtype dtype : dtypes) {
    entries.push_back({std::string(dtype_name(dtype)), dtype, {3, 5}});
  }
  entries.push_back({"scalar", Dtype::f32, {}});
  entries.push_back({"none", Dtype::f32, {0, 7}});
  const auto content = [](const std::string& name, std::int64_t size) {
    std::vector<std::byte> bytes;
    for (std::int64_t i = 0; i < size; ++i) {
      bytes.push_back(static_cast<std::byte>(name[0] + 31 * i));
    }
    return bytes;
  };
  const fs::path path = dir / "all.safetensors";
  const Metadata metadata{{"key", "value with \"quotes\"\n and a line"}, {"", "empty key"}};
  SafetensorsWriter writer(path, metadata, entries);
  for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
    std::int64_t size = dtype_bytes(entry->dtype);
    for (const std::int64_t extent : entry->shape) size *= extent;
    const std::vector<std::byte> bytes = content(entry->name, size);
    const auto half = static_cast<std::size_t>(size) / 2;
    writer.write(entry->name, size / 2, std::span(bytes).subspan(half));
    writer.write(entry->name, 0, std::span(bytes).first(half));
  }
  CHECK_FALSE(fs::exists(path));
  writer.finish();

  const TensorSet set = TensorSet::open(path);
  CHECK(set.metadata() == metadata);
  CHECK(set.tensors().size() == entries.size());
  CHECK(set.files() == std::vector<fs::path>{path});
  for (const SafetensorsWriter::Entry& entry : entries) {
    const TensorView* tensor = set.find(entry.name);
    REQUIRE(tensor != nullptr);
    CHECK(tensor->dtype == entry.dtype);
    CHECK(tensor->shape == entry.shape);
    const std::vector<std::byte> expected =
        content(entry.name, static_cast<std::int64_t>(tensor->bytes.size()));
    CHECK(std::equal(expected.begin(), expected.end(), tensor->bytes.begin(), tensor->bytes.end()));
    CHECK(tensor->elements() * dtype_bytes(entry.dtype) ==
          static_cast<std::int64_t>(tensor->bytes.size()));
  }
  CHECK(set.find("scalar")->elements() == 1);
  CHECK(set.find("absent") == nullptr);
  // The data begin at a multiple of 64, in the order of declaration.
  std::uint64_t header_bytes = 0;
  const std::vector<std::byte> raw = read_bytes(path);
  std::memcpy(&header_bytes, raw.data(), 8);
  CHECK((8 + header_bytes) % 64 == 0);
  CHECK(std::equal(raw.begin() + 8 + static_cast<std::ptrdiff_t>(header_bytes),
                   raw.begin() + 8 + static_cast<std::ptrdiff_t>(header_bytes) + 15,
                   set.find("U8")->bytes.begin()));
  // Released pages come back with the same values.
  const TensorView& tensor = *set.find("I64");
  const std::vector<std::byte> before(tensor.bytes.begin(), tensor.bytes.end());
  set.release(tensor);
  CHECK(std::equal(before.begin(), before.end(), tensor.bytes.begin()));
}

TEST_CASE("SHA-256 is that of the files one after the other", "[trace]") {
  const TemporaryFolder dir;
  write_text(dir / "a", "ab");
  write_text(dir / "b", "c");
  CHECK(sha256_of_files({dir / "a", dir / "b"}) ==
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK_THAT(error_of([&] { static_cast<void>(sha256_of_files({dir / "c"})); }),
             Contains("cannot be opened"));
}

TEST_CASE("widen gives the exact value of every F16 and BF16 bit pattern", "[trace]") {
  const Dtype dtype = GENERATE(Dtype::f16, Dtype::bf16);
  const int fraction_bits = dtype == Dtype::f16 ? 10 : 7;
  const int exponent_mask = dtype == Dtype::f16 ? 31 : 255;
  const int bias = dtype == Dtype::f16 ? 15 : 127;
  std::vector<std::byte> bytes;
  std::vector<double> expected;
  std::vector<std::uint16_t> not_finite;
  for (int pattern = 0; pattern < 65536; ++pattern) {
    const int exponent = pattern >> fraction_bits & exponent_mask;
    const int fraction = pattern & ((1 << fraction_bits) - 1);
    if (exponent == exponent_mask) {
      not_finite.push_back(static_cast<std::uint16_t>(pattern));
      continue;
    }
    const double magnitude = exponent == 0 ? std::ldexp(fraction, 1 - bias - fraction_bits)
                                           : std::ldexp(fraction + (1 << fraction_bits),
                                                        exponent - bias - fraction_bits);
    expected.push_back(pattern >= 32768 ? -magnitude : magnitude);
    bytes.push_back(static_cast<std::byte>(pattern & 255));
    bytes.push_back(static_cast<std::byte>(pattern >> 8));
  }
  const std::vector<float> values =
      widened({dtype, {static_cast<std::int64_t>(expected.size())}, bytes});
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const auto value = static_cast<double>(values[i]);
    if (value != expected[i] || std::signbit(value) != std::signbit(expected[i])) ++wrong;
  }
  CHECK(wrong == 0);
  CHECK(encode(expected, dtype) == bytes);  // the test's own encoder

  std::size_t unnoticed = 0;
  for (const std::uint16_t pattern : not_finite) {
    const std::uint16_t words[3] = {0, pattern, 0};
    const TensorView tensor{dtype, {3}, std::as_bytes(std::span(words))};
    std::vector<float> out(3);
    const std::string message = error_of([&] { widen(tensor, 0, out, "f: tensor 't'"); });
    const bool is_nan = (pattern & ((1 << fraction_bits) - 1)) != 0;
    if (message != fmt::format("f: tensor 't': element 1 is {}; expected finite values",
                               is_nan ? "NaN" : "infinite")) {
      ++unnoticed;
    }
  }
  CHECK(unnoticed == 0);
}

TEST_CASE("widen reads any part of a tensor at any alignment", "[trace]") {
  const Dtype dtype = GENERATE(Dtype::f32, Dtype::f16, Dtype::bf16);
  std::vector<double> numbers;
  for (int i = 0; i < 3000; ++i) numbers.push_back(std::sin(i) * std::pow(2.0, i % 20 - 15));
  const std::vector<std::byte> encoded = encode(numbers, dtype);
  for (std::size_t shift = 0; shift < 4; ++shift) {
    std::vector<std::byte> moved(shift);
    moved.insert(moved.end(), encoded.begin(), encoded.end());
    const TensorView tensor{dtype, {3000}, std::span(moved).subspan(shift)};
    for (const auto& [first, count] : {std::pair{0, 3000},
                                       {0, 0},
                                       {5, 1},
                                       {1023, 2},
                                       {900, 2100},
                                       {2999, 1},
                                       {3000, 0},
                                       {7, 1024},
                                       {0, 2048}}) {
      std::vector<float> out(static_cast<std::size_t>(count));
      widen(tensor, first, out, "tensor");
      bool same = true;
      for (std::size_t i = 0; i < out.size(); ++i) {
        const double expected = rounded_to(numbers[static_cast<std::size_t>(first) + i], dtype);
        same = same && static_cast<double>(out[i]) == expected;
      }
      CHECK(same);
    }
  }
  std::vector<float> values(3000, 1.0F);
  values[2500] = -std::numeric_limits<float>::infinity();
  std::vector<float> out(1000);
  const TensorView tensor{Dtype::f32, {3000}, std::as_bytes(std::span(values))};
  CHECK_THAT(error_of([&] { widen(tensor, 2000, out, "t"); }),
             Contains("element 2500 is infinite"));
  CHECK(error_of([&] { widen(tensor, 0, out, "t"); }).empty());
  const TensorView integers{Dtype::i32, {3000}, std::as_bytes(std::span(values))};
  CHECK_THAT(error_of([&] { widen(integers, 0, out, "t"); }), Contains("I32; expected a floating"));
}

TEST_CASE("a header that lies about its tensors is refused, naming file and tensor",
          "[trace][hostile]") {
  const auto entry = [](const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
    return fmt::format(R"({{"t":{{"dtype":{},"shape":{},"data_offsets":{}}}}})", dtype, shape,
                       offsets);
  };
  REQUIRE(header_error(entry(R"("F32")", "[2]", "[0,8]"), 8).empty());
  const std::vector<std::pair<std::string, std::string>> cases = {
      {entry(R"("F32")", "[2]", "[8,0]"), "reversed"},
      {entry(R"("F32")", "[2]", "[0,12]"), "past the end of the file"},
      {entry(R"("F32")", "[2]", "[0,9223372036854775807]"), "past the end of the file"},
      {entry(R"("F32")", "[2]", "[0,9223372036854775808]"), "past the largest 64-bit integer"},
      {entry(R"("F32")", "[2]", "[0,99999999999999999999999]"), "no 64-bit integer"},
      {entry(R"("F32")", "[2]", "[0,1e999]"), "out of range"},
      {entry(R"("F32")", "[2]", "[-8,0]"), "negative number -8"},
      {entry(R"("F32")", "[2]", "[0,8.0]"), "no 64-bit integer"},
      {entry(R"("F32")", "[2]", "[0]"), "1 numbers"},
      {entry(R"("F32")", "[2]", "[0,8,8]"), "third number"},
      {entry(R"("F32")", "[2]", "[0,[8]]"), "an array"},
      {entry(R"("F32")", "[2]", "8"), "the number 8"},
      {entry(R"("F32")", "[2]", "null"), "null"},
      {entry(R"("F32")", "[3]", "[0,8]"), "8 bytes of data; expected 12 for F32 [3]"},
      {entry(R"("F32")", "[2,0]", "[0,8]"), "8 bytes of data; expected 0"},
      {entry(R"("F32")", "[4294967296,4294967296]", "[0,8]"), "too large"},
      {entry(R"("F32")", "[9223372036854775807,2]", "[0,8]"), "too large"},
      {entry(R"("F32")", "[-2]", "[0,8]"), "negative number -2"},
      {entry(R"("F32")", "[2.5]", "[0,8]"), "2.5"},
      {entry(R"("F32")", "[2,]", "[0,8]"), "invalid JSON"},
      {entry(R"("F32")", R"(["2"])", "[0,8]"), "the string '2'"},
      {entry(R"("F32")", "{}", "[0,8]"), "an object"},
      {entry(R"("F32")", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2]",
             "[0,8]"),
       "more than 32 dimensions"},
      {entry(R"("F32")", "true", "[0,8]"), "a boolean"},
      {entry(R"("F64")", "[1]", "[0,8]"),
       "dtype is 'F64'; expected F32, F16, BF16, I32, I64, U8, U32"},
      {entry(R"("f32")", "[2]", "[0,8]"), "dtype is 'f32'"},
      {entry("32", "[2]", "[0,8]"), "the number 32"},
      {R"({"t":{"dtype":"F32","shape":[2]}})", "has no data_offsets"},
      {R"({"t":{"dtype":"F32","data_offsets":[0,8]}})", "has no shape"},
      {R"({"t":{"shape":[2],"data_offsets":[0,8]}})", "has no dtype"},
      {R"({"t":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
       "'dtype' appears twice"},
      {R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1}})", "found key 'more'"},
      {R"({"t":8})", "expected an object"},
      {R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"t":{}})", "appears twice"},
  };
  for (const auto& [header, expected] : cases) {
    INFO(header);
    const std::string message = header_error(header, 8);
    CHECK_THAT(message, Contains("x.safetensors: "));
    CHECK_THAT(message, Contains(expected));
    if (message.find("JSON") == std::string::npos) CHECK_THAT(message, Contains("tensor 't'"));
  }
}

TEST_CASE("tensors must cover the data without holes and overlaps", "[trace][hostile]") {
  const auto two = [](int a, int b, int c, int d) {
    return fmt::format(R"({{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}},)"
                       R"("b":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}})",
                       b - a, a, b, d - c, c, d);
  };
  CHECK(header_error(two(0, 4, 4, 8), 8).empty());
  CHECK(header_error(two(4, 8, 0, 4), 8).empty());  // any order in the header
  CHECK(header_error(two(0, 8, 8, 8), 8).empty());  // an empty tensor
  CHECK(header_error(two(0, 0, 0, 8), 8).empty());
  CHECK_THAT(header_error(two(0, 4, 3, 8), 8),
             Contains("tensor 'b'") && Contains("inside another"));
  CHECK_THAT(header_error(two(0, 3, 4, 8), 8), Contains("tensor 'b'") && Contains("after a hole"));
  CHECK_THAT(header_error(two(1, 4, 4, 8), 8), Contains("tensor 'a'") && Contains("after a hole"));
  CHECK_THAT(header_error(two(0, 4, 4, 7), 8), Contains("8 bytes of data") && Contains("cover 7"));
  CHECK_THAT(header_error(two(0, 4, 2, 2), 4),
             Contains("tensor 'b'") && Contains("inside another"));
}

TEST_CASE("a header that is no header is refused", "[trace][hostile]") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "does not begin with '{'"},
      {" {}", "does not begin with '{'"},
      {"[]", "does not begin with '{'"},
      {"{", "invalid JSON"},
      {"{}}", "invalid JSON"},
      {"{} x", "invalid JSON"},
      {"{\"a\"", "invalid JSON"},
      {"{\"\xff\":1}", "invalid JSON"},
      {R"({"a\n\u001b":1})", R"('a\x0a\x1b')"},
      {R"({"__metadata__":[]})", "an array"},
      {R"({"__metadata__":{"k":1}})", "metadata key 'k': found the number 1; expected a string"},
      {R"({"__metadata__":{"k":{}}})", "metadata key 'k': found an object"},
      {R"({"__metadata__":{"k":["v"]}})", "metadata key 'k': found an array"},
      {R"({"__metadata__":{"k":null}})", "metadata key 'k': found null"},
      {R"({"__metadata__":{"k":"v","k":"v"}})", "metadata key 'k' appears twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", "'__metadata__' appears twice"},
  };
  for (const auto& [header, expected] : cases) {
    INFO(header);
    CHECK_THAT(header_error(header), Contains("x.safetensors: ") && Contains(expected));
  }
  CHECK(header_error("{}").empty());
  CHECK(header_error("{}    ").empty());
  CHECK_THAT(header_error(R"({")" + std::string(5000, 'n') + R"(":1})"), Contains("nnn...'"));

  const std::string deep(2'000'000, '[');
  CHECK_THAT(header_error(R"({"t":)" + deep), Contains("an array"));
  CHECK_THAT(header_error(R"({"t":{"shape":)" + deep), Contains("an array"));
  std::string objects;
  for (int i = 0; i < 200'000; ++i) objects += R"({"a":)";
  CHECK_THAT(header_error(objects), Contains("found key 'a'"));
}

TEST_CASE("a header length that cannot be is refused before anything is read", "[trace][hostile]") {
  std::vector<std::byte> bytes = file_bytes("{}", 100);
  const auto with_length = [&bytes](std::uint64_t length) {
    std::memcpy(bytes.data(), &length, 8);
    return error_of([&] { static_cast<void>(TensorSet::from_bytes(bytes, "x")); });
  };
  CHECK_THAT(with_length(103), Contains("header of 103 bytes; the file has only 102"));
  CHECK_THAT(with_length(100'000'000), Contains("the file has only 102"));
  CHECK_THAT(with_length(100'000'001), Contains("expected at most 100000000"));
  CHECK_THAT(with_length(std::numeric_limits<std::uint64_t>::max()), Contains("expected at most"));
  CHECK_THAT(with_length(0), Contains("does not begin"));
}

TEST_CASE("what is not a readable file is refused by name", "[trace]") {
  const TemporaryFolder dir;
  CHECK_THAT(open_error(dir / "none.safetensors"), Contains("none.safetensors: cannot be opened"));
  CHECK_THAT(open_error(dir / "none.safetensors.index.json"), Contains("cannot be opened"));
  write_text(dir / "empty", "");
  CHECK_THAT(open_error(dir / "empty"), Contains("empty: 0 bytes; expected a safetensors file"));
  write_text(dir / "seven", "1234567");
  CHECK_THAT(open_error(dir / "seven"), Contains("7 bytes"));
  fs::create_directory(dir / "folder");
  CHECK_THAT(open_error(dir / "folder"), Contains("folder: is a directory"));
  REQUIRE(::mkfifo((dir / "fifo").c_str(), 0600) == 0);
  CHECK_THAT(open_error(dir / "fifo"), Contains("is a pipe; this is read in place"));
  if (::geteuid() != 0) {  // nothing is unreadable to root
    write_trace(dir / "secret", full_spec());
    fs::permissions(dir / "secret", fs::perms::none);
    CHECK_THAT(open_error(dir / "secret"), Contains("Permission denied"));
  }
  CHECK_THAT(open_error(dir / "new\nline"), Contains("new line"));
  CHECK_THAT(open_error(dir / "\xFF"), Contains("/\uFFFD: cannot be opened"));
}

namespace {

// A trace in two shards and its index, as a capture writes them.
struct Shards {
  TemporaryFolder dir;
  TraceSpec spec = full_spec();
  Metadata metadata = make_metadata(spec);
  TensorMap parts[2];
  json index = {{"metadata", metadata}, {"weight_map", json::object()}};
  fs::path index_path = dir / "t.safetensors.index.json";
  static std::string file(int part) {
    return fmt::format("t-0000{}-of-00002.safetensors", part + 1);
  }

  Shards() {
    for (auto& [name, tensor] : make_tensors(spec)) {
      const int part = name.starts_with("layers.1") ? 1 : 0;
      index["weight_map"][name] = file(part);
      parts[part][name] = tensor;
    }
    for (int part = 0; part < 2; ++part) write(part, metadata);
    write_index();
  }
  void write(int part, const Metadata& with) const {
    write_tensors(dir / file(part), with, parts[part]);
  }
  void write_index() const { write_file_atomically(index_path, index.dump()); }
  [[nodiscard]] std::string error() const { return open_error(index_path); }
};

}  // namespace

TEST_CASE("a sharded trace opens by its index or by the name it would have", "[trace][shards]") {
  const Shards shards;
  for (const fs::path& path : {shards.index_path, shards.dir / "t.safetensors"}) {
    const Trace trace = Trace::open(path);
    CHECK(widened(*trace.k(1)) == widened(*make_trace(shards.spec).k(1)));
    CHECK(trace.tensors().files() == std::vector<fs::path>{shards.index_path,
                                                           shards.dir / Shards::file(0),
                                                           shards.dir / Shards::file(1)});
    CHECK(trace.sha256() == sha256_of_files(trace.tensors().files()));
    CHECK(check_trace(trace).size() >= 8);
  }
  // A single file of that name comes first.
  write_trace(shards.dir / "t.safetensors", full_spec(Dtype::f32));
  CHECK(Trace::open(shards.dir / "t.safetensors").q(0)->dtype == Dtype::f32);
}

TEST_CASE("shards that are missing or disagree are refused", "[trace][shards][hostile]") {
  Shards shards;
  const std::string second = Shards::file(1);
  SECTION("a shard is missing") {
    fs::remove(shards.dir / second);
    CHECK_THAT(shards.error(), Contains(second + ": shard is missing"));
  }
  SECTION("a shard is cut off") {
    fs::resize_file(shards.dir / second, fs::file_size(shards.dir / second) - 1);
    CHECK_THAT(shards.error(), Contains(second + ": tensor"));
  }
  SECTION("metadata differ in a value") {
    Metadata other = shards.metadata;
    other["tokens"] = "4";
    shards.write(1, other);
    CHECK_THAT(shards.error(),
               Contains(second + ": metadata key 'tokens' is '4'; the index has '3'"));
  }
  SECTION("metadata lack a key") {
    Metadata other = shards.metadata;
    other.erase("model");
    shards.write(1, other);
    CHECK_THAT(shards.error(), Contains(second + ": metadata key 'model' is missing"));
  }
  SECTION("metadata have a key more") {
    Metadata other = shards.metadata;
    other["more"] = "1";
    shards.write(1, other);
    CHECK_THAT(shards.error(), Contains("metadata key 'more' is '1'; the index does not have it"));
  }
  SECTION("the index lacks a tensor") {
    shards.index["weight_map"].erase("layers.1.q");
    shards.write_index();
    CHECK_THAT(shards.error(),
               Contains(second + ": tensor 'layers.1.q'") && Contains("does not have it"));
  }
  SECTION("a shard lacks a tensor") {
    shards.parts[1].erase("layers.1.q");
    shards.write(1, shards.metadata);
    CHECK_THAT(shards.error(), Contains(second + ": tensor 'layers.1.q': is missing"));
  }
  SECTION("a tensor is in two shards") {
    shards.parts[1]["layers.0.q"] = shards.parts[0]["layers.0.q"];
    shards.write(1, shards.metadata);
    CHECK_THAT(shards.error(), Contains("tensor 'layers.0.q'") &&
                                   Contains("the index puts it into '" + Shards::file(0)));
  }
  SECTION("the index points out of its directory") {
    for (const char* name : {"../x.safetensors", "/dev/zero", "", ".", "..", "a/b"}) {
      shards.index["weight_map"]["nll"] = name;
      shards.write_index();
      CHECK_THAT(shards.error(), Contains("tensor 'nll'") && Contains("file beside the index"));
    }
  }
  SECTION("the index is not one") {
    for (const auto& [text, expected] :
         {std::pair<std::string, std::string>{"", "JSON"},
          {"{}", "weight_map is missing"},
          {R"({"weight_map":{}})", "weight_map is missing or empty"},
          {R"({"weight_map":{"a":"f","a":"f"}})", "key 'a' appears twice"},
          {R"({"weight_map":{"a":1}})", "found the number 1; expected a string"},
          {R"({"weight_map":{"a":{}}})", "an object"},
          {R"({"weight_map":["a"]})", "an array"},
          {R"({"weight_map":{"a":"f"},"weight_map":{}})", "'weight_map' appears twice"},
          {R"({"other":{}})", "found key 'other'"},
          {R"({"metadata":{"k":1}})", "found the number 1"},
          {"[]", "an array"}}) {
      INFO(text);
      write_text(shards.index_path, text);
      CHECK_THAT(shards.error(), Contains("index.json: ") && Contains(expected));
    }
    std::string text = shards.index.dump();
    for (std::size_t i = 0; i < text.size(); i += 5) {  // a flipped bit: opens or TraceError
      const char old = text[i];
      text[i] = static_cast<char>(old ^ (1 << (i % 8)));
      write_text(shards.index_path, text);
      static_cast<void>(shards.error());
      text[i] = old;
    }
  }
  SECTION("a total_size, as other tools write it, does no harm") {
    shards.index["metadata"]["total_size"] = 12345;
    shards.write_index();
    CHECK(shards.error().empty());
  }
}

TEST_CASE("a file appears under its name only when it is complete", "[trace][writer]") {
  const TemporaryFolder dir;
  const fs::path path = dir / "out.safetensors";
  const std::vector<std::byte> bytes(8, std::byte{1});
  const std::vector<SafetensorsWriter::Entry> entries = {{"t", Dtype::f32, {2}}};
  {
    SafetensorsWriter abandoned(path, {}, entries);
    abandoned.write("t", 0, bytes);
    CHECK(dir.names().size() == 1);
    CHECK_FALSE(fs::exists(path));
  }
  CHECK(dir.names().empty());
  {
    SafetensorsWriter writer(path, {}, entries);
    writer.write("t", 0, bytes);
    writer.finish();
    CHECK_THROWS_AS(writer.finish(), std::logic_error);
    CHECK_THROWS_AS(writer.write("t", 0, bytes), std::logic_error);
  }
  CHECK(dir.names() == std::vector<std::string>{"out.safetensors"});
  {
    // The old file stays whole until the new one is complete.
    SafetensorsWriter writer(path, {}, entries);
    CHECK(open_error(path).empty());
    CHECK_THROWS_AS(writer.write("t", 4, bytes), std::logic_error);
    CHECK_THROWS_AS(writer.write("t", -1, bytes), std::logic_error);
    CHECK_THROWS_AS(writer.write("u", 0, bytes), std::logic_error);
  }
  CHECK(TensorSet::open(path).find("t")->bytes[7] == std::byte{1});
  CHECK_THROWS_AS(SafetensorsWriter(path, {}, {entries[0], entries[0]}), std::logic_error);
  CHECK_THROWS_AS(SafetensorsWriter(path, {}, {{"__metadata__", Dtype::u8, {}}}), std::logic_error);
  CHECK_THROWS_AS(SafetensorsWriter(path, {}, {{"t", Dtype::u8, {-1}}}), std::logic_error);
  CHECK_THROWS_AS(SafetensorsWriter(path, {}, {{"t", Dtype::f32, {1LL << 62, 4}}}),
                  std::logic_error);

  write_file_atomically(dir / "text", "first");
  write_file_atomically(dir / "text", "second");
  CHECK(fs::file_size(dir / "text") == 6);
  CHECK(dir.names() == std::vector<std::string>{"out.safetensors", "text"});
  fs::create_directory(dir / "folder");
  CHECK_THROWS_AS(write_file_atomically(dir / "folder", "x"), Error);
  CHECK_THROWS_AS(write_file_atomically(dir / "none/text", "x"), Error);
  CHECK(dir.names() == std::vector<std::string>{"folder", "out.safetensors", "text"});
}

}  // namespace kvspan::test
