// SPDX-License-Identifier: Apache-2.0
#include "sim/trace/trace_tools.h"

#include <algorithm>
#include <filesystem>
#include <limits>

#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/trace/probes.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/trace_cases.h"

namespace kvspan::test {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;
using nlohmann::json;

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
  spec.meta.model = "a model, layers 2,3,5,8 of 9";
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
  const TemporaryFolder dir;
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
  CHECK(meta.model == "a model, layers 3,8 of 9");
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

  for (const char* model : {"a model", "three layers 2 of 9", "m, layers 2,3 of them",
                            "m, layers of 9", "m, layers 2,3", "m, layers 2,3 of 9 and more", ""}) {
    spec.meta.model = model;
    CHECK(slice_trace(make_trace(spec), 40, {3}, path).empty());
    CHECK(Trace::open(path).meta().model == model);
  }
  CHECK(slice_trace(whole, 1, {5}, path).size() == 3);

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
  const TemporaryFolder dir;
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

TEST_CASE("replayed rows are checked, described, and kept where their tokens are",
          "[trace][slice]") {
  TraceSpec spec =
      random_spec({.layers = 2, .tokens = 9, .prompt_tokens = 8, .query_heads = 2, .head_dim = 2});
  spec.name = "x";
  Metadata metadata = make_metadata(spec);
  TensorMap tensors = make_tensors(spec);
  metadata["probes"] =
      R"([{"begin":1,"end":4,"at":6,"rows":4},{"begin":4,"end":6,"at":6,"rows":1}])";
  for (const int l : {0, 1}) {
    const auto put = [&](const char* name, std::vector<std::int64_t> shape, std::size_t count) {
      std::vector<double> values(count, l + 1);
      values[0] = 0.5;
      tensors[layer_tensor(l, name)] = {Dtype::f16, shape, encode(values, Dtype::f16)};
    };
    put("probe.q", {5, 2, 2}, 20);
    put("probe.k", {5, 1, 2}, 10);
    tensors[layer_tensor(l, "probe.norm")] = {Dtype::f32, {5}, encode({1, 2, 3, 4, 5}, Dtype::f32)};
  }
  const auto open = [&] {
    return Trace::from_tensors(TensorSet::from_memory(metadata, tensors), "x");
  };
  const Trace trace = open();
  const std::vector<Probe> probes = probes_of(trace);
  REQUIRE(probes.size() == 2);
  CHECK((probes[1].begin == 4 && probes[1].end == 6 && probes[1].at == 6 && probes[1].first == 4));
  const std::vector<std::string> lines = check_trace(trace);
  CHECK(std::ranges::count(lines, "replayed rows: 5 in 2 passes") == 1);
  CHECK(std::ranges::count_if(lines, [](const std::string& line) {
          return line.find("not part of the format") != std::string::npos;
        }) == 0);
  CHECK(describe_trace(trace)["probes"][0] ==
        json({{"begin", 1}, {"end", 4}, {"at", 6}, {"rows", 4}}));

  const TemporaryFolder dir;
  const fs::path path = dir / "slice.safetensors";
  CHECK(slice_trace(trace, 6, {1}, path).empty());
  const Trace slice = Trace::open(path);
  CHECK(probes_of(slice).size() == 2);
  CHECK(widened(*probe_layer(slice, 0).q) == widened(*probe_layer(trace, 1).q));
  CHECK(widened(*probe_layer(slice, 0).k) == widened(*probe_layer(trace, 1).k));
  CHECK(widened(*probe_layer(slice, 0).norm) == std::vector<float>{1, 2, 3, 4, 5});
  CHECK(slice_trace(trace, 5, {}, path) ==
        std::vector<std::string>{
            "replayed rows dropped: they were asked after 6 tokens, and only 5 are kept"});
  CHECK(probes_of(Trace::open(path)).empty());
  CHECK(probe_layer(Trace::open(path), 0).q == nullptr);

  const auto refused = [&] { return error_of([&] { static_cast<void>(open()); }); };
  tensors["layers.1.probe.q"].shape = {4, 2, 2};
  tensors["layers.1.probe.q"].bytes.resize(32);
  CHECK_THAT(refused(), Contains("layers.1.probe.q") && Contains("[5, 2, 2]"));
  tensors.erase("layers.1.probe.q");
  CHECK_THAT(refused(), Contains("layers.1.probe.q"));
  metadata["probes"] = R"([{"begin":1,"end":4,"at":3,"rows":5}])";
  CHECK_THAT(refused(), Contains("0 <= begin < end <= at <= 9"));
  metadata["probes"] = R"([{"begin":1,"end":4,"at":6}])";
  CHECK_THAT(refused(), Contains("expected a JSON list of"));
  metadata.erase("probes");
  CHECK_THAT(refused(), Contains("layers.0.probe.q") && Contains("metadata key 'probes'"));
}

TEST_CASE("a trace whose model caches something else than K and V says so", "[trace]") {
  // 2 KV heads of 6 + 3 in 2 layers: 36 elements a token.
  TraceSpec spec = random_spec(
      {.layers = 2, .tokens = 8, .query_heads = 2, .kv_heads = 2, .head_dim = 6, .v_head_dim = 3});
  CHECK(cache_note(make_trace(spec)).empty());
  spec.extra["cache_elements"] = "8";
  CHECK_THAT(cache_note(make_trace(spec)),
             Contains("36 elements a token in 2 layers; the model's own cache holds 16, 44.4 %"));
  spec.extra["cache_elements"] = "[8,1]";
  const Trace trace = make_trace(spec);
  CHECK_THAT(cache_note(trace), Contains("own cache holds 9, 25 %"));
  CHECK(describe_trace(trace)["cache_elements"] == json{8, 1});
  const TemporaryFolder folder;
  static_cast<void>(slice_trace(trace, 4, {1}, folder / "s.safetensors"));
  CHECK_THAT(cache_note(Trace::open(folder / "s.safetensors")),
             Contains("18 elements a token in 1 layers; the model's own cache holds 1,"));
}

TEST_CASE("describe names every fact of a trace", "[trace]") {
  const TemporaryFolder dir;
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
  CHECK(describe_trace(make_trace(dense_spec()))["scores"][0]["layout"] == "dense");
}

}  // namespace kvspan::test
