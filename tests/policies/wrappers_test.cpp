// SPDX-License-Identifier: Apache-2.0
// Policies made of policies: chunks, blocks, decode only, thresholds, what moves the output.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/predict/analytic.h"
#include "sim/run/run.h"
#include "tests/support/cases.h"
#include "tests/support/files.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::chunk;
using test::column;
using test::deaths;
using test::kept;
using test::logits;
using test::one_head;
using test::random_trace;
using test::refusal;
using test::weights;

namespace {

using Set = std::vector<int>;

}  // namespace

// ---- chunked ------------------------------------------------------------------------------------

TEST_CASE("chunked evicts after every chunk, and freezes the survivors", "[policy][chunked]") {
  // Chunks of 4, half of each plus the window of 1: the paper's vector n=8, m=3, C=4, s=.5, w=1:
  // 56.
  const Trace trace = weights({0, 3, 1, 0, 2, 0, 0, 1, 0, 0, 0}, 8);
  const RunResult run =
      test::run_one(trace, "chunked(snapkv(budget=50%,window=1,kernel=1))", chunk(4));
  const auto d = run.ledger.deaths(0, 0);
  //   chunk 0: window 3, votes 1 then 2 | chunk 1: window 7, votes 4, then 5 (tie with 6)
  CHECK(std::vector<int>(d.begin(), d.end()) ==
        std::vector<int>{4, 11, 11, 11, 11, 11, 8, 11, 11, 11, 11});
  CHECK(run.metrics.entry_rows == 56);
  CHECK(test::run_one(trace, "chunked(snapkv(budget=50%,window=1,kernel=1),count=implementation)",
                      chunk(4))
            .metrics.entry_rows == 46);
}

TEST_CASE("chunked counts follow the authors' arithmetic", "[policy][chunked]") {
  const auto kept = [](const std::string& policy, int prompt) {
    const Trace trace =
        weights(std::vector<double>(static_cast<std::size_t>(prompt) + 1, 0.0), prompt);
    std::int64_t alive = 0;
    for (const int d : deaths(trace, policy, chunk(prompt))) alive += d > prompt ? 1 : 0;
    return alive - 1;  // the generated token
  };
  CHECK(kept("chunked(snapkv(budget=10%,window=1,kernel=1),count=implementation)", 1000) ==
        99);                                                                  // int((1-.9)*1000)
  CHECK(kept("chunked(snapkv(budget=10%,window=5,kernel=1))", 1000) == 105);  // round + w
  CHECK(kept("chunked(snapkv(budget=1%,window=4,kernel=1))", 50) ==
        5);  // (1 - .99) * 50 is above .5 in double
  CHECK(kept("chunked(snapkv(budget=3%,window=4,kernel=1))", 50) == 6);  // likewise above 1.5
  CHECK(kept("chunked(snapkv(budget=1%,window=4,kernel=1),count=implementation)", 50) == 0);
  CHECK(kept("chunked(snapkv(budget=1%,window=4,kernel=1),count=implementation,small=window)",
             50) == 4);
  CHECK(kept("chunked(snapkv(budget=100%,window=4,kernel=1))", 50) == 50);
}

TEST_CASE("patched chunks are scored by the prompt's last rows, without a window of their own",
          "[policy][chunked]") {
  // q of the prompt's last row prefers low keys, every other row high ones; no rotary embedding.
  const Trace trace = weights({0, 3, 1, 2, 0, 0, 0, 0, 0}, 8, {1, 1, 1, 1, 1, 1, 1, -1, 1});
  const auto naive = deaths(trace, "chunked(snapkv(budget=25%,window=1,kernel=1))", chunk(4));
  const auto patched =
      deaths(trace, "chunked(snapkv(budget=25%,window=1,kernel=1),variant=patched)", chunk(4));
  CHECK(std::vector<int>(naive.begin(), naive.begin() + 4) ==
        std::vector<int>{4, 9, 4, 9});  // window 3, vote 1
  CHECK(std::vector<int>(patched.begin(), patched.begin() + 4) ==
        std::vector<int>{9, 4, 9, 4});  // 0 and 2, no window
  CHECK_THAT(test::run_one(trace, "chunked(snapkv(budget=25%,window=1,kernel=1),variant=patched)",
                           chunk(4))
                 .notes.back(),
             Contains("stand-in"));
}

