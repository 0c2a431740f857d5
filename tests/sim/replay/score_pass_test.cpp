// SPDX-License-Identifier: Apache-2.0
// The score pass on the CPU: by the definition, bit for bit as the engine measures on the way, and
// as the audit of another pass.
#include <cmath>

#include <catch2/catch.hpp>

#include "sim/base/error.h"
#include "sim/replay/host_scores.h"
#include "sim/run/run.h"
#include "tests/support/cases.h"
#include "tests/support/score_case.h"

using namespace kvspan;
using test::ScoreCase;

namespace {

std::vector<RunResult> results(const Trace& trace, EngineOptions options,
                               std::shared_ptr<ScorePass> scores) {
  options.scores = std::move(scores);
  // Of every kind: deaths in decode, at the prompt's end, in chunks, in each query head, in no
  // head; what selects, alters vectors or renumbers positions is measured on the way.
  std::vector<RecipeSpec> specs;
  for (const char* policy :
       {"full", "h2o(budget=25%)", "snapkv(budget=30%,window=4)", "tova(budget=9)",
        "chunked(knorm(budget=20%))", "snapkv(budget=20%,window=3,group=none)",
        "global(snapkv(budget=40%,window=3))", "quest(page=4,budget=12)",
        "kivi(group=2,residual=4)", "streaming_llm(sinks=2,window=6)"})
    specs.push_back(parse_spec(policy));
  return run_policies(trace, specs, options, {});
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return std::ranges::equal(
      a, b, [](float x, float y) { return x == y || (std::isnan(x) && std::isnan(y)); });
}

// Adds `by` to what one row retains under one vector.
class Liar final : public ScorePass {
 public:
  explicit Liar(double by) : by_(by) {}
  [[nodiscard]] std::string name() const override { return "liar"; }
  void measure(const ScoreTask& task, const std::function<void(const ScorePiece&)>& use) override {
    HostScores().measure(task, [&](ScorePiece piece) {
      const auto at = std::ranges::find(piece.rows, task.rows[task.rows.size() / 2]);
      if (at != piece.rows.end())
        piece.retained[piece.at(0, 1, index(at - piece.rows.begin()))] += by_;
      use(piece);
    });
  }

 private:
  double by_;
};

}  // namespace

TEST_CASE("a score pass is attention by its definition", "[scores]") {
  const int seed = GENERATE(take(4, random(0, 1 << 30)));
  INFO("seed " << seed);
  const auto shape = GENERATE(
      test::ScoreShape{.kv_heads = 2, .group = 3, .vectors = 11},
      test::ScoreShape{.tokens = 70, .group = 2, .window = 9, .sinks = true, .vectors = 6},
      test::ScoreShape{.tokens = 65, .head_dim = 5, .v_head_dim = 3, .softcap = 4, .vectors = 5});
  const ScoreCase input(shape, static_cast<unsigned>(seed));
  HostScores pass;
  const ScoreCase::Worst worst = input.worst(pass, input.rows(0, seed % 3 + 1));
  CHECK(worst.retained < 1e-6);
  CHECK(worst.error < 5e-6);
}

TEST_CASE("figures are bit for bit those of a walk that measures on the way", "[scores]") {
  test::TraceSpec spec = test::random_spec({.layers = 3,
                                            .tokens = 60,
                                            .prompt_tokens = 40,
                                            .query_heads = 4,
                                            .kv_heads = 2,
                                            .head_dim = 6,
                                            .seed = 11});
  spec.meta.spans = {{"needle", 5, 9}, {"question", 36, 40}};
  const Trace trace = test::make_trace(spec);
  EngineOptions options = test::chunk(GENERATE(0, 16));
  options.output_error = GENERATE(true, false);
  options.fidelity_rows = GENERATE(0, 7);
  options.threads = GENERATE(1, 3);
  const std::vector<RunResult> way = results(trace, options, nullptr);
  const std::vector<RunResult> apart = results(trace, options, std::make_shared<HostScores>());
  for (std::size_t p = 0; p < way.size(); ++p) {
    INFO(way[p].spec);
    CHECK(apart[p].ledger.death == way[p].ledger.death);
    const Fidelity &a = *apart[p].fidelity, &b = *way[p].fidelity;
    for (const auto phase : {&Fidelity::all, &Fidelity::prefill, &Fidelity::decode}) {
      const PhaseFidelity &x = *(a.*phase), &y = *(b.*phase);
      CHECK(x.values == y.values);
      CHECK(x.mass_mean == y.mass_mean);
      CHECK(x.mass_p5 == y.mass_p5);
      CHECK(x.mass_min == y.mass_min);
      CHECK(x.has_error == y.has_error);
      CHECK(x.error_mean == y.error_mean);
      CHECK(x.error_p95 == y.error_p95);
      CHECK(x.logit_error == y.logit_error);
    }
    CHECK(same(a.row_mass, b.row_mass));
    CHECK(a.head_mass == b.head_mass);
    for (std::size_t s = 0; s < a.spans.size(); ++s)
      CHECK(a.spans[s].mass_lost == Approx(b.spans[s].mass_lost).margin(1e-12));
  }
}

TEST_CASE("rows that read next to nothing are as on the way", "[scores]") {
  // exp(-100) of the row's maximum: below what terms of the whole row hold in fp32.
  const Trace trace =
      test::weights({100, 0, 0.5, 0, 0.25, 0, 0, 1}, 4, {}, {1, 2, -3, 4, 5, -6, 7, 8});
  const std::vector<RecipeSpec> specs = {parse_spec("streaming_llm(sinks=0,window=2)")};
  EngineOptions options;
  const std::vector<RunResult> way = run_policies(trace, specs, options, {});
  options.scores = std::make_shared<HostScores>();
  const std::vector<RunResult> apart = run_policies(trace, specs, options, {});
  CHECK(way[0].fidelity->decode->mass_mean > 0);
  CHECK(apart[0].fidelity->decode->mass_mean == way[0].fidelity->decode->mass_mean);
  CHECK(apart[0].fidelity->decode->error_mean == way[0].fidelity->decode->error_mean);
}

TEST_CASE("an audit finds what a pass gets wrong", "[scores]") {
  ScoreCase input({.tokens = 40, .group = 2, .vectors = 3}, 7);
  const auto audited = [&](double by, double share) {
    const auto pass = with_audit(std::make_shared<Liar>(by), share, 5);
    (void)input.worst(*pass, input.rows(1, 1));
    return *pass->audit();
  };
  const ScoreAudit all = audited(0.25, 1);
  CHECK(all.rows == 39);
  CHECK(all.values == 39 * 2 * 3);
  CHECK(all.retained == Approx(0.25));
  CHECK(all.error == 0);
  CHECK(audited(0, 1).retained == 0);
  const ScoreAudit some = audited(0.25, 0.3);
  CHECK(some.share == 0.3);
  CHECK((some.rows > 3 && some.rows < 25));
}

TEST_CASE("a run says who measured", "[scores]") {
  const Trace trace = test::random_trace(24, 16, 3);
  RunRequest request;
  request.specs = {parse_spec("tova(budget=5)")};
  CHECK_FALSE(run(trace, request).device);
  request.engine.scores = std::make_shared<HostScores>();
  request.audit = 1;
  const RunReport report = run(trace, request);
  REQUIRE(report.device);
  CHECK(report.device->name == "host");
  CHECK(report.device->audit->rows > 0);
  CHECK(report.device->audit->retained == 0);
  request.engine.fidelity = false;
  CHECK_FALSE(run(trace, request).device);
}
