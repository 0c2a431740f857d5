// SPDX-License-Identifier: Apache-2.0
// The fixtures are made by tests/tracegen/make_fixtures.py, which says what they hold.
#include "tracegen/model/checkpoint.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/trace/safetensors.h"
#include "tests/support/checkpoint_case.h"
#include "tests/support/temporary_folder.h"
#include "tracegen/model/gguf.h"

using Catch::Contains;
using kvspan::CheckpointError;
using kvspan::SafetensorsWriter;
using kvspan::TensorSet;
using kvspan::TensorView;
using kvspan::tracegen::Checkpoint;
using kvspan::tracegen::Gguf;
using kvspan::tracegen::LayerWeights;
using kvspan::tracegen::ModelSpec;
using kvspan::tracegen::WeightMatrix;
using kvspan::tracegen::WeightType;
using nlohmann::json;
using namespace kvspan::tracegen::testing;
using Folder = kvspan::test::TemporaryFolder;
namespace fs = std::filesystem;

namespace {

constexpr std::array<const char*, 10> kModels = {
    "llama", "llama-linear", "llama-yarn", "llama-sharded", "mistral",
    "qwen2", "qwen3",        "llama.gguf", "qwen2.gguf",    "qwen3.gguf"};

// What transformers computes from a fixture.
TensorSet expected_of(const std::string& name) {
  if (name == "qwen2.gguf") return TensorSet::open(kFixtures / "qwen2.gguf.expected.safetensors");
  return TensorSet::open(kFixtures / name.substr(0, name.find('.')) / "expected.safetensors");
}

std::vector<float> floats(const TensorView& tensor) {
  std::vector<float> out(static_cast<std::size_t>(tensor.elements()));
  std::memcpy(out.data(), tensor.bytes.data(), tensor.bytes.size());
  return out;
}

// y = W x + b for rows x of the hidden state.
std::vector<double> project(const WeightMatrix& w, const std::vector<float>& bias,
                            const std::vector<double>& x) {
  std::vector<float> weights(static_cast<std::size_t>(w.rows * w.columns));
  widen_rows(w, 0, w.rows, weights.data());
  std::vector<double> y(static_cast<std::size_t>(w.rows));
  for (std::size_t r = 0; r < y.size(); ++r) {
    y[r] = bias.empty() ? 0 : static_cast<double>(bias[r]);
    for (std::size_t c = 0; c < x.size(); ++c)
      y[r] += static_cast<double>(weights[r * x.size() + c]) * x[c];
  }
  return y;
}

void rms_norm(double* x, std::size_t size, double eps, const std::vector<float>& weight) {
  double sum = 0;
  for (std::size_t i = 0; i < size; ++i) sum += x[i] * x[i];
  const double scale = 1 / std::sqrt(sum / static_cast<double>(size) + eps);
  for (std::size_t i = 0; i < size; ++i) x[i] *= scale * static_cast<double>(weight[i]);
}

// Of every head of x: the norm if there is one, then the rotation for `position`.
void norm_and_rotate(const ModelSpec& spec, const std::vector<float>& norm, double position,
                     std::vector<double>& x) {
  const auto dim = static_cast<std::size_t>(spec.head_dim);
  for (std::size_t head = 0; head < x.size(); head += dim) {
    if (!norm.empty()) rms_norm(&x[head], dim, spec.norm_eps, norm);
    for (std::size_t i = 0; i < dim / 2; ++i) {
      const double angle = position * spec.rope.inverse_frequencies[i];
      const double a = x[head + i] * spec.rope_attention_factor;
      const double b = x[head + i + dim / 2] * spec.rope_attention_factor;
      x[head + i] = a * std::cos(angle) - b * std::sin(angle);
      x[head + i + dim / 2] = b * std::cos(angle) + a * std::sin(angle);
    }
  }
}

void check_row(const std::vector<double>& row, const std::vector<float>& expected,
               std::size_t token) {
  double error = 0;
  double largest = 0;
  for (std::size_t i = 0; i < row.size(); ++i) {
    const auto value = static_cast<double>(expected[token * row.size() + i]);
    error = std::max(error, std::abs(row[i] - value));
    largest = std::max(largest, std::abs(value));
  }
  CHECK(error <= 3e-6 * largest);
}

}  // namespace

