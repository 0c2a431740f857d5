// SPDX-License-Identifier: Apache-2.0
#include "sim/trace/trace.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/trace/safetensors.h"
#include "tests/support/trace_builder.h"

namespace kvspan::test {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;
using nlohmann::json;

namespace {

// A directory of its own, removed with everything in it.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (fs::temp_directory_path() / "kvspan-test-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  [[nodiscard]] fs::path operator/(const std::string& name) const { return path_ / name; }
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& entry : fs::directory_iterator(path_)) {
      out.push_back(entry.path().filename().string());
    }
    std::sort(out.begin(), out.end());
    return out;
  }

 private:
  fs::path path_;
};

std::vector<std::byte> read_bytes(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream content;
  content << in.rdbuf();
  const std::string text = content.str();
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// The message of the TraceError that an action throws; empty when it throws none.
std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const TraceError& error) {
    CHECK(error.exit_code() == 3);
    CHECK_THAT(error.what(), !Contains("\n"));
    return error.what();
  }
  return "";
}

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

// Everything that a reader may do with a trace; returns the TraceError's message, or "".
std::string use_error(const std::vector<std::byte>& bytes) {
  return error_of([&] {
    const Trace trace = Trace::from_tensors(TensorSet::from_bytes(bytes, "x"), "x");
    static_cast<void>(check_trace(trace));
    static_cast<void>(describe_trace(trace));
    static_cast<void>(trace.token_text(trace.meta().tokens - 1));
  });
}

// Three tokens, everything present, small enough to try every byte.
TraceSpec full_spec(Dtype dtype = Dtype::f16) {
  TraceSpec spec = random_spec({.layers = 2,
                                .tokens = 3,
                                .prompt_tokens = 2,
                                .query_heads = 2,
                                .kv_heads = 1,
                                .head_dim = 2,
                                .dtype = dtype});
  spec.meta.model_layers = 5;
  spec.meta.layer_ids = {1, 4};
  spec.meta.rope = Rope{10000.0, 2, false, {}};
  spec.meta.spans = {{"needle", 0, 1}, {"question", 1, 3}};
  spec.meta.passes = {1, 2};
  spec.meta.sliding_window = {0, 2};
  spec.meta.special_ids = {7};
  spec.meta.logit_softcap = 30;
  spec.meta.model = "tiny";
  spec.token_ids = {7, 8, 9};
  spec.token_text = {"a", "", "bc"};
  spec.nll = {0.5, 1.5, 0};
  for (LayerSpec& layer : spec.layers) {
    layer.sink_logits = {0.25, -1};
    layer.wo = {1, 2, 3, 4};
  }
  return spec;
}

// Rows 1 and 3 of four tokens, two query heads; prefill passes [0, 2) and [2, 3).
TraceSpec largest_spec() {
  TraceSpec spec;
  spec.meta.tokens = 4;
  spec.meta.prompt_tokens = 3;
  spec.meta.query_heads = 2;
  spec.meta.kv_heads = 1;
  spec.meta.head_dim = 2;
  spec.meta.passes = {2, 3};
  LayerSpec layer;
  layer.rows = {1, 3};
  layer.prob = {0.75, 0.25, 0.5, 0.5, 0.5, 0.25, 1, 0};
  layer.index = {1, 0, 0, 1, 3, 0, 2, -1};
  layer.lse = {1, 2, 3, 4};
  layer.column_mass = {1.25, 0.75, 0,    0, 1.5, 0.5, 0, 0,   // pass [0, 2), heads 0 and 1
                       0.5,  0.25, 0.25, 0, 0,   0,   1, 0};  // pass [2, 3)
  spec.layers = {layer};
  return spec;
}

TraceSpec dense_spec() {
  TraceSpec spec = largest_spec();
  LayerSpec& layer = spec.layers[0];
  layer.prob.clear();
  layer.index.clear();
  layer.dense = {0.25, 0.75,  0,     0,   0.5, 0.5, 0, 0,   // row 1
                 0.25, 0.125, 0.125, 0.5, 0,   0,   1, 0};  // row 3
  return spec;
}

std::vector<float> widened(const TensorView& tensor) {
  std::vector<float> out(static_cast<std::size_t>(tensor.elements()));
  widen(tensor, 0, out, "tensor");
  return out;
}

std::vector<double> widened_doubles(const TensorView* tensor) {
  REQUIRE(tensor != nullptr);
  const std::vector<float> values = widened(*tensor);
  return {values.begin(), values.end()};
}

}  // namespace

