// SPDX-License-Identifier: Apache-2.0
// Scores by rows that ask for the context again: worked examples, and the rule by its definition.
#include <algorithm>
#include <cmath>
#include <utility>

#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/policies/shared/fit_models.h"
#include "sim/run/run.h"
#include "tests/support/cases.h"
#include "tests/support/files.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::kept;
using test::refusal;

namespace {

using Set = std::vector<int>;
using Numbers = std::vector<double>;

// A pass of the replay; q and k [layers][rows * heads * head_dim], norms [layers][rows].
struct Asked {
  std::int64_t begin, end, at, rows;
  std::vector<Numbers> q, k;
  std::vector<Numbers> norms = {};
};

Trace with_replay(const test::TraceSpec& spec, const std::vector<Asked>& passes) {
  Metadata metadata = test::make_metadata(spec);
  test::TensorMap tensors = test::make_tensors(spec);
  const TraceMeta meta = test::completed(spec);
  nlohmann::json list = nlohmann::json::array();
  std::int64_t rows = 0;
  for (const Asked& a : passes) {
    list.push_back({{"begin", a.begin}, {"end", a.end}, {"at", a.at}, {"rows", a.rows}});
    rows += a.rows;
  }
  metadata["probes"] = list.dump();
  for (int l = 0; l < meta.layers; ++l) {
    Numbers q, k, norms;
    for (const Asked& a : passes) {
      const auto add = [l](const std::vector<Numbers>& from, Numbers& to) {
        if (from.empty()) return;
        const Numbers& x = from[static_cast<std::size_t>(l)];
        to.insert(to.end(), x.begin(), x.end());
      };
      add(a.q, q), add(a.k, k), add(a.norms, norms);
    }
    const auto put = [&](const char* name, std::vector<std::int64_t> shape, const Numbers& x) {
      if (!x.empty())
        tensors[layer_tensor(l, name)] = {Dtype::f32, shape, test::encode(x, Dtype::f32)};
    };
    put("probe.q", {rows, meta.query_heads, meta.head_dim}, q);
    put("probe.k", {rows, meta.kv_heads, meta.head_dim}, k);
    put("probe.norm", {rows}, norms);
  }
  return Trace::from_tensors(TensorSet::from_memory(metadata, tensors), "asked");
}

// Logits whose exponentials are these.
Numbers logs(Numbers weights) {
  for (double& w : weights) w = std::log(w);
  return weights;
}

// One query head for each of two KV heads, a prompt of four tokens and one more: exp(q k) of
// every query is these weights, a pair for each layer.
test::TraceSpec two_heads(const std::vector<std::pair<Numbers, Numbers>>& layers) {
  test::TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = 2;
  spec.meta.tokens = 5;
  spec.meta.prompt_tokens = 4;
  spec.meta.score_scale = 1;
  for (const auto& [first, second] : layers) {
    test::LayerSpec& layer = spec.layers.emplace_back();
    layer.q.assign(10, 1.0);
    for (std::size_t t = 0; t < 5; ++t)
      layer.k.insert(layer.k.end(), {std::log(first[t]), std::log(second[t])});
  }
  return spec;
}

// Of two layers of two heads.
std::vector<Set> four_sets(const Trace& trace, const std::string& policy) {
  return {kept(trace, policy, 0, 0), kept(trace, policy, 0, 1), kept(trace, policy, 1, 0),
          kept(trace, policy, 1, 1)};
}

}  // namespace

