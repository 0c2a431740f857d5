// SPDX-License-Identifier: Apache-2.0
// What rows read: selection, offload, refresh, sparse prompts. Most tests drive one selector by
// hand.
#include <algorithm>
#include <numeric>
#include <random>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/attention/layer_scores.h"
#include "sim/policies/rocketkv_rule.h"
#include "sim/policies/shared/groups.h"
#include "sim/policies/shared/pages.h"
#include "sim/predict/analytic.h"
#include "tests/support/cases.h"
#include "tests/support/selector_bench.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::deaths;
using test::HeadVectors;
using test::numbers;
using test::SelectorBench;
using test::Tokens;
using test::Vector;

namespace {

// One head, head_dim 1: the logit of row i at key j is q[i] * k[j]; q is 1 unless given.
HeadVectors head_weights(const std::vector<float>& keys, int prompt,
                         std::vector<float> queries = {}) {
  if (queries.empty()) queries.assign(keys.size(), 1.0F);
  return {{numbers(queries)}, {numbers(keys)}, prompt};
}

HeadVectors random_vectors(int tokens, int prompt, int query_heads, int kv_heads, int dim,
                           std::uint64_t seed) {
  test::Random random(seed);
  std::normal_distribution<float> normal;
  const auto make = [&](int heads) {
    std::vector<std::vector<Vector>> out(static_cast<std::size_t>(heads));
    for (auto& head : out) {
      head.resize(static_cast<std::size_t>(tokens), Vector(static_cast<std::size_t>(dim)));
      for (Vector& x : head)
        for (float& y : x) y = normal(random);
    }
    return out;
  };
  return {make(query_heads), make(kv_heads), prompt};
}

std::int64_t full_bytes(const Geometry& g, std::int64_t tokens) {
  return g.layers() * g.kv_heads * tokens * g.entry_bytes();
}

// A sink, then keys along two axes, of lengths 1, 2, 3. With as many clusters as keys, all keys of
// one direction meet in one of them, whatever the seed.
HeadVectors two_axes() {
  HeadVectors v{{{}}, {{{1, 1}, {1, 0}, {0, 1}, {2, 0}, {0, 2}, {3, 0}, {0, 3}}}, 7};
  for (int t = 0; t < 7; ++t) v.q[0].push_back({0, 0});
  return v;
}

}  // namespace

// ---- quest --------------------------------------------------------------------------------------

TEST_CASE("quest reads the pages with the largest bounds, and the newest", "[policy][quest]") {
  //               pages  0     1      2     3     4 (the row's own token)
  const std::vector<float> keys = {1, 0, 5, -9, 2, 2, 0, 0, 0};
  // q = 1: bounds are the maxima 1, 5, 2, 0, 0. Six tokens are three pages: the newest, 1 and 2.
  CHECK(SelectorBench(head_weights(keys, 8), "quest(budget=6,page=2)").next()[0] ==
        Tokens{2, 3, 4, 5, 8});
  // The newest page competes: 1, 2, 0.
  CHECK(SelectorBench(head_weights(keys, 8), "quest(budget=6,page=2,last_page=false)").next()[0] ==
        Tokens{0, 1, 2, 3, 4, 5});
  // q = -1: bounds are the negated minima 0, 9, -2, 0, 0: page 1, and 0 before 3.
  const HeadVectors negative = head_weights(keys, 8, std::vector<float>(9, -1.0F));
  CHECK(SelectorBench(negative, "quest(budget=6,page=2)").next()[0] == Tokens{0, 1, 2, 3, 8});
  // At least three pages are read, unless `least` says otherwise.
  CHECK(SelectorBench(head_weights(keys, 8), "quest(budget=1,page=2)").next()[0] ==
        Tokens{2, 3, 4, 5, 8});
  CHECK(SelectorBench(head_weights(keys, 8), "quest(budget=1,page=2,least=1)").next()[0] ==
        Tokens{8});
  // As many pages as the budget holds: everything is read.
  CHECK(SelectorBench(head_weights(keys, 8), "quest(budget=10,page=2)").next()[0].size() == 9);
}

TEST_CASE("quest chooses per query head, or once for a KV head", "[policy][quest]") {
  const std::vector<float> keys = {1, 0, 5, -9, 2, 2, 0, 0, 0};
  const HeadVectors two{
      {numbers(std::vector<float>(9, 1.0F)), numbers(std::vector<float>(9, -1.0F))},
      {numbers(keys)},
      8};
  SelectorBench each(two, "quest(budget=4,page=2,least=1)");
  // Bounds 1, 5, 2, 0 and 0, 9, -2, 0: page 1 both. With three pages: 1 and 2, 1 and 0.
  CHECK(each.next() == std::vector<Tokens>{{2, 3, 8}, {2, 3, 8}});
  CHECK(SelectorBench(two, "quest(budget=6,page=2)").next() ==
        std::vector<Tokens>{{2, 3, 4, 5, 8}, {0, 1, 2, 3, 8}});
  // Largest of the group: 1, 9, 2, 0.
  CHECK(SelectorBench(two, "quest(budget=6,page=2,per=kv)").next() ==
        std::vector<Tokens>{{2, 3, 4, 5, 8}, {2, 3, 4, 5, 8}});
}