TEST_CASE("safetensors keep every dtype and shape, written in pieces and in any order", "[trace]") {
  const TempDir dir;
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
  const TempDir dir;
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

TEST_CASE("a trace keeps all its values and metadata in memory and as a file", "[trace]") {
  const Dtype dtype = GENERATE(Dtype::f32, Dtype::f16, Dtype::bf16);
  const TempDir dir;
  const TraceSpec spec = full_spec(dtype);
  const fs::path path = dir / "t.safetensors";
  write_trace(path, spec);
  const Trace file = Trace::open(path);
  const Trace memory = make_trace(spec);
  for (const Trace* trace : {&file, &memory}) {
    const TraceMeta& meta = trace->meta();
    CHECK(trace->is_qkv());
    CHECK(trace->has_v());
    CHECK(trace->has_wo());
    CHECK(meta.layers == 2);
    CHECK(meta.model_layers == 5);
    CHECK(meta.layer_ids == std::vector<int>{1, 4});
    CHECK(meta.query_heads == 2);
    CHECK(meta.kv_heads == 1);
    CHECK(meta.head_dim == 2);
    CHECK(meta.v_head_dim == 2);
    CHECK(meta.tokens == 3);
    CHECK(meta.prompt_tokens == 2);
    CHECK(meta.score_scale == 1 / std::sqrt(2));
    CHECK(meta.logit_softcap == 30);
    CHECK(meta.sliding_window == std::vector<std::int64_t>{0, 2});
    CHECK(meta.passes == std::vector<std::int64_t>{1, 2});
    CHECK(meta.special_ids == std::vector<std::int64_t>{7});
    CHECK(meta.model == "tiny");
    REQUIRE(meta.spans.size() == 2);
    CHECK(meta.spans[1].name == "question");
    CHECK(meta.spans[1].begin == 1);
    CHECK(meta.spans[1].end == 3);
    CHECK(trace->token_ids() == spec.token_ids);
    CHECK(trace->token_text(0) == "a");
    CHECK(trace->token_text(1).empty());
    CHECK(trace->token_text(2) == "bc");
    CHECK(trace->token_text(3).empty());
    CHECK(trace->sink_logits(1) == std::vector<float>{0.25F, -1.0F});
    for (int l = 0; l < 2; ++l) {
      const LayerSpec& layer = spec.layers[static_cast<std::size_t>(l)];
      for (const auto& [view, values] :
           {std::pair{trace->q(l), &layer.q}, {trace->k(l), &layer.k}, {trace->v(l), &layer.v}}) {
        std::vector<double> expected;
        for (const double value : *values) expected.push_back(rounded_to(value, dtype));
        CHECK(widened_doubles(view) == expected);
      }
    }
    CHECK(check_trace(*trace).size() >= 8);
  }
  CHECK(file.name() == path.string());
  CHECK(file.sha256() == sha256_of_files({path}));
  CHECK(memory.sha256().empty());
}

TEST_CASE("a copy of a trace outlives the original", "[trace]") {
  // Bug: a copied trace pointed into the tensors of the one it was copied from.
  std::optional<Trace> original = make_trace(largest_spec());
  const Trace copy = *original;
  original.reset();
  CHECK(widened_doubles(copy.scores(0).prob) == largest_spec().layers[0].prob);
  CHECK(check_trace(copy).size() >= 3);
}

TEST_CASE("a trace cut off at any byte is refused", "[trace][hostile]") {
  const TempDir dir;
  write_trace(dir / "t.safetensors", full_spec());
  const std::vector<std::byte> bytes = read_bytes(dir / "t.safetensors");
  REQUIRE(use_error(bytes).empty());
  std::size_t accepted = 0;
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    if (use_error({bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size)}).empty()) {
      ++accepted;
    }
  }
  CHECK(accepted == 0);
  // One byte too many is not a trace either.
  std::vector<std::byte> longer = bytes;
  longer.push_back(std::byte{0});
  CHECK_THAT(use_error(longer), Contains("bytes of data after the header; the tensors cover"));
}

TEST_CASE("a trace with any bit of its header flipped opens or is refused", "[trace][hostile]") {
  const TraceSpec spec = GENERATE(full_spec(), largest_spec(), dense_spec());
  const TempDir dir;
  write_trace(dir / "t.safetensors", spec);
  std::vector<std::byte> bytes = read_bytes(dir / "t.safetensors");
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  std::size_t refused = 0;
  for (std::size_t i = 0; i < 8 + header_bytes; ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      const std::byte old = bytes[i];
      bytes[i] ^= static_cast<std::byte>(1 << bit);
      if (!use_error(bytes).empty()) ++refused;  // anything but a TraceError fails the test
      bytes[i] = old;
    }
  }
  CHECK(refused > header_bytes);
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
  const TempDir dir;
  CHECK_THAT(open_error(dir / "none.safetensors"), Contains("none.safetensors: cannot be opened"));
  CHECK_THAT(open_error(dir / "none.safetensors.index.json"), Contains("cannot be opened"));
  write_text(dir / "empty", "");
  CHECK_THAT(open_error(dir / "empty"), Contains("empty: 0 bytes; expected a safetensors file"));
  write_text(dir / "seven", "1234567");
  CHECK_THAT(open_error(dir / "seven"), Contains("7 bytes"));
  fs::create_directory(dir / "folder");
  CHECK_THAT(open_error(dir / "folder"), Contains("folder: is a directory"));
  REQUIRE(::mkfifo((dir / "fifo").c_str(), 0600) == 0);
  CHECK_THAT(open_error(dir / "fifo"), Contains("is not a regular file"));
  if (::geteuid() != 0) {  // nothing is unreadable to root
    write_trace(dir / "secret", full_spec());
    fs::permissions(dir / "secret", fs::perms::none);
    CHECK_THAT(open_error(dir / "secret"), Contains("Permission denied"));
  }
  CHECK_THAT(open_error(dir / "new\nline"), Contains("new?line"));
}

