// SPDX-License-Identifier: Apache-2.0
// Capture with the real forward pass, of the bundled model.
#include <cmath>
#include <cstring>
#include <optional>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/attention/layer_scores.h"
#include "sim/base/error.h"
#include "sim/report/lifetimes_writer.h"
#include "sim/run/run.h"
#include "sim/trace/trace_tools.h"
#include "tests/support/checkpoint_case.h"
#include "tests/support/fake_runner.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tensor_values.h"
#include "tracegen/capture/capture.h"
#include "tracegen/model/checkpoint.h"

using namespace kvspan;
using namespace kvspan::tracegen;
using Catch::Matchers::Contains;
using test::fake_model, test::FakeRunner, test::values_of;
using testing::minimind;
using Folder = test::TemporaryFolder;
namespace fs = std::filesystem;

namespace {

struct Killed {};

CaptureOptions real_options(const fs::path& out, std::size_t prompt, std::int64_t generate) {
  CaptureOptions o;
  o.out = out;
  o.dtype = Dtype::f32;
  o.token_ids = testing::real_ids(prompt);
  o.prompt = static_cast<std::int64_t>(prompt);
  o.generate = generate;
  return o;
}

CaptureResult run_real(const CaptureOptions& options) {
  check_capture(minimind().spec(), options);
  WorkFolder work(options.out);
  const auto runner = make_cpu_runner(minimind(), runner_options(options, work));
  return capture(minimind().spec(), *runner, work, options);
}

// A qkv trace of MiniMind2 and score traces of the same run: all keys, and the largest 40.
struct RealTraces {
  Folder folder;
  std::optional<Trace> qkv, all, some;
  RealTraces() {
    CaptureOptions o = real_options(folder / "qkv.safetensors", 224, 32);
    o.layers = {0, 3, 7};
    o.chunk = 64;
    o.scores_out = folder / "all.safetensors";
    o.scores = ScoreOptions{.top_k = 256, .rows = {}, .column_mass = true};
    run_real(o);
    o.qkv = false;
    o.out = folder / "some.safetensors";
    o.scores->top_k = 40;
    run_real(o);
    qkv = Trace::open(folder / "qkv.safetensors");
    all = Trace::open(folder / "all.safetensors");
    some = Trace::open(folder / "some.safetensors");
  }
};

const RealTraces& real_traces() {
  static const RealTraces traces;
  return traces;
}

EngineOptions chunked() {
  EngineOptions options;
  options.chunk = 64;
  return options;
}

}  // namespace

TEST_CASE("the simulator recomputes the attention of the forward pass from its trace",
          "[capture]") {
  const RealTraces& t = real_traces();
  const Trace& scores = GENERATE(true, false) ? *t.all : *t.some;
  CHECK_NOTHROW(check_trace(*t.qkv));
  CHECK_NOTHROW(check_trace(scores));
  double worst_prob = 0, worst_lse = 0, worst_mass = 0;
  for (int l = 0; l < 3; ++l) {
    const LayerScores layer(*t.qkv, l);
    const std::vector<float> prob = values_of(scores, fmt::format("layers.{}.scores.prob", l));
    const std::vector<float> lse = values_of(scores, fmt::format("layers.{}.scores.lse", l));
    const std::vector<float> mass =
        values_of(scores, fmt::format("layers.{}.scores.column_mass", l));
    const auto kept = static_cast<std::size_t>(scores.scores(l).prob->shape[2]);
    std::vector<float> terms(512);
    std::vector<double> sums(mass.size());
    for (RowIndex row = 0; row < 256; ++row) {
      for (int h = 0; h < 8; ++h) {
        const RowTerms info = layer.row(h, row, terms);
        const auto cell = static_cast<std::size_t>(row * 8 + h);
        worst_lse =
            std::max(worst_lse, std::abs(double{lse[cell]} - info.max - std::log(info.sum)));
        for (std::size_t i = 0; i < kept; ++i) {
          std::int32_t key = 0;
          std::memcpy(&key, scores.scores(l).index->bytes.data() + (cell * kept + i) * 4, 4);
          const double p =
              key < 0 ? 0.0 : double{info.terms[static_cast<std::size_t>(key)]} / info.sum;
          worst_prob = std::max(worst_prob, std::abs(double{prob[cell * kept + i]} - p));
        }
        for (std::size_t j = 0; row < 224 && j < 256; ++j) {
          const std::size_t at =
              (static_cast<std::size_t>(row) / 64 * 8 + static_cast<std::size_t>(h));
          if (static_cast<RowIndex>(j) <= row)
            sums[at * 256 + j] += double{info.terms[j]} / info.sum;
        }
      }
    }
    for (std::size_t i = 0; i < sums.size(); ++i)
      worst_mass = std::max(worst_mass, std::abs(double{mass[i]} - sums[i]));
  }
  CHECK(worst_prob < 2e-6);
  CHECK(worst_lse < 2e-5);
  CHECK(worst_mass < 1e-4);
}