TEST_CASE("kvzip keeps what a row of the replay looks at most", "[policy][kvzip]") {
  // Token 0 is the template. Row 0 sees weights 1 | 1, 2, 4 | 1 of 9: .11, .22, .44. Row 1 asks the
  // other way round and sees its neighbour, too: 1 | 1, 1/2, 1/4 | 1, 1/2, of 4.25: .24, .12, .06.
  const test::TraceSpec spec = test::weights_spec(logs({1, 1, 2, 4, 1, 1}), 4);
  const Asked both{1, 4, 4, 2, {{1, -1}}, {logs({1, 2})}};
  CHECK(kept(with_replay(spec, {both}), "kvzip(budget=3)") == Set{0, 1, 3});
  CHECK(kept(with_replay(spec, {{1, 4, 4, 1, {{1}}, {{0}}}}), "kvzip(budget=3)") == Set{0, 2, 3});
  // Without the template: .31, .25, .5; it has no score itself.
  CHECK(kept(with_replay(spec, {both}), "kvzip(budget=2,sinks=0)") == Set{1, 3});
  // Two rows of K and V, a score of every entry, and the length of the head.
  const RunResult run = test::run_one(with_replay(spec, {both}), "kvzip(budget=3)", {});
  CHECK(run.metrics.timeline.overhead_bytes[3] == 2 * 4 + 4 * 2 + 4);
  CHECK(run.metrics.timeline.overhead_bytes[4] == 4);
  CHECK(make_policy("kvzip(budget=3)", geometry_of(with_replay(spec, {both}), {})).spec ==
        "kvzip(budget=3,plus=false,cut=model,sinks=1)");
  CHECK(test::off_closed_form(with_replay(spec, {both}), "kvzip(budget=3,cut=head)", {}) == "");
  // A pass that is replayed reads all layers: their scores wait for the last one whoever shares.
  for (const std::string cut : {"layer", "head"}) {
    const RunResult other =
        test::run_one(with_replay(spec, {both}), "kvzip(budget=3,cut=" + cut + ")", {});
    CHECK(other.metrics.timeline.overhead_bytes[3] == 2 * 4 + 4 * 2 + (cut == "layer" ? 4 : 0));
  }
}

TEST_CASE("kvzip sees one chunk of the context at a time", "[policy][kvzip]") {
  // 1, 2 | 1 of 4: .25, .5; then 4, 1 | 1 of 6: .67, .17, or of 7 with a sink before them.
  const test::TraceSpec spec = test::weights_spec(logs({1, 2, 4, 1, 1}), 4);
  const Trace trace = with_replay(spec, {{0, 2, 4, 1, {{1}}, {{0}}}, {2, 4, 4, 1, {{1}}, {{0}}}});
  CHECK(kept(trace, "kvzip(budget=2)") == Set{1, 2});
  CHECK(kept(trace, "kvzip(budget=2,sinks=1)") == Set{0, 2});
  CHECK(kept(trace, "kvzip(budget=3)") == Set{0, 1, 2});
}

TEST_CASE("kvzip cuts over the model, a layer, or each head", "[policy][kvzip]") {
  // Of 16, with what the row's own key has: 8 4 2 1, 5 1 1 1; 3 2 2 1, 2 1 1 1.
  const test::TraceSpec spec =
      two_heads({{{8, 4, 2, 1, 1}, {5, 1, 1, 1, 1}}, {{3, 2, 2, 1, 1}, {2, 1, 1, 1, 1}}});
  const Trace trace =
      with_replay(spec, {{0, 4, 4, 1, {{1, 1}, {1, 1}}, {logs({1, 8}), logs({8, 11})}}});
  const auto sets = [&](const std::string& policy) { return four_sets(trace, policy); };
  CHECK(sets("kvzip(budget=1)") == std::vector<Set>{{0, 1}, {0}, {0}, {}});
  CHECK(sets("kvzip(budget=2,cut=layer)") == std::vector<Set>{{0, 1, 2}, {0}, {0, 1, 2}, {0}});
  CHECK(sets("kvzip(budget=2,cut=head)") == std::vector<Set>{{0, 1}, {0, 1}, {0, 1}, {0, 1}});
}