TEST_CASE("the patch rows' own keys take part in their softmax", "[policy][chunked]") {
  // Keys are unit vectors, so a query is its row of logits. The first patch row gives 1.2 to token
  // 1 and 5 to itself, the second 1 to token 2 and -5 to both patch keys, all else is 0. Over the
  // chunk and the patch: token 1 gets e^1.2 / 156.7 + 1 / 7.73 = .151, token 2 1 / 156.7 + e / 7.73
  // = .358. Over the chunk alone token 1 would win, .529 against .472.
  std::vector<std::vector<double>> unit(9, std::vector<double>(9, 0.0));
  std::vector<std::vector<double>> rows = unit;
  for (std::size_t t = 0; t < 9; ++t) unit[t][t] = 1;
  rows[6][1] = 1.2;
  rows[6][6] = 5;
  rows[7][2] = 1;
  rows[7][6] = rows[7][7] = -5;
  const Trace trace = one_head(unit, 8, {}, rows);
  CHECK(deaths(trace,
               "chunked(snapkv(budget=20%,window=2,kernel=1),variant=patched,count=implementation)",
               chunk(6)) == Set{6, 6, 9, 6, 6, 6, 8, 8, 9});
}

TEST_CASE("sinks of the first chunk take no place in later ones", "[policy][chunked]") {
  // Bug: every chunk reserved places for sinks, wherever they were, and kept so many too few.
  const Trace trace = weights(std::vector<double>(18, 0.0), 16);
  EngineOptions options;
  options.chunk = 8;  // 4 of each: 1 sink (of the first), 2 or 3 selected, 1 newest
  const RunResult run = test::run_one(trace, "chunked(sagekv(budget=50%))", options);
  CHECK(run.metrics.timeline.resident_entries[8] == 4 + 1);
  CHECK(run.metrics.timeline.resident_entries[16] == 4 + 4 + 1);
}

TEST_CASE("sinks of the first chunk take no places in the chunks that follow",
          "[policy][chunked]") {
  // The bug: every later chunk kept `sinks` entries fewer than its share.
  const Trace trace = random_trace(44, 40, 9);
  EngineOptions options;
  options.chunk = 10;
  const std::vector<int> d =
      deaths(trace, "chunked(expected_attention(budget=50%,sinks=4))", options);
  for (std::size_t begin = 0; begin < 40; begin += 10) {
    CHECK(std::count(d.begin() + static_cast<std::ptrdiff_t>(begin),
                     d.begin() + static_cast<std::ptrdiff_t>(begin) + 10, 44) == 5);
  }
}

// ---- decoding -----------------------------------------------------------------------------------

TEST_CASE("decoding leaves the prompt alone and cuts every so many rows", "[policy][decoding]") {
  // Norms 5 1 4 2 | 3 6 1 1 9. After rows 4 and 5 the three smallest are 1 3 4; after 6 and 7: 1 6
  // 7.
  const Trace trace = one_head(column({5, 1, 4, 2, 3, 6, 1, 1, 9}), 4);
  CHECK(deaths(trace, "decoding(knorm,every=2,target=3)") == Set{6, 9, 6, 8, 8, 6, 9, 9, 9});
  CHECK(deaths(trace, "decoding(knorm)") == Set(9, 9));
  // SnapKV's window is the newest rows; its queries are held: 1 head x 1 element x 2 bytes a row.
  const RunResult run =
      test::run_one(trace, "decoding(snapkv(window=2,kernel=1),every=2,target=3)", {});
  CHECK(run.ledger.state == std::vector<std::int64_t>{0, 0, 0, 0, 2, 4, 6, 8, 10});
  // Equal attention: what lies first beside the window. At 6 that is 0, beside 4 5; the cache then
  // holds 4 5 0 6 7, and at 8 it is 4.
  const auto d = run.ledger.deaths(0, 0);
  CHECK(Set(d.begin(), d.end()) == Set{8, 6, 6, 6, 9, 8, 9, 9, 9});
  CHECK(deaths(trace, "decoding(snapkv(window=2,kernel=1),every=2,target=3,order=token)") ==
        Set{9, 6, 6, 6, 8, 8, 9, 9, 9});
  CHECK_THAT(refusal(trace, "decoding(full)"), Contains("ranks nothing"));
  CHECK_THAT(refusal(trace, "decoding(chunked(knorm(budget=10%)))"), Contains("chunked(w(p))"));
  CHECK_THAT(refusal(trace, "chunked(decoding(knorm))"), Contains("leaves the prompt alone"));
}