// The first layer needs no attention: it shows that weights, order of rows, biases, norms, epsilon,
// frequencies and the attention factor are read as transformers reads them.
TEST_CASE("q, k and v of the first layer equal those of transformers", "[checkpoint]") {
  const std::string name = GENERATE(from_range(kModels));
  INFO(name);
  const Checkpoint model = Checkpoint::open(kFixtures / name);
  const ModelSpec& spec = model.spec();
  const LayerWeights& w = model.layer(0);
  const TensorSet expected = expected_of(name);
  std::vector<std::int32_t> ids(expected.find("token_ids")->bytes.size() / 4);
  std::memcpy(ids.data(), expected.find("token_ids")->bytes.data(), 4 * ids.size());
  const std::vector<float> q = floats(*expected.find("layers.0.q"));
  const std::vector<float> k = floats(*expected.find("layers.0.k"));
  const std::vector<float> v = floats(*expected.find("layers.0.v"));
  std::vector<float> embedded(static_cast<std::size_t>(spec.hidden));
  for (std::size_t t = 0; t < ids.size(); ++t) {
    widen_rows(model.embedding(), ids[t], 1, embedded.data());
    std::vector<double> x(embedded.begin(), embedded.end());
    rms_norm(x.data(), x.size(), spec.norm_eps, w.attention_norm);
    std::vector<double> row = project(w.q, w.q_bias, x);
    norm_and_rotate(spec, w.q_norm, static_cast<double>(t), row);
    check_row(row, q, t);
    row = project(w.k, w.k_bias, x);
    norm_and_rotate(spec, w.k_norm, static_cast<double>(t), row);
    check_row(row, k, t);
    check_row(project(w.v, w.v_bias, x), v, t);
  }
}

TEST_CASE("a checkpoint says what it is", "[checkpoint]") {
  const auto spec = [](const char* name) { return Checkpoint::open(kFixtures / name).spec(); };
  using Windows = std::vector<std::int64_t>;

  const ModelSpec llama = spec("llama");
  CHECK(llama.architecture == "llama");
  CHECK(llama.name == "llama");
  CHECK(llama.layers == 2);
  CHECK(llama.hidden == 32);
  CHECK(llama.intermediate == 40);
  CHECK(llama.query_heads == 4);
  CHECK(llama.kv_heads == 2);
  CHECK(llama.head_dim == 8);
  CHECK(llama.vocabulary == 48);
  CHECK(llama.context == 256);
  CHECK(llama.norm_eps == 1e-5);
  CHECK_FALSE(llama.tied);
  CHECK(llama.weights == "BF16");
  CHECK(llama.rope_attention_factor == 1);
  CHECK(llama.sliding_window == Windows{0, 0});
  CHECK(json::parse(llama.rope_scaling)["rope_type"] == "llama3");

  CHECK(spec("llama-linear").rope_scaling == R"({"factor":3.0,"rope_type":"linear"})");
  CHECK(spec("llama-linear").rope.theta == 20000);
  CHECK(spec("llama-linear").tied);
  CHECK(spec("llama-yarn").rope_attention_factor == 1.3);
  CHECK(spec("llama-sharded").weights == "BF16 and F32");
  CHECK(spec("llama-sharded").rope_scaling.empty());
  CHECK(Checkpoint::open(kFixtures / "llama-sharded").files().size() == 5);
  CHECK(spec("mistral").sliding_window == Windows{7, 7});
  CHECK(spec("mistral").weights == "F32");
  CHECK(spec("qwen2").sliding_window == Windows{0, 7, 7});
  CHECK(spec("qwen3").head_dim == 16);
  CHECK(spec("qwen3").rope_attention_factor == Approx(0.1 * std::log(4.0) + 1));

  const ModelSpec gguf = spec("llama.gguf");
  CHECK(gguf.architecture == "llama");
  CHECK(gguf.name == "Tiny random llama");
  CHECK(gguf.licence == "apache-2.0");
  CHECK(gguf.weights == "BF16 and F32");
  CHECK(gguf.vocabulary == 48);
  CHECK_FALSE(gguf.tied);
  CHECK(spec("qwen3.gguf").tied);
  for (std::size_t i = 0; i < 4; ++i)
    CHECK(gguf.rope.inverse_frequencies[i] ==
          Approx(llama.rope.inverse_frequencies[i]).epsilon(1e-6));
}