TEST_CASE("quest reads the first layers and the prompt in full", "[policy][quest]") {
  HeadVectors v = head_weights({1, 0, 5, -9, 2, 2, 0, 0, 0}, 8);
  v.layer = 1;
  CHECK(SelectorBench(v, "quest(budget=1,page=2)").next()[0].size() == 9);
  CHECK(SelectorBench(v, "quest(budget=1,page=2,skip=1)").next()[0].size() == 5);
  const RunResult run =
      test::run_one(test::random_trace(40, 40, 1, 3), "quest(budget=1,page=2,skip=0)", {});
  CHECK(run.fidelity->all->mass_min == 1.0);
}

TEST_CASE("quest skips dead pages and entries, and keeps their bounds", "[policy][quest]") {
  SelectorBench bench(head_weights({1, 0, 5, -9, 2, 2, 0, 0, 0}, 8), "quest(budget=6,page=2)");
  bench.evict(0, 2);  // page 1 still promises 5: its living entry is read
  bench.evict(0, 4);
  bench.evict(0, 5);  // page 2 is dead: page 0 is next
  CHECK(bench.next()[0] == Tokens{0, 1, 3, 8});
}

TEST_CASE("a page bound is at least every score in its page", "[policy][quest]") {
  test::Random random(3);
  for (int round = 0; round < 20; ++round) {
    const HeadVectors v = random_vectors(50, 50, 1, 1, 8, random());
    const SelectorBench view(v, "quest");
    policies::PageBounds bounds(8, 7, 50);
    bounds.extend(view, 0, 50);
    std::vector<float> score(8);
    for (int row = 0; row < 50; ++row) {
      bounds.score(v.q[0][static_cast<std::size_t>(row)], score);
      for (int t = 0; t < 50; ++t) {
        const Vector q = view.query(0, row);
        const Vector k = view.key(0, t);
        const double dot = std::inner_product(q.begin(), q.end(), k.begin(), 0.0);
        CHECK(static_cast<double>(score[static_cast<std::size_t>(t / 7)]) >= dot - 1e-5);
      }
    }
  }
}

TEST_CASE("quest's bounds come on top of the full cache", "[policy][quest][bytes]") {
  // T = 8704, page 16: 544 pages of 2 x 128 fp16 in 32 x 8 heads, 1088 + 68 MiB.
  const Geometry g = test::llama_8b(8192, 512);
  const Policy policy = make_policy("quest", g);
  CHECK(full_bytes(g, 8704) + policy.charge.at(8703) == 1212153856);
  CHECK(policy.charge.at(0) == 32 * 8 * 512);
  CHECK(policy.charge.at(15) == policy.charge.at(0));
  CHECK(policy.charge.at(16) == 2 * policy.charge.at(0));
}

TEST_CASE("quest evicts nothing and reads less", "[policy][quest]") {
  const Trace trace = test::random_trace(80, 60, 4, 3);
  const RunResult run = test::run_one(trace, "quest(budget=8,page=4,skip=1,least=2)", {});
  const RunResult full = test::run_one(trace, "full", {});
  CHECK(run.metrics.footprint == 1.0);
  CHECK(run.metrics.entries_read < full.metrics.entries_read);
  CHECK(run.fidelity->prefill->mass_min == 1.0);
  CHECK(run.fidelity->decode->mass_mean < 1.0);
  CHECK(run.fidelity->layer_mass[0] == 1.0);
  CHECK(run.metrics.peak_bytes.total > full.metrics.peak_bytes.total);
  // A share is of the prompt; bytes are over 3 layers x 2 heads x 16 B.
  CHECK(test::run_one(trace, "quest(budget=50%,page=4)", {}).metrics.entries_read ==
        test::run_one(trace, "quest(budget=30,page=4)", {}).metrics.entries_read);
  CHECK(test::run_one(trace, "quest(budget=960,page=4)", {}).metrics.entries_read ==
        full.metrics.entries_read);
  CHECK_THROWS_WITH(test::run_one(trace, "quest(budget=64KiB,page=0)", {}), Contains("page"));
}

TEST_CASE("a selector reads what an eviction policy has left", "[policy][quest]") {
  const Trace trace = test::random_trace(80, 60, 14, 3);
  for (const char* selector :
       {"quest(budget=8,page=4,least=1)", "retroattention(budget=8,page=4,least=1)",
        "infinigen(cap=4)", "clusterkv(budget=12,sinks=2,skip=0)", "refreshkv(budget=6)"}) {
    for (const char* eviction : {"snapkv(budget=30,window=4)", "h2o(budget=30)",
                                 "snapkv(budget=20,window=4,group=none)"}) {
      const std::string spec = fmt::format("{}+{}", eviction, selector);
      INFO(spec);
      const RunResult both = test::run_one(trace, spec, {});
      const RunResult alone = test::run_one(trace, eviction, {});
      CHECK(both.fidelity->decode->mass_mean <= alone.fidelity->decode->mass_mean + 1e-9);
      // What SnapKV evicts, it has decided before anything was selected.
      if (std::string(eviction).starts_with("snapkv"))
        CHECK(both.ledger.death == alone.ledger.death);
    }
  }
}