TEST_CASE("decoding pools over the neighbours of the cache", "[policy][decoding]") {
  // Weights 1 5 1 2 | 4 9 3 2 6 1 1, alike in every row; window 1, so the newest is safe.
  //   at 6: 0..4 pool to 5 5 5 4 4: 0 1 2 stay. The cache: 5 0 1 2.
  //   at 8: 5 0 1 2 6 pool to 9 9 5 5 3: 5 0 1 stay. The cache: 7 5 0 1.
  //   at 10: 7 5 0 1 8 pool to 9 9 9 6 6: 7 5 0 stay.
  std::vector<double> keys;
  for (const double w : {1, 5, 1, 2, 4, 9, 3, 2, 6, 1, 1}) keys.push_back(std::log(w));
  const Trace trace = logits(keys, 4);
  const std::string text = "decoding(snapkv(window=1,kernel=3),every=2,target=4";
  CHECK(deaths(trace, text + ")") == Set{11, 10, 8, 6, 6, 11, 8, 11, 10, 11, 11});
  // By token 0 1 2 5 6 pool to 5 5 9 9 9 at 8, and 2 5 6 7 8 to 9 9 9 6 6 at 10.
  CHECK(deaths(trace, text + ",order=token)") == Set{8, 8, 11, 6, 6, 11, 11, 10, 10, 11, 11});
  // What just fits at 6 is not laid anew: the cut at 8 finds tokens in order.
  // 0..6 pool to 5 5 5 4 9 9 9.
  const Trace until9 = logits({keys.begin(), keys.begin() + 9}, 4);
  CHECK(deaths(until9, "decoding(snapkv(window=1,kernel=3),every=2,target=6)") ==
        Set{9, 9, 8, 8, 9, 9, 9, 9, 9});
}

TEST_CASE("decoding cuts cur's windows from the cache", "[policy][decoding]") {
  // Squared norms 1 3 4 | 1 2 2 1 1, windows of 2.
  //   at 5: 1/4 3/4, 4/5 1/5, 1: 4 2 1 stay, in this order.
  //   at 7: 4 2 | 1 5 | 6: 2/6 4/6, 3/5 2/5, 1: 6 2 1 stay.
  std::vector<double> keys;
  for (const double square : {1, 3, 4, 1, 2, 2, 1, 1}) keys.push_back(std::sqrt(square));
  const Trace trace = one_head(column(keys), 3);
  const std::string text = "decoding(cur(sinks=0,window=2,leverage=key),every=2,target=3";
  CHECK(deaths(trace, text + ")") == Set{5, 8, 8, 5, 7, 7, 8, 8});
  // By token 1 2 | 4 5 | 6: 3/7 4/7, 1/2 1/2, 1.
  CHECK(deaths(trace, text + ",order=token)") == Set{5, 7, 8, 5, 8, 7, 8, 8});
}

TEST_CASE("--match finds the knob that a wrapper brings itself", "[policy][decoding]") {
  const Trace trace = random_trace(60, 20, 7);
  const auto runs = run_matched(trace, {parse_spec("decoding(knorm,every=4)")},
                                parse_match("footprint=0.5"), {}, {});
  REQUIRE(runs.size() == 1);
  CHECK(runs[0].metrics.footprint <= 0.5);
  CHECK_THAT(runs[0].spec, Contains("decoding(knorm("));
}

// ---- dms ----------------------------------------------------------------------------------------

TEST_CASE("dms drops what scores below its threshold once it leaves the window", "[policy][dms]") {
  // Norms 1 3 2 1 5 | 1 1 1, window 2, threshold -2: 1 and 4 score below, so 0 and 3 die: 0 .. 3
  // have left the window when row 5 attends.
  const Trace trace = one_head(column({1, 3, 2, 1, 5, 1, 1, 1}), 5);
  CHECK(deaths(trace, "dms(knorm,threshold=-2,window=2)") == Set{5, 8, 8, 5, 8, 8, 8, 8});
  CHECK(deaths(trace, "dms(knorm,threshold=-100)") == Set(8, 8));
  // One bit per token of the window, 2 layers x 2 heads.
  CHECK(test::run_one(random_trace(300, 290, 6), "dms(knorm,threshold=-1,window=128)", {})
            .ledger.charge.once == 4 * 16);
  CHECK_THAT(refusal(trace, "dms(snapkv,threshold=1)"),
             Contains("not known when an entry is born"));
  CHECK_THAT(refusal(trace, "dms(knorm)"), Contains("found no threshold"));
  CHECK_THAT(refusal(trace, "dms(knorm,threshold=1,window=1)"),
             Contains("found window=1, expected 2 or more"));
  CHECK_THAT(refusal(trace, "dms(pyramid+knorm(budget=2),threshold=1)"), Contains("no budget"));
  const Policy policy = make_policy("dms(knorm,threshold=-1)", geometry_of(trace, {}));
  CHECK_THAT(policy.spec, Contains("window=512"));
  CHECK(!policy.knob);
  CHECK(!policy.closed_form);
}

TEST_CASE("in dms the next token decides on a token, by its gate's sign", "[policy][dms]") {
  // Logits of the gate 0 1 0 ..: only token 1's is above 0. A file holds minus the logit.
  const Trace trace = weights(std::vector<double>(6, 0.0), 3);
  const test::Table file("scores", {1, 1, 6}, {0, -1, 0, 0, 0, 0});
  const std::string gate = fmt::format("dms(scores(file=\"{}\"),window=2", file.name());
  CHECK(deaths(trace, gate + ")") == Set{3, 6, 6, 6, 6, 6});
  // At window 2 a row reads itself and one more, here the row on top of the window.
  CHECK(deaths(trace, gate + ",variant=kvpress)") == Set{6, 4, 6, 6, 6, 6});
}