TEST_CASE("a tensor at an odd offset is read by copying", "[trace]") {
  TraceSpec spec = full_spec(Dtype::f32);
  const TensorMap tensors = make_tensors(spec);
  // One byte of another tensor first: everything after it is misaligned.
  std::vector<SafetensorsWriter::Entry> entries = {{"byte", Dtype::u8, {1}}};
  for (const auto& [name, tensor] : tensors) entries.push_back({name, tensor.dtype, tensor.shape});
  const TempDir dir;
  SafetensorsWriter writer(dir / "odd.safetensors", make_metadata(spec), entries);
  for (const auto& [name, tensor] : tensors) writer.write(name, 0, tensor.bytes);
  writer.finish();
  const Trace trace = Trace::open(dir / "odd.safetensors");
  CHECK(reinterpret_cast<std::uintptr_t>(trace.q(0)->bytes.data()) % 4 == 1);
  CHECK(widened(*trace.q(0)) == widened(*make_trace(spec).q(0)));
  CHECK(trace.token_ids() == spec.token_ids);
  CHECK(trace.token_text(2) == "bc");
  const std::vector<std::string> lines = check_trace(trace);
  CHECK_THAT(lines.back(), Contains("not part of the format, not checked: 1 tensors ('byte')"));
}

namespace {

// A trace in two shards and its index, as a capture writes them.
struct Shards {
  TempDir dir;
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

TEST_CASE("each defect of the metadata is refused, naming its key", "[trace][meta]") {
  const auto message = [](const std::string& key, const std::string& value) {
    TraceSpec spec = full_spec();
    spec.extra[key] = value;
    spec.name = "dir/x.safetensors";
    return error_of([&] { static_cast<void>(make_trace(spec)); });
  };
  for (const char* key : {"format", "version", "layers", "query_heads", "kv_heads", "head_dim",
                          "tokens", "prompt_tokens", "score_scale", "layer_ids"}) {
    TraceSpec spec = full_spec();
    spec.without = {key};
    CHECK_THAT(error_of([&] { static_cast<void>(make_trace(spec)); }),
               Contains(fmt::format("metadata key '{}' is missing; expected ", key)));
  }
  CHECK_THAT(message("version", "2"), Contains("'version' is 2, newer than this program reads"));
  const std::vector<std::pair<std::string, std::string>> defects = {
      {"format", "safetensors"},
      {"version", "one"},
      {"version", "0"},
      {"version", "1.0"},
      {"layers", "0"},
      {"layers", "-1"},
      {"layers", "2.0"},
      {"layers", " 2"},
      {"layers", "2 "},
      {"layers", ""},
      {"layers", "3000"},
      {"layers", "99999999999999999999"},
      {"query_heads", "0"},
      {"query_heads", "1000000000"},
      {"kv_heads", "0x1"},
      {"head_dim", "0"},
      {"head_dim", "4294967298"},
      {"v_head_dim", "0"},
      {"tokens", "0"},
      {"tokens", "9223372036854775807"},
      {"prompt_tokens", "0"},
      {"prompt_tokens", "4"},
      {"score_scale", "0"},
      {"score_scale", "-1"},
      {"score_scale", "nan"},
      {"score_scale", "inf"},
      {"score_scale", "1e999"},
      {"score_scale", "0,5"},
      {"logit_softcap", "-30"},
      {"model_layers", "1"},
      {"layer_ids", "[4,1]"},
      {"layer_ids", "[1,1]"},
      {"layer_ids", "[1]"},
      {"layer_ids", "[1,2,4]"},
      {"layer_ids", "[1,5]"},
      {"layer_ids", "[-1,4]"},
      {"layer_ids", "[1,4.0]"},
      {"layer_ids", "1,4"},
      {"layer_ids", "{}"},
      {"layer_ids", "[1,18446744073709551615]"},
      {"sliding_window", "-1"},
      {"sliding_window", "none"},
      {"sliding_window", "[1]"},
      {"sliding_window", "[1,-2]"},
      {"sliding_window", "[[1],[2]]"},
      {"sliding_window", "{\"a\":1}"},
      {"passes", "[]"},
      {"passes", "[1]"},
      {"passes", "[2,1]"},
      {"passes", "[1,1,2]"},
      {"passes", "[0,2]"},
      {"passes", "[1,2,3]"},
      {"passes", "2"},
      {"special_ids", "[-1]"},
      {"special_ids", "[\"a\"]"},
      {"special_ids", "7"},
      {"spans", "{}"},
      {"spans", "[1]"},
      {"spans", "[{}]"},
      {"spans", R"([{"name":1,"begin":0,"end":1}])"},
      {"spans", R"([{"name":"a","begin":0}])"},
      {"spans", R"([{"name":"a","begin":"0","end":1}])"},
      {"spans", R"([{"name":"a","begin":0,"end":1.5}])"},
      {"spans", R"([{"name":"a","begin":0,"end":4}])"},
      {"spans", R"([{"name":"a","begin":-1,"end":1}])"},
      {"spans", R"([{"name":"a","begin":2,"end":1}])"},
      {"spans", R"([{"name":"a","begin":1,"end":1}])"},
      {"spans", R"([{"name":"a","begin":0,"begin":0,"end":1}])"},
      {"spans", "[[[[[[[[[[[[]]]]]]]]]]]]"},
      {"spans", "[1e999]"},
      {"rope_theta", "1"},
      {"rope_theta", "-5"},
      {"rope_theta", "big"},
      {"rope_dim", "0"},
      {"rope_dim", "4"},
      {"rope_dim", "1"},
      {"rope_layout", "halves"},
      {"rope_scaling", "[]"},
      {"rope_scaling", "{}"},
      {"rope_scaling", R"({"rope_type":1})"},
      {"rope_scaling", R"({"rope_type":"linear"})"},
      {"rope_scaling", R"({"rope_type":"linear","factor":0})"},
      {"rope_scaling", R"({"rope_type":"linear","factor":"2"})"},
      {"rope_scaling", R"({"rope_type":"linear","factor":1e-320})"},
      {"rope_scaling", R"({"rope_type":"llama3","factor":8})"},
      {"rope_scaling", R"({"rope_type":"llama3","factor":8,"low_freq_factor":4,
        "high_freq_factor":1,"original_max_position_embeddings":8192})"},
      {"rope_scaling", R"({"rope_type":"yarn","factor":4})"},
      {"rope_scaling", R"({"rope_type":"factors"})"},
      {"rope_scaling", R"({"rope_type":"factors","factors":[0]})"},
      {"rope_scaling", R"({"rope_type":"factors","factors":[1,1,1]})"},
      {"rope_scaling", R"({"rope_type":"factors","factors":"1"})"},
      {"rope_scaling", R"({"rope_type":"yarn","factor":4,"truncate":1,
        "original_max_position_embeddings":4096})"},
  };
  for (const auto& [key, value] : defects) {
    INFO(key << " = " << value);
    CHECK_THAT(message(key, value), Contains("dir/x.safetensors: metadata key '" + key + "' ") &&
                                        Contains("; expected "));
  }
  CHECK_THAT(message("rope_scaling", R"({"rope_type":"longrope"})"),
             Contains("has type 'longrope'; expected default, linear, llama3, yarn or factors"));
  CHECK_THAT(message("kv_heads", "4"),
             Contains("'query_heads' is 2; expected a multiple of kv_heads"));
  TraceSpec spec = full_spec();
  spec.without = {"rope_theta"};
  CHECK_THAT(error_of([&] { static_cast<void>(make_trace(spec)); }),
             Contains("'rope_theta' is missing") && Contains("beside 'rope_dim'"));
}

