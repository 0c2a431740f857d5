// SPDX-License-Identifier: Apache-2.0
// When authors' programs decide, and what a row then reads: traces small enough to follow their
// statements by hand. Of each policy: the token that leaves the window has the largest score;
// several decisions in a row; n = B and n = B + 1; where the first decision of the decode falls.
#include <algorithm>
#include <cmath>
#include <numeric>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/policies/shared/groups.h"
#include "tests/support/cases.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::refusal;

namespace {

using Tokens = std::vector<int>;
using KeptRows = std::vector<Tokens>;

// Row i attends to targets[i] alone, or to itself where that is not among what it reads.
Trace attending(const Tokens& targets, int prompt) {
  const std::size_t n = targets.size();
  test::Vectors keys(n, std::vector<double>(n, 0.0)), queries = keys;
  for (std::size_t i = 0; i < n; ++i) {
    keys[i][i] = 1;
    queries[i][i] = 300;
    queries[i][index(targets[i])] = targets[i] == static_cast<int>(i) ? 300 : 700;
  }
  return test::one_head(keys, prompt, {}, queries);
}

// What rows [from, the last] read.
KeptRows reads(const Trace& trace, const std::string& policy, int from) {
  EngineOptions options;
  options.keep_reads = 1 << 20;
  const RunResult run = test::run_one(trace, policy, options);
  const Ledger& ledger = run.ledger;
  const auto deaths = ledger.deaths(0, 0);
  KeptRows out;
  for (RowIndex row = from; row < trace.meta().tokens; ++row) {
    out.emplace_back();
    for (std::size_t t = 0; t <= index(row); ++t) {
      const bool chosen =
          ledger.reads.empty() ||
          (ledger.reads[ledger.reads_offset(0, 0, index(row)) + t / 8] >> (t % 8) & 1) != 0;
      if (static_cast<RowIndex>(deaths[t]) > row && chosen)
        out.back().push_back(static_cast<int>(t));
    }
  }
  return out;
}

Tokens range(int begin, int end) {
  Tokens out(index(end - begin));
  std::iota(out.begin(), out.end(), begin);
  return out;
}

Tokens joined(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace

// ---- keyformer ----------------------------------------------------------------------------------

TEST_CASE("keyformer with variant=code freezes its keys, and window leavers die",
          "[policy][authors]") {
  const std::string code = "keyformer(variant=code,budget=4,recent=50)";
  const std::string paper = "keyformer(budget=4,recent=50)";
  // f after the prompt: 1, 2, 3 and 2 for keys 0, 1, 3 and 6. K = R = 2. Key 6 is neither recent
  // nor a candidate; row 8 would attend to it.
  const Trace trace = attending({0, 1, 1, 3, 3, 3, 6, 6, 6, 9, 10, 11}, 8);
  CHECK(reads(trace, code, 8) ==
        KeptRows{{1, 3, 7, 8}, {1, 3, 8, 9}, {1, 3, 9, 10}, {1, 3, 10, 11}});
  CHECK(reads(trace, paper, 8) ==
        KeptRows{{1, 3, 6, 7, 8}, {3, 6, 7, 8, 9}, {3, 6, 8, 9, 10}, {3, 6, 9, 10, 11}});
}

TEST_CASE("keyformer with variant=code does not look at the score of who leaves",
          "[policy][authors]") {
  // f: 1, 2, 2, 1, 3 for keys 0, 1, 3, 5, 6; K = 2, R = 3: key 6 leaves with the largest.
  const Trace trace = attending({0, 1, 1, 3, 3, 5, 6, 6, 6, 3, 10}, 9);
  CHECK(reads(trace, "keyformer(variant=code,budget=5,recent=60)", 9) ==
        KeptRows{{1, 3, 7, 8, 9}, {1, 3, 8, 9, 10}});
  CHECK(reads(trace, "keyformer(budget=5,recent=60)", 9) ==
        KeptRows{{1, 3, 6, 7, 8, 9}, {3, 6, 7, 8, 9, 10}});
}

TEST_CASE("keyformer with variant=code first acts when there are more tokens than its budget",
          "[policy][authors]") {
  const std::string code = "keyformer(variant=code,budget=4,recent=50)";
  const Tokens targets = {0, 1, 1, 0, 4, 5, 6};
  // n = B: row 4 reads all five, and is the first to be decided after: 3 leaves.
  CHECK(reads(attending(targets, 4), code, 4) ==
        KeptRows{{0, 1, 2, 3, 4}, {0, 1, 4, 5}, {0, 1, 5, 6}});
  // n = B + 1: after the prompt.
  CHECK(reads(attending(targets, 5), code, 5) == KeptRows{{0, 1, 4, 5}, {0, 1, 5, 6}});
  // n = B - 2: not before five tokens are there.
  CHECK(reads(attending(targets, 2), code, 2) ==
        KeptRows{{0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}, {0, 1, 4, 5}, {0, 1, 5, 6}});
  CHECK(reads(attending(targets, 4), "keyformer(budget=4,recent=50)", 4) ==
        KeptRows{{0, 1, 2, 3, 4}, {0, 1, 3, 4, 5}, {0, 1, 4, 5, 6}});
}

TEST_CASE("keyformer with variant=code needs a recent token, and spreads no budget",
          "[policy][authors]") {
  const Trace trace = attending({0, 1, 2, 3, 4, 5}, 4);
  CHECK_THAT(refusal(trace, "keyformer(variant=code,budget=3)"), Contains("30 % of 3 entries"));
  CHECK_THAT(refusal(trace, "pyramid(window=1)+keyformer(variant=code,budget=4)"),
             Contains("budget shape"));
  // Everything recent: a row reads the newest three and itself.
  CHECK(reads(trace, "keyformer(variant=code,budget=3,recent=100)", 4) ==
        KeptRows{{2, 3, 4}, {3, 4, 5}});
}

// ---- h2o ----------------------------------------------------------------------------------------

TEST_CASE("h2o with variant=ratio reads one entry less: who leaves the window misses a row",
          "[policy][authors]") {
  // Sums after the prompt: 1, 2, 6, 3 for keys 0, 1, 3, 9. H = 2, R = 3.
  const Trace trace = attending({0, 1, 1, 3, 3, 3, 3, 3, 3, 9, 9, 9, 12, 13, 14}, 12);
  const std::string policy = "h2o(variant=ratio,heavy_share=17,recent_share=25)";
  CHECK(reads(trace, policy, 12) ==
        KeptRows{{1, 3, 10, 11, 12}, {3, 9, 11, 12, 13}, {3, 9, 12, 13, 14}});
  CHECK(reads(trace, "h2o(heavy=2,recent=3)", 12) ==
        KeptRows{{1, 3, 9, 10, 11, 12}, {3, 9, 10, 11, 12, 13}, {3, 9, 11, 12, 13, 14}});
  // It is held meanwhile.
  CHECK(test::run_one(trace, policy, {}).metrics.timeline.resident_entries[12] == 6);
}

TEST_CASE("h2o with variant=ratio takes the leaver back if it is the heaviest",
          "[policy][authors]") {
  // Sums: 1, 2, 1, 1, 3 for keys 0, 1, 3, 4, 5. H = 1, R = 3: key 5 is out in row 8 only.
  const Trace trace = attending({0, 1, 1, 3, 4, 5, 5, 5, 8, 9, 10}, 8);
  CHECK(reads(trace, "h2o(variant=ratio,heavy_share=12.5,recent_share=37.5)", 8) ==
        KeptRows{{1, 6, 7, 8}, {5, 7, 8, 9}, {5, 8, 9, 10}});
}

TEST_CASE("h2o with variant=ratio masks nothing while everything fits", "[policy][authors]") {
  const Tokens targets = {0, 1, 1, 0, 4, 5, 6, 7};
  // n = H + R = 4
  CHECK(reads(attending(targets, 4), "h2o(variant=ratio,heavy_share=50,recent_share=50)", 4) ==
        KeptRows{{0, 1, 2, 3, 4}, {0, 1, 4, 5}, {0, 1, 5, 6}, {0, 1, 6, 7}});
  // n = 5 = H + R + 1
  CHECK(reads(attending(targets, 5), "h2o(variant=ratio,heavy_share=40,recent_share=40)", 5) ==
        KeptRows{{0, 1, 4, 5}, {0, 1, 5, 6}, {0, 1, 6, 7}});
  // n = 4, H + R = 6: seven tokens are there after row 6. Sums of 2 and 3 are zero: 2 stays.
  CHECK(reads(attending(targets, 4), "h2o(variant=ratio,heavy_share=100,recent_share=50)", 6) ==
        KeptRows{{0, 1, 2, 3, 4, 5, 6}, {0, 1, 2, 4, 6, 7}});
}

TEST_CASE("h2o with variant=ratio and no recent share does not read the row itself",
          "[policy][authors]") {
  CHECK(reads(attending({0, 1, 1, 1, 4, 5}, 4), "h2o(variant=ratio,heavy_share=50,recent_share=0)",
              4) == KeptRows{{0, 1}, {0, 1}});
}

// ---- scissorhands -------------------------------------------------------------------------------

namespace {

// Logits that rise by `step` a token, alike in every row; model layer 6.
Trace slope(int tokens, int prompt, double step) {
  std::vector<double> keys;
  for (int t = 0; t < tokens; ++t) keys.push_back(step * t);
  test::TraceSpec spec = test::weights_spec(keys, prompt);
  spec.meta.layer_ids = {6};
  spec.meta.model_layers = 40;
  return test::make_trace(spec);
}

}  // namespace

TEST_CASE("scissorhands' released code draws its line over all columns of the pass",
          "[policy][authors]") {
  const std::string policy = "scissorhands(mode=eval_code)";
  // 200 columns: 19 entries lie above the value at index 180, while rows read everything. From row
  // 100 on shares grow, as fewer entries divide the mass, and lines do not: newer entries pass
  // until row 114, whose line is e^-.19 / 68.3, and its share of token 114 e^-1.14 / 26.4.
  const Tokens oldest = range(0, 19);
  for (const int prompt : {100, 60, 150}) {  // in the prompt, too
    INFO(prompt);
    const KeptRows rows = reads(slope(200, prompt, -.01), policy, 99);
    CHECK(rows[0] == range(0, 100));
    CHECK(rows[1] == joined(oldest, range(90, 101)));
    CHECK(rows[2] == joined(oldest, range(90, 102)));
    CHECK(rows[51] == joined(joined(oldest, range(90, 115)), range(140, 151)));
  }
  // 112 columns: 11 entries lie above the value at index 100.
  CHECK(reads(slope(112, 100, -.01), policy, 100)[0] == joined(range(0, 11), range(90, 101)));
  // Rows of fewer than 20 entries let everybody pass, others their newest 19: who got its last vote
  // from row t + 18 stays for a hundred rows after it.
  const KeptRows rising = reads(slope(200, 100, .01), policy, 118);
  CHECK(rising[0] == range(0, 119));
  CHECK(rising[1] == range(1, 120));
  CHECK(rising[32] == range(32, 151));
}

TEST_CASE("scissorhands' released code runs on probabilities alone", "[policy][authors]") {
  test::TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = spec.meta.head_dim = 1;
  spec.meta.tokens = 112;
  spec.meta.prompt_tokens = 100;
  spec.meta.layer_ids = {6};
  spec.meta.model_layers = 40;
  spec.layers.push_back({});
  for (int row = 0; row < 112; ++row) {
    double sum = 0;
    for (int t = 0; t <= row; ++t) sum += std::exp(-.01 * t);
    spec.layers[0].rows.push_back(row);
    for (int t = 0; t < 112; ++t)
      spec.layers[0].dense.push_back(t <= row ? std::exp(-.01 * t) / sum : 0);
    spec.layers[0].lse.push_back(std::log(sum));
  }
  const std::string policy = "scissorhands(mode=eval_code)";
  CHECK(reads(test::make_trace(spec), policy, 99) == reads(slope(112, 100, -.01), policy, 99));
}

// ---- simlayerkv ---------------------------------------------------------------------------------

TEST_CASE("simlayerkv is judged by the first decode row, and cuts once after it",
          "[policy][authors]") {
  std::vector<double> keys(44, 0.0), queries(44, 0.0);
  keys[0] = 5;
  const std::string policy = "simlayerkv(sinks=4,recent=8,threshold=0.5)";
  // Row 40: (e^5 + 3 + 8) / (e^5 + 40) = .85. Prompt rows give 12/40.
  std::fill(queries.begin() + 40, queries.end(), 1.0);
  const KeptRows rows = reads(test::weights(keys, 40, queries), policy, 40);
  CHECK(rows[0] == range(0, 41));
  CHECK(rows[1] == joined(range(0, 4), range(33, 42)));
  CHECK(rows[3] == joined(range(0, 4), range(33, 44)));
  CHECK(reads(test::weights(keys, 40, queries),
              "simlayerkv(sinks=4,recent=8,threshold=0.5,decode=stream)",
              43)[0] == joined(range(0, 4), range(35, 44)));
  // A later row does not judge.
  queries[40] = 0;
  CHECK(reads(test::weights(keys, 40, queries), policy, 43)[0] == range(0, 44));
  // The prompt's last row does, for kvpress, and takes one entry more.
  queries[39] = 1;
  CHECK(reads(test::weights(keys, 40, queries),
              "simlayerkv(sinks=4,recent=8,threshold=0.5,variant=kvpress)",
              40)[0] == joined(range(0, 4), range(33, 41)));
}

TEST_CASE("simlayerkv counts the judging row's own column", "[policy][authors]") {
  std::vector<double> keys(14, 0.0);
  keys[12] = 5;
  const Trace trace = test::weights(keys, 12);
  CHECK(reads(trace, "simlayerkv(sinks=1,recent=2,threshold=0.9)", 13)[0] == Tokens{0, 11, 12, 13});
  CHECK_THAT(refusal(trace, "simlayerkv(last=1)"), Contains("variant=kvpress"));
}

TEST_CASE("simlayerkv leaves alone what fits into sinks and window", "[policy][authors]") {
  const std::string policy = "simlayerkv(sinks=2,recent=3,threshold=0)";
  // Five entries after the first decode row; six.
  CHECK(reads(test::weights(std::vector<double>(6, 0.0), 4), policy, 5)[0] == range(0, 6));
  CHECK(reads(test::weights(std::vector<double>(7, 0.0), 5), policy, 6)[0] ==
        Tokens{0, 1, 3, 4, 5, 6});
  // The rest of a prompt behind --evict-at is no decode row: row 6 judges.
  EngineOptions options;
  options.evict_point = 3;
  CHECK(test::deaths(test::weights(std::vector<double>(9, 0.0), 6), policy, options) ==
        Tokens{9, 9, 7, 7, 9, 9, 9, 9, 9});
}

// ---- dbudgetkv ----------------------------------------------------------------------------------

namespace {

// One KV head whose keys are unit vectors, two query heads: row i of head h attends to
// targets[h][i] alone, but for one row, which has probabilities [tokens].
Trace voting(const std::vector<Tokens>& targets, int prompt, int last_row,
             const std::vector<std::vector<double>>& last) {
  const std::size_t n = targets[0].size();
  test::TraceSpec spec;
  spec.meta.query_heads = 2;
  spec.meta.kv_heads = 1;
  spec.meta.head_dim = static_cast<int>(n);
  spec.meta.tokens = static_cast<std::int64_t>(n);
  spec.meta.prompt_tokens = prompt;
  spec.meta.score_scale = 1;
  spec.layers.push_back({});
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t h = 0; h < 2; ++h) {
      for (std::size_t j = 0; j < n; ++j) {
        const double one = targets[h][i] == static_cast<int>(j) ? 300 : 0;
        spec.layers[0].q.push_back(
            static_cast<int>(i) == last_row ? std::max(-300.0, std::log(last[h][j])) : one);
      }
    }
    for (std::size_t j = 0; j < n; ++j) spec.layers[0].k.push_back(i == j ? 1 : 0);
  }
  return test::make_trace(spec);
}

}  // namespace