TEST_CASE("a dms window counts the row itself, kvpress' does not", "[policy][dms]") {
  // Bug: row 310 read 129. Everything scores below 0.
  const Trace trace = weights(std::vector<double>(320, 1.0), 300);
  const auto timeline = [&](const std::string& more) {
    return test::run_one(trace, "dms(knorm,threshold=0,window=128" + more + ")", {})
        .metrics.timeline;
  };
  const auto code = timeline("");
  CHECK(code.resident_entries[310] == 128);
  CHECK(code.active_entries[310] == 128);
  // So do rows of the prompt, which is held until it ends.
  CHECK(code.active_entries[127] == 128);
  CHECK(code.active_entries[128] == 128);
  CHECK(code.active_entries[299] == 128);
  CHECK(code.resident_entries[299] == 300);
  const auto kvpress = timeline(",variant=kvpress");
  CHECK(kvpress.resident_entries[310] == 129);
  CHECK(kvpress.resident_entries[299] == 300);
  CHECK(deaths(trace, "dms(knorm,threshold=0,variant=kvpress)") ==
        deaths(trace, "dms(knorm,threshold=0,window=128,variant=kvpress)"));
}

TEST_CASE("dms judges every row, from the first that is full on", "[policy][dms]") {
  // Everything is below the line, window 4, N = 9: token t dies when row t + 4 attends, after the
  // prompt at the earliest.
  const auto dead = [](int prompt, const std::string& more = ")") {
    return deaths(weights(std::vector<double>(9, 1.0), prompt),
                  "dms(knorm,threshold=0,window=4" + more);
  };
  CHECK(dead(2) == Set{4, 5, 6, 7, 8, 9, 9, 9, 9});  // the first decision falls after row 3
  CHECK(dead(4) == Set{4, 5, 6, 7, 8, 9, 9, 9, 9});  // n = window
  CHECK(dead(5) == Set{5, 5, 6, 7, 8, 9, 9, 9, 9});  // n = window + 1
  // kvpress: a row later.
  CHECK(dead(2, ",variant=kvpress)") == Set{5, 6, 7, 8, 9, 9, 9, 9, 9});
  CHECK(dead(4, ",variant=kvpress)") == Set{5, 6, 7, 8, 9, 9, 9, 9, 9});
  CHECK(dead(5, ",variant=kvpress)") == Set{5, 6, 7, 8, 9, 9, 9, 9, 9});
  // The token that just leaves the window scores highest, and its neighbours below: it dies if the
  // next one decides, and takes none with it if it decides itself.
  const Trace peak = one_head(column({1, 1, 1, 1, 0, 1, 1, 1, 1}), 2);
  CHECK(deaths(peak, "dms(knorm,threshold=-0.5,window=2)") == Set{2, 3, 4, 9, 6, 7, 8, 9, 9});
  CHECK(deaths(peak, "dms(knorm,threshold=-0.5,window=2,variant=kvpress)") ==
        Set{3, 4, 5, 6, 9, 8, 9, 9, 9});
}

TEST_CASE("dms decides per head, or for the whole layer by its head 0", "[policy][dms]") {
  const Trace trace = test::head_weights({{{1, 3, 1, 1, 1, 1}, {1, 1, 3, 1, 1, 1}}}, 4);
  const auto both = [&](const std::string& more) {
    const std::string spec = "dms(knorm,threshold=-2,window=2" + more + ")";
    return std::pair(deaths(trace, spec), deaths(trace, spec, {}, 0, 1));
  };
  CHECK(both("") == std::pair(Set{4, 6, 6, 6, 6, 6}, Set{6, 4, 6, 6, 6, 6}));
  CHECK(both(",per=layer") == std::pair(Set{4, 6, 6, 6, 6, 6}, Set{4, 6, 6, 6, 6, 6}));
}

TEST_CASE("in kvpress' dms a token decides on itself", "[policy][dms]") {
  // Norms 1 3 2 1 5 | 1 1 1, window 2, threshold -2: 2 stays, being equal. Judged after the prompt:
  // 0 1 2; after row 5: 3; after row 6: 4.
  const Trace trace = one_head(column({1, 3, 2, 1, 5, 1, 1, 1}), 5);
  const std::string kvpress = ",variant=kvpress)";
  CHECK(deaths(trace, "dms(knorm,threshold=-2,window=2" + kvpress) == Set{8, 5, 8, 8, 7, 8, 8, 8});
  CHECK(deaths(trace, "dms(knorm,threshold=0,window=0" + kvpress) == Set{5, 5, 5, 5, 5, 6, 7, 8});
  // A random rank is uniform in [0, 2^53): half of 400 tokens pass 2^52.
  const Trace many = random_trace(402, 400, 5, 1);
  const auto alive = kept(many, fmt::format("dms(random(seed=1),threshold={},window=0{}",
                                            std::int64_t{1} << 52, kvpress));
  CHECK(alive.size() > 160);
  CHECK(alive.size() < 240);
}