TEST_CASE("optional metadata have the defaults of the format", "[trace][meta]") {
  TraceSpec spec = random_spec({.layers = 2, .tokens = 3});
  spec.without = {"layer_ids", "model_layers"};
  const Trace trace = make_trace(spec);
  const TraceMeta& meta = trace.meta();
  CHECK(meta.model_layers == 2);
  CHECK(meta.layer_ids == std::vector<int>{0, 1});
  CHECK(meta.v_head_dim == meta.head_dim);
  CHECK(meta.logit_softcap == 0);
  CHECK(meta.sliding_window == std::vector<std::int64_t>{0, 0});
  CHECK_FALSE(meta.rope.has_value());
  CHECK(meta.passes.empty());
  CHECK(meta.spans.empty());
  CHECK(trace.token_ids().empty());
  CHECK(trace.token_text(0).empty());
  CHECK(trace.sink_logits(0).empty());
  CHECK_FALSE(trace.has_wo());
  spec.extra["sliding_window"] = "2";
  CHECK(make_trace(spec).meta().sliding_window == std::vector<std::int64_t>{2, 2});
}

TEST_CASE("rope frequencies follow the scaling of the model's config", "[trace][rope]") {
  TraceSpec spec = random_spec({.tokens = 2, .head_dim = 10});
  spec.meta.rope = Rope{10000.0, 8, true, {}};
  const auto frequencies = [&spec](const std::string& scaling) {
    spec.extra["rope_scaling"] = scaling;
    return make_trace(spec).meta().rope.value_or(Rope{}).inverse_frequencies;
  };
  const auto check = [](const std::vector<double>& found, const std::vector<double>& expected) {
    REQUIRE(found.size() == expected.size());
    for (std::size_t i = 0; i < found.size(); ++i)
      CHECK(found[i] == Approx(expected[i]).epsilon(1e-9));
  };
  const Rope plain = make_trace(spec).meta().rope.value_or(Rope{});
  check(plain.inverse_frequencies, {1, 0.1, 0.01, 0.001});
  CHECK(plain.interleaved);
  check(frequencies("null"), {1, 0.1, 0.01, 0.001});
  check(frequencies(R"({"rope_type":"default"})"), {1, 0.1, 0.01, 0.001});
  check(frequencies(R"({"type":"linear","factor":4.0})"), {0.25, 0.025, 0.0025, 0.00025});
  // Wavelengths 2 pi {1, 10, 100, 1000}: the last lies between 8192 / 4 and 8192 / 1, where
  // smooth = (8192 / 6283.185 - 1) / 3 = 0.1012657.
  const std::string llama = R"({"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,)"
                            R"("high_freq_factor":4.0,"original_max_position_embeddings":)";
  check(frequencies(llama + "8192}"), {1, 0.1, 0.01, 0.00021360754403});
  // The last is longer than 4096 / 1.
  check(frequencies(llama + "4096}"), {1, 0.1, 0.01, 0.000125});
  // Dimensions that turn 32 times and once within 4096 positions: 1.309 and 2.814, so the ramp goes
  // from 1 to 3: {0, 0, 1/2, 1}.
  const std::string yarn = R"({"rope_type":"yarn","factor":4,)"
                           R"("original_max_position_embeddings":4096)";
  check(frequencies(yarn + "}"), {1, 0.1, 0.00625, 0.00025});
  check(frequencies(yarn + R"(,"beta_fast":null,"beta_slow":1})"), {1, 0.1, 0.00625, 0.00025});
  // Without rounding: (2 - 1.30903) / (2.81418 - 1.30903) = 0.459.
  check(frequencies(yarn + R"(,"truncate":false})"), {1, 0.1, 0.00655697152113, 0.00025});
  check(frequencies(R"({"rope_type":"factors","factors":[1,2,4,8]})"), {1, 0.05, 0.0025, 0.000125});
}