TEST_CASE("a GGUF file holds the matrices of the folder that it was made from", "[checkpoint]") {
  const std::string name = GENERATE("llama", "qwen2", "qwen3");
  INFO(name);
  const Checkpoint folder = Checkpoint::open(kFixtures / name);
  const Checkpoint gguf = Checkpoint::open(kFixtures / (name + ".gguf"));
  const auto values = [](const WeightMatrix& m) {
    std::vector<float> out(static_cast<std::size_t>(m.rows * m.columns));
    for (std::int64_t r = 0; r < m.rows; r += 3)  // in tiles, the last one cut
      widen_rows(m, r, std::min<std::int64_t>(3, m.rows - r), out.data() + r * m.columns);
    return out;
  };
  CHECK(values(folder.head()) == values(gguf.head()));
  CHECK(folder.final_norm() == gguf.final_norm());
  for (int l = 0; l < folder.spec().layers; ++l) {
    const LayerWeights& a = folder.layer(l);
    const LayerWeights& b = gguf.layer(l);
    CHECK(values(a.q) == values(b.q));
    CHECK(values(a.k) == values(b.k));
    CHECK(values(a.v) == values(b.v));
    CHECK(values(a.o) == values(b.o));
    CHECK(values(a.gate) == values(b.gate));
    CHECK(values(a.up) == values(b.up));
    CHECK(values(a.down) == values(b.down));
    CHECK(a.q_bias == b.q_bias);
    CHECK(a.k_bias == b.k_bias);
    CHECK(a.o_bias == b.o_bias);
    CHECK(a.down_bias == b.down_bias);
    CHECK(a.q_norm == b.q_norm);
    CHECK(a.mlp_norm == b.mlp_norm);
    gguf.release(l);
    CHECK(values(a.q) == values(b.q));
  }
}

TEST_CASE("weights widen to the values of the gguf package, bit for bit", "[checkpoint]") {
  const Gguf file = Gguf::open(kFixtures / "types.gguf");
  const TensorSet expected = TensorSet::open(kFixtures / "types.safetensors");
  CHECK(file.tensors().size() == 11);
  for (const auto& [name, tensor] : file.tensors()) {
    INFO(name);
    REQUIRE(tensor.type);
    REQUIRE(tensor.shape == std::vector<std::int64_t>{3, 256});
    const std::vector<float> values = floats(*expected.find(std::string(tensor.type_name)));
    std::vector<float> out(values.size());
    widen_weights(*tensor.type, tensor.bytes.data(), 3 * 256, out.data());
    CHECK(std::memcmp(out.data(), values.data(), 4 * values.size()) == 0);
  }
}