// ---- criticalkv ---------------------------------------------------------------------------------

TEST_CASE("criticalkv spends the rest of the budget on what can move the output",
          "[policy][criticalkv]") {
  // Votes of the last row (weights 20 7.4 2.7 1 1 | 1 over 33): .61 .22 .08 .03 .03, window 5.
  // Norms of the values 0 1 1 100 1: second scores of 1 2 3 4: .22 .08 3.0 .03.
  const Trace trace = logits({3, 2, 1, 0, 0, 0, 0}, 6, column({0, 1, 1, 100, 1, 1, 1}));
  const std::string snapkv = "snapkv(budget=4,window=1,kernel=1)";
  CHECK(kept(trace, snapkv) == Set{0, 1, 2, 5});
  // Half of 4: the window and token 0; then 3 and 1.
  CHECK(kept(trace, "criticalkv(" + snapkv + ")") == Set{0, 1, 3, 5});
  // Nothing but the window by votes: token 0, whose value is zero, goes.
  CHECK(kept(trace, "criticalkv(" + snapkv + ",ratio=0)") == Set{1, 2, 3, 5});
  CHECK(kept(trace, "criticalkv(" + snapkv + ",ratio=1)") == Set{0, 1, 2, 5});
  CHECK_THAT(test::run_one(trace, "criticalkv(" + snapkv + ")", {}).notes.back(),
             Contains("stand-in"));
  CHECK_THAT(refusal(trace, "criticalkv(streaming_llm)"), Contains("does not rank by importance"));
  CHECK_THAT(refusal(trace, "criticalkv(tova(budget=2))"), Contains("one set for all heads"));
  CHECK_THAT(refusal(trace, "criticalkv(full)"), Contains("ranks nothing"));
  CHECK_THAT(refusal(trace, "criticalkv(chunk(" + snapkv + "))"), Contains("picks in its own way"));
  CHECK_THAT(refusal(trace, "criticalkv(knorm(budget=2))"), Contains("negative numbers"));
}

TEST_CASE("criticalkv compares epsilon with the mean of the votes", "[policy][criticalkv]") {
  // The bug: votes are sums over the window's rows. Tokens 0 and 1 have .2 and .05 in both rows,
  // their values 1 and 2: (.2 + .15) * 1 < (.05 + .15) * 2, but (.4 + .15) * 1 > (.1 + .15) * 2.
  const Trace trace =
      logits({std::log(4.0), 0, std::log(15.0), -50, 0}, 4, column({1, 2, 1, 1, 1}));
  CHECK(kept(trace, "criticalkv(snapkv(budget=3,window=2,kernel=1),ratio=0,epsilon=0.15)") ==
        Set{1, 2, 3});
}

TEST_CASE("criticalkv projects values by Wo, and takes the mean over the group",
          "[policy][criticalkv]") {
  // Two query heads of one KV head; equal attention. Wo [hidden 2, 2 heads x 2]: head 0 reads
  // channel 0 once, head 1 reads channel 1 into both outputs. Norms: |v0| and 2 |v1|, mean (|v0| +
  // 2 |v1|) / 2.
  test::TraceSpec spec;
  spec.meta.query_heads = 2;
  spec.meta.kv_heads = 1;
  spec.meta.head_dim = 1;
  spec.meta.v_head_dim = 2;
  spec.meta.tokens = 5;
  spec.meta.prompt_tokens = 4;
  spec.layers.push_back({});
  spec.layers[0].q.assign(10, 0.0);
  spec.layers[0].k.assign(5, 0.0);
  spec.layers[0].v = {3, 0, 0, 2, 2.5, 0, 0, 0, 0, 0};  // 1.5, 2, 1.25; norms alone: 3, 2, 2.5
  const std::string policy = "criticalkv(snapkv(budget=2,window=1,kernel=1),ratio=0";
  CHECK(kept(test::make_trace(spec), policy + ")") == Set{0, 3});
  const std::vector<double> wo = {1, 0, 0, 1, 0, 0, 0, 1};
  const auto folder =
      std::filesystem::temp_directory_path() / fmt::format("kvspan_wo_{}", std::random_device{}());
  std::filesystem::create_directories(folder);
  const std::string file = (folder / "wo.safetensors").string();
  for (const char* name : {"layers.0.wo", "model.layers.0.self_attn.o_proj.weight"}) {
    test::write_tensors(file, {}, {{name, {Dtype::f32, {2, 4}, test::encode(wo, Dtype::f32)}}});
    CHECK(kept(test::make_trace(spec), fmt::format("{},wo=\"{}\")", policy, file)) == Set{1, 3});
  }
  test::write_tensors(file, {},
                      {{"layers.0.wo", {Dtype::f32, {4, 2}, test::encode(wo, Dtype::f32)}}});
  CHECK_THROWS_WITH(kept(test::make_trace(spec), fmt::format("{},wo=\"{}\")", policy, file)),
                    Contains("expected [hidden, 4]"));
  test::write_tensors(file, {}, {{"other", {Dtype::f32, {2, 4}, test::encode(wo, Dtype::f32)}}});
  CHECK_THROWS_WITH(kept(test::make_trace(spec), fmt::format("{},wo=\"{}\")", policy, file)),
                    Contains("has neither 'layers.0.wo'"));
  std::filesystem::remove_all(folder);
  spec.layers[0].wo = wo;
  const Trace trace = test::make_trace(spec);
  CHECK(kept(trace, policy + ")") == Set{1, 3});
  CHECK(test::run_one(trace, policy + ")", {}).notes.empty());
}