TEST_CASE("tensors that are missing or of the wrong shape or dtype are refused by name",
          "[trace]") {
  const TraceSpec spec = full_spec();
  const TensorMap good = make_tensors(spec);
  const auto error_with = [&](const std::function<void(TensorMap*)>& change) {
    TensorMap tensors = good;
    change(&tensors);
    return error_of([&] {
      static_cast<void>(
          Trace::from_tensors(TensorSet::from_memory(make_metadata(spec), tensors), "x"));
    });
  };
  for (const char* name : {"layers.0.q", "layers.1.k", "layers.1.v", "layers.0.wo", "token_text",
                           "token_text_offsets"}) {
    INFO(name);
    CHECK_THAT(error_with([&](TensorMap* tensors) { tensors->erase(name); }),
               Contains("x: tensor '") && (Contains("missing") || Contains("lacks it")));
  }
  for (const auto& [name, tensor] : good) {
    INFO(name);
    const std::string expected = "x: tensor '" + name + "'";
    CHECK_THAT(error_with([&](TensorMap* tensors) {
                 TensorSet::Owned& changed = tensors->at(name);
                 changed.shape.push_back(1);
               }),
               Contains(expected) && Contains("; expected "));
    CHECK_THAT(error_with([&](TensorMap* tensors) {
                 TensorSet::Owned& changed = tensors->at(name);
                 changed.dtype = Dtype::u32;
                 changed.bytes.resize(changed.bytes.size() * 4 /
                                      static_cast<std::size_t>(dtype_bytes(good.at(name).dtype)));
               }),
               Contains(expected) && Contains("U32"));
  }
  CHECK_THAT(error_with([&](TensorMap* tensors) {
               TensorSet::Owned& changed = tensors->at("layers.1.k");
               changed.dtype = Dtype::bf16;
             }),
             Contains("'layers.1.k': BF16 [3, 1, 2]; expected F16 [3, 1, 2]"));
  CHECK_THAT(
      error_with([&](TensorMap* tensors) { (*tensors)["layers.2.q"] = good.at("layers.1.q"); }),
      Contains("'layers.2.q': no such layer"));
  CHECK_THAT(
      error_with([&](TensorMap* tensors) { (*tensors)["layers.1.scores.lse"] = good.at("nll"); }),
      Contains("'layers.1.scores.lse': scores beside q and k"));
  CHECK_THAT(error_with([&](TensorMap* tensors) {
               TensorSet::Owned& changed = tensors->at("layers.1.wo");
               changed.shape[0] = 2;
               changed.bytes.resize(changed.bytes.size() * 2);
             }),
             Contains("'layers.1.wo': F16 [2, 4]; expected F32|F16|BF16 [1, 4]"));
  for (const std::int64_t offset : {std::int64_t{-1}, std::int64_t{4}, std::int64_t{2},
                                    std::numeric_limits<std::int64_t>::min()}) {
    const std::string message = error_with([&](TensorMap* tensors) {
      std::memcpy(tensors->at("token_text_offsets").bytes.data() + 8, &offset, 8);
    });
    CHECK_THAT(message, Contains("'token_text_offsets': element"));
  }
  CHECK_THAT(error_of([] {
               static_cast<void>(TensorSet::from_memory({}, {{"t", {Dtype::f32, {2}, {}}}}));
             }),
             Contains("tensor 't': 0 bytes of data; expected F32 [2]"));
}

TEST_CASE("a score trace holds the largest probabilities or whole rows", "[trace][scores]") {
  const Trace largest = make_trace(largest_spec());
  CHECK_FALSE(largest.is_qkv());
  CHECK_FALSE(largest.has_v());
  CHECK(largest.q(0) == nullptr);
  CHECK(largest.scores(0).rows == std::vector<std::int64_t>{1, 3});
  CHECK(largest.scores(0).dense == nullptr);
  CHECK(largest.scores(0).index->shape == std::vector<std::int64_t>{2, 2, 2});
  CHECK(widened_doubles(largest.scores(0).column_mass) == largest_spec().layers[0].column_mass);
  CHECK_THAT(check_trace(largest).back(), Contains("2 rows in 1 layers") && Contains("0.25"));

  TraceSpec spec = dense_spec();
  spec.score_dtype = GENERATE(Dtype::f32, Dtype::f16);
  const Trace dense = make_trace(spec);
  CHECK(dense.scores(0).prob == nullptr);
  CHECK(widened_doubles(dense.scores(0).dense) == spec.layers[0].dense);
  CHECK(check_trace(dense).size() >= 3);
  CHECK(describe_trace(dense)["scores"][0]["layout"] == "dense");

  spec.layers[0].v = std::vector<double>(8, 1.5);  // allowed: some policies need the values only
  CHECK(make_trace(spec).has_v());
}