TEST_CASE("combinations of two selectors and chunks of none are refused", "[policy][quest]") {
  const Geometry g = test::llama_8b(8192, 512);
  CHECK_THROWS_WITH(make_policy("quest+clusterkv", g), Contains("both bring their own selector"));
  CHECK_THROWS_WITH(make_policy("infinigen+refreshkv", g),
                    Contains("both bring their own selector"));
  CHECK_THROWS_WITH(make_policy("chunked(quest)", g), Contains("quest ranks nothing"));
  CHECK_THROWS_WITH(make_policy("quest(budget=1B)", g), Contains("less than one entry a head"));
}

TEST_CASE("what is read grows with the budget", "[policy][quest][refreshkv]") {
  const Trace trace = test::random_trace(120, 100, 15, 3);
  for (const char* spec :
       {"quest(page=4,least=1,budget={})", "retroattention(page=4,least=1,budget={})",
        "infinigen(alpha=9,cap={})", "clusterkv(sinks=2,skip=0,budget={})", "refreshkv(budget={})",
        "minference(slashes=2,forced_slash=1,first=0,verticals={})"}) {
    double last = 0;
    for (const int budget : {1, 4, 9, 20, 50, 100}) {
      const std::string text = fmt::format(fmt::runtime(spec), budget);
      INFO(text);
      const RunResult run = test::run_one(trace, text, {});
      CHECK(run.fidelity->all->mass_mean >= last - 1e-9);
      last = run.fidelity->all->mass_mean;
    }
  }
}

// ---- rocketkv -----------------------------------------------------------------------------------

TEST_CASE("rocketkv shares its saving between eviction and selection", "[policy][rocketkv]") {
  using policies::rocket_plan;
  // 4,096 / 1,024 = 4: r = .2 + .06 x 2; 4,096 / 4^.32 = 2,628. 2.57 are left to save: pages of 2,
  // 128 x 2 / 2.57 = 99.7 channels.
  const policies::RocketPlan plan = rocket_plan(4096, 100, 1024, 128, -1);
  CHECK(plan.prompt == 2528);
  CHECK(plan.read == 512);
  CHECK(plan.page == 2);
  CHECK(plan.channels == 99);
  CHECK(rocket_plan(4096, 1500, 1024, 128, -1).prompt == 1500);  // room for what is generated
  CHECK(rocket_plan(100, 10, 100, 64, -1).read == 100);
  // The first stage is SnapKV's.
  const Trace trace = test::random_trace(70, 50, 4);
  const auto prompt = rocket_plan(70, 20, 14, 4, -1).prompt;
  CHECK(prompt < 50);
  CHECK(
      test::run_one(trace, "rocketkv(budget=14,window=4,kernel=5)", {}).ledger.death ==
      test::run_one(trace, fmt::format("snapkv(budget={},window=4,kernel=5,group=sum)", prompt), {})
          .ledger.death);
}

TEST_CASE("rocketkv reads by the largest channels of the query", "[policy][rocketkv]") {
  // Nothing is evicted (r=0); 2 are read; 1.5 are left to save: single entries, one channel of two.
  HeadVectors v{{{{0, 0}, {0, 0}, {0, 0}, {0, 0}, {3, 1}, {-2, 1}}},
                {{{0, 9}, {2, 0}, {1, 5}, {-1, 9}, {0, 0}, {0, 0}}},
                4};
  SelectorBench bench(v, "rocketkv(budget=4,r=0)");
  CHECK(bench.next()[0] == Tokens{1, 2});
  CHECK(bench.next()[0] == Tokens{0, 3});  // three tie for the second place
}

TEST_CASE("rocketkv reads pages by their largest keys, for all heads of a group",
          "[policy][rocketkv]") {
  // 12 / 6: pages of 2, of which 0 and 2 promise 5 and 4; 3 entries are read.
  const HeadVectors pages = head_weights({0, 5, 1, 1, 4, 0, 0, 0, 0, 0, 0, 0}, 10);
  CHECK(SelectorBench(pages, "rocketkv(budget=6,r=0)").next()[0] == Tokens{0, 1, 4});
  // q = 3 and -1: softmax of 3 k and of -k. Means: .50 for 2, .35 for -2, .05 for the zeros.
  const HeadVectors two{
      {numbers(std::vector<float>(6, 3.0F)), numbers(std::vector<float>(6, -1.0F))},
      {numbers({2, 0, -2, 0, 0, 0})},
      4};
  CHECK(SelectorBench(two, "rocketkv(budget=4,r=1)").next() == std::vector<Tokens>{{0, 2}, {0, 2}});
}

// ---- retroattention -----------------------------------------------------------------------------