TEST_CASE("kvzip+ weighs rows by what they read and entries by what they add", "[policy][kvzip]") {
  // .5 and .25 of row 0, .14 and .29 of row 1. Wo = (3, 4), so ||Wo v|| is 5 |v|.
  test::TraceSpec spec = test::weights_spec(logs({2, 1, 1}), 2, {}, {1, 1, 1});
  spec.layers[0].wo = {3, 4};
  const auto asked = [&](double first, double second) {
    return with_replay(spec, {{0, 2, 2, 2, {{1, -1}}, {{0, 0}}, {{first, second}}}});
  };
  CHECK(kept(asked(1, 1), "kvzip(budget=1,plus=true)") == Set{0});
  CHECK(kept(asked(10, 1), "kvzip(budget=1,plus=true)") == Set{1});  // .05 and .14, .03 and .29
  CHECK(kept(asked(10, 1), "kvzip(budget=1)") == Set{0});
  spec.layers[0].v = {1, -3, 1};  // 2.5 and 4.3
  CHECK(kept(asked(1, 1), "kvzip(budget=1,plus=true)") == Set{1});
}

TEST_CASE("kvzip leaves what comes behind the context alone", "[policy][kvzip]") {
  // Tokens 3 and 4 are a question; of the three before it one has a place.
  const test::TraceSpec spec = test::weights_spec(logs({1, 4, 2, 1, 1, 1}), 5);
  const Trace trace = with_replay(spec, {{0, 3, 3, 1, {{1}}, {{0}}}});
  CHECK(kept(trace, "kvzip(budget=3)") == Set{1, 3, 4});
  EngineOptions options;
  options.evict_point = 3;
  CHECK(test::deaths(trace, "kvzip(budget=1)", options) == Set{3, 6, 3, 6, 6, 6});
}

TEST_CASE("kvzip refuses what it cannot know", "[policy][kvzip]") {
  const test::TraceSpec spec = test::weights_spec(logs({1, 4, 2, 1, 1, 1}), 4);
  const Trace silent = test::make_trace(spec);
  CHECK_THROWS_WITH(test::run_one(silent, "kvzip", {}), Contains("--replay records them"));
  const Trace trace = with_replay(spec, {{0, 4, 4, 1, {{1}}, {{0}}}});
  CHECK_THROWS_WITH(test::run_one(trace, "kvzip(plus=true)", {}), Contains("needs layers.0.v"));
  CHECK_THAT(refusal(trace, "decoding(kvzip(budget=2,cut=head),every=1,target=2)"),
             Contains("acts once"));
  EngineOptions options;
  options.evict_point = 3;
  CHECK_THROWS_WITH(test::run_one(trace, "kvzip", options), Contains("expected --evict-at 4"));
  options = test::chunk(2);
  CHECK_THROWS_WITH(test::run_one(trace, "chunked(kvzip(budget=1,cut=head))", options),
                    Contains("acts once"));
}

// ---- kvcompose ----------------------------------------------------------------------------------

namespace {

// One row that reads the context again; of 16, with what the row's own key has: 8 1 4 2 and
// 1 6 1 1; 3 1 2 2 and 1 1 1 2.
test::TraceSpec composed_spec() {
  return two_heads({{{8, 1, 4, 2, 1}, {1, 6, 1, 1, 1}}, {{3, 1, 2, 2, 1}, {1, 1, 1, 2, 1}}});
}

}  // namespace