TEST_CASE("for the same deaths the residual of a score trace bounds its retained mass",
          "[capture]") {
  const RealTraces& t = real_traces();
  const std::vector<RecipeSpec> snapkv{parse_spec("snapkv(budget=20%)")};
  RunReport report;
  report.trace = t.qkv->meta();
  report.runs = run_policies(*t.qkv, snapkv, chunked(), {});
  const fs::path file = t.folder / "deaths.safetensors";
  write_lifetimes(report, file);
  const std::vector<RecipeSpec> deaths{
      parse_spec(fmt::format("deaths(file=\"{}\")", file.string()))};
  const RunResult exact = run_policies(*t.qkv, deaths, chunked(), {}).at(0);
  const RunResult bounded = run_policies(*t.some, deaths, chunked(), {}).at(0);
  CHECK(exact.ledger.death == report.runs[0].ledger.death);
  CHECK(bounded.ledger.death == exact.ledger.death);
  double largest_loss = 0, largest_residual = 0;
  std::vector<std::vector<float>> prob;
  for (int l = 0; l < 3; ++l)
    prob.push_back(values_of(*t.some, fmt::format("layers.{}.scores.prob", l)));
  for (std::size_t row = 0; row < 256; ++row) {
    double residual = 0;
    for (const std::vector<float>& layer : prob) {
      for (std::size_t i = row * 8 * 40; i < (row + 1) * 8 * 40; ++i) residual -= double{layer[i]};
    }
    residual = residual / 24 + 1;
    const double truth = double{exact.fidelity->row_mass[row]};
    const double seen = double{bounded.fidelity->row_mass[row]};
    CHECK(seen <= truth + 1e-5);
    CHECK(truth <= seen + residual + 1e-5);
    largest_loss = std::max(largest_loss, 1 - truth);
    largest_residual = std::max(largest_residual, residual);
  }
  CHECK(largest_loss > 0.05);      // the policy does lose something, and
  CHECK(largest_residual > 0.05);  // the truncation does hide something
}

TEST_CASE("where a score trace leaves nothing undecided, its deaths are the qkv trace's",
          "[capture]") {
  const RealTraces& t = real_traces();
  const Trace& scores = GENERATE(true, false) ? *t.all : *t.some;
  EngineOptions options = chunked();
  options.fidelity = false;
  std::vector<RecipeSpec> served;
  const Geometry geometry = geometry_of(scores, options);
  for (const RecipeSpec& spec : expand_policies({"all"}, {"25%"})) {
    // Without values it is calibrated by another figure, as its documentation says.
    if (spec[0].name == "baklava") continue;
    try {
      (void)line_up(scores, geometry, {make_policy(spec, geometry)});
      served.push_back(spec);
    } catch (const TraceError&) {  // needs q, k or v
    }
  }
  const auto exact = run_policies(*t.qkv, served, options, {});
  const auto bounded = run_policies(scores, served, options, {});
  int decided = 0, undecided = 0, said = 0;
  for (std::size_t p = 0; p < served.size(); ++p) {
    INFO(exact[p].spec);
    CHECK(!exact[p].undecided);
    REQUIRE(bounded[p].undecided);
    // What `undecided` does not count is said: budgets and heads that follow truncated attention.
    const std::string& name = served[p][0].name;
    if (name == "simlayerkv" || name == "adakv" || name == "duoattention" || name == "prulong") {
      ++said;
      const auto of_truncation = [](const std::string& note) {
        return note.find("truncated attention") != std::string::npos;
      };
      CHECK(std::any_of(bounded[p].notes.begin(), bounded[p].notes.end(), of_truncation));
      CHECK(std::none_of(exact[p].notes.begin(), exact[p].notes.end(), of_truncation));
    }
    if (*bounded[p].undecided > 0) {
      ++undecided;
      continue;
    }
    ++decided;
    const bool same_deaths = bounded[p].ledger.death == exact[p].ledger.death;
    CHECK(same_deaths);
  }
  CHECK(decided >= 5);
  CHECK(undecided >= 1);
  CHECK(said >= 3);
}