TEST_CASE("retroattention attends to what the next rows load", "[policy][retroattention]") {
  // Quest's example; row 8 asks with 1, row 9 with -1.
  const HeadVectors v =
      head_weights({1, 0, 5, -9, 2, 2, 0, 0, 0, 0}, 8, {1, 1, 1, 1, 1, 1, 1, 1, 1, -1});
  SelectorBench bench(v, "retroattention(budget=6,page=2)");
  // S_8 = pages 1, 2, 4 and S_9 = pages 0, 1, 4.
  CHECK(bench.next()[0] == Tokens{0, 1, 2, 3, 4, 5, 8});
  CHECK(*bench.reads[0].loaded == Tokens{2, 3, 4, 5, 8});
  CHECK(bench.next()[0] == Tokens{0, 1, 2, 3, 8, 9});  // the last row of the trace
  CHECK(SelectorBench(v, "retroattention(budget=6,page=2,window=1)").next()[0] ==
        Tokens{2, 3, 4, 5, 8});
}

TEST_CASE("retroattention's exposure grows with its window, and is bounded by it",
          "[policy][retroattention]") {
  const HeadVectors v = random_vectors(160, 120, 2, 1, 8, 5);
  double last = 1;
  for (const int window : {1, 2, 4, 8}) {
    SelectorBench bench(
        v, fmt::format("retroattention(budget=24,page=4,window={},per=query)", window));
    SelectorBench quest(v, "quest(budget=24,page=4)");
    double sum = 0;
    for (int row = 120; row < 152; ++row) {
      const std::vector<Tokens> read = bench.next();
      const std::vector<Tokens> own = quest.next();
      for (std::size_t q = 0; q < 2; ++q) {
        CHECK(*bench.reads[q].loaded == own[q]);
        CHECK(std::includes(read[q].begin(), read[q].end(), own[q].begin(), own[q].end()));
        const double exposure =
            static_cast<double>(read[q].size()) / static_cast<double>(own[q].size());
        // Later rows' newest pages add no entry that the row could see.
        CHECK(exposure <= window * 1.2);
        sum += exposure / 64;
      }
    }
    INFO(window << " " << sum);
    CHECK((window == 1 ? sum == Approx(1.0) : sum > last));
    last = sum;
  }
}

TEST_CASE("retroattention keeps outputs, normalisers and a mask beside quest's bounds",
          "[policy][retroattention][bytes]") {
  const Geometry g = test::llama_8b(8192, 512);
  const std::int64_t quest = make_policy("quest", g).charge.at(8703);
  const auto extra = [&](int window) {
    return make_policy(fmt::format("retroattention(window={})", window), g).charge.at(8703) - quest;
  };
  const std::int64_t mask = 32 * 8 * 544;
  CHECK(extra(1) == mask);
  CHECK(extra(2) == mask + (256 << 10) + 32 * 32 * 4);  // 256 KiB of outputs
  CHECK(extra(8) == mask + 7 * ((256 << 10) + 32 * 32 * 4));
}

// ---- clusterkv ----------------------------------------------------------------------------------

TEST_CASE("offloaded entries lie on the host once, all of them", "[policy][infinigen][clusterkv]") {
  const Trace trace = test::random_trace(60, 40, 9, 3);
  for (const char* spec : {"infinigen(cap=5)", "clusterkv(budget=8,sinks=2,skip=0,every=7)"}) {
    INFO(spec);
    const RunResult run = test::run_one(trace, spec, {});
    // 3 layers x 2 heads x 16 B. The newest entry is on the device in its own row.
    for (int row = 0; row < 60; ++row) {
      CHECK(run.metrics.timeline.host_bytes[static_cast<std::size_t>(row)] ==
            (row < 40 ? 0 : row * 3 * 2 * 16));
      CHECK(run.metrics.timeline.resident_entries[static_cast<std::size_t>(row)] ==
            (row < 40 ? row + 1 : 1) * 3 * 2);
    }
    CHECK(std::all_of(run.ledger.death.begin(), run.ledger.death.end(),
                      [](std::uint32_t death) { return death == 60; }));
  }
}

TEST_CASE("bytes of offloaded entries follow the closed form", "[policy][infinigen][clusterkv]") {
  test::Random random(21);
  for (int round = 0; round < 12; ++round) {
    const int prompt = test::pick(random, 1, 60);
    const Trace trace = test::random_trace(prompt + test::pick(random, 0, 20), prompt, random(), 3);
    EngineOptions options;
    options.chunk = test::pick(random, 0, 1) == 0 ? 0 : test::pick(random, 1, 30);
    options.fidelity = false;
    for (const char* spec : {"infinigen", "infinigen(scores=exact,cap=3)", "clusterkv(budget=8)",
                             "clusterkv(budget=50,skip=1)", "clusterkv(buffers=kv,budget=1)"}) {
      INFO(spec << " n=" << prompt << " N=" << trace.meta().tokens << " C=" << options.chunk);
      const Geometry geometry = geometry_of(trace, options);
      const Prediction expected = predict(make_policy(spec, geometry), geometry, {});
      const RunResult run = test::run_one(trace, spec, options);
      CHECK(run.metrics.peak_bytes == expected.peak_bytes);
      CHECK(run.metrics.byte_rows == expected.byte_rows.value());
      CHECK(expected.basis == Basis::bound);  // its entries count the host's
    }
  }
}