TEST_CASE("defects of a score trace are refused by tensor name", "[trace][scores]") {
  const auto open_message = [](TraceSpec spec, const std::function<void(TraceSpec*)>& change) {
    change(&spec);
    return error_of([&] { static_cast<void>(make_trace(spec)); });
  };
  const auto check_message = [](TraceSpec spec, const std::function<void(LayerSpec*)>& change) {
    change(&spec.layers[0]);
    const Trace trace = make_trace(spec);
    return error_of([&] { static_cast<void>(check_trace(trace)); });
  };
  const TraceSpec largest = largest_spec();
  const TraceSpec dense = dense_spec();
  for (const auto& rows : {std::vector<std::int64_t>{3, 1}, {1, 1}, {-1, 3}, {1, 4}}) {
    CHECK_THAT(open_message(largest, [&](TraceSpec* spec) { spec->layers[0].rows = rows; }),
               Contains("'layers.0.scores.rows': element") && Contains("ascending rows in [0, 4)"));
  }
  CHECK_THAT(open_message(largest, [](TraceSpec* spec) { spec->layers[0].index.clear(); }),
             Contains("'layers.0.scores.index': is missing"));
  CHECK_THAT(open_message(largest, [](TraceSpec* spec) { spec->layers[0].lse.clear(); }),
             Contains("'layers.0.scores.lse': is missing"));
  CHECK_THAT(open_message(largest,
                          [&](TraceSpec* spec) { spec->layers[0].dense = dense.layers[0].dense; }),
             Contains("present beside scores.dense"));
  CHECK_THAT(
      open_message(largest, [](TraceSpec* spec) { spec->without = {"passes"}; }),
      Contains("'layers.0.scores.column_mass': needs the pass ends") && Contains("'passes'"));
  CHECK_THAT(open_message(largest, [](TraceSpec* spec) { spec->meta.passes = {3}; }),
             Contains("F32 [2, 2, 4]; expected F32 [1, 2, 4]"));
  CHECK_THAT(
      open_message(largest,
                   [](TraceSpec* spec) { spec->layers[0].q = std::vector<double>(16, 1.0); }),
      Contains("'layers.0.k': is missing"));
  CHECK_THAT(open_message(largest,
                          [](TraceSpec* spec) {
                            LayerSpec second;
                            second.q = std::vector<double>(16, 1.0);
                            second.k = std::vector<double>(8, 1.0);
                            spec->layers.push_back(second);
                          }),
             Contains("'layers.1.q': q or k beside scores"));

  CHECK_THAT(check_message(largest, [](LayerSpec* layer) { layer->prob[0] = -0.1; }),
             Contains("scores.prob': row 1, head 0, element 0: probability -0.1"));
  CHECK_THAT(check_message(largest, [](LayerSpec* layer) { layer->prob[1] = 0.8; }),
             Contains("expected a descending list"));
  CHECK_THAT(check_message(largest, [](LayerSpec* layer) { layer->prob[0] = 0.76; }),
             Contains("sum to 1.01"));
  CHECK_THAT(check_message(largest, [](LayerSpec* layer) { layer->prob[0] = NAN; }),
             Contains("element 0 is NaN"));
  CHECK_THAT(check_message(largest, [](LayerSpec* layer) { layer->index[0] = 2; }),
             Contains("scores.index': row 1, head 0, element 0: key 2"));
  CHECK_THAT(check_message(largest, [](LayerSpec* layer) { layer->index[0] = -2; }),
             Contains("key -2"));
  CHECK_THAT(check_message(largest, [](LayerSpec* layer) { layer->index[1] = 1; }),
             Contains("key 1 appears twice"));
  CHECK_THAT(check_message(largest, [](LayerSpec* layer) { layer->index[6] = -1; }),
             Contains("key -1 with probability 1"));
  CHECK_THAT(check_message(largest,
                           [](LayerSpec* layer) {
                             layer->index[6] = -1;
                             layer->index[7] = 2;
                             layer->prob[6] = 0;
                           }),
             Contains("expected the pads at the end"));
  CHECK_THAT(check_message(largest, [](LayerSpec* layer) { layer->lse[3] = INFINITY; }),
             Contains("scores.lse': element 3 is infinite"));
  CHECK_THAT(check_message(dense, [](LayerSpec* layer) { layer->dense[2] = 0.1; }),
             Contains("scores.dense': row 1, key 2"));
  CHECK_THAT(check_message(dense, [](LayerSpec* layer) { layer->dense[0] = 0.5; }),
             Contains("sum to 1.25"));
  CHECK_THAT(check_message(dense, [](LayerSpec* layer) { layer->column_mass[2] = 0.1; }),
             Contains("scores.column_mass': pass 0, key 2"));
  CHECK_THAT(check_message(dense, [](LayerSpec* layer) { layer->column_mass[0] = 2; }),
             Contains("expected at most its 2 rows"));
  TraceSpec windowed = largest;
  windowed.meta.sliding_window = {2};  // row 3 reads keys 2 and 3
  CHECK_THAT(check_message(windowed, [](LayerSpec*) {}), Contains("key 0") && Contains("[2, 3]"));
}

