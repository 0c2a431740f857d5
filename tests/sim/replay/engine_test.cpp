// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <cmath>
#include <set>

#include <catch2/catch.hpp>

#include "sim/attention/kernels.h"
#include "sim/attention/layer_scores.h"
#include "sim/base/error.h"
#include "sim/run/run.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;

namespace {

const std::vector<std::string> kMixed = {"full",
                                         "random(budget=40)",
                                         "streaming_llm(sinks=2,window=30)",
                                         "h2o(budget=40)",
                                         "tova(budget=40)",
                                         "snapkv(budget=40,window=8)",
                                         "pyramidkv(budget=40)",
                                         "duoattention(sinks=2,window=16)",
                                         "chunked(snapkv(budget=30%,window=8))",
                                         "chunked(h2o(budget=30%))"};

std::vector<RunResult> run(const Trace& trace, const std::vector<std::string>& policies,
                           const EngineOptions& options) {
  std::vector<RecipeSpec> specs;
  for (const std::string& text : policies) specs.push_back(parse_spec(text));
  return run_policies(trace, specs, options, {});
}

// Every policy that runs alone, small enough to act on medium_trace(), and some that compose.
std::vector<std::string> catalogue() {
  std::vector<std::string> out;
  for (RecipeSpec spec : all_policies()) {
    apply_budget(spec, "20%");
    out.push_back(to_text(spec));
  }
  for (const char* spec : {"h2o(budget=30)+quest(budget=16)",
                           "write_gate(window=8)+snapkv(budget=40)",
                           "minference(verticals=30,slashes=50)+h2o(budget=40)",
                           "h2o(budget=40)+less(rank=2)",
                           "snapkv(budget=40)+kivi(group=8,residual=16)",
                           "snapkv(budget=40)+mikv",
                           "chunked(adakv(budget=20%))",
                           "criticalkv(snapkv(budget=40))",
                           "block(keydiff(budget=40))",
                           "chunk(snapkv(budget=40),length=32)",
                           "decoding(knorm,every=8,target=40)",
                           "dms(random,threshold=1e15,window=8)",
                           "streaming_llm(budget=40,positions=cache)",
                           "r_kv(budget=40,buffer=8)",
                           "foresightkv(budget=40,interval=8)",
                           "foresightkv(budget=40,interval=8,scorer=golden)",
                           "simlayerkv(recent=20,threshold=0.2)",
                           "clusterkv(budget=40,clusters=6,every=20,skip=0)",
                           "quest(budget=32,skip=0)",
                           "retroattention(budget=32,skip=0,window=3)",
                           "refreshkv(budget=20)"}) {
    out.emplace_back(spec);
  }
  return out;
}

// Bit for bit.
void check_same(const RunResult& a, const RunResult& b) {
  INFO(a.spec);
  CHECK(a.ledger.death == b.ledger.death);
  REQUIRE(a.fidelity.has_value() == b.fidelity.has_value());
  if (!a.fidelity) return;
  CHECK(a.fidelity->all->mass_mean == b.fidelity->all->mass_mean);
  CHECK(a.fidelity->all->mass_p5 == b.fidelity->all->mass_p5);
  CHECK(a.fidelity->all->mass_min == b.fidelity->all->mass_min);
  CHECK(a.fidelity->all->error_mean == b.fidelity->all->error_mean);
  CHECK(a.fidelity->all->error_max == b.fidelity->all->error_max);
  CHECK(a.fidelity->row_mass == b.fidelity->row_mass);
  CHECK(a.fidelity->head_mass == b.fidelity->head_mass);
}

Trace medium_trace(std::uint64_t seed = 3) {
  return test::make_trace(test::random_spec({.layers = 3,
                                             .tokens = 210,
                                             .prompt_tokens = 150,
                                             .query_heads = 6,
                                             .kv_heads = 2,
                                             .head_dim = 8,
                                             .seed = seed,
                                             .dtype = Dtype::f16}));
}

// A score trace of the same attention as a qkv trace: every row, the `keep` largest (0: dense).
test::TraceSpec score_spec(const Trace& trace, int keep, Dtype dtype) {
  const TraceMeta& meta = trace.meta();
  test::TraceSpec spec;
  spec.meta = meta;
  spec.score_dtype = dtype;
  for (int l = 0; l < meta.layers; ++l) {
    test::LayerSpec layer;
    const LayerScores scores(trace, l);
    std::vector<float> buffer(static_cast<std::size_t>(kernels::padded(meta.tokens)));
    for (RowIndex row = 0; row < meta.tokens; ++row) {
      layer.rows.push_back(row);
      for (int q = 0; q < meta.query_heads; ++q) {
        const RowTerms t = scores.row(q, row, buffer);
        layer.lse.push_back(t.max + std::log(t.sum));
        std::vector<std::pair<double, int>> order;
        for (int j = 0; j < meta.tokens; ++j) {
          const double p = j <= row ? static_cast<double>(t.terms[j]) / t.sum : 0.0;
          if (keep == 0) layer.dense.push_back(p);
          order.emplace_back(-p, j);
        }
        if (keep == 0) continue;
        std::sort(order.begin(), order.end());
        for (int i = 0; i < keep; ++i) {
          const bool real = order[static_cast<std::size_t>(i)].second <= row;
          layer.prob.push_back(real ? -order[static_cast<std::size_t>(i)].first : 0.0);
          layer.index.push_back(real ? order[static_cast<std::size_t>(i)].second : -1);
        }
      }
    }
    spec.layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace

TEST_CASE("no policy of the catalogue depends on threads, blocks, or its neighbours", "[engine]") {
  test::TraceSpec spec = test::random_spec({.layers = 3,
                                            .tokens = 210,
                                            .prompt_tokens = 150,
                                            .query_heads = 6,
                                            .kv_heads = 2,
                                            .head_dim = 8,
                                            .seed = 5,
                                            .dtype = Dtype::f16});
  spec.meta.rope = Rope{.theta = 10000, .dim = 8, .interleaved = false, .inverse_frequencies = {}};
  const Trace trace = test::make_trace(spec);
  EngineOptions options;
  options.threads = 1;
  options.block_rows = 64;
  const std::vector<std::string> all = catalogue();
  std::vector<RunResult> alone;
  for (const std::string& text : all) alone.push_back(run(trace, {text}, options)[0]);
  options.threads = 3;
  options.block_rows = 7;
  const std::vector<RunResult> together = run(trace, all, options);
  for (std::size_t i = 0; i < all.size(); ++i) {
    check_same(alone[i], together[i]);
    CHECK(alone[i].metrics.timeline.resident_bytes == together[i].metrics.timeline.resident_bytes);
    CHECK(alone[i].metrics.timeline.active_entries == together[i].metrics.timeline.active_entries);
  }
}

TEST_CASE("results do not depend on threads, blocks, or the other policies of a run", "[engine]") {
  const Trace trace = medium_trace();
  EngineOptions options;
  options.chunk = 40;
  options.threads = 1;
  const std::vector<RunResult> expected = run(trace, kMixed, options);
  SECTION("threads") {
    options.threads = 4;
    const auto got = run(trace, kMixed, options);
    for (std::size_t i = 0; i < got.size(); ++i) check_same(expected[i], got[i]);
  }
  SECTION("block shapes") {
    for (const RowIndex rows : {1, 7, 64}) {
      options.block_rows = rows;
      const auto got = run(trace, kMixed, options);
      for (std::size_t i = 0; i < got.size(); ++i) check_same(expected[i], got[i]);
    }
  }
  SECTION("alone") {
    for (std::size_t i = 0; i < kMixed.size(); ++i)
      check_same(expected[i], run(trace, {kMixed[i]}, options)[0]);
  }
}

TEST_CASE("fidelity changes no decision", "[engine]") {
  const Trace trace = medium_trace();
  EngineOptions options;
  options.chunk = 40;
  const auto all = run(trace, kMixed, options);
  options.fidelity = false;
  const auto none = run(trace, kMixed, options);
  options.fidelity = true;
  options.fidelity_rows = 5;
  const auto some = run(trace, kMixed, options);
  for (std::size_t i = 0; i < all.size(); ++i) {
    CHECK(all[i].ledger.death == none[i].ledger.death);
    CHECK(all[i].ledger.death == some[i].ledger.death);
    CHECK(some[i].fidelity->rows_measured == 10);
    CHECK_FALSE(none[i].fidelity);
    // The measured rows are those of the full measurement: start + floor((2i + 1) len / 2K).
    for (const std::size_t row : {15U, 45U, 75U, 105U, 135U, 156U, 168U, 180U, 192U, 204U}) {
      CHECK(some[i].fidelity->row_mass[row] == all[i].fidelity->row_mass[row]);
    }
    CHECK(std::isnan(some[i].fidelity->row_mass[16]));
  }
}

TEST_CASE("a sample of a long prompt's rows changes no decision and no decode row", "[engine]") {
  const RowIndex prompt = kLongPrompt + 4;
  const Trace trace = test::make_trace(test::random_spec({.layers = 1,
                                                          .tokens = static_cast<int>(prompt) + 6,
                                                          .prompt_tokens = static_cast<int>(prompt),
                                                          .query_heads = 2,
                                                          .kv_heads = 1,
                                                          .head_dim = 4,
                                                          .seed = 8,
                                                          .dtype = Dtype::f16}));
  const std::vector<std::string> policies = {"snapkv(budget=64,window=40)",
                                             "chunked(knorm(budget=20%))",
                                             "quest(budget=64,skip=0)", "kivi(group=4)"};
  EngineOptions options;
  options.chunk = 1500;
  const auto all = run(trace, policies, options);
  options.sample_long_prompts = true;
  const auto some = run(trace, policies, options);
  for (std::size_t i = 0; i < all.size(); ++i) {
    INFO(policies[i]);
    const Fidelity& whole = *all[i].fidelity;
    const Fidelity& part = *some[i].fidelity;
    CHECK(all[i].ledger.death == some[i].ledger.death);
    CHECK(all[i].metrics.entries_read == some[i].metrics.entries_read);
    CHECK(part.rows_measured == kSampledRows + 6);
    CHECK(part.prefill_sample == kSampledRows);
    CHECK(part.decode->mass_mean == whole.decode->mass_mean);
    CHECK(part.decode->mass_p5 == whole.decode->mass_p5);
    CHECK(part.decode->error_mean == whole.decode->error_mean);
    CHECK(part.head_mass == whole.head_mass);
    CHECK(part.prefill->mass_mean == Approx(whole.prefill->mass_mean).margin(0.01));
    CHECK(part.all->mass_mean == Approx(whole.all->mass_mean).margin(0.01));
    for (const RowIndex row : spread_rows(0, prompt, kSampledRows))
      REQUIRE(part.row_mass[index(row)] == whole.row_mass[index(row)]);
  }
}

TEST_CASE("a dense score trace gives the deaths and the mass of the qkv trace",
          "[engine][scores]") {
  const Trace trace = medium_trace();
  const Trace dense = test::make_trace(score_spec(trace, 0, Dtype::f32));
  REQUIRE_FALSE(dense.is_qkv());
  const std::vector<std::string> policies = {"full",
                                             "h2o(budget=40)",
                                             "tova(budget=40)",
                                             "snapkv(budget=40,window=8)",
                                             "streaming_llm(sinks=2,window=30)",
                                             "duoattention(sinks=2,window=16)"};
  const auto a = run(trace, policies, {});
  const auto b = run(dense, policies, {});
  for (std::size_t i = 0; i < a.size(); ++i) {
    INFO(a[i].spec);
    REQUIRE(b[i].undecided.has_value());
    if (*b[i].undecided == 0) CHECK(a[i].ledger.death == b[i].ledger.death);
    CHECK(b[i].fidelity->all->mass_mean == Approx(a[i].fidelity->all->mass_mean).margin(1e-5));
    CHECK_FALSE(b[i].fidelity->all->has_error);
  }
  CHECK(*b[4].undecided == 0);  // positions need no probabilities
  CHECK_FALSE(a[0].undecided);
}

TEST_CASE("with no undecided decision a truncated score trace gives the deaths of the qkv trace",
          "[engine][scores]") {
  int compared = 0;
  int undecided = 0;
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    test::TraceSpec sharp = test::random_spec({.layers = 1,
                                               .tokens = 60,
                                               .prompt_tokens = 50,
                                               .query_heads = 2,
                                               .kv_heads = 1,
                                               .head_dim = 4,
                                               .seed = seed});
    for (double& q : sharp.layers[0].q) q *= 3;  // concentrated attention
    const Trace trace = test::make_trace(sharp);
    for (const int keep : {8, 24, 50}) {
      const Trace top =
          test::make_trace(score_spec(trace, keep, keep == 24 ? Dtype::f16 : Dtype::f32));
      for (const char* policy :
           {"snapkv(budget=10,window=4,kernel=1)", "tova(budget=20)", "h2o(budget=30)"}) {
        const RunResult full = test::run_one(trace, policy, {});
        const RunResult cut = test::run_one(top, policy, {});
        INFO(policy << ", seed " << seed << ", K = " << keep);
        if (*cut.undecided == 0) {
          CHECK(full.ledger.death == cut.ledger.death);
          // For given deaths the residual bounds the mass from below.
          CHECK(cut.fidelity->all->mass_mean <= full.fidelity->all->mass_mean + 1e-3);
          ++compared;
        } else {
          ++undecided;
        }
      }
    }
  }
  CHECK(compared > 10);
  CHECK(undecided > 0);
}

TEST_CASE("column_mass stands in for the prompt's rows", "[engine][scores]") {
  const Trace trace = medium_trace();
  test::TraceSpec spec = score_spec(trace, 0, Dtype::f32);
  spec.meta.passes = {150};
  for (test::LayerSpec& layer : spec.layers) {
    // Sums over the prompt's one pass; then the prompt's rows are dropped.
    const std::size_t row = 6 * 210;
    layer.column_mass.assign(row, 0.0);
    for (std::size_t i = 0; i < 150; ++i) {
      for (std::size_t c = 0; c < row; ++c) layer.column_mass[c] += layer.dense[i * row + c];
    }
    layer.dense.erase(layer.dense.begin(),
                      layer.dense.begin() + static_cast<std::ptrdiff_t>(150 * row));
    layer.lse.erase(layer.lse.begin(), layer.lse.begin() + 150 * 6);
    layer.rows.erase(layer.rows.begin(), layer.rows.begin() + 150);
  }
  const Trace masses = test::make_trace(spec);
  const RunResult a = test::run_one(trace, "h2o(budget=60)", {});
  const RunResult b = test::run_one(masses, "h2o(budget=60)", {});
  std::size_t differ = 0;
  for (std::size_t i = 0; i < a.ledger.death.size(); ++i)
    differ += a.ledger.death[i] != b.ledger.death[i] ? 1 : 0;
  CHECK(differ <= a.ledger.death.size() / 100);
  EngineOptions other;
  other.chunk = 50;
  CHECK_THROWS_WITH(test::run_one(masses, "h2o(budget=60)", other),
                    Contains("column_mass for these passes"));
  CHECK_THROWS_WITH(test::run_one(masses, "snapkv(budget=60)", {}),
                    Contains("row 118 in layers.0.scores.rows"));
  CHECK_THROWS_WITH(test::run_one(masses, "chunked(snapkv(budget=50%),variant=patched)", {}),
                    Contains("layers.*.q"));
}

TEST_CASE("kept keys far below the row's maximum do not underflow", "[engine]") {
  // Key 0 is 200 nats above all others, and is evicted: the others share the row's attention.
  test::TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = spec.meta.head_dim = 1;
  spec.meta.tokens = 8;
  spec.meta.prompt_tokens = 4;
  spec.meta.score_scale = 1;
  spec.layers.push_back({});
  spec.layers[0].q.assign(8, 1.0);
  spec.layers[0].k = {200, 0, 3, 1, 2, 0, 0, 0};
  spec.layers[0].v = {1, 2, 3, 4, 5, 6, 7, 8};
  const Trace trace = test::make_trace(spec);
  const RunResult run = test::run_one(trace, "streaming_llm(sinks=0,window=3)", {});
  CHECK(run.fidelity->decode->mass_mean == Approx(0).margin(1e-30));
  // Row 4 reads keys 1..4 with weights 1, e^3, e, e^2 and values 2, 3, 4, 5; the full output is 1.
  const double e = std::exp(1.0);
  const double kept = (2 + 3 * e * e * e + 4 * e + 5 * e * e) / (1 + e * e * e + e + e * e);
  CHECK(run.fidelity->decode->error_max >= kept - 1 - 1e-6);
  CHECK(std::isfinite(run.fidelity->decode->error_max));
  // TOVA ranks by those rows.
  CHECK_NOTHROW(test::run_one(trace, "tova(budget=2)", {}));
}

TEST_CASE("rows that nobody observes are not computed", "[engine]") {
  // NaN in q of a row that no policy reads goes unnoticed; a row that one reads is an error.
  test::TraceSpec spec = test::random_spec({.layers = 1, .tokens = 20, .prompt_tokens = 12});
  spec.layers[0].q[0] = std::nan("");
  const Trace trace = test::make_trace(spec);
  EngineOptions options;
  options.fidelity = false;
  CHECK_NOTHROW(test::run_one(trace, "snapkv(budget=5,window=4)", options));
  CHECK_THROWS_WITH(test::run_one(trace, "h2o(budget=5)", options), Contains("layers.0.q"));
  CHECK_NOTHROW(
      test::run_one(trace, "streaming_llm(sinks=1,window=2)", {}));  // row 0 has mass 1 unseen
}

TEST_CASE("a non-finite value is an error that names the tensor", "[engine]") {
  test::TraceSpec spec = test::random_spec({.layers = 2, .tokens = 20, .prompt_tokens = 12});
  spec.layers[1].k[5] = HUGE_VAL;
  CHECK_THROWS_AS(test::run_one(test::make_trace(spec), "h2o(budget=5)", {}), TraceError);
  spec.layers[1].k[5] = 0;
  for (double& q : spec.layers[1].q) q = 3e38;
  for (double& k : spec.layers[1].k) k = 3e38;
  CHECK_THROWS_WITH(test::run_one(test::make_trace(spec), "h2o(budget=5)", {}),
                    Contains("overflows"));
}

TEST_CASE("wrong prompts, chunks and eviction points are refused", "[engine]") {
  const Trace trace = medium_trace();
  EngineOptions options;
  options.prompt = 211;
  CHECK_THROWS_WITH(geometry_of(trace, options), Contains("expected 1 to 210"));
  options.prompt = 100;
  options.evict_point = 101;
  CHECK_THROWS_WITH(geometry_of(trace, options), Contains("expected 1 to 100"));
  options.evict_point = 0;
  options.chunk = -1;
  CHECK_THROWS_AS(geometry_of(trace, options), ConfigError);
}

TEST_CASE("--evict-at moves every prompt-end rule, and the rest of the prompt is one pass",
          "[engine]") {
  const Trace trace = medium_trace();
  EngineOptions options;
  options.evict_point = 120;
  const RunResult snap = test::run_one(trace, "snapkv(budget=50%,window=8)", options);
  std::set<std::uint32_t> rows(snap.ledger.death.begin(), snap.ledger.death.end());
  CHECK(rows == std::set<std::uint32_t>{120, 210});
  CHECK(std::count(snap.ledger.deaths(0, 0).begin(), snap.ledger.deaths(0, 0).end(), 120U) == 60);
  const RunResult tova = test::run_one(trace, "tova(budget=50)", options);
  rows = {tova.ledger.death.begin(), tova.ledger.death.end()};
  CHECK(*rows.begin() == 120);
  CHECK(rows.upper_bound(120) == rows.find(150));  // then at the end of the pass [120, 150)
  CHECK(snap.fidelity->prefill->values == 150 * 3 * 6);
}

TEST_CASE("an interrupted replay ends at once", "[engine]") {
  const Trace trace = medium_trace();
  EngineOptions options;
  std::atomic<int> polls{0};
  options.cancelled = [&] { return ++polls > 2; };
  CHECK_THROWS_AS(test::run_one(trace, "h2o(budget=40)", options), Interrupted);
}

TEST_CASE("progress ends at one", "[engine]") {
  const Trace trace = medium_trace();
  EngineOptions options;
  options.threads = 1;
  double last = 0;
  options.progress = [&](double done) {
    CHECK(done >= last);
    last = done;
  };
  (void)test::run_one(trace, "h2o(budget=40)", options);
  CHECK(last == Approx(1));
}

// ---- Roles that no policy of the registry fills yet ---------------------------------------------

namespace {

// Reads the newest `count` entries of every head, evicts nothing.
class Newest final : public Selector {
 public:
  explicit Newest(std::size_t count) : count_(count) {}
  void select(const View& view, std::span<Reads> reads) override {
    if (view.pass().is_prompt_chunk()) return;
    for (std::size_t q = 0; q < reads.size(); ++q) {
      const auto all = view.resident(static_cast<int>(q) / view.shape().group());
      const std::size_t n = std::min(count_, all.size());
      reads[q].attended =
          std::vector<TokenIndex>(all.end() - static_cast<std::ptrdiff_t>(n), all.end());
    }
  }

 private:
  std::size_t count_;
};

// Keeps victims in representation 1.
class Demote final : public Store {
 public:
  std::optional<int> demote(int head, TokenIndex token) override {
    return demoted_.insert({head, token}).second ? std::optional<int>(1) : std::optional<int>(1);
  }

 private:
  std::set<std::pair<int, TokenIndex>> demoted_;
};

}  // namespace

TEST_CASE("a selector changes what is read, not what is resident", "[engine][roles]") {
  const Trace trace = medium_trace();
  Policy policy = make_policy("full", geometry_of(trace, {}));
  policy.spec = "newest";
  policy.selector = [](const LayerShape&) { return std::make_unique<Newest>(20); };
  const Replay got = replay(trace, {policy}, {})[0];
  const Metrics metrics = compute_metrics(got.ledger, {});
  CHECK(metrics.footprint == 1.0);
  CHECK(metrics.timeline.active_entries[149] == 150 * 3 * 2);
  CHECK(metrics.timeline.active_entries[200] == 20 * 3 * 2);
  // The same reads by eviction: the newest 19 and the row's own.
  const RunResult evicting = test::run_one(trace, "streaming_llm(sinks=0,window=19)", {});
  CHECK(got.fidelity->decode->mass_mean == evicting.fidelity->decode->mass_mean);
  CHECK(got.fidelity->decode->error_mean ==
        Approx(evicting.fidelity->decode->error_mean).epsilon(1e-9));
}

TEST_CASE("a store keeps victims in another representation", "[engine][roles]") {
  const Trace trace = medium_trace();
  Policy policy = make_policy("snapkv(budget=40,window=8)", geometry_of(trace, {}));
  const std::int64_t entry = policy.representations[0].device_bytes;
  policy.representations.push_back({"quarter", entry / 4, 0});
  policy.store = [](const LayerShape&) { return std::make_unique<Demote>(); };
  const Replay got = replay(trace, {policy}, {})[0];
  const Metrics metrics = compute_metrics(got.ledger, {});
  CHECK(metrics.footprint == 1.0);
  CHECK(got.fidelity->all->mass_min == 1.0);
  CHECK(metrics.timeline.resident_bytes[150] == 3 * 2 * (41 * entry + 110 * entry / 4));
  policy.representations[1] = {"host", 0, entry};
  const Metrics offloaded = compute_metrics(replay(trace, {policy}, {})[0].ledger, {});
  CHECK(offloaded.timeline.resident_entries[150] == 3 * 2 * 41);
  CHECK(offloaded.host_peak_bytes == 3 * 2 * 110 * entry);
  CHECK(offloaded.host_footprint > 0);
}

TEST_CASE("a layer can reuse the decisions of a lower one", "[engine][roles]") {
  // Layer 0 is TOVA's leader; the layers above evict what it evicted, as ChunkKV's index reuse
  // does.
  class Follower final : public Scorer {
   public:
    double score(const View& view, int head, std::span<const TokenIndex> entries,
                 std::span<double> out) override {
      std::fill(out.begin(), out.end(), 1.0);
      const Decision* leader = view.lower(0);
      REQUIRE(leader != nullptr);
      for (const Eviction& e : leader->evictions) {
        const auto at = std::lower_bound(entries.begin(), entries.end(), e.token);
        if (e.head == head && at != entries.end() && *at == e.token)
          out[static_cast<std::size_t>(at - entries.begin())] = 0;
      }
      return 0;
    }
  };
  const Trace trace = medium_trace();
  Policy policy = make_policy("tova(budget=40)", geometry_of(trace, {}));
  const ScorerFactory leader = policy.rules[0].scorer;
  policy.reads_lower_layers = true;
  policy.rules[0].axis = Axis::head;
  policy.rules[0].scorer = [leader](const LayerShape& shape) -> std::unique_ptr<Scorer> {
    if (shape.layer == 0) return leader(shape);
    return std::make_unique<Follower>();
  };
  EngineOptions options;
  options.threads = 2;
  CHECK(plan_memory(trace, {policy}, options).layers_in_flight == 1);
  const Ledger ledger = replay(trace, {policy}, options)[0].ledger;
  for (int l = 1; l < 3; ++l) {
    for (int h = 0; h < 2; ++h) {
      const auto a = ledger.deaths(0, h);
      const auto b = ledger.deaths(l, h);
      CHECK(std::equal(a.begin(), a.end(), b.begin()));
    }
  }
}

TEST_CASE("a policy that breaks its contract is stopped", "[engine][roles]") {
  const Trace trace = medium_trace();
  Policy policy = make_policy("full", geometry_of(trace, {}));
  class Reader final : public Selector {
   public:
    void select(const View&, std::span<Reads> reads) override {
      reads[0].attended = std::vector<TokenIndex>{100000};
    }
  };
  policy.selector = [](const LayerShape&) { return std::make_unique<Reader>(); };
  CHECK_THROWS_WITH(replay(trace, {policy}, {}),
                    Contains("selects token 100000, which is not resident"));
  CHECK_THROWS_AS(replay(trace, {policy}, {}), PolicyError);
}