TEST_CASE("clusterkv reads sinks, the best clusters and what is in no cluster",
          "[policy][clusterkv]") {
  HeadVectors v = two_axes();
  v.k[0].push_back({0, 0});
  v.q[0].push_back({1, 0.1F});
  const auto reads = [&](const std::string& parameters) {
    return SelectorBench(v, fmt::format("clusterkv(sinks=1,clusters=6,{})", parameters)).next()[0];
  };
  // Centroids (2, 0) and (0, 2): the first axis. Two places: cut in token order.
  CHECK(reads("budget=3") == Tokens{0, 1, 3, 7});
  CHECK(reads("budget=3,seed=5") == Tokens{0, 1, 3, 7});
  CHECK(reads("budget=4") == Tokens{0, 1, 3, 5, 7});
  CHECK(reads("budget=6") == Tokens{0, 1, 2, 3, 4, 5, 7});
  CHECK(reads("budget=1") == Tokens{0, 7});
  CHECK(reads("budget=8").size() == 8);  // T is within the budget
  v.q[0].back() = {0, 1};
  CHECK(reads("budget=3") == Tokens{0, 2, 4, 7});
  // The inner product counts, not the angle: a long cluster beats a nearer direction.
  v.q[0].back() = {0.4F, 1};
  for (const std::size_t t : {1U, 3U, 5U}) v.k[0][t][0] *= 3;
  CHECK(reads("budget=3") == Tokens{0, 1, 3, 7});
}

TEST_CASE("clusterkv clusters generated tokens in batches", "[policy][clusterkv]") {
  HeadVectors v = two_axes();
  for (int t = 7; t < 12; ++t) {
    v.k[0].push_back({0, static_cast<float>(-t)});
    v.q[0].push_back({1, 0});
  }
  SelectorBench bench(v, "clusterkv(sinks=1,clusters=6,budget=4,every=3,added=1)");
  CHECK(bench.skip_to(7) == Tokens{0, 1, 3, 5, 7});
  CHECK(bench.skip_to(9) == Tokens{0, 1, 3, 5, 7, 8, 9});
  CHECK(bench.skip_to(10) == Tokens{0, 1, 3, 5, 10});  // 7, 8, 9 are a cluster now
  CHECK(bench.skip_to(11) == Tokens{0, 1, 3, 5, 10, 11});
}

TEST_CASE("clusterkv copies what the previous row did not select", "[policy][clusterkv]") {
  HeadVectors v = two_axes();
  for (const Vector& q : {Vector{1, 0}, Vector{1, 0}, Vector{0, 1}}) {
    v.k[0].push_back({0, 0});
    v.q[0].push_back(q);
  }
  SelectorBench bench(v, "clusterkv(sinks=1,clusters=6,budget=4)");
  bench.next();
  CHECK(*bench.reads[0].loaded == Tokens{1, 3, 5});
  bench.next();
  CHECK(bench.reads[0].loaded->empty());
  bench.next();
  CHECK(*bench.reads[0].loaded == Tokens{2, 4, 6});
  SelectorBench stays(v, "clusterkv(sinks=1,clusters=6,budget=4,offload=off)");
  stays.next();
  CHECK_FALSE(stays.reads[0].loaded);
}

TEST_CASE("clusterkv's device bytes are buffers and cluster lists", "[policy][clusterkv][bytes]") {
  const Geometry g = test::llama_8b(8192, 512);
  // Layers 0 and 1 in full, 30 layers of buffers (16 + 1024 + 320 entries a head) in which the
  // row's own entry lies; 102 + 4 clusters.
  const std::int64_t metadata = 15056640;
  const std::int64_t slots = 30 * 32 * 4 * 1023;
  const std::int64_t shared = 8704 * (32 * 6 + 8 * 4);
  const std::int64_t own = 30 * 8 * 512;
  const std::int64_t two_layers = 2 * 8 * 8704 * 512;
  for (const auto& [buffers, kv] :
       {std::pair{"query", std::int64_t{739770368}}, std::pair{"kv", std::int64_t{238419968}}}) {
    const Policy policy = make_policy(fmt::format("clusterkv(buffers={})", buffers), g);
    CHECK(policy.charge.at(8703) == kv - two_layers - own + metadata + slots + shared);
    CHECK(policy.charge.at(8191) == 0);
    const Prediction p = predict(policy, g, {});
    CHECK(p.peak_bytes.decode == kv + metadata + slots + shared);
    CHECK(p.peak_bytes.prefill == full_bytes(g, 8192));
    CHECK(policy.representations[1].host_bytes * 30 * 8 * 8704 == 1069547520);
  }
  const Policy off = make_policy("clusterkv(offload=off)", g);
  CHECK(off.charge.at(8703) == metadata);
  CHECK(off.closed_form);
  CHECK(off.spec.find("clusters=102,") != std::string::npos);
}