// ---- chunk --------------------------------------------------------------------------------------

TEST_CASE("chunk spreads a budget evenly over chunks", "[policy][chunk]") {
  // Norms 1 2 3 | 1 2 3 | 9. Three places: one a chunk; six: 2, 2 and 1, the rest to who has room.
  const Trace trace = one_head(column({1, 2, 3, 1, 2, 3, 9, 0}), 7);
  CHECK(kept(trace, "knorm(budget=3)") == Set{0, 1, 3});
  CHECK(kept(trace, "chunk(knorm(budget=3),length=3)") == Set{0, 3, 6});
  CHECK(kept(trace, "chunk(knorm(budget=6),length=3)") == Set{0, 1, 3, 4, 5, 6});
  CHECK(kept(trace, "chunk(knorm(budget=3),length=1000)") == Set{0, 1, 3});
  // Each chunk is scored by itself: y stands out in the first, x in the second; together they tie.
  const Trace mixed = one_head({{1, 0}, {1, 0}, {0, 1}, {0, 1}, {0, 1}, {1, 0}, {0, 0}}, 6);
  CHECK(kept(mixed, "keydiff(budget=2)") == Set{0, 1});
  CHECK(kept(mixed, "chunk(keydiff(budget=2),length=3)") == Set{2, 5});
  // The window of a policy is taken out before.
  CHECK(kept(logits({0, 2, 1, 0, 0, 0, 0}, 6),
             "chunk(snapkv(budget=3,window=1,kernel=1),length=3)") == Set{1, 3, 5});
  CHECK_THAT(refusal(trace, "chunk(full)"), Contains("ranks nothing"));
  CHECK_THAT(refusal(trace, "chunk(chunked(knorm(budget=10%)))"), Contains("chunked(w(p))"));
}

// ---- block --------------------------------------------------------------------------------------

TEST_CASE("block decides block by block", "[policy][block]") {
  // x y y x x: together, y is the rarer direction. Block by block x and y tie at first, 0 stays,
  // and holds its place against every y that follows.
  const Trace trace = one_head({{1, 0}, {0, 1}, {0, 1}, {1, 0}, {1, 0}, {0, 0}}, 5);
  CHECK(kept(trace, "keydiff(budget=1)") == Set{1});
  CHECK(kept(trace, "block(keydiff(budget=1),size=1)") == Set{0});
  CHECK(kept(trace, "block(keydiff(budget=1),size=2)") ==
        Set{0});  // 0 | 1 2 | 3 4: {0 1 2}, {0 3 4}
  CHECK(kept(trace, "block(keydiff(budget=1),size=4)") == Set{1});
  CHECK_THAT(refusal(trace, "block(chunk(knorm(budget=2)))"), Contains("picks in its own way"));
}

TEST_CASE("block equals the global choice for scores that are known at birth", "[policy][block]") {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    const Trace trace = random_trace(50, 40, seed);
    for (const int budget : {1, 7, 39}) {
      const std::string policy = fmt::format("knorm(budget={})", budget);
      for (const int size : {1, 3, 1000}) {
        const std::string blocks = fmt::format("block({},size={})", policy, size);
        for (int l = 0; l < 2; ++l)
          CHECK(deaths(trace, blocks, {}, l, 1) == deaths(trace, policy, {}, l, 1));
      }
    }
    CHECK(deaths(trace, "block(random(budget=7,seed=3))") ==
          deaths(trace, "random(budget=7,seed=3)"));
  }
}

// ---- whole_blocks -------------------------------------------------------------------------------