TEST_CASE("every half widens exactly", "[checkpoint]") {
  std::vector<std::uint16_t> halves(65536);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<std::uint16_t>(i);
  std::vector<float> out(halves.size());
  // 65535, so that the last vector is not full.
  widen_weights(WeightType::f16, std::as_bytes(std::span(halves)).data(), 65535, out.data());
  int wrong = 0;
  for (int i = 0; i < 65535; ++i) {
    const int exponent = i >> 10 & 31;
    const int mantissa = i & 1023;
    const double sign = (i & 0x8000) != 0 ? -1 : 1;
    const double value = exponent == 0   ? std::ldexp(mantissa, -24)
                         : exponent < 31 ? std::ldexp(1024 + mantissa, exponent - 25)
                         : mantissa == 0 ? std::numeric_limits<double>::infinity()
                                         : std::numeric_limits<double>::quiet_NaN();
    const auto found = static_cast<double>(out[static_cast<std::size_t>(i)]);
    const bool same = std::isnan(value)
                          ? std::isnan(found)
                          : found == sign * value && std::signbit(found) == (sign < 0);
    if (!same) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("the rows of a GGUF llama's heads are put back in order", "[checkpoint]") {
  WeightMatrix m;
  m.rows = 12;
  m.rope_heads = 2;
  std::vector<std::int64_t> rows;
  for (std::int64_t r = 0; r < m.rows; ++r) rows.push_back(m.stored_row(r));
  CHECK(rows == std::vector<std::int64_t>{0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11});
}

// ---- Folders that are refused -------------------------------------------------------------------

namespace {

// The error of a fixture whose config.json has some fields replaced.
std::string config_error(const char* fixture, const json& patch) {
  const Folder dir;
  const fs::path folder = copy_fixture(fixture, dir);
  json config = json::parse(read_bytes(folder / "config.json"));
  config.merge_patch(patch);
  write_bytes(folder / "config.json", config.dump());
  return open_error(folder);
}

}  // namespace

TEST_CASE("a configuration that the forward pass does not cover is refused by name",
          "[checkpoint]") {
  struct Case {
    const char* fixture;
    const char* patch;
    const char* message;
  };
  const Case c = GENERATE(values<Case>({
      {"llama", R"({"model_type": "gemma2"})",
       "'model_type' is 'gemma2'; expected llama, mistral, qwen2, qwen3"},
      {"llama", R"({"model_type": null})", "'model_type' is missing"},
      {"llama", R"({"architectures": ["LlamaForSequenceClassification"]})",
       "expected [\"LlamaForCausalLM\"] or [\"LlamaModel\"]"},
      {"llama", R"({"hidden_act": "gelu"})", "'hidden_act' is 'gelu'; expected 'silu'"},
      {"llama", R"({"quantization_config": {"quant_method": "gptq"}})", "'quantization_config'"},
      {"llama", R"({"text_config": {}})", "'text_config'"},
      {"llama", R"({"rms_norm_eps": 0})", "'rms_norm_eps' is '0'; expected a number > 0"},
      {"llama", R"({"num_hidden_layers": 3})",
       "'model.layers.2.self_attn.q_proj.weight' is missing"},
      {"llama", R"({"num_hidden_layers": 1e9})", "num_hidden_layers"},
      {"llama", R"({"hidden_size": 64})", "has shape [48, 32]; expected [48, 64]"},
      {"llama", R"({"num_key_value_heads": 3})", "num_key_value_heads"},
      {"llama", R"({"num_key_value_heads": 4})", "has shape [16, 32]; expected [32, 32]"},
      {"llama", R"({"head_dim": 7})", "heads of 7 elements; expected an even number"},
      {"llama", R"({"vocab_size": 47})", "'model.embed_tokens.weight' has shape [48, 32]"},
      {"llama", R"({"attention_bias": false})", "'model.layers.0.self_attn.q_proj.bias' is there"},
      {"llama", R"({"attention_bias": "yes"})", "attention_bias"},
      {"llama-yarn", R"({"mlp_bias": true})", "'model.layers.0.mlp.gate_proj.bias' is missing"},
      {"llama-yarn", R"({"tie_word_embeddings": false})", "'lm_head.weight' is missing"},
      {"llama-yarn", R"({"rope_parameters": {"rope_type": "longrope"}})",
       "has type 'longrope'; expected default, linear, llama3, yarn"},
      {"llama-yarn", R"({"rope_parameters": {"rope_type": "longrope", "long_factor": [1, 2]}})",
       "has type 'longrope'; expected default, linear, llama3, yarn"},
      {"llama-yarn", R"({"rope_parameters": {"mrope_section": [1, 2]}})",
       "'mrope_section' of the rotary embedding is a list; expected none"},
      {"llama-yarn", R"({"rope_parameters": {"partial_rotary_factor": 0.5}})",
       "'partial_rotary_factor' is '0.5'; expected 1"},
      {"llama-yarn", R"({"rope_parameters": {"attention_factor": -1}})", "'attention_factor'"},
      {"llama-yarn", R"({"rope_parameters": {"rope_theta": 0.5}})", "rope_theta"},
      {"llama-yarn", R"({"rope_parameters": {"full_attention": {}}})",
       "one rotary embedding for all layers"},
      {"qwen2", R"({"layer_types": ["full_attention", "mamba", "mamba"]})",
       "'layer_types' is '\"mamba\"'; expected full_attention"},
      {"qwen3", R"({"rope_scaling": {"factor": "4"}})", "factor"},
      {"qwen3", R"({"is_causal": false})", "'is_causal' is 'false'; expected true"},
      {"llama", R"({"is_causal": 0})", "'is_causal' is '0'; expected true"},
      {"qwen3", R"({"use_bidirectional_attention": "all"})",
       "'use_bidirectional_attention' is '\"all\"'; expected no attention to later tokens"},
      {"mistral", R"({"attention_chunk_size": 8})", "expected no attention within chunks"},
      {"llama", R"({"attn_logit_softcapping": 50.0})", "expected no soft cap"},
      {"llama", R"({"no_rope_layers": [1, 0]})", "expected no layers without a rotary embedding"},
  }));
  INFO(c.patch);
  CHECK_THAT(config_error(c.fixture, json::parse(c.patch)), Contains(c.message));
}

namespace {

// The checkpoint of a fixture whose config.json has other fields, `gone` not at all.
Checkpoint with_config(const std::string& fixture, const json& patch,
                       const std::vector<std::string>& gone = {}) {
  const Folder dir;
  const fs::path folder = copy_fixture(fixture, dir);
  json config = json::parse(read_bytes(folder / "config.json"));
  if (!patch.is_null()) config.update(patch);
  for (const std::string& key : gone) config.erase(key);
  write_bytes(folder / "config.json", config.dump());
  return Checkpoint::open(folder);
}

// A copy of llama-yarn, which is tied, whose tensors have other names, or one more.
fs::path renamed(const Folder& dir, const std::function<std::string(const std::string&)>& name,
                 const std::string& more = "") {
  const fs::path folder = copy_fixture("llama-yarn", dir);
  const TensorSet tensors = TensorSet::open(kFixtures / "llama-yarn" / "model.safetensors");
  const TensorView* first = tensors.find("model.embed_tokens.weight");
  REQUIRE(first != nullptr);
  std::vector<SafetensorsWriter::Entry> entries;
  for (const auto& [key, tensor] : tensors.tensors())
    entries.push_back({name(key), tensor.dtype, tensor.shape});
  if (!more.empty()) entries.push_back({more, first->dtype, first->shape});
  SafetensorsWriter writer(folder / "model.safetensors", {}, entries);
  for (const auto& [key, tensor] : tensors.tensors()) writer.write(name(key), 0, tensor.bytes);
  if (!more.empty()) writer.write(more, 0, first->bytes);
  writer.finish();
  return folder;
}

}  // namespace

TEST_CASE("fields that a family's code does not look at do not count", "[checkpoint]") {
  CHECK(config_error("llama", {{"layer_types", {"sliding_attention", "x"}}}).empty());
  CHECK(config_error("qwen2", {{"attention_bias", false}}).empty());
  const Folder dir;
  const fs::path folder = copy_fixture("qwen2", dir);
  json config = json::parse(read_bytes(folder / "config.json"));
  config["use_sliding_window"] = false;
  write_bytes(folder / "config.json", config.dump());
  CHECK(Checkpoint::open(folder).spec().sliding_window == std::vector<std::int64_t>{0, 0, 0});
}

TEST_CASE("a Mistral's layer_types say which layers have a window", "[checkpoint]") {
  // Every layer had one: transformers reads such a file as its Ministral.
  using Windows = std::vector<std::int64_t>;
  const auto windows = [](const json& patch, const std::vector<std::string>& gone = {}) {
    return with_config("mistral", patch, gone).spec().sliding_window;
  };
  CHECK(windows({}) == Windows{7, 7});
  CHECK(windows({{"layer_types", {"full_attention", "full_attention"}}}) == Windows{0, 0});
  CHECK(windows({{"layer_types", {"full_attention", "sliding_attention"}}}) == Windows{0, 7});
  CHECK(windows({{"sliding_window", nullptr}}) == Windows{0, 0});
  CHECK(windows({}, {"sliding_window"}) == Windows{4096, 4096});
}

TEST_CASE("a field that a file leaves out has its class's default", "[checkpoint]") {
  // Source: LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config of transformers 5.24.
  CHECK(with_config("llama", {}, {"rms_norm_eps"}).spec().norm_eps == 1e-6);
  CHECK(with_config("llama", {}, {"max_position_embeddings"}).spec().context == 2048);
  CHECK(with_config("mistral", {}, {"max_position_embeddings"}).spec().context == 131072);
  CHECK(with_config("qwen2", {}, {"max_window_layers", "layer_types"}).spec().sliding_window ==
        std::vector<std::int64_t>{0, 0, 0});
  CHECK(with_config("llama", {{"sliding_window", 3}}).spec().sliding_window ==
        std::vector<std::int64_t>{0, 0});
  // Whatever does not fit the weights then shows which one was taken.
  const auto error = [](const char* fixture, const json& patch, const char* gone) {
    return error_of([&] { static_cast<void>(with_config(fixture, patch, {gone})); });
  };
  CHECK_THAT(error("llama", {}, "num_key_value_heads"), Contains("expected [32, 32]"));
  CHECK_THAT(error("mistral", {{"num_key_value_heads", nullptr}}, ""),
             Contains("expected [32, 32]"));
  CHECK_THAT(error("mistral", {}, "num_key_value_heads"),
             Contains("expected a multiple of 'num_key_value_heads' 8"));
  CHECK_THAT(error("qwen2", {}, "num_key_value_heads"),
             Contains("expected a multiple of 'num_key_value_heads' 32"));
  CHECK_THAT(error("qwen3", {}, "head_dim"), Contains("expected [512, 32]"));
}

TEST_CASE("defaults of the configuration classes are applied", "[checkpoint]") {
  const Folder dir;
  const fs::path folder = copy_fixture("llama-yarn", dir);
  json config = json::parse(read_bytes(folder / "config.json"));
  json& rope = config["rope_parameters"];
  rope.erase("attention_factor");
  rope.erase("original_max_position_embeddings");
  rope["mscale"] = 2.0;
  rope["mscale_all_dim"] = 0.5;
  write_bytes(folder / "config.json", config.dump());
  write_bytes(folder / "README.md", "---\nlanguage: en\nlicense: mit\n---\n");
  const ModelSpec spec = Checkpoint::open(folder).spec();
  CHECK(spec.rope_attention_factor ==
        Approx((0.2 * std::log(4.0) + 1) / (0.05 * std::log(4.0) + 1)));
  CHECK(json::parse(spec.rope_scaling)["original_max_position_embeddings"] == 256);
  CHECK(spec.licence == "mit");
  config.erase("rope_parameters");
  write_bytes(folder / "config.json", config.dump());
  CHECK(Checkpoint::open(folder).spec().rope.theta == 10000);
}

TEST_CASE("a folder without a readable checkpoint is refused with what was expected",
          "[checkpoint]") {
  const Folder dir;
  CHECK_THAT(open_error(dir / "none"), Contains("does not exist; expected a folder"));
  const fs::path folder = copy_fixture("llama-sharded", dir);
  fs::remove(folder / "model-00002-of-00003.safetensors");
  CHECK_THAT(open_error(folder), Contains("shard is missing"));
  fs::remove(folder / "model.safetensors.index.json");
  CHECK_THAT(open_error(folder), Contains("no weights; expected model.safetensors"));
  write_bytes(folder / "pytorch_model.bin", "x");
  CHECK_THAT(open_error(folder), Contains("but pytorch_model.bin, which is not read"));
  for (const std::string text : {"[1]", "{\"a\": 1, \"a\": 2}", "{", "", "null"}) {
    write_bytes(folder / "config.json", text);
    CHECK_THAT(open_error(folder), Contains("config.json") && Contains("expected a JSON object"));
  }
  write_bytes(folder / "config.json", std::string(100000, '['));
  CHECK_THAT(open_error(folder), Contains("nested deeper"));
  fs::remove(folder / "config.json");
  CHECK_THAT(open_error(folder), Contains("no config.json"));
  CHECK_THAT(open_error(kFixtures / "types.safetensors"), Contains("expected a GGUF file"));
}

TEST_CASE("a required tensor of a type that is not read is refused by its name", "[checkpoint]") {
  const Folder dir;
  const fs::path folder = copy_fixture("llama-yarn", dir);
  std::string bytes = read_bytes(folder / "model.safetensors");
  // Of the same length, and not a type of ours.
  const std::size_t at = bytes.find("\"BF16\"");
  REQUIRE(at != std::string::npos);
  bytes.replace(at, 6, "\"I16\" ");
  write_bytes(folder / "model.safetensors", bytes);
  CHECK_THAT(open_error(folder), Contains("has type I16; expected F32, F16, BF16"));
}

TEST_CASE("a checkpoint of the bare decoder has no prefix", "[checkpoint]") {
  const Folder dir;
  const fs::path folder =
      renamed(dir, [](const std::string& name) { return name.substr(name.find('.') + 1); });
  CHECK(Checkpoint::open(folder).embedding().name == "embed_tokens.weight");
  CHECK(Checkpoint::open(folder).bytes() == Checkpoint::open(kFixtures / "llama-yarn").bytes());
  json config = json::parse(read_bytes(folder / "config.json"));
  config["architectures"] = {"LlamaModel"};  // as embedding models say it
  write_bytes(folder / "config.json", config.dump());
  CHECK(Checkpoint::open(folder).head().name == "embed_tokens.weight");
  config["tie_word_embeddings"] = false;
  write_bytes(folder / "config.json", config.dump());
  CHECK_THAT(open_error(folder), Contains("'lm_head.weight' is missing; expected a model with a "
                                          "head, which nll and generation need"));
}

TEST_CASE("a tied model may store only its head", "[checkpoint]") {
  // It was refused: "model.embed_tokens.weight is missing".
  const Folder dir;
  const fs::path folder = renamed(dir, [](const std::string& name) {
    return name == "model.embed_tokens.weight" ? "lm_head.weight" : name;
  });
  const Checkpoint checkpoint = Checkpoint::open(folder);
  CHECK(checkpoint.spec().tied);
  CHECK(checkpoint.embedding().name == "lm_head.weight");
  CHECK(checkpoint.head().name == "lm_head.weight");
}

TEST_CASE("a model that stores a head of its own is not tied", "[checkpoint]") {
  // The head was dropped, whatever it held; transformers 5 uses it where it differs.
  const Folder dir;
  const fs::path folder = renamed(
      dir, [](const std::string& name) { return name; }, "lm_head.weight");
  CHECK(Checkpoint::open(folder).head().name == "model.embed_tokens.weight");
  CHECK(Checkpoint::open(folder).spec().tied);
  std::string bytes = read_bytes(folder / "model.safetensors");
  bytes.back() = static_cast<char>(bytes.back() ^ 1);  // of the tensor that was written last
  write_bytes(folder / "model.safetensors", bytes);
  CHECK(Checkpoint::open(folder).head().name == "lm_head.weight");
  CHECK_FALSE(Checkpoint::open(folder).spec().tied);
}

TEST_CASE("a folder with an adapter beside its weights is refused", "[checkpoint]") {
  const Folder dir;
  const fs::path folder = copy_fixture("mistral", dir);
  write_bytes(folder / "adapter_config.json", "{}");
  CHECK_THAT(open_error(folder), Contains("expected a model whose adapter is merged"));
}

// ---- Damaged files ------------------------------------------------------------------------------

TEST_CASE("every prefix of a checkpoint is refused", "[checkpoint][hostile]") {
  const std::string whole = read_bytes(kFixtures / "types.gguf");
  const std::size_t data = 11 * 3 * 256;  // at least: everything before it is header
  int accepted = 0;
  for (std::size_t size = 0; size < whole.size(); size += size + data < whole.size() ? 1 : 997) {
    const std::vector<char> prefix(whole.begin(),
                                   whole.begin() + static_cast<std::ptrdiff_t>(size));
    const std::string error = error_of(
        [&] { static_cast<void>(Gguf::from_bytes(std::as_bytes(std::span(prefix)), "x")); });
    if (error.empty()) ++accepted;
  }
  CHECK(accepted == 0);
  const Folder dir;
  const fs::path folder = copy_fixture("llama-yarn", dir);
  const std::string weights = read_bytes(folder / "model.safetensors");
  for (std::size_t size = 0; size < weights.size(); size += 499) {
    write_bytes(folder / "model.safetensors", weights.substr(0, size));
    if (open_error(folder).empty()) ++accepted;
  }
  const std::string config = read_bytes(folder / "config.json");
  write_bytes(folder / "model.safetensors", weights);
  for (std::size_t size = 0; size + 2 < config.size(); size += 7) {
    write_bytes(folder / "config.json", config.substr(0, size));
    if (open_error(folder).empty()) ++accepted;
  }
  CHECK(accepted == 0);
}

TEST_CASE("damaged checkpoints are refused or read, never a crash", "[checkpoint][hostile]") {
  struct Target {
    const char* fixture;
    const char* file;    // in the folder; empty: the fixture is the file
    std::size_t header;  // bytes that are changed
  };
  const Target t = GENERATE(values<Target>({{"llama.gguf", "", 3000},
                                            {"qwen3.gguf", "", 3000},
                                            {"llama-yarn", "model.safetensors", 2500},
                                            {"llama-sharded", "model.safetensors.index.json", 1700},
                                            {"qwen2", "config.json", 700}}));
  const unsigned seed = 20261122;
  INFO(t.fixture << " " << t.file << ", seed " << seed);
  std::mt19937 random(seed);
  const Folder dir;
  const fs::path model = copy_fixture(t.fixture, dir);
  const fs::path file = *t.file == '\0' ? model : model / t.file;
  const std::string whole = read_bytes(file);
  int refused = 0;
  constexpr int kRounds = 300;
  for (int round = 0; round < kRounds; ++round) {
    std::string bytes = whole;
    for (auto n = 1 + random() % 3; n > 0; --n) {
      char& byte = bytes[random() % std::min(t.header, bytes.size())];
      byte = random() % 2 == 0 ? static_cast<char>(byte ^ static_cast<char>(1U << random() % 8))
                               : static_cast<char>(random() % 256);
    }
    write_bytes(file, bytes);
    const std::string error = error_of([&] {
      const Checkpoint checkpoint = Checkpoint::open(model);
      // What was accepted must be readable to the last byte.
      const WeightMatrix& last = checkpoint.layer(checkpoint.spec().layers - 1).down;
      std::vector<float> row(static_cast<std::size_t>(last.columns));
      widen_rows(last, last.rows - 1, 1, row.data());
    });
    if (!error.empty()) ++refused;
  }
  CHECK(refused > kRounds / 3);
}