TEST_CASE("check finds values that no attention can have", "[trace]") {
  const auto message = [](const std::function<void(TraceSpec*)>& change) {
    TraceSpec spec = full_spec(Dtype::f32);
    change(&spec);
    spec.name = "x";
    const Trace trace = make_trace(spec);
    return error_of([&] { static_cast<void>(check_trace(trace)); });
  };
  CHECK(message([](TraceSpec*) {}).empty());
  CHECK_THAT(message([](TraceSpec* spec) { spec->layers[1].q[5] = NAN; }),
             Contains("x: tensor 'layers.1.q': element 5 is NaN"));
  CHECK_THAT(message([](TraceSpec* spec) { spec->layers[0].k[0] = INFINITY; }),
             Contains("layers.0.k"));
  CHECK_THAT(message([](TraceSpec* spec) { spec->layers[0].v[1] = -INFINITY; }),
             Contains("layers.0.v"));
  CHECK_THAT(message([](TraceSpec* spec) { spec->layers[0].wo[1] = NAN; }),
             Contains("layers.0.wo"));
  CHECK_THAT(message([](TraceSpec* spec) { spec->layers[0].sink_logits[0] = NAN; }),
             Contains("layers.0.sink_logits"));
  CHECK_THAT(message([](TraceSpec* spec) { spec->nll[0] = -1; }),
             Contains("'nll': element 0 is -1"));
  CHECK_THAT(message([](TraceSpec* spec) { spec->token_ids[2] = -1; }),
             Contains("'token_ids': element 2"));
  CHECK(message([](TraceSpec* spec) { spec->nll[2] = NAN; }).empty());  // the last is ignored
}

