// SPDX-License-Identifier: Apache-2.0
#include "sim/trace/trace.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/trace/trace_tools.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/trace_cases.h"

namespace kvspan::test {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;

TEST_CASE("a trace keeps all its values and metadata in memory and as a file", "[trace]") {
  const Dtype dtype = GENERATE(Dtype::f32, Dtype::f16, Dtype::bf16);
  const TemporaryFolder dir;
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
  const TemporaryFolder dir;
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
  const TemporaryFolder dir;
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

TEST_CASE("a tensor at an odd offset is read by copying", "[trace]") {
  TraceSpec spec = full_spec(Dtype::f32);
  const TensorMap tensors = make_tensors(spec);
  // One byte of another tensor first: everything after it is misaligned.
  std::vector<SafetensorsWriter::Entry> entries = {{"byte", Dtype::u8, {1}}};
  for (const auto& [name, tensor] : tensors) entries.push_back({name, tensor.dtype, tensor.shape});
  const TemporaryFolder dir;
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
      {"cache_elements", "-1"},
      {"cache_elements", "40.5"},
      {"cache_elements", "[40]"},
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

}  // namespace kvspan::test
