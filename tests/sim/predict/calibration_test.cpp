// SPDX-License-Identifier: Apache-2.0
#include "sim/predict/calibration.h"

#include <fstream>

#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/models/model_geometry.h"
#include "sim/report/json.h"
#include "sim/run/run.h"
#include "tests/support/cases.h"
#include "tests/support/model_cases.h"
#include "tests/support/temporary_file.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::one_head;
using Json = nlohmann::json;

namespace {

void write(const test::TemporaryFile& file, const Json& json) {
  std::ofstream(file.path) << json.dump();
}

Prediction predicted(const Calibration& calibration, const std::string& spec, const Geometry& g,
                     const std::string& model, const Accounting& accounting = {}) {
  const RecipeSpec recipe = parse_spec(spec);
  const Policy policy = make_policy(recipe, g);
  return calibration.predict({recipe, policy, g, model, accounting}, true);
}

// In what a prediction differs from a run of a result file; "": in nothing.
std::string off(const Prediction& p, const Json& run) {
  std::string out;
  const auto compare = [&](const char* key, const Json& found) {
    if (run.at(key) != found) out += fmt::format("{}: {}; ", key, found.dump());
  };
  compare("footprint", p.footprint);
  compare("peak_kv", p.peak_kv);
  compare("entry_rows", p.entry_rows);
  compare("full_entry_rows", p.full_entry_rows);
  compare("peak_bytes", peak_json(p.peak_bytes));
  compare("byte_rows", p.byte_rows.value());
  for (const auto& [name, peak] : p.layouts) {
    if (run.at("layouts").at(name) != peak_json(peak)) out += name + "; ";
  }
  return out;
}

// A result of one layer and head: entries held while each row attends.
Json result(const std::string& policy, int prompt, int chunk, const std::vector<int>& entries) {
  std::vector<int> rows;
  for (std::size_t row = 0; row < entries.size(); ++row) rows.push_back(static_cast<int>(row));
  const Json peak = {{"total", 1},   {"kv", 1},     {"overhead", 0},
                     {"prefill", 1}, {"decode", 1}, {"row", 0}};
  return {{"trace",
           {{"model", "one head"},
            {"model_layers", 1},
            {"query_heads", 1},
            {"kv_heads", 1},
            {"head_dim", 4},
            {"tokens", entries.size()},
            {"prompt_tokens", prompt}}},
          {"chunk", chunk},
          {"accounting", {{"kv_bytes", 2}, {"prefill", "whole"}, {"layout", "ideal"}}},
          {"runs",
           {{{"policy", policy},
             {"footprint", 0.5},
             {"peak_kv", 0.5},
             {"entry_rows", 1},
             {"full_entry_rows", 2},
             {"peak_bytes", peak},
             {"byte_rows", 3},
             {"layouts", Json::object()},
             {"per_layer", {{{"layer", 0}}}},
             {"per_head", {{"footprint", {{0.5}}}}},
             {"timeline", {{"row", rows}, {"resident_entries", entries}}}}}}};
}

const std::string kGate = "write_gate(gate=random)";

std::string canonical(const std::string& spec) { return make_policy(spec, one_head(4, 4, 0)).spec; }

}  // namespace

TEST_CASE("calibrated on a result, every policy of the registry gives its figures back",
          "[calibration]") {
  // The bug: figures were spread over the whole run from two shares; what acts in the prompt was
  // forgotten, and a prediction was above its own bound.
  const Trace trace = test::random_trace(90, 72, 5);
  const std::int64_t chunk = GENERATE(0, 16);
  const bool layerwise = GENERATE(false, true);
  RunRequest request;
  request.specs =
      expand_policies({"all", "chunked(adakv(budget=30%))", "chunked(snapkv(budget=30%,window=4))",
                       "decoding(snapkv(budget=20,window=4))", "pyramid+snapkv(budget=20,window=4)",
                       "chunked(h2o(budget=30%))", "adakv(budget=20)+kivi(group=2,residual=4)"},
                      {"30%"});
  request.skips = true;
  request.engine.chunk = chunk;
  request.engine.fidelity = false;
  request.layerwise = layerwise;
  const RunReport report = run(trace, request);
  const Json json = to_json(report);
  const test::TemporaryFile file;
  write(file, json);
  const Calibration calibration(file.path.string());
  Geometry g = geometry_of(trace, request.engine);
  g.trace = nullptr;
  CHECK(report.runs.size() > 45);
  int measured = 0;
  for (std::size_t i = 0; i < report.runs.size(); ++i) {
    INFO(report.runs[i].label << ", chunk " << chunk);
    const Prediction p =
        predicted(calibration, report.runs[i].label, g, trace.meta().model, request.accounting());
    CHECK(off(p, json["runs"][i]) == "");
    CHECK(p.basis != Basis::bound);
    CHECK(p.basis != Basis::scaled);
    measured += p.basis == Basis::measured ? 1 : 0;
  }
  CHECK(measured > 5);
}