// ---- infinigen ----------------------------------------------------------------------------------

TEST_CASE("infinigen fetches the mean count of entries within alpha of the best",
          "[policy][infinigen]") {
  const std::vector<float> keys = {0, 3, 5, 4.5F, -2, 0};
  // Above 5 - 1: keys 2 and 3. The row's own token comes with them.
  CHECK(SelectorBench(head_weights(keys, 5), "infinigen(alpha=1,cap=9,scores=exact)").next()[0] ==
        Tokens{2, 3, 5});
  CHECK(SelectorBench(head_weights(keys, 5), "infinigen(alpha=1,cap=1,scores=exact)").next()[0] ==
        Tokens{2, 5});
  // A second head at a tenth of the scale counts all five: (2 + 5) / 2 = 3 for both.
  const HeadVectors two{
      {numbers(std::vector<float>(6, 1.0F)), numbers(std::vector<float>(6, 0.1F))},
      {numbers(keys)},
      5};
  for (const char* scores : {"exact", "partial"}) {
    CHECK(SelectorBench(two, fmt::format("infinigen(alpha=1,cap=9,scores={})", scores)).next() ==
          std::vector<Tokens>{{1, 2, 3, 5}, {1, 2, 3, 5}});
  }
  // Nothing lies above the best itself: only the row's own token is read.
  CHECK(SelectorBench(head_weights(keys, 5), "infinigen(alpha=0,cap=9)").next()[0] == Tokens{5});
  // The first layer reads everything.
  HeadVectors first = head_weights(keys, 5);
  first.layer = 0;
  CHECK(SelectorBench(first, "infinigen(alpha=1,cap=1)").next()[0].size() == 6);
}

TEST_CASE("infinigen with line=first measures all heads by the first one", "[policy][infinigen]") {
  // Scores 10, 8, 6, -4, 0 and 0 five times; alpha 4. Own lines: (2 + 5) / 2 = 3 entries. The first
  // head's line, 6, is reached by three of its own and by nobody else's: (3 + 0) / 2 = 1.
  const HeadVectors two{
      {numbers(std::vector<float>(6, 2.0F)), numbers(std::vector<float>(6, 0.0F))},
      {numbers({5, 4, 3, -2, 0, 0})},
      5};
  CHECK(SelectorBench(two, "infinigen(alpha=4,cap=9)").next() ==
        std::vector<Tokens>{{0, 1, 2, 5}, {0, 1, 2, 5}});
  CHECK(SelectorBench(two, "infinigen(alpha=4,cap=9,line=first)").next() ==
        std::vector<Tokens>{{0, 5}, {0, 5}});
  CHECK_THROWS_WITH(make_policy("infinigen(line=first,scores=exact)", test::llama_8b(64, 8)),
                    Contains("scores=partial"));
}

TEST_CASE("infinigen's partial columns are those that the prompt's queries use",
          "[policy][infinigen]") {
  // Queries lie along (3, 4): one skewed column holds their whole product with every key.
  test::Random random(7);
  std::normal_distribution<float> normal;
  HeadVectors v{{{}}, {{}}, 20};
  for (int t = 0; t < 26; ++t) {
    const float length = 1.0F + static_cast<float>(t % 5);
    v.q[0].push_back({3 * length, 4 * length});
    v.k[0].push_back({normal(random), normal(random)});
  }
  SelectorBench exact(v, "infinigen(alpha=9,cap=6,scores=exact)");
  SelectorBench one(v, "infinigen(alpha=9,cap=6,partial=1)");
  for (int row = 20; row < 26; ++row) CHECK(one.next() == exact.next());
  // All columns of anything.
  const HeadVectors any = random_vectors(60, 40, 4, 2, 6, 8);
  SelectorBench all(any, "infinigen(alpha=2,partial=100%)");
  SelectorBench reference(any, "infinigen(alpha=2,scores=exact)");
  for (int row = 40; row < 60; ++row) CHECK(all.next() == reference.next());
}

TEST_CASE("infinigen keeps partial keys and copies in flight on the device",
          "[policy][infinigen][bytes]") {
  const Geometry g = test::llama_8b(8192, 512);
  const Policy policy = make_policy("infinigen(cap=100,partial=38)", g);
  // 38 of 128 columns of 32 x 8 heads; 100 entries of 32 query heads for one layer, and the first
  // layer in full: 8 heads x 8704 entries.
  CHECK(policy.charge.at(8703) == 169345024 + 100 * 32 * 512 + 8 * 8704 * 512);
  CHECK(policy.charge.at(8191) == 0);
  CHECK(make_policy("infinigen(cap=100,partial=29.7%)", g).charge.at(8703) ==
        policy.charge.at(8703));
  CHECK(make_policy("infinigen(cap=100,scores=exact)", g).charge.at(8703) ==
        policy.charge.at(8703) - 169345024);
  CHECK_THROWS_WITH(make_policy("infinigen(partial=1KiB)", g), Contains("expected columns"));
}