TEST_CASE("kvcompose gives the heads of a layer as many places", "[policy][kvcompose]") {
  // With the heads' mean: 12.5 4.5 6.5 3.5 and 5.5 9.5 3.5 2.5 (of 16); 5 2 3.5 4 and 3 2 2.5 4.
  // Composite tokens: 11, 6, 4, 3 and 4.5, 3.5, 3, 2; the first layer has the largest anyway.
  const Trace trace =
      with_replay(composed_spec(), {{0, 4, 4, 1, {{1, 1}, {1, 1}}, {logs({1, 7}), logs({8, 11})}}});
  const auto sets = [&](const std::string& policy) { return four_sets(trace, policy); };
  // Two places: both in the first layer.
  CHECK(sets("kvcompose(budget=1)") == std::vector<Set>{{0, 2}, {0, 1}, {}, {}});
  CHECK(sets("kvcompose(budget=2)") == std::vector<Set>{{0, 1, 2}, {0, 1, 2}, {0}, {3}});
  // Heads by themselves: the best four are 12.5, 9.5, 6.5 and 5.5.
  CHECK(sets("kvcompose(budget=1,form=heads)") == std::vector<Set>{{0, 2}, {0, 1}, {}, {}});
  // One row of K and V in two layers and heads, and a score of every entry.
  const RunResult run = test::run_one(trace, "kvcompose(budget=1)", {});
  CHECK(run.metrics.timeline.overhead_bytes[3] == 2 * 2 * 4 + 2 * 2 * 4 * 2);
  // By the model's attention, here capped at 1: e^tanh(ln 8) is 2.6, and of the composite tokens
  // .52, .40, .34, .31 and .44, .36, .33, .24 one of each layer is in.
  test::TraceSpec capped = composed_spec();
  capped.meta.logit_softcap = 1;
  CHECK(four_sets(
            with_replay(capped, {{0, 4, 4, 1, {{1, 1}, {1, 1}}, {logs({1, 7}), logs({8, 11})}}}),
            "kvcompose(budget=1)") == std::vector<Set>{{0}, {1}, {0}, {3}});
  CHECK_THAT(
      refusal(with_replay(composed_spec(), {{0, 2, 4, 1, {{1, 1}, {1, 1}}, {{0, 0}, {0, 0}}}}),
              "kvcompose"),
      Contains("--replay-as context"));
}

TEST_CASE("kvcompose lets the first layer have the largest composite token of all",
          "[policy][kvcompose]") {
  // As above with the layers changed: composite 4.5, 3.5, 3, 2, of the first layer 11, 6, 4, 3 all
  // the same, and ties go to it.
  test::TraceSpec spec = composed_spec();
  std::swap(spec.layers[0], spec.layers[1]);
  const Trace trace =
      with_replay(spec, {{0, 4, 4, 1, {{1, 1}, {1, 1}}, {logs({8, 11}), logs({1, 7})}}});
  CHECK(kept(trace, "kvcompose(budget=1)", 0, 0) == Set{0});
  CHECK(kept(trace, "kvcompose(budget=1)", 1, 0) == Set{0});
  CHECK(kept(trace, "kvcompose(budget=2)", 0, 0) == Set{0, 3});
  CHECK(kept(trace, "kvcompose(budget=2)", 1, 0) == Set{0, 2});
}

// ---- kvzap, fast_kvzip --------------------------------------------------------------------------

TEST_CASE("kvzap takes the scores of a file, once or by a threshold", "[policy][kvzap]") {
  const Trace trace = test::weights(Numbers(9, 0.0), 6, {}, Numbers(9, 1.0));
  const test::Table file("scores", {1, 1, 9}, {-1, -5, -2, -7, -3, -6, -9, -1, -9});
  const std::string weights = fmt::format("scorer=file,weights=\"{}\"", file.name());
  CHECK(kept(trace, fmt::format("kvzap(budget=3,{})", weights)) == Set{0, 2, 4});
  // As published: below -4 they die once two newer ones are there beside the row itself.
  const std::string published =
      fmt::format("dms(kvzap({}),threshold=-4,window=2,variant=kvpress)", weights);
  CHECK(test::deaths(trace, published) == Set{9, 6, 9, 6, 9, 8, 9, 9, 9});
  CHECK_THAT(refusal(trace, fmt::format("dms(kvzap({}))", weights)),
             Contains("found no threshold"));
  CHECK_THAT(refusal(trace, "kvzap(scorer=file)"), Contains("expected a safetensors file"));
  CHECK_THROWS_WITH(kept(trace, "kvzap(budget=3)"), Contains("needs replayed rows"));
}