TEST_CASE("shares measured elsewhere scale the bound, in the prompt and in decode",
          "[calibration]") {
  const test::TemporaryFile file;
  // 2 of 4 stay after the prompt, then 1 of 3 of what decode adds.
  write(file, result(canonical(kGate), 4, 0, {1, 2, 3, 4, 3, 3, 4, 4}));
  const Calibration whole(file.path.string());
  const Prediction p = predicted(whole, kGate, one_head(8, 4, 0), "one head");
  CHECK(p.basis == Basis::scaled);
  // 4 of 8, then 4 + 1/3, 4 + 2/3, 5, rounded; the last row evicts nothing.
  CHECK(p.held == std::vector<std::int64_t>{4, 4, 5, 5, 6});
  CHECK(p.entry_rows == 8 * 9 / 2 + 5 + 5 + 6 + 6);
  REQUIRE(p.notes.size() > 0);
  CHECK_THAT(p.notes.back(), Contains("one head, 4 prompt + 4 generated tokens, whole prompt"));
  // A prompt that was one pass says nothing of chunks.
  CHECK(predicted(whole, kGate, one_head(8, 4, 4), "one head").held[0] == 4);

  // 1 of 2 stay after the first chunk, 2 of 4 after the second.
  write(file, result(canonical(kGate), 4, 2, {1, 2, 2, 3, 3, 3, 4, 4}));
  const Calibration chunks(file.path.string());
  CHECK(predicted(chunks, kGate, one_head(8, 4, 4), "one head").held ==
        std::vector<std::int64_t>{2, 4, 4, 5, 5, 6});
  // The same workload of another model is scaled, too.
  CHECK(predicted(chunks, kGate, one_head(4, 4, 2), "another").basis == Basis::scaled);
  CHECK(predicted(chunks, kGate, one_head(4, 4, 2), "one head").basis == Basis::measured);
  CHECK(predicted(chunks, kGate, one_head(4, 4, 2), "one head", {1, false, "ideal"}).basis ==
        Basis::scaled);
  // So is a run whose rules acted elsewhere (--evict-at).
  Json elsewhere = result(canonical(kGate), 4, 2, {1, 2, 2, 3, 3, 3, 4, 4});
  elsewhere["evict_at"] = 2;
  write(file, elsewhere);
  CHECK(predicted(Calibration(file.path.string()), kGate, one_head(4, 4, 2), "one head").basis ==
        Basis::scaled);
  elsewhere["evict_at"] = 4;
  write(file, elsewhere);
  CHECK(predicted(Calibration(file.path.string()), kGate, one_head(4, 4, 2), "one head").basis ==
        Basis::measured);
}

TEST_CASE("of several replays in one file, the one that is alike is taken", "[calibration]") {
  const test::TemporaryFile file;
  const Json whole = result(canonical(kGate), 4, 0, {1, 2, 3, 4, 3, 3, 4, 4});
  const Json chunks = result(canonical(kGate), 4, 2, {1, 2, 2, 3, 3, 3, 4, 4});
  Json other = result("another", 4, 2, {1, 2, 2, 3, 3, 3, 4, 4});
  write(file, Json{{"results", {other, whole, chunks}}});
  const Calibration calibration(file.path.string());
  CHECK_THAT(calibration.where(), Contains("3 replays"));
  CHECK(predicted(calibration, kGate, one_head(4, 4, 0), "one head").basis == Basis::measured);
  CHECK(predicted(calibration, kGate, one_head(4, 4, 2), "one head").basis == Basis::measured);
  // 1 of 2 after the first chunk; a prompt of one pass knows nothing of that.
  CHECK(predicted(calibration, kGate, one_head(8, 4, 4), "one head").held[0] == 2);
  const Prediction p = predicted(calibration, kGate, one_head(8, 4, 0), "one head");
  CHECK(p.basis == Basis::scaled);
  CHECK_THAT(p.notes.back(), Contains("whole prompt"));
  write(file, Json{{"results", Json::array()}});
  CHECK_THROWS_WITH(Calibration(file.path.string()), Contains("is not a result of kvspan run"));
}

TEST_CASE("an estimate is never above the bound it is made of", "[calibration]") {
  const Trace trace = test::random_trace(90, 72, 5);
  RunRequest request;
  request.specs = expand_policies({"all", "chunked(adakv)"}, {"20%"});
  request.skips = true;
  request.engine.chunk = 16;
  request.engine.fidelity = false;
  const test::TemporaryFile file;
  write(file, to_json(run(trace, request)));
  const Calibration calibration(file.path.string());
  const Geometry g = test::geometry(2, 4, 2, 500, 100);
  int scaled = 0;
  for (const RecipeSpec& spec : request.specs) {
    const Policy policy = make_policy(spec, g);
    const Prediction most = predict(policy, g, {});
    const Prediction p = predicted(calibration, to_text(spec), g, "another");
    INFO(policy.spec);
    CHECK(p.footprint <= most.footprint);
    CHECK(p.peak_bytes.total <= most.peak_bytes.total);
    scaled += p.basis == Basis::scaled ? 1 : 0;
  }
  CHECK(scaled > 5);
}

TEST_CASE("a result that says nothing of a policy leaves its bound", "[calibration]") {
  const test::TemporaryFile file;
  write(file, result(canonical(kGate), 4, 0, {1, 2, 3, 4, 3, 3, 4, 4}));
  const Calibration calibration(file.path.string());
  const Prediction other = predicted(calibration, "dbudgetkv", one_head(8, 4, 0), "one head");
  CHECK(other.basis == Basis::bound);
  CHECK_THAT(other.notes.back(), Contains("says nothing of this policy"));
  // Nothing was generated, so nothing was evicted after the prompt.
  write(file, result(canonical(kGate), 4, 0, {1, 2, 3, 4}));
  const Calibration nothing(file.path.string());
  CHECK(predicted(nothing, kGate, one_head(8, 4, 0), "one head").basis == Basis::bound);
  write(file, Json{{"runs", 1}});
  CHECK_THROWS_WITH(Calibration(file.path.string()), Contains("is not a result of kvspan run"));
  CHECK_THROWS_WITH(Calibration("/no/such/file"), Contains("cannot read"));
}