TEST_CASE("probabilities suffice for what never looks at a query",
          "[policy][refreshkv][infinigen]") {
  // The same rows as a qkv trace, and as a score trace of the prompt's last and all later rows.
  const Trace qkv = test::random_trace(30, 20, 11, 3);
  test::TraceSpec spec;
  spec.meta = qkv.meta();
  const auto& m = spec.meta;
  for (int l = 0; l < m.layers; ++l) {
    const LayerScores scores(qkv, l);
    test::LayerSpec layer;
    for (int row = 19; row < 30; ++row) {
      layer.rows.push_back(row);
      for (int q = 0; q < m.query_heads; ++q) {
        std::vector<float> storage(64);
        const RowTerms terms = scores.row(q, row, storage);
        for (int t = 0; t < 30; ++t)
          layer.dense.push_back(static_cast<double>(terms.terms[t]) / terms.sum);
        layer.lse.push_back(0);
      }
    }
    spec.layers.push_back(layer);
  }
  const Trace probabilities = test::make_trace(spec);
  for (const char* policy :
       {"refreshkv(budget=4,schedule=fixed)", "infinigen(cap=6,alpha=1,scores=exact)"}) {
    INFO(policy);
    const RunResult a = test::run_one(qkv, policy, {});
    const RunResult b = test::run_one(probabilities, policy, {});
    CHECK(a.ledger.selected == b.ledger.selected);
    CHECK(a.fidelity->decode->mass_mean == Approx(b.fidelity->decode->mass_mean));
    CHECK(a.fidelity->decode->mass_mean < 1.0);
  }
  CHECK_THROWS_WITH(test::run_one(probabilities, "refreshkv", {}), Contains("needs layers.*.q"));
}

// ---- refreshkv ----------------------------------------------------------------------------------

TEST_CASE("refreshkv reads a copy that ages until a full row makes it anew",
          "[policy][refreshkv]") {
  // The prompt's last row prefers key 1, then 3. Row 6 is the third: it reads everything, and finds
  // 5 and 1.
  const std::vector<float> keys = {0, 3, 1, 2, 0, 9, 0, 0, 0};
  SelectorBench bench(head_weights(keys, 4),
                      "refreshkv(budget=2,kernel=1,stride=3,schedule=fixed)");
  CHECK(bench.skip_to(4) == Tokens{1, 3, 4});
  CHECK(bench.skip_to(5) == Tokens{1, 4, 5});  // 3 scored lowest and has left
  CHECK(bench.skip_to(6) == Tokens{0, 1, 2, 3, 4, 5, 6});
  CHECK(bench.skip_to(7) == Tokens{1, 5, 7});
  CHECK(bench.skip_to(8) == Tokens{5, 7, 8});
  // Pooling by 3 lifts the neighbours of key 1: 0, 1, 2 tie, the lower stay; of equal scores the
  // higher index leaves first.
  SelectorBench pooled(head_weights(keys, 4), "refreshkv(budget=2,kernel=3,stride=9)");
  CHECK(pooled.skip_to(4) == Tokens{0, 1, 4});
  CHECK(pooled.skip_to(5) == Tokens{0, 4, 5});
}

TEST_CASE("refreshkv reads everything once the query has turned", "[policy][refreshkv]") {
  const std::vector<float> keys = {0, 3, 1, 2, 0, 9, 0, 0, 0, 0};
  const std::string spec = "refreshkv(budget=2,kernel=1,stride=2)";
  SelectorBench same(head_weights(keys, 4), spec);
  for (int row = 4; row < 10; ++row) CHECK(same.next()[0].size() == 3);
  // Row 5 is asked and turns; row 7 is asked, and has not turned since.
  SelectorBench turned(head_weights(keys, 4, {1, 1, 1, 1, 1, -1, -1, -1, -1, -1}), spec);
  CHECK(turned.skip_to(4).size() == 3);
  CHECK(turned.skip_to(5).size() == 6);
  CHECK(turned.skip_to(7).size() == 3);
  // Row 6 turns, and is not asked; row 7 is.
  SelectorBench late(head_weights(keys, 4, {1, 1, 1, 1, 1, 1, -1, -1, 1, 1}), spec);
  CHECK(late.skip_to(6).size() == 3);
  CHECK(late.skip_to(7).size() == 8);
}

TEST_CASE("refreshkv takes the maximum over a group of heads", "[policy][refreshkv]") {
  const HeadVectors two{
      {numbers({1, 1, 1, 1, 1}), numbers({-2, -2, -2, -2, -2})}, {numbers({0, 3, -3, 2, 0})}, 4};
  // Row 3: head 0 prefers 1 (and 3), head 1 prefers 2.
  CHECK(SelectorBench(two, "refreshkv(budget=2,kernel=1)").next() ==
        std::vector<Tokens>{{1, 2, 4}, {1, 2, 4}});
}