TEST_CASE("whole_blocks lets entries leave block by block", "[policy][whole_blocks]") {
  // knorm keeps small keys. Blocks of 2 sum to 6, 8, 7 and 18.
  const std::vector<double> keys = {5, 1, 4, 4, 1, 6, 9, 9, 0};
  const Trace eight = logits(keys, 8);
  CHECK(kept(eight, "knorm(budget=4)") == Set{1, 2, 3, 4});
  CHECK(kept(eight, "whole_blocks(knorm(budget=4),size=2)") == Set{0, 1, 4, 5});
  CHECK(kept(eight, "whole_blocks(knorm(budget=5),size=2)") == Set{0, 1, 4, 5});
  CHECK(kept(eight, "whole_blocks(knorm(budget=1),size=2)") == Set{0, 1});
  // Of seven tokens the last fills a block that stays whatever it scores, beyond the budget.
  CHECK(kept(logits(keys, 7), "whole_blocks(knorm(budget=4),size=2)") == Set{0, 1, 4, 5, 6});
  // Equal sums: the older block.
  CHECK(kept(logits({1, 3, 2, 2, 0}, 4), "whole_blocks(knorm(budget=2),size=2)") == Set{0, 1});
}

TEST_CASE("whole_blocks rounds up what a policy protects", "[policy][whole_blocks]") {
  // A sink and the newest two of 8: blocks 0, and 2 and 3 of size 2 from token 6 on; of 7 tokens
  // the newest two are 5 and 6, so tokens 4 to 6.
  const Trace trace = logits(std::vector<double>(10, 1.0), 8);
  CHECK(kept(trace, "whole_blocks(streaming_llm(sinks=1,window=3),size=2)") == Set{0, 1, 6, 7});
  const Trace seven = logits(std::vector<double>(10, 1.0), 7);
  CHECK(kept(seven, "whole_blocks(streaming_llm(sinks=1,window=3),size=2)") == Set{0, 1, 4, 5, 6});
}

TEST_CASE("whole_blocks evicts in decode when a block is full", "[policy][whole_blocks]") {
  // Equal weights: the older, the heavier. Four entries and the block that fills: the newest block
  // is safe, so 2 and 3 go after the prompt, 4 and 5 when 6 and 7 are there.
  const Trace trace = weights(std::vector<double>(10, 0.0), 6);
  CHECK(deaths(trace, "whole_blocks(h2o(budget=4,grace=1),size=2)") ==
        std::vector<int>{10, 10, 6, 6, 8, 8, 10, 10, 10, 10});
}

TEST_CASE("whole_blocks may keep one set for all heads of a layer", "[policy][whole_blocks]") {
  // Sums of both heads' keys: 20, 14 and 12.
  const Trace trace = test::head_weights({{{1, 1, 5, 5, 3, 3, 0}, {9, 9, 2, 2, 3, 3, 0}}}, 6);
  const std::string policy = "whole_blocks(knorm(budget=2),size=2";
  CHECK(kept(trace, policy + ")", 0, 0) == Set{0, 1});
  CHECK(kept(trace, policy + ")", 0, 1) == Set{2, 3});
  CHECK(kept(trace, policy + ",shared=true)", 0, 0) == Set{4, 5});
  CHECK(kept(trace, policy + ",shared=true)", 0, 1) == Set{4, 5});
  CHECK_THAT(refusal(trace, "whole_blocks(adakv(budget=4),shared=true)"),
             Contains("a number of its own"));
}

TEST_CASE("memory in blocks holds what whole_blocks keeps, and the block that fills",
          "[policy][whole_blocks]") {
  const Trace trace = random_trace(61, 40, 8);
  const auto bytes = [&](const std::string& policy, const std::string& layout) {
    Accounting accounting;
    accounting.layout = layout;
    return test::run_one(trace, policy, {}, accounting).metrics.timeline.resident_bytes;
  };
  const std::string policy = "whole_blocks(h2o(budget=13),size=4)";
  const auto ideal = bytes(policy, "ideal");
  const auto blocks = bytes(policy, "paged4_per_head");
  const std::int64_t entry = 2 * 2 * (4 + 4) * 2;  // of two layers of two heads
  // Rows behind the prompt, as they attend: full blocks but one.
  for (std::size_t row = 41; row < 60; ++row) {
    const auto filling = static_cast<std::int64_t>(row % 4) + 1;  // with the row itself
    CHECK(blocks[row] - ideal[row] == (4 - filling) * entry);
  }
  std::int64_t wasted = 0;
  const auto plain = bytes("h2o(budget=13)", "ideal");
  const auto scattered = bytes("h2o(budget=13)", "paged4_per_head");
  for (std::size_t row = 41; row < 60; ++row) wasted += scattered[row] - plain[row];
  CHECK(wasted > 19 * 4 * entry);
}