TEST_CASE("kvzap's stand-in learns what the replay looks at", "[policy][kvzap]") {
  // A row of query 1 gives exp(k) over a sum: its log is linear in the key, and ||Wo v|| is 1. The
  // fit sees tokens 0 to 3; the largest keys stay, of the others as well. A query of -1: the
  // smallest. With ||Wo v|| = v beside it, log v is learned too.
  test::TraceSpec spec =
      test::weights_spec({1, 3, 2, 0, 4, 1.5, 5, 2.5, 0}, 8, {}, Numbers(9, 1.0));
  spec.layers[0].wo = {1};
  const auto asked = [&](double query) {
    return with_replay(spec, {{0, 8, 8, 1, {{query}}, {{0}}, {{1}}}});
  };
  CHECK(kept(asked(1), "kvzap(budget=3)") == Set{1, 4, 6});
  CHECK(kept(asked(-1), "kvzap(budget=3)") == Set{0, 3, 5});
  CHECK(kept(asked(1), "fast_kvzip(budget=3,sinks=0,window=0)") == Set{1, 4, 6});
  // `kvspan fit`: what the first half taught ranks the second half, and another trace, as well.
  const test::Folder folder;
  const policies::FitOutcome fitted = policies::fit_models(
      policies::fitted_scorer("kvzap"), {asked(1)}, {}, policies::FitOptions{}, nullptr, nullptr);
  CHECK(fitted.total().train_rows == 4);
  CHECK(fitted.total().train == Approx(1));
  CHECK(fitted.total().test == Approx(1));
  const std::string file = (folder.path / "kvzap.safetensors").string();
  fitted.set.save(file);
  CHECK(kept(asked(-1), fmt::format("kvzap(budget=3,weights=\"{}\")", file)) == Set{1, 4, 6});
  spec.layers[0].v = {1, 0.1, 1, 10, 1, 1, 1, 40, 1};
  CHECK(kept(asked(0), "kvzap(budget=1)") == Set{7});
  const Policy policy = make_policy("kvzap(budget=3)", geometry_of(asked(1), {}));
  REQUIRE(policy.notes.size() == 2);
  CHECK_THAT(policy.notes[0], Contains("stand-in: ridge fitted on the first half"));
  CHECK_THAT(policy.notes[1], Contains("asked after the whole prompt"));
  CHECK(test::off_closed_form(asked(1), "kvzap(budget=3)", {}) == "");
  // Llama-3.1-8B: 512 units on a hidden size of 4096, or one number for each of 8 heads.
  const Geometry llama = test::llama_8b(4096, 1);
  CHECK(make_policy("kvzap", llama).charge.once == 32LL * (512 * 4097 + 8 * 513) * 2);
  CHECK(make_policy("kvzap(model=linear)", llama).charge.once == 32LL * 8 * 4097 * 2);
}