TEST_CASE("a file appears under its name only when it is complete", "[trace][writer]") {
  const TempDir dir;
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

TEST_CASE("a slice keeps the values of its tokens and layers", "[trace][slice]") {
  TraceSpec spec = random_spec({.layers = 4,
                                .tokens = 40,
                                .prompt_tokens = 30,
                                .query_heads = 4,
                                .kv_heads = 2,
                                .head_dim = 6,
                                .v_head_dim = 3,
                                .dtype = Dtype::f16});
  spec.meta.model_layers = 9;
  spec.meta.layer_ids = {2, 3, 5, 8};
  spec.meta.sliding_window = {0, 7, 0, 9};
  spec.meta.passes = {10, 20, 30};
  spec.meta.spans = {{"kept", 1, 5}, {"clipped", 20, 30}, {"dropped", 25, 39}};
  spec.meta.model = "a model";
  spec.extra["somebody's key"] = "stays";
  for (int i = 0; i < 40; ++i) {
    spec.token_ids.push_back(100 + i);
    spec.token_text.push_back(std::string(static_cast<std::size_t>(i % 3), 'x'));
    spec.nll.push_back(0.25 * i);
  }
  for (std::size_t l = 0; l < 4; ++l) {
    spec.layers[l].sink_logits = std::vector<double>(4, static_cast<double>(l));
    spec.layers[l].wo = std::vector<double>(24, static_cast<double>(l));
  }
  const Trace whole = make_trace(spec);
  const TempDir dir;
  const fs::path path = dir / "slice.safetensors";
  const std::vector<std::string> lines = slice_trace(whole, 25, {8, 3, 8}, path);
  REQUIRE(lines.size() == 2);
  CHECK(lines[0] == "span 'clipped' [20, 30) clipped to [20, 25)");
  CHECK(lines[1] == "span 'dropped' [25, 39) dropped: only 25 tokens are kept");

  const Trace slice = Trace::open(path);
  const TraceMeta& meta = slice.meta();
  CHECK(meta.layers == 2);
  CHECK(meta.model_layers == 9);
  CHECK(meta.layer_ids == std::vector<int>{3, 8});
  CHECK(meta.tokens == 25);
  CHECK(meta.prompt_tokens == 25);
  CHECK(meta.passes == std::vector<std::int64_t>{10, 20, 25});
  CHECK(meta.sliding_window == std::vector<std::int64_t>{7, 9});
  CHECK(meta.model == "a model");
  CHECK(slice.tensors().metadata().at("somebody's key") == "stays");
  REQUIRE(meta.spans.size() == 2);
  CHECK(meta.spans[1].end == 25);
  const auto prefix = [](std::vector<double> values, std::size_t count) {
    values.resize(count);
    return values;
  };
  for (int l = 0; l < 2; ++l) {
    const int from = l == 0 ? 1 : 3;
    CHECK(widened_doubles(slice.q(l)) ==
          prefix(widened_doubles(whole.q(from)), std::size_t{25} * 4 * 6));
    CHECK(widened_doubles(slice.k(l)) ==
          prefix(widened_doubles(whole.k(from)), std::size_t{25} * 2 * 6));
    CHECK(widened_doubles(slice.v(l)) ==
          prefix(widened_doubles(whole.v(from)), std::size_t{25} * 2 * 3));
    CHECK(slice.sink_logits(l) == whole.sink_logits(from));
    CHECK(slice.tensors().find(fmt::format("layers.{}.wo", l))->shape ==
          std::vector<std::int64_t>{2, 12});
  }
  CHECK(slice.token_ids().size() == 25);
  for (std::int64_t i = 0; i < 25; ++i) CHECK(slice.token_text(i) == whole.token_text(i));
  std::vector<double> nll = prefix(spec.nll, 25);
  nll[24] = 0;
  CHECK(widened_doubles(slice.tensors().find("nll")) == nll);
  CHECK(check_trace(slice).size() >= 8);

  // All layers; the prompt shorter than the slice; text that ends before any byte of it.
  CHECK(slice_trace(whole, 35, {}, path).size() == 1);
  CHECK(Trace::open(path).meta().prompt_tokens == 30);
  CHECK(Trace::open(path).meta().layer_ids == spec.meta.layer_ids);
  CHECK(slice_trace(whole, 1, {5}, path).size() == 3);
  CHECK(Trace::open(path).token_text(0).empty());
  CHECK(Trace::open(path).meta().spans.empty());
  CHECK(dir.names() == std::vector<std::string>{"slice.safetensors"});

  // A slice of a mapped file may replace that file.
  const Trace open = Trace::open(path);
  CHECK(slice_trace(open, 1, {}, path).empty());
  CHECK(widened(*Trace::open(path).q(0)) == widened(*open.q(0)));

  for (const std::int64_t tokens : {-1, 0, 41}) {
    CHECK_THROWS_AS(slice_trace(whole, tokens, {}, path), ConfigError);
  }
  CHECK_THROWS_WITH(slice_trace(whole, 5, {3, 4}, path),
                    Contains("layer 4 is not in the trace") && Contains("2, 3, 5, 8"));
}

TEST_CASE("a slice of a score trace drops later rows and columns", "[trace][slice]") {
  const TempDir dir;
  const fs::path path = dir / "slice.safetensors";
  CHECK(slice_trace(make_trace(largest_spec()), 3, {}, path).empty());
  {
    const Trace slice = Trace::open(path);
    CHECK(slice.scores(0).rows == std::vector<std::int64_t>{1});
    CHECK(widened_doubles(slice.scores(0).prob) == std::vector<double>{0.75, 0.25, 0.5, 0.5});
    CHECK(widened_doubles(slice.scores(0).lse) == std::vector<double>{1, 2});
    CHECK(widened_doubles(slice.scores(0).column_mass) ==
          std::vector<double>{1.25, 0.75, 0, 1.5, 0.5, 0, 0.5, 0.25, 0.25, 0, 0, 1});
    CHECK(check_trace(slice).size() >= 3);
  }
  CHECK(slice_trace(make_trace(dense_spec()), 2, {}, path).empty());
  {
    const Trace slice = Trace::open(path);
    CHECK(slice.meta().passes == std::vector<std::int64_t>{2});
    CHECK(widened_doubles(slice.scores(0).dense) == std::vector<double>{0.25, 0.75, 0.5, 0.5});
    CHECK(widened_doubles(slice.scores(0).column_mass) ==
          std::vector<double>{1.25, 0.75, 1.5, 0.5});
    CHECK(check_trace(slice).size() >= 3);
  }
  // The mass of half a pass is not known.
  TraceSpec one_pass = dense_spec();
  one_pass.meta.passes = {3};
  one_pass.layers[0].column_mass.resize(8);
  const std::vector<std::string> lines = slice_trace(make_trace(one_pass), 2, {}, path);
  REQUIRE(lines.size() == 1);
  CHECK_THAT(lines[0], Contains("column_mass dropped"));
  CHECK(Trace::open(path).scores(0).column_mass == nullptr);
  CHECK_THROWS_WITH(slice_trace(make_trace(dense_spec()), 1, {}, path),
                    Contains("layer 0 has no scores below row 1"));
}

TEST_CASE("describe names every fact of a trace", "[trace]") {
  const TempDir dir;
  write_trace(dir / "t.safetensors", full_spec());
  const Trace trace = Trace::open(dir / "t.safetensors");
  const json facts = describe_trace(trace);
  CHECK(facts["kind"] == "qkv");
  CHECK(facts["dtype"] == "F16");
  CHECK(facts["layer_ids"] == json({1, 4}));
  CHECK(facts["rope"]["layout"] == "half");
  CHECK(facts["spans"][0]["name"] == "needle");
  CHECK(facts["has_wo"] == true);
  CHECK(facts["files"][0]["bytes"] == fs::file_size(dir / "t.safetensors"));
  CHECK(facts["tensors"].size() == trace.tensors().tensors().size());
  CHECK(facts["tensors"][0]["bytes"] == trace.tensors().tensors().begin()->second.bytes.size());
  std::uint64_t total = 0;
  for (const json& tensor : facts["tensors"]) total += tensor["bytes"].get<std::uint64_t>();
  CHECK(facts["tensor_bytes"] == total);
}

}  // namespace kvspan::test