TEST_CASE("whole_blocks replays to its closed form, in chunks, too", "[policy][whole_blocks]") {
  test::Random random(11);
  for (int round = 0; round < 20; ++round) {
    const int prompt = test::pick(random, 1, 70);
    const Trace trace = random_trace(prompt + test::pick(random, 0, 20), prompt, random());
    const int size = test::pick(random, 1, 9), budget = test::pick(random, 1, 60);
    EngineOptions options;
    options.fidelity = false;
    options.chunk = size * test::pick(random, 1, 4);
    for (const std::string& inner :
         {fmt::format("whole_blocks(h2o(budget={}),size={})", budget, size),
          fmt::format("whole_blocks(snapkv(budget={},window=5),size={},shared=true)", budget, size),
          fmt::format("chunked(whole_blocks(snapkv(budget=40%,window=3),size={}))", size),
          fmt::format("chunked(whole_blocks(tova(budget={}),size={}))", budget, size)}) {
      INFO(inner << " n=" << prompt << " C=" << options.chunk);
      CHECK(test::off_closed_form(trace, inner, options) == "");
    }
  }
}

TEST_CASE("whole_blocks refuses what has no blocks", "[policy][whole_blocks]") {
  const Trace trace = random_trace(40, 30, 1);
  CHECK_THAT(refusal(trace, "whole_blocks(chunkkv(budget=9))"), Contains("picks in its own way"));
  CHECK_THAT(refusal(trace, "whole_blocks(full)"), Contains("full ranks nothing"));
  CHECK_THAT(refusal(trace, "whole_blocks(h2o(variant=flexgen))"), Contains("more than one rule"));
  CHECK_THAT(refusal(trace, "whole_blocks(r_kv(budget=9))"), Contains("in the order of scores"));
  const auto chunks = [&](const std::string& policy, RowIndex size) {
    (void)test::run_one(trace, policy, chunk(size));
  };
  const std::string share = "chunked(whole_blocks(snapkv(budget=50%,window=2),size=4)";
  CHECK_THROWS_WITH(chunks(share + ")", 6), Contains("chunks of 6 tokens do not end where blocks"));
  CHECK_THROWS_WITH(chunks(share + ",variant=patched)", 8), Contains("patched"));
  CHECK_NOTHROW(chunks(share + ")", 8));
}

// ---- together -----------------------------------------------------------------------------------

TEST_CASE("the composed policies of the kvpress family replay to their closed forms",
          "[policy][analytic]") {
  test::Random random(3);
  int compared = 0;
  for (int round = 0; round < 12; ++round) {
    const int prompt = test::pick(random, 1, 60);
    const int generated = test::pick(random, 0, 20);
    const Trace trace = random_trace(prompt + generated, prompt, random());
    EngineOptions options;
    options.chunk = test::pick(random, 0, 1) == 0 ? 0 : test::pick(random, 1, 30);
    for (const char* spec : {"knorm(budget=9,skip=1)",
                             "keydiff(budget=9)",
                             "lagkv(budget=9,sinks=2,lag=5)",
                             "lagkv(budget=40%,lag=3,cross=true)",
                             "expected_attention(budget=7,sinks=2,future=5)",
                             "cur(budget=30%)",
                             "observed_attention(budget=5)",
                             "pyramid+knorm(budget=20)",
                             "chunked(knorm(budget=10%))",
                             "chunk(snapkv(budget=13,window=4),length=8)",
                             "chunk(knorm(budget=25%),length=7)",
                             "block(keydiff(budget=8),size=5)",
                             "block(snapkv(budget=13,window=4),size=5)",
                             "criticalkv(snapkv(budget=13,window=4))",
                             "criticalkv(h2o(budget=9))",
                             "criticalkv(pyramid+snapkv(budget=20,window=4))",
                             "criticalkv(expected_attention(budget=8))",
                             "decoding(knorm,every=3,target=9)",
                             "decoding(snapkv(window=4),every=4,target=9)",
                             "decoding(h2o,every=2,target=6)",
                             "decoding(chunk(knorm,length=4),every=2,target=6)",
                             "chunked(criticalkv(snapkv(budget=10%,window=2)))",
                             "chunked(chunk(keydiff(budget=20%),length=3))",
                             "chunked(block(keydiff(budget=20%),size=2))",
                             "chunked(lagkv(budget=20%,lag=2))"}) {
      INFO(spec << " n=" << prompt << " m=" << generated << " C=" << options.chunk);
      CHECK(test::off_closed_form(trace, spec, options) == "");
      ++compared;
    }
  }
  CHECK(compared == 12 * 25);
}

TEST_CASE("content-dependent policies of the kvpress family stay below their predicted bounds",
          "[policy][analytic]") {
  const Trace trace = random_trace(50, 40, 8);
  const Geometry geometry = geometry_of(trace, {});
  for (const char* spec :
       {"dms(knorm,threshold=-2,window=4)", "dms(random,threshold=5e15,window=4)",
        "simlayerkv(sinks=1,recent=8,threshold=0.3)"}) {
    INFO(spec);
    const Policy policy = make_policy(spec, geometry);
    CHECK(!policy.closed_form);
    CHECK(test::run_one(trace, spec, {}).metrics.entry_rows <=
          predict(policy, geometry, {}).entry_rows);
  }
}