TEST_CASE("threads and interruptions change no byte of a real capture", "[capture]") {
  const auto in = [](const Folder& folder, int threads, double stop_at) {
    CaptureOptions o = real_options(folder / "t.safetensors", 40, 4);
    o.scores_out = folder / "s.safetensors";
    o.scores = ScoreOptions{.top_k = 8, .rows = {}, .column_mass = true};
    o.progress = [&](std::string_view stage, double done) {
      if (stage == "prefill" && done > stop_at) throw Killed{};
    };
    o.threads = threads;
    run_real(o);
  };
  const Folder one, two, stopped;
  in(one, 1, 2);
  in(two, 2, 2);
  CHECK(one.files() == two.files());
  for (const double stop_at : {0.3, 0.7}) CHECK_THROWS_AS(in(stopped, 2, stop_at), Killed);
  in(stopped, 2, 2);
  CHECK(one.files() == stopped.files());
}

namespace {

// Records q, k and scores of one layer; lets rows see what a mask says.
struct Masked : AttentionHook {
  std::vector<std::uint8_t> mask;  // [kv_heads, keys] or empty
  int top_k = 0;
  std::vector<float> q, k, prob, lse;
  std::vector<std::int32_t> index;
  Emit emit(int) override { return {.qkv = true, .top_k = top_k, .lse = true}; }
  std::span<const std::uint8_t> visible(int, RowIndex, std::int64_t) override { return mask; }
  void on_qkv(const RowsQkv& rows) override {
    q.insert(q.end(), rows.q, rows.q + rows.rows * 8 * 64);
    k.insert(k.end(), rows.k, rows.k + rows.rows * 2 * 64);
  }
  void on_scores(const RowsScores& rows) override {
    prob.insert(prob.end(), rows.prob, rows.prob + rows.rows * 8 * top_k);
    index.insert(index.end(), rows.index, rows.index + rows.rows * 8 * top_k);
    lse.insert(lse.end(), rows.lse, rows.lse + rows.rows * 8);
  }
};

}  // namespace

TEST_CASE("rows see what the hook lets them see", "[capture]") {
  constexpr std::int64_t kRows = 24, kPast = 16;  // one pass, then a second that is masked
  const std::vector<std::int32_t> ids = testing::real_ids(kRows);
  const auto hidden_after = [&](Masked& past, Masked& now) {
    const auto runner = make_cpu_runner(minimind(), {.tokens = kRows, .scratch = {}});
    std::vector<float> hidden(kRows * 512);
    runner->embed(ids, hidden);
    past.top_k = now.top_k = kRows;
    runner->layer(0, 0, std::span(hidden).first(kPast * 512), past);
    runner->layer(0, kPast, std::span(hidden).subspan(kPast * 512), now);
    return hidden;
  };
  Masked past, free;
  const std::vector<float> unrestricted = hidden_after(past, free);
  Masked past_again, everything;
  everything.mask.assign(2 * kRows, 1);
  CHECK(hidden_after(past_again, everything) == unrestricted);
  CHECK(everything.prob == free.prob);

  Masked past_third, some;
  some.mask.assign(2 * kRows, 1);
  for (const std::size_t gone : {0U, 3U, 4U, 11U, 24U + 1U, 24U + 17U}) some.mask[gone] = 0;
  CHECK(hidden_after(past_third, some) != unrestricted);
  CHECK(some.q == free.q);  // of the first layer: they come before its attention
  const auto at = [](const std::vector<float>& x, std::int64_t i) {
    return double{x[static_cast<std::size_t>(i)]};
  };
  std::vector<float> k = past_third.k;
  k.insert(k.end(), some.k.begin(), some.k.end());
  for (std::int64_t row = kPast; row < kRows; ++row) {
    for (int h = 0; h < 8; ++h) {
      const int kv = h / 4;
      std::vector<double> term(kRows, 0.0);
      double sum = 0;
      for (std::int64_t j = 0; j <= row; ++j) {
        if (some.mask[static_cast<std::size_t>(kv * kRows + j)] == 0) continue;
        double dot = 0;
        for (int i = 0; i < 64; ++i)
          dot += at(some.q, ((row - kPast) * 8 + h) * 64 + i) * at(k, (j * 2 + kv) * 64 + i);
        sum += term[static_cast<std::size_t>(j)] = std::exp(dot / 8);
      }
      const std::int64_t cell = (row - kPast) * 8 + h;
      CHECK(at(some.lse, cell) == Approx(std::log(sum)).margin(2e-5));
      double seen = 0;
      for (std::int64_t i = 0; i < kRows; ++i) {
        const std::int32_t key = some.index[static_cast<std::size_t>(cell * kRows + i)];
        if (key < 0) continue;
        const double p = term[static_cast<std::size_t>(key)] / sum;
        CHECK(p > 0);  // nothing that is hidden
        CHECK(at(some.prob, cell * kRows + i) == Approx(p).margin(1e-6));
        seen += p;
      }
      CHECK(seen == Approx(1));
    }
  }
}
