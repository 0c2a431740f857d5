// SPDX-License-Identifier: Apache-2.0
// The score pass on a GPU: in the emulation, or on a GPU.
#include <algorithm>
#include <cmath>
#include <limits>

#include <catch2/catch.hpp>

#include "gpu_replay/cuda/module.h"
#include "gpu_replay/score/device_scores.h"
#include "sim/base/error.h"
#include "sim/run/run.h"
#include "tests/support/cases.h"
#include "tests/support/score_case.h"

using namespace kvspan;
using test::ScoreCase;
using test::ScoreShape;

namespace {

// Through the entry of the module, whose code is linked into the test.
std::shared_ptr<ScorePass> device() {
  return gpu_replay::make_device_scores(kvspan_replay_module()->load_scores, "device");
}

// bf16 holds a weight in two parts of 8 bits.
double close_for(Dtype dtype) { return dtype == Dtype::bf16 ? 2e-5 : 5e-6; }

// `times` as far off as logits of common size.
void check(const ScoreShape& shape, unsigned seed, RowIndex first, RowIndex step,
           double times = 1) {
  const ScoreCase input(shape, seed);
  const ScoreCase::Worst worst = input.worst(*device(), input.rows(first, step));
  CHECK(worst.retained < times * 5e-6);
  CHECK(worst.error < times * close_for(shape.dtype));
}

}  // namespace

TEST_CASE("scores of groups and head sizes equal double precision", "[cuda][replay][scores]") {
  const auto [group, dim, dtype] = GENERATE(table<int, int, Dtype>({{1, 64, Dtype::f16},
                                                                    {4, 64, Dtype::bf16},
                                                                    {2, 128, Dtype::f16},
                                                                    {1, 256, Dtype::bf16},
                                                                    {3, 65, Dtype::f16},
                                                                    {5, 80, Dtype::f32},
                                                                    {16, 16, Dtype::f32}}));
  const int seed = GENERATE(take(1, random(0, 1 << 30)));
  INFO("group " << group << ", " << dim << ", seed " << seed);
  ScoreShape shape{.tokens = 75, .kv_heads = group > 2 ? 1 : 2, .group = group};
  shape.head_dim = dim;
  shape.v_head_dim = dim == 65 ? 33 : dim;
  shape.dtype = dtype;
  check(shape, static_cast<unsigned>(seed), 5, 1);
}

TEST_CASE("any number of death vectors, rows and keys", "[cuda][replay][scores]") {
  const auto [vectors, tokens, first, step] = GENERATE(table<int, int, int, int>({{1, 1, 0, 1},
                                                                                  {3, 64, 0, 1},
                                                                                  {9, 65, 64, 1},
                                                                                  {20, 129, 3, 5},
                                                                                  {40, 63, 0, 7},
                                                                                  {70, 70, 0, 6}}));
  INFO(vectors << " vectors, " << tokens << " tokens");
  check({.tokens = tokens, .kv_heads = 2, .group = 2, .vectors = vectors},
        static_cast<unsigned>(vectors), first, step);
}

TEST_CASE("the model's own window, soft cap and sinks", "[cuda][replay][scores]") {
  const Dtype dtype = GENERATE(Dtype::f32, Dtype::f16);
  ScoreShape shape{.tokens = 140, .group = 2, .head_dim = 16, .v_head_dim = 16, .dtype = dtype};
  shape.window = GENERATE(0, 1, 70);
  shape.softcap = shape.window == 70 ? 3 : 0;
  shape.sinks = true;
  check(shape, 5, 0, 4);
}

TEST_CASE("where nothing has left, nothing is lost, to the bit", "[cuda][replay][scores]") {
  ScoreCase input({.tokens = 130,
                   .group = 2,
                   .head_dim = 16,
                   .v_head_dim = 16,
                   .dtype = Dtype::f16,
                   .vectors = 9},
                  3);
  const std::vector<std::uint32_t> late(130, 130);
  input.vectors().assign(1, {late, 1, 0, 130, true});
  device()->measure({input.trace(), 0, input.rows(0, 1), input.vectors()},
                    [&](const ScorePiece& piece) {
                      CHECK(std::ranges::count(piece.retained, 1.0) == std::ssize(piece.retained));
                      CHECK(std::ranges::count(piece.error, 0.0) == std::ssize(piece.error));
                    });
}

TEST_CASE("what is left of a row may lie far below its maximum", "[cuda][replay][scores]") {
  // Logits of a deviation of 40: exp(-87) of the maximum is next to nothing in fp32.
  check({.tokens = 80, .head_dim = 4, .v_head_dim = 4, .spread = 40}, 9, 0, 1, 20);
}

TEST_CASE("a replay on the device decides alike and measures alike", "[cuda][replay][scores]") {
  test::TraceSpec spec = test::random_spec({.layers = 2,
                                            .tokens = 80,
                                            .prompt_tokens = 50,
                                            .query_heads = 4,
                                            .kv_heads = 2,
                                            .head_dim = 16,
                                            .seed = 2,
                                            .dtype = Dtype::f16});
  spec.meta.spans = {{"needle", 5, 9}};
  const Trace trace = test::make_trace(spec);
  std::vector<RecipeSpec> specs;
  for (const char* policy : {"h2o(budget=25%)", "snapkv(budget=30%,window=4)", "full",
                             "snapkv(budget=20%,window=3,group=none)"})
    specs.push_back(parse_spec(policy));
  EngineOptions options = test::chunk(20);
  const std::vector<RunResult> cpu = run_policies(trace, specs, options, {});
  options.scores = device();
  options.threads = 1;
  const std::vector<RunResult> gpu = run_policies(trace, specs, options, {});
  for (std::size_t p = 0; p < cpu.size(); ++p) {
    INFO(cpu[p].spec);
    CHECK(gpu[p].ledger.death == cpu[p].ledger.death);
    const Fidelity &a = *gpu[p].fidelity, &b = *cpu[p].fidelity;
    CHECK(a.all->mass_mean == Approx(b.all->mass_mean).margin(1e-6));
    CHECK(a.decode->mass_p5 == Approx(b.decode->mass_p5).margin(1e-6));
    CHECK(a.decode->error_mean == Approx(b.decode->error_mean).margin(5e-6));
    CHECK(a.spans[0].mass_lost == Approx(b.spans[0].mass_lost).margin(1e-6));
  }
}

TEST_CASE("the device refuses what it cannot take", "[cuda][replay][scores]") {
  const ScoreCase wide({.tokens = 3, .head_dim = 264, .v_head_dim = 4}, 1);
  CHECK_THROWS_WITH((void)wide.worst(*device(), {1, 2}),
                    Catch::Contains("found vectors of 264, expected at most 256"));
  test::TraceSpec spec = test::random_spec({.tokens = 5, .query_heads = 1, .head_dim = 4});
  spec.layers[0].k[7] = std::numeric_limits<double>::quiet_NaN();
  const Trace trace = test::make_trace(spec);
  const std::vector<RowIndex> rows = {0, 1, 2};
  const std::vector<DeathVector> all = {{{}, 1, 0, 5, false}};
  CHECK_THROWS_AS(device()->measure({trace, 0, rows, all}, [](const ScorePiece&) {}), TraceError);
}