TEST_CASE("refreshkv's copies come on top of the full cache", "[policy][refreshkv][bytes]") {
  const Geometry g = test::llama_8b(32768, 1024);
  const Policy policy = make_policy("refreshkv(budget=4096)", g);
  // 33792 + 4096 tokens of 128 KiB, and a query of 128 fp16 in each of 32 layers.
  CHECK(full_bytes(g, 33792) + policy.charge.at(33791) == 4966055936 + 32 * 128 * 2);
  CHECK(policy.charge.at(32767) == 32 * 128 * 2);
  CHECK(make_policy("refreshkv", g).charge.at(33791) == policy.charge.at(33791));  // n / 8
  CHECK_THROWS_WITH(make_policy("refreshkv(kernel=4)", g), Contains("nearest: 5"));
  CHECK_THROWS_WITH(make_policy("refreshkv(budget=0)", g), Contains("at least 1"));
}

// ---- minference ---------------------------------------------------------------------------------

TEST_CASE("minference reads chosen keys and chosen distances in the prompt",
          "[policy][minference]") {
  // The last row's attention is at key 2, which lies at distance 3.
  const HeadVectors v = head_weights({0, 0, 4, 0, 0, 0}, 6);
  SelectorBench bench(v, "minference(verticals=2,slashes=2,last=1,first=1,forced_slash=1)");
  CHECK(bench.masked(0, 5) == Tokens{0, 2, 5});
  CHECK(bench.masked(0, 4) == Tokens{0, 1, 2, 4});  // 1 = 4 - 3
  CHECK(bench.masked(0, 3) == Tokens{0, 2, 3});
  CHECK(bench.masked(0, 1) == Tokens{0, 1});
  // Diagonals sum over the last rows: with all six, distance 1 gets 1/2 of row 1 and row 3's share
  // of key 2, 2 what row 4 gives it: exp(4) / (exp(4) + 3) and exp(4) / (exp(4) + 4).
  SelectorBench all(v, "minference(verticals=1,slashes=2,last=6,first=1,forced_slash=1)");
  CHECK(all.masked(0, 5) == Tokens{0, 4, 5});
  SelectorBench shape(v,
                      "minference(pattern=a_shape,verticals=1,slashes=2,first=1,forced_slash=1)");
  CHECK(shape.masked(0, 5) == Tokens{0, 4, 5});
  CHECK(shape.masked(0, 1) == Tokens{0, 1});
}

TEST_CASE("minference reads at least the authors' minima", "[policy][minference]") {
  const HeadVectors v = random_vectors(300, 300, 2, 1, 4, 12);
  SelectorBench bench(v, "minference(verticals=0,slashes=0)");
  const Tokens read = bench.masked(1, 299);
  for (TokenIndex t = 0; t < 30; ++t) CHECK(std::count(read.begin(), read.end(), t) == 1);
  for (TokenIndex t = 250; t < 300; ++t) CHECK(std::count(read.begin(), read.end(), t) == 1);
  CHECK(read.size() == 80);  // 50 of the 100 forced distances: the nearest
}

TEST_CASE("minference leaves the cache whole and generated rows alone", "[policy][minference]") {
  const Trace trace = test::random_trace(60, 50, 13, 3);
  const std::string spec = "minference(verticals=4,slashes=6,first=2,forced_slash=3,last=8)";
  for (const RowIndex chunk : {0, 13}) {
    EngineOptions options;
    options.chunk = chunk;
    const RunResult run = test::run_one(trace, spec, options);
    CHECK(run.metrics.footprint == 1.0);
    CHECK(run.fidelity->decode->mass_min == 1.0);
    CHECK(run.fidelity->prefill->mass_mean < 1.0);
    CHECK(run.metrics.peak_bytes == test::run_one(trace, "full", options).metrics.peak_bytes);
  }
  const RunResult all = test::run_one(trace, "minference", {});
  CHECK(all.fidelity->all->mass_min == 1.0);
}

TEST_CASE("scores behind a sparse prompt come from the masked rows", "[policy][minference]") {
  // Row 5 would vote for key 2, but reads only 0, 4 and 5: 0 and 4 are equal, the lower stays.
  test::TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = spec.meta.head_dim = 1;
  spec.meta.tokens = 7;
  spec.meta.prompt_tokens = 6;
  spec.meta.score_scale = 1;
  spec.layers.push_back({});
  spec.layers[0].q = std::vector<double>(7, 1.0);
  spec.layers[0].k = {0, 0, 4, 0, 0, 0, 0};
  const Trace trace = test::make_trace(spec);
  const auto deaths = [&](const std::string& policy) {
    const RunResult run = test::run_one(trace, policy, {});
    const auto d = run.ledger.deaths(0, 0);
    return std::vector<int>(d.begin(), d.end());
  };
  const std::string mask =
      "minference(pattern=a_shape,verticals=1,slashes=2,first=1,forced_slash=1)";
  const std::string votes = "snapkv(budget=2,window=1,kernel=1)";
  CHECK(deaths(votes) == std::vector<int>{6, 6, 7, 6, 6, 7, 7});
  CHECK(deaths(mask + "+" + votes) == std::vector<int>{7, 6, 6, 6, 6, 7, 7});
  CHECK(deaths(votes + "+" + mask) == deaths(mask + "+" + votes));
}