TEST_CASE("fast_kvzip cuts over the model or a layer, and spares both ends",
          "[policy][fast_kvzip]") {
  const Trace trace =
      test::make_trace(two_heads({{Numbers(5, 1), Numbers(5, 1)}, {Numbers(5, 1), Numbers(5, 1)}}));
  const test::Table file("scores", {2, 2, 5}, {.9, .8, .1, .1, 0, .7, .2, .1, .1, 0,    // layer 0
                                               .3, .1, .1, .1, 0, .1, .1, .1, .6, 0});  // layer 1
  const auto sets = [&](const std::string& settings) {
    return four_sets(
        trace, fmt::format("fast_kvzip({},scorer=file,weights=\"{}\")", settings, file.name()));
  };
  CHECK(sets("budget=1,sinks=0,window=0") == std::vector<Set>{{0, 1}, {0}, {}, {3}});
  CHECK(sets("budget=1,sinks=0,window=0,cut=layer") == std::vector<Set>{{0, 1}, {}, {0}, {3}});
  // The newest token has a place of its own in every head.
  CHECK(sets("budget=2,sinks=0") == std::vector<Set>{{0, 1, 3}, {0, 3}, {0, 3}, {3}});
  CHECK(sets("budget=2,sinks=1") == std::vector<Set>{{0, 3}, {0, 3}, {0, 3}, {0, 3}});
  const auto window = [](std::int64_t prompt) {
    const std::string spec = make_policy("fast_kvzip", test::llama_8b(prompt, 1)).spec;
    return spec.substr(spec.find("window="));
  };
  CHECK(window(30) == "window=1)");
  CHECK(window(149) == "window=2)");
  CHECK(window(31999) == "window=639)");
  CHECK(window(32000) == "window=4096)");
  // Llama-3.1-8B: projections of 4096 to 16 for 32 and 8 heads, constants, norms, 16 sinks a head,
  // a constant for each query head; and the lengths of 8 heads.
  CHECK(make_policy("fast_kvzip", test::llama_8b(4096, 1)).charge.once ==
        32LL * (4096 * 16 * 40 + 32 * 16 + 2 * 16 + 8 * 16 * 16 + 32) * 2 + 32 * 8 * 4);
}

// ---- By its definition, on random traces --------------------------------------------------------

namespace {

struct Case {
  test::TraceSpec spec;
  std::vector<Asked> passes;
  std::int64_t at = 0;
};

Case random_case(test::Random& random) {
  Case out;
  const int prompt = test::pick(random, 12, 30);
  out.spec = test::random_spec({.layers = 2,
                                .tokens = prompt + 3,
                                .prompt_tokens = prompt,
                                .query_heads = 4,
                                .kv_heads = 2,
                                .head_dim = 4,
                                .seed = random()});
  std::normal_distribution<double> normal;
  const auto numbers = [&](std::int64_t count) {
    Numbers x(static_cast<std::size_t>(count));
    for (double& value : x) value = test::rounded_to(1.5 * normal(random), Dtype::f32);
    return x;
  };
  for (test::LayerSpec& layer : out.spec.layers) layer.wo = numbers(5 * 16);
  out.at = prompt - test::pick(random, 0, 2);
  const std::int64_t chunk = test::pick(random, 3, 20);
  for (std::int64_t begin = test::pick(random, 0, 2); begin < out.at; begin += chunk) {
    const std::int64_t end = std::min(out.at, begin + chunk), rows = end - begin + 2;
    Asked a{begin, end, out.at, rows, {}, {}, {}};
    for (int l = 0; l < 2; ++l) {
      a.q.push_back(numbers(rows * 4 * 4));
      a.k.push_back(numbers(rows * 2 * 4));
      Numbers norms = numbers(rows);
      for (double& x : norms) x = test::rounded_to(std::abs(x) + 0.1, Dtype::f32);
      a.norms.push_back(norms);
    }
    out.passes.push_back(a);
  }
  return out;
}

// The score of every token of one KV head, of 4 channels.
Numbers by_definition(const Case& c, int layer, int kv_head, std::int64_t sinks, bool plus) {
  const test::LayerSpec& x = c.spec.layers[static_cast<std::size_t>(layer)];
  const auto at = [](const Numbers& from, std::int64_t row, int heads, int head, int i) {
    return from[static_cast<std::size_t>((row * heads + head) * 4 + i)];
  };
  Numbers out(static_cast<std::size_t>(c.at), 0.0);
  for (const Asked& a : c.passes) {
    const Numbers& q = a.q[static_cast<std::size_t>(layer)];
    const Numbers& own = a.k[static_cast<std::size_t>(layer)];
    for (int h = kv_head * 2; h < kv_head * 2 + 2; ++h) {
      for (std::int64_t row = 0; row < a.rows; ++row) {
        std::vector<std::pair<std::int64_t, double>> z;  // token, -1: of the replay
        const auto look = [&](std::int64_t token, const Numbers& keys, std::int64_t key) {
          double dot = 0;
          for (int i = 0; i < 4; ++i) dot += at(q, row, 4, h, i) * at(keys, key, 2, kv_head, i);
          z.emplace_back(token, std::exp(dot / 2));
        };
        for (std::int64_t t = 0; t < std::min(sinks, a.begin); ++t) look(-1, x.k, t);
        for (std::int64_t t = a.begin; t < a.end; ++t) look(t, x.k, t);
        for (std::int64_t r = 0; r <= row; ++r) look(-1, own, r);
        double sum = 0;
        for (const auto& [token, weight] : z) sum += weight;
        for (const auto& [token, weight] : z) {
          if (token < 0) continue;
          double score = weight / sum;
          if (plus) {
            double square = 0;
            for (int o = 0; o < 5; ++o) {
              double added = 0;
              for (int i = 0; i < 4; ++i)
                added += x.wo[static_cast<std::size_t>(o * 16 + h * 4 + i)] *
                         at(x.v, token, 2, kv_head, i);
              square += added * added;
            }
            score *= std::sqrt(square) /
                     a.norms[static_cast<std::size_t>(layer)][static_cast<std::size_t>(row)];
          }
          double& best = out[static_cast<std::size_t>(token)];
          best = std::max(best, score);
        }
      }
    }
  }
  return out;
}

}  // namespace

