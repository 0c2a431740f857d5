// SPDX-License-Identifier: Apache-2.0
// GGUF files that are read, and those that are refused.
#include "tracegen/model/gguf.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "tests/support/checkpoint_case.h"
#include "tests/support/temporary_folder.h"
#include "tracegen/model/checkpoint.h"

using Catch::Contains;
using kvspan::tracegen::Checkpoint;
using kvspan::tracegen::Gguf;
using kvspan::tracegen::ModelSpec;
using namespace kvspan::tracegen::testing;
using Folder = kvspan::test::TemporaryFolder;

namespace {

// Writes what a test wants, right or wrong.
struct GgufBytes {
  std::string bytes = "GGUF";
  template <typename T>
  GgufBytes& number(T value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  GgufBytes& u32(std::uint32_t value) { return number(value); }
  GgufBytes& u64(std::uint64_t value) { return number(value); }
  GgufBytes& text(const std::string& value) {
    u64(value.size());
    bytes += value;
    return *this;
  }
  static GgufBytes header(std::uint64_t tensors, std::uint64_t keys, std::uint32_t version = 3) {
    GgufBytes out;
    out.u32(version).u64(tensors).u64(keys);
    return out;
  }
  [[nodiscard]] std::string error() const {
    return error_of(
        [&] { static_cast<void>(Gguf::from_bytes(std::as_bytes(std::span(bytes)), "x.gguf")); });
  }
};
constexpr std::uint32_t kU32 = 4, kBool = 7, kString = 8, kArray = 9, kU64 = 10, kF64 = 12;

GgufBytes tensor_file(std::uint64_t rows, std::uint64_t columns, std::uint32_t type,
                      std::uint64_t offset, std::size_t data) {
  GgufBytes out = GgufBytes::header(1, 0);
  out.text("t").u32(2).u64(columns).u64(rows).u32(type).u64(offset);
  out.bytes.resize((out.bytes.size() + 31) / 32 * 32 + data);
  return out;
}

}  // namespace

TEST_CASE("metadata of every type are found by kind", "[checkpoint][gguf]") {
  GgufBytes file = GgufBytes::header(0, 7);
  file.text("count").u32(kU32).u32(7);
  file.text("large").u32(kU64).u64(std::uint64_t{1} << 63U);
  file.text("real").u32(kF64).number(0.5);
  file.text("yes").u32(kBool).number(std::uint8_t{1});
  file.text("two").u32(kBool).number(std::uint8_t{2});
  file.text("words").u32(kArray).u32(kString).u64(2).text("a").text("");
  file.text("shorts").u32(kArray).u32(3).u64(2).number(std::int16_t{-1}).number(std::int16_t{2});
  const Gguf gguf = Gguf::from_bytes(std::as_bytes(std::span(file.bytes)), "x.gguf");
  CHECK(gguf.integer("count") == 7);
  CHECK(gguf.real("count") == 7.0);
  CHECK(gguf.real("real") == 0.5);
  CHECK(gguf.flag("yes") == true);
  CHECK(gguf.texts("words") == std::vector<std::string_view>{"a", ""});
  CHECK(gguf.integers("shorts") == std::vector<std::int64_t>{-1, 2});
  CHECK_FALSE(gguf.integer("none"));
  CHECK_FALSE(gguf.texts("none"));
  CHECK_THAT(error_of([&] { static_cast<void>(gguf.integer("large")); }), Contains("past 63 bits"));
  CHECK_THAT(error_of([&] { static_cast<void>(gguf.integer("real")); }),
             Contains("x.gguf: metadata key 'real' is of type f64; expected an integer"));
  CHECK_THAT(error_of([&] { static_cast<void>(gguf.text("words")); }),
             Contains("is an array of 2 of type string; expected a string"));
  CHECK_THAT(error_of([&] { static_cast<void>(gguf.flag("two")); }), Contains("boolean of 0 or 1"));
  CHECK_THAT(error_of([&] { static_cast<void>(gguf.reals("shorts")); }),
             Contains("floating-point"));
}

TEST_CASE("a GGUF header that cannot be is refused before anything is allocated",
          "[checkpoint][gguf]") {
  constexpr std::uint64_t kHuge = std::numeric_limits<std::uint64_t>::max();
  const auto header = [](std::uint64_t tensors, std::uint64_t keys, std::uint32_t version = 3) {
    return GgufBytes::header(tensors, keys, version);
  };
  CHECK_THAT(header(0, 0, 1).error(), Contains("GGUF version 1; expected 2 or 3"));
  CHECK_THAT(header(0, 0, 0x03000000).error(), Contains("big-endian"));
  CHECK(header(0, 0, 2).error().empty());
  CHECK_THAT(header(kHuge, 0).error(), Contains("tensors; the file has only 0 more bytes"));
  CHECK_THAT(header(0, kHuge).error(), Contains("metadata keys; the file has only"));
  CHECK_THAT(header(0, 1).text("k").u32(13).error(), Contains("value type 13; expected 0 to 12"));
  CHECK_THAT(header(0, 1).text("k").u32(kString).u64(kHuge).error(), Contains("needs"));
  CHECK_THAT(header(0, 1).text("").u32(kU32).u32(1).error(), Contains("name of 0 bytes"));
  CHECK_THAT(header(0, 1).u64(kHuge).u64(0).error(), Contains("needs"));
  CHECK_THAT(header(0, 1).text("k").u32(kArray).u32(kArray).u64(1).u32(kArray).error(),
             Contains("array of arrays"));
  CHECK_THAT(header(0, 1).text("k").u32(kArray).u32(kU64).u64(kHuge / 8 + 2).error(),
             Contains("elements of metadata key 'k'; the file has only"));
  CHECK_THAT(header(0, 1).text("k").u32(kArray).u32(kString).u64(kHuge).error(),
             Contains("the file has only"));
  CHECK_THAT(header(0, 2).text("k").u32(kU32).u32(1).text("k").u32(kU32).u32(1).error(),
             Contains("metadata key 'k' appears twice"));
  CHECK_THAT(header(0, 1).text("general.alignment").u32(kU32).u32(24).error(),
             Contains("is 24; expected a power of two"));
  CHECK_THAT(header(0, 1).text("general.alignment").u32(kU32).u32(0).error(),
             Contains("expected a power of two"));
  CHECK_THAT(header(0, 1).text("general.alignment").u32(kString).text("32").error(),
             Contains("expected an integer"));
}

TEST_CASE("a GGUF tensor that does not fit its file is refused by name", "[checkpoint][gguf]") {
  constexpr std::uint32_t kF32 = 0, kQ8 = 8, kIq4 = 20;
  CHECK(tensor_file(2, 8, kF32, 0, 64).error().empty());
  CHECK_THAT(tensor_file(2, 8, kF32, 0, 63).error(), Contains("tensor 't' has 64 bytes at byte 0"));
  CHECK_THAT(tensor_file(2, 8, kF32, 32, 64).error(), Contains("cut off"));
  CHECK_THAT(tensor_file(2, 8, kF32, 16, 80).error(), Contains("a multiple of the alignment 32"));
  CHECK_THAT(tensor_file(2, 8, kF32, ~std::uint64_t{31}, 64).error(), Contains("cut off"));
  CHECK_THAT(tensor_file(std::uint64_t{1} << 62U, 8, kF32, 0, 64).error(), Contains("dimension"));
  CHECK_THAT(tensor_file(0, 8, kF32, 0, 64).error(), Contains("dimension of 0"));
  CHECK_THAT(tensor_file(2, 8, kQ8, 0, 64).error(), Contains("rows of 8 elements"));
  CHECK(tensor_file(2, 8, kIq4, 0, 64).error().empty());  // refused when somebody needs it
  CHECK_THAT(GgufBytes::header(1, 0).text("t").u32(5).u64(1).u64(1).u64(1).error(),
             Contains("5 dimensions; expected 1 to 4"));
  GgufBytes twice = GgufBytes::header(2, 0);
  for (const std::uint64_t offset : {0U, 32U}) twice.text("t").u32(1).u64(8).u32(kF32).u64(offset);
  twice.bytes.resize((twice.bytes.size() + 31) / 32 * 32 + 64);
  CHECK_THAT(twice.error(), Contains("'t' appears twice"));
  GgufBytes overlap = GgufBytes::header(2, 0);
  overlap.text("a").u32(1).u64(16).u32(kF32).u64(0);
  overlap.text("b").u32(1).u64(8).u32(kF32).u64(32);
  overlap.bytes.resize((overlap.bytes.size() + 31) / 32 * 32 + 64);
  CHECK_THAT(overlap.error(), Contains("inside another tensor"));
}

TEST_CASE("a GGUF model that the forward pass does not cover is refused by name",
          "[checkpoint][gguf]") {
  struct Case {
    const char* key;  // its last byte is changed in the file, so that it is another key
    const char* message;
  };
  const Case c = GENERATE(values<Case>({
      {"general.architecture", "'general.architecture' is missing; expected llama, qwen2 or qwen3"},
      {"llama.block_count", "'llama.block_count' is missing"},
      {"llama.attention.head_count", "'llama.attention.head_count' is missing"},
      {"llama.attention.layer_norm_rms_epsilon", "rms_epsilon' is missing"},
      {"blk.1.ffn_up.weight", "tensor 'blk.1.ffn_up.weight' is missing; expected one of shape"},
      {"token_embd.weight", "tensor 'token_embd.weight' is missing"},
      {"rope_freqs.weight", "tensor 'rope_freqs.weighx' has no place in the architecture 'llama'"},
  }));
  INFO(c.key);
  std::string bytes = read_bytes(kFixtures / "llama.gguf");
  const std::string key = c.key;
  std::string stored(8, '\0');
  stored[0] = static_cast<char>(key.size());
  const std::size_t at = bytes.find(stored + key);
  REQUIRE(at != std::string::npos);
  bytes[at + 8 + key.size() - 1] = 'x';
  const Folder dir;
  write_bytes(dir / "x.gguf", bytes);
  CHECK_THAT(open_error(dir / "x.gguf"), Contains(c.message));
}

namespace {

// A fixture with `count` more metadata keys, in front of the others. The data keep their alignment.
std::string with_keys(const char* fixture, GgufBytes keys, std::uint64_t count) {
  std::string file = read_bytes(kFixtures / fixture);
  std::string added = keys.bytes.substr(4);  // without the magic number
  GgufBytes padding;
  padding.text("padding").u32(kString);
  const std::size_t size = added.size() + padding.bytes.size() - 4 + 8;
  padding.text(std::string((32 - size % 32) % 32, '.'));
  added += padding.bytes.substr(4);
  std::uint64_t keys_before = 0;
  std::memcpy(&keys_before, file.data() + 16, 8);
  keys_before += count + 1;
  std::memcpy(file.data() + 16, &keys_before, 8);
  return file.insert(24, added);
}

}  // namespace

TEST_CASE("a GGUF file's window and linear scaling are read", "[checkpoint][gguf]") {
  const Folder dir;
  GgufBytes keys;
  keys.text("qwen2.attention.sliding_window").u32(kU32).u32(5);
  keys.text("qwen2.rope.scaling.type").u32(kString).text("linear");
  keys.text("qwen2.rope.scaling.factor").u32(kF64).number(4.0);
  write_bytes(dir / "x.gguf", with_keys("qwen2.gguf", keys, 3));
  const ModelSpec spec = Checkpoint::open(dir / "x.gguf").spec();
  CHECK(spec.sliding_window == std::vector<std::int64_t>{5, 5, 5});
  CHECK(spec.rope_scaling == R"({"factor":4.0,"rope_type":"linear"})");
  CHECK(spec.rope.inverse_frequencies[1] == Approx(0.1 / 4));

  const auto error_with = [&](GgufBytes more, std::uint64_t count) {
    write_bytes(dir / "x.gguf", with_keys("qwen2.gguf", std::move(more), count));
    return open_error(dir / "x.gguf");
  };
  CHECK_THAT(error_with(GgufBytes().text("qwen2.expert_count").u32(kU32).u32(8), 1),
             Contains("'qwen2.expert_count' is 8; expected no experts"));
  CHECK_THAT(error_with(GgufBytes()
                            .text("qwen2.rope.scaling.type")
                            .u32(kString)
                            .text("longrope")
                            .text("qwen2.rope.scaling.factor")
                            .u32(kU32)
                            .u32(2),
                        2),
             Contains("is 'longrope'; expected none, linear or yarn"));
  CHECK_THAT(error_with(GgufBytes().text("qwen2.block_count").u32(kU32).u32(3), 1),
             Contains("'qwen2.block_count' appears twice"));
}

TEST_CASE("what a GGUF file says of its attention is obeyed or refused", "[checkpoint][gguf]") {
  // A model with bidirectional attention was captured as a causal one.
  const Folder dir;
  const auto error_with = [&](GgufBytes more) {
    write_bytes(dir / "x.gguf", with_keys("qwen2.gguf", std::move(more), 1));
    return open_error(dir / "x.gguf");
  };
  const auto flag = [](const char* key, std::uint8_t value) {
    GgufBytes out;
    out.text(key).u32(kBool).number(value);
    return out;
  };
  const auto real = [](const char* key, double value) {
    GgufBytes out;
    out.text(key).u32(kF64).number(value);
    return out;
  };
  CHECK(error_with(flag("qwen2.attention.causal", 1)).empty());
  CHECK_THAT(error_with(flag("qwen2.attention.causal", 0)),
             Contains("'qwen2.attention.causal' is false; expected no attention to later tokens"));
  CHECK(error_with(real("qwen2.attention.scale", 1 / std::sqrt(8.0))).empty());
  CHECK_THAT(error_with(real("qwen2.attention.scale", 0.5)), Contains("is 0.5; expected 1 / sqrt"));
  CHECK(error_with(real("qwen2.attn_logit_softcapping", 0)).empty());
  CHECK_THAT(error_with(real("qwen2.attn_logit_softcapping", 50)), Contains("no soft cap"));
  CHECK_THAT(error_with(real("qwen2.logit_scale", 16)), Contains("no scale of the logits"));
  CHECK_THAT(error_with(real("qwen2.attention.kv_lora_rank", 512)),
             Contains("'qwen2.attention.kv_lora_rank' is there; expected none"));
  CHECK_THAT(error_with(real("qwen2.rope.freq_base_swa", 1)), Contains("is there; expected none"));
  GgufBytes type;
  type.text("general.type").u32(kString).text("adapter");
  CHECK_THAT(error_with(type), Contains("'general.type' is 'adapter'; expected 'model'"));
  GgufBytes tokens;
  tokens.text("tokenizer.ggml.tokens").u32(kArray).u32(kString).u64(2).text("a").text("b");
  CHECK_THAT(error_with(tokens), Contains("has 2 tokens; expected 48, one for each row"));
}

TEST_CASE("a split GGUF file is read whole, whichever part is named", "[checkpoint][gguf]") {
  // The head, in the second part, was missed, and the embedding taken for it.
  for (const char* part : {"split-00001-of-00002.gguf", "split-00002-of-00002.gguf"}) {
    INFO(part);
    const Checkpoint checkpoint = Checkpoint::open(kFixtures / part);
    CHECK_FALSE(checkpoint.spec().tied);
    CHECK(checkpoint.head().name == "output.weight");
    CHECK(checkpoint.files() ==
          std::vector<std::filesystem::path>{kFixtures / "split-00001-of-00002.gguf",
                                             kFixtures / "split-00002-of-00002.gguf"});
  }
}

TEST_CASE("a split GGUF file whose parts do not belong together is refused", "[checkpoint][gguf]") {
  const Folder dir;
  const std::string first = read_bytes(kFixtures / "split-00001-of-00002.gguf");
  const std::string second = read_bytes(kFixtures / "split-00002-of-00002.gguf");
  const std::filesystem::path one = dir / "m-00001-of-00002.gguf";
  const std::filesystem::path two = dir / "m-00002-of-00002.gguf";
  write_bytes(one, first);
  CHECK_THAT(open_error(one), Contains("m-00002-of-00002.gguf is missing: part 2 of the 2 parts"));
  write_bytes(two, first);
  CHECK_THAT(open_error(one), Contains("m-00002-of-00002.gguf") &&
                                  Contains("says that this is part 1 of 2; expected part 2 of 2"));
  CHECK_THAT(open_error(two), Contains("expected a name that says so, too"));
  write_bytes(two, second);
  CHECK(open_error(two).empty());
  std::filesystem::remove(one);
  CHECK_THAT(open_error(two), Contains("m-00001-of-00002.gguf is missing: part 1 of the 2 parts"));
  write_bytes(dir / "whole.gguf", first);
  CHECK_THAT(open_error(dir / "whole.gguf"), Contains("the other parts are found by it"));
  write_bytes(one, read_bytes(kFixtures / "qwen2.gguf"));
  CHECK_THAT(open_error(one), Contains("its name says that it is part 1 of 2"));
  // One tensor fewer than the parts announce.
  const std::string key = "split.tensors.count";
  std::string other = first;
  const std::size_t at = other.find(key);
  REQUIRE(at != std::string::npos);
  ++other[at + key.size() + 4];
  write_bytes(one, other);
  CHECK_THAT(open_error(one), Contains("expected the number of tensors in all 2 parts"));
}