TEST_CASE("dbudgetkv with rank=votes ranks by the last eight rows, per query head",
          "[policy][authors]") {
  // Rows 12 to 19 vote. Head 0: 3 votes for 2, 2 for 5, 1 for 7 and 9, and .3, .4 of row 19. Head
  // 1: 7 votes for 3, and .5 of row 19. In row 19 the norms of 0 to 11 are .5 and .5; of the first
  // of each rank .3 and .5, so .2 of the mean is lost.
  std::vector<Tokens> targets(2, range(0, 22));
  targets[0] = joined(range(0, 12), {2, 2, 2, 5, 5, 7, 9, 19, 20, 21});
  targets[1] = joined(range(0, 12), {3, 3, 3, 3, 3, 3, 3, 19, 20, 21});
  std::vector<std::vector<double>> last(2, std::vector<double>(22, 0.0));
  last[0][2] = .3;
  last[0][5] = .4;
  last[0][19] = .3;
  last[1][3] = last[1][19] = .5;
  const Trace trace = voting(targets, 20, 19, last);
  const auto kept = [&](const std::string& policy, int head) {
    return test::kept(trace, policy, 0, head);
  };
  // 5 % by default, in the first layers, too. Who has no votes ties: the lower token stays.
  CHECK(kept("dbudgetkv(rank=votes)", 0) == joined({2, 5}, range(12, 20)));
  CHECK(kept("dbudgetkv(rank=votes)", 1) == joined({0, 3}, range(12, 20)));
  CHECK(kept("dbudgetkv(rank=votes,threshold=0.21)", 0) == joined({2}, range(12, 20)));
  CHECK(kept("dbudgetkv(rank=votes,threshold=0.21)", 1) == joined({3}, range(12, 20)));
  CHECK(kept("dbudgetkv(rank=votes,threshold=0)", 0) == range(0, 20));
  CHECK(kept("dbudgetkv(rank=votes,skip=1)", 0) == range(0, 20));
  // The default rule keeps sinks and a window that reaches back to 5, and none per query head.
  CHECK(kept("dbudgetkv(skip=0,threshold=0.05)", 0) == joined(range(0, 4), range(5, 20)));
  CHECK_THAT(refusal(trace, "dbudgetkv(rank=votes,sinks=3)"), Contains("rank=position"));
  // Of eight tokens only the newest votes, and for nobody else: there is no norm to hold.
  CHECK(test::kept(voting(targets, 8, 21, last), "dbudgetkv(rank=votes)", 0, 0).size() == 8);
}