TEST_CASE("kvzip keeps the best of all layers and heads by its definition", "[policy][kvzip]") {
  test::Random random(Catch::rngSeed());
  for (int round = 0; round < test::share_of_cases(24); ++round) {
    const Case c = random_case(random);
    const std::int64_t prompt = c.spec.meta.prompt_tokens;
    const std::int64_t sinks = test::pick(random, 0, 3);
    const bool plus = test::pick(random, 0, 1) == 1;
    const std::int64_t budget = test::pick(random, 4, static_cast<int>(prompt));
    const std::string policy =
        fmt::format("kvzip(budget={},plus={},sinks={})", budget, plus, sinks);
    INFO(policy << " n=" << prompt << " at=" << c.at << " passes=" << c.passes.size());
    struct Entry {
      double score;
      int layer, head, token;
    };
    std::vector<Entry> ranked;
    std::vector<Set> expected(4);
    for (int l = 0; l < 2; ++l) {
      for (int h = 0; h < 2; ++h) {
        const Numbers scores = by_definition(c, l, h, sinks, plus);
        for (int t = 0; t < prompt; ++t) {
          if (t < sinks || t >= c.at) {
            expected[static_cast<std::size_t>(2 * l + h)].push_back(t);
          } else {
            ranked.push_back({scores[static_cast<std::size_t>(t)], l, h, t});
          }
        }
      }
    }
    std::sort(ranked.begin(), ranked.end(), [](const Entry& a, const Entry& b) {
      if (a.score != b.score) return a.score > b.score;
      if (a.token != b.token) return a.token < b.token;
      return std::pair(a.layer, a.head) < std::pair(b.layer, b.head);
    });
    const std::int64_t held = sinks + prompt - c.at;  // at most 5
    if (held > budget) continue;
    const auto places = std::min<std::int64_t>(4 * (budget - held), std::ssize(ranked));
    for (std::int64_t i = 0; i < places; ++i) {
      const Entry& e = ranked[static_cast<std::size_t>(i)];
      expected[static_cast<std::size_t>(2 * e.layer + e.head)].push_back(e.token);
    }
    const RunResult run = test::run_one(with_replay(c.spec, c.passes), policy, {});
    for (int l = 0; l < 2; ++l) {
      for (int h = 0; h < 2; ++h) {
        Set& set = expected[static_cast<std::size_t>(2 * l + h)];
        std::sort(set.begin(), set.end());
        CHECK(kept(run, l, h) == set);
      }
    }
  }
}
