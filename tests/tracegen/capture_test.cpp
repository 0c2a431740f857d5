// SPDX-License-Identifier: Apache-2.0
#include "tracegen/capture/capture.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>

#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <tbb/task_scheduler_observer.h>

#include "sim/attention/layer_scores.h"
#include "sim/base/error.h"
#include "sim/run/run.h"
#include "sim/trace/probes.h"
#include "sim/trace/trace_tools.h"
#include "tests/support/fake_runner.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tensor_values.h"
#include "tracegen/capture/capture_input.h"
#include "tracegen/model/checkpoint.h"

using namespace kvspan;
using namespace kvspan::tracegen;
using Catch::Matchers::Contains;
using nlohmann::json;
using test::fake_model, test::FakeRunner, test::values_of;
using Folder = test::TemporaryFolder;

namespace {

namespace fs = std::filesystem;

struct Stop {};

std::vector<std::int32_t> ids_of(std::int64_t count) {
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < count; ++i) ids.push_back(static_cast<std::int32_t>(i * i * 7 % 50));
  return ids;
}

CaptureOptions base(const fs::path& out) {
  CaptureOptions o;
  o.out = out;
  o.dtype = Dtype::f32;
  o.token_ids = ids_of(23);
  o.prompt = 23;
  o.generate = 6;
  o.piece = [](std::int32_t id) { return fmt::format("<{}>", id); };
  o.spans = {{"needle", 3, 7}};
  o.special_ids = {0, 1};
  o.source = "test";
  return o;
}

CaptureResult run(const CaptureOptions& options, const ModelSpec& model = fake_model(),
                  int* layer_calls = nullptr) {
  check_capture(model, options);
  WorkFolder work(options.out);
  FakeRunner runner(model, runner_options(options, work));
  const auto finish = [&] {
    if (layer_calls != nullptr) *layer_calls = runner.layer_calls;
  };
  try {
    CaptureResult out = capture(model, runner, work, options);
    finish();
    return out;
  } catch (...) {
    finish();
    throw;
  }
}

}  // namespace

TEST_CASE("a captured trace passes the reader's full validation", "[capture]") {
  const Folder folder;
  CaptureOptions o = base(folder / "t.safetensors");
  o.dtype = GENERATE(Dtype::f16, Dtype::bf16, Dtype::f32);
  o.shards = GENERATE(Shards::automatic, Shards::layers);
  const CaptureResult result = run(o);
  CHECK(result.tokens == 29);
  CHECK(result.generated.size() == 6);
  CHECK(result.files.size() == (o.shards == Shards::layers ? 5 : 1));
  const Trace trace = Trace::open(o.out);
  CHECK_NOTHROW(check_trace(trace));
  CHECK(trace.is_qkv());
  CHECK(trace.meta().prompt_tokens == 23);
  CHECK(trace.meta().sliding_window == std::vector<std::int64_t>{0, 7, 0, 0});
  CHECK(trace.meta().spans.at(0).name == "needle");
  CHECK(trace.token_text(1) == "<7>");
  const std::vector<std::int32_t> ids = trace.token_ids();
  CHECK(std::equal(o.token_ids.begin(), o.token_ids.end(), ids.begin()));
  CHECK(std::equal(result.generated.begin(), result.generated.end(), ids.begin() + 23));
  CHECK(!fs::exists(folder / "t.safetensors.partial"));
  // The means are those of the file.
  const std::vector<float> nll = values_of(trace, "nll");
  CHECK(nll.back() == 0);
  double sum = 0;
  for (const float value : nll) sum += static_cast<double>(value);
  CHECK(result.all->mean == Approx(sum / 28));
  CHECK(result.in_prompt->tokens == 22);
  CHECK(result.after_prompt->tokens == 6);
}

TEST_CASE("generated tokens given as text make the same trace", "[capture]") {
  const Folder folder;
  CaptureOptions o = base(folder / "a.safetensors");
  const CaptureResult free = run(o);
  CaptureOptions forced = base(folder / "b.safetensors");
  forced.token_ids.insert(forced.token_ids.end(), free.generated.begin(), free.generated.end());
  forced.generate = 0;
  forced.chunk = GENERATE(0, 7);
  const CaptureResult given = run(forced);
  CHECK(given.tokens == free.tokens);
  CHECK(given.after_prompt->mean == Approx(free.after_prompt->mean));
  const Trace a = Trace::open(o.out), b = Trace::open(forced.out);
  REQUIRE(a.tensors().tensors().size() == b.tensors().tensors().size());
  for (const auto& [name, view] : a.tensors().tensors()) {
    INFO(name);
    if (view.dtype != Dtype::f32) {
      CHECK(std::ranges::equal(view.bytes, b.tensors().find(name)->bytes));
      continue;
    }
    // Products of one row and of many may round otherwise.
    const std::vector<float> x = values_of(a, name), y = values_of(b, name);
    REQUIRE(x.size() == y.size());
    for (std::size_t i = 0; i < x.size(); ++i)
      CHECK(double{x[i]} == Approx(double{y[i]}).margin(1e-5));
  }
}

TEST_CASE("an interrupted capture, resumed, is the uninterrupted one byte for byte", "[capture]") {
  CaptureOptions o = base({});
  o.scores = ScoreOptions{.top_k = 5, .rows = {}, .column_mass = true};
  o.chunk = 8;
  o.sampling = {.temperature = 0.8, .top_p = 0.9, .top_k = 20, .seed = 3};
  o.shards = GENERATE(Shards::one, Shards::layers);
  const auto capture_in = [&](const Folder& folder, int stop_at, int* calls) {
    CaptureOptions here = o;
    here.out = folder / "t.safetensors";
    here.scores_out = folder / "s.safetensors";
    int reports = 0;
    here.progress = [&](std::string_view, double) {
      // What a process leaves that dies here lies in the work folder.
      for (const auto& entry : fs::directory_iterator(folder.path))
        CHECK(entry.path().extension() != ".tmp");
      if (++reports == stop_at) throw Stop{};
    };
    run(here, fake_model(), calls);
    return reports;
  };
  const Folder whole;
  int all_calls = 0;
  const int reports = capture_in(whole, -1, &all_calls);
  CHECK(reports > 30);
  for (int stop_at = 1; stop_at <= reports; stop_at += 1 + stop_at / 9) {
    INFO("stopped at report " << stop_at);
    const Folder folder;
    CHECK_THROWS_AS(capture_in(folder, stop_at, nullptr), Stop);
    // Whatever has its name is whole, and nothing else lies beside the work folder.
    for (const auto& [name, content] : folder.files()) {
      if (name.starts_with("t.safetensors.partial/")) continue;
      CHECK(whole.files().contains(name));
      CHECK(whole.files()[name] == content);
    }
    const bool past_a_layer = stop_at > reports / 2;
    int calls = 0;
    capture_in(folder, -1, &calls);
    if (past_a_layer) CHECK(calls < all_calls);
    CHECK(folder.files() == whole.files());
  }
}

TEST_CASE("a trace that was being written when the process died is finished", "[capture]") {
  const Folder whole, folder;
  CaptureOptions o = base(whole / "t.safetensors");
  o.shards = Shards::layers;
  run(o);
  // A folder in the place of the third shard makes its writing fail.
  o.out = folder / "t.safetensors";
  fs::create_directory(folder / "t-00003-of-00004.safetensors");
  CHECK_THROWS_WITH(run(o), Contains("is a directory"));
  CHECK(fs::exists(folder / "t-00002-of-00004.safetensors"));
  CHECK(!fs::exists(folder / "t.safetensors.index.json"));
  fs::remove(folder / "t-00003-of-00004.safetensors");
  std::string said;
  o.say = [&](const std::string& line) { said += line; };
  int calls = -1;
  const CaptureResult result = run(o, fake_model(), &calls);
  CHECK(calls == 0);
  CHECK_THAT(said, Contains("remains to be written"));
  CHECK(result.generated.size() == 6);
  CHECK(folder.files() == whole.files());
}

TEST_CASE("other options start afresh, and say what changed", "[capture]") {
  const Folder folder;
  CaptureOptions o = base(folder / "t.safetensors");
  o.progress = [](std::string_view, double done) {
    if (done > 0.6) throw Stop{};
  };
  CHECK_THROWS_AS(run(o), Stop);
  CHECK(fs::exists(folder / "t.safetensors.partial"));
  o.progress = {};
  std::string said;
  o.say = [&](const std::string& line) { said += line; };
  SECTION("the same ones go on") {
    CHECK(run(o).resumed_layers > 0);
    CHECK_THAT(said, Contains("resuming after layer"));
  }
  SECTION("another dtype") {
    o.dtype = Dtype::bf16;
    CHECK(run(o).resumed_layers == 0);
    CHECK_THAT(said, Contains("these changed: --dtype)"));
  }
  SECTION("another text") {
    o.token_ids[2] = 9;
    run(o);
    CHECK_THAT(said, Contains("these changed: token_ids)"));
  }
  SECTION("another checkpoint") {
    o.identity = R"({"checkpoint": "other"})";
    run(o);
    CHECK_THAT(said, Contains("these changed: checkpoint)"));
  }
  SECTION("a damaged journal") {
    std::ofstream(folder / "t.safetensors.partial/journal.json") << "{\"layers\": 3";
    CHECK(run(o).resumed_layers == 0);
  }
  SECTION("a machine that lost power before a short layer was on the disk") {
    const fs::path path = folder / "t.safetensors.partial/journal.json";
    json journal = json::parse(std::ifstream(path));
    CHECK(journal.at("boot") != "");
    journal["boot"] = "another";
    std::ofstream(path) << journal;
    CHECK(run(o).resumed_layers == 0);
    CHECK_THAT(said, Contains("the machine has been started since"));
  }
  SECTION("a missing file") {
    for (const char* name : {"hidden.0", "hidden.1"})
      fs::remove(folder / "t.safetensors.partial/data" / name);
    run(o);
    CHECK_THAT(said, Contains("is missing"));
  }
  SECTION("a missing file of a complete layer") {
    const std::string name = GENERATE("layers.0.q", "kv.1.v");
    REQUIRE(fs::remove(folder / "t.safetensors.partial/data" / name));
    CHECK(run(o).resumed_layers == 0);
    CHECK_THAT(said, Contains(name + " is missing"));
  }
  SECTION("a file of a complete layer that lost its end") {
    fs::resize_file(folder / "t.safetensors.partial/data/layers.0.k", 100);
    CHECK(run(o).resumed_layers == 0);
  }
  SECTION("a journal of another shape") {
    const fs::path path = folder / "t.safetensors.partial/journal.json";
    json journal = json::parse(std::ifstream(path));
    const auto [key, value] = GENERATE(table<std::string, json>({{"layers", -1},
                                                                 {"layers", "x"},
                                                                 {"layers", 7},
                                                                 {"layers", nullptr},
                                                                 {"prefill_seconds", "x"},
                                                                 {"decode_seconds", -1},
                                                                 {"tokens", 1},
                                                                 {"tokens", 29},
                                                                 {"tokens", "x"}}));
    journal[key] = value;
    std::ofstream(path) << journal;
    run(o);
    CHECK_THAT(said, Contains("its journal is damaged"));
  }
  CHECK_NOTHROW(check_trace(Trace::open(o.out)));
  CHECK(!fs::exists(folder / "t.safetensors.partial"));
}

TEST_CASE("a part of a trace that is lost before it is written is computed again", "[capture]") {
  const Folder whole, folder;
  CaptureOptions o = base(whole / "t.safetensors");
  o.generate = GENERATE(0, 3);
  o.shards = GENERATE(Shards::one, Shards::layers);
  run(o);
  o.out = folder / "t.safetensors";
  std::ofstream(o.out) << "an older trace";  // not to be taken for the one that is written
  o.progress = [](std::string_view stage, double done) {
    if (stage == "writing" && done > 0.3) throw Stop{};
  };
  CHECK_THROWS_AS(run(o), Stop);
  const std::string name = GENERATE("layers.2.q", "layers.3.v", "nll", "token_text");
  // The first shard, which held the text, may be complete.
  REQUIRE(fs::remove(folder / "t.safetensors.partial/data" / name));
  o.progress = {};
  run(o);
  CHECK(folder.files() == whole.files());
}

TEST_CASE("a folder that no capture made stays as it is", "[capture]") {
  const Folder folder;
  fs::create_directory(folder / "t.safetensors.partial");
  std::ofstream(folder / "t.safetensors.partial/notes.txt") << "mine";
  CHECK_THROWS_WITH(WorkFolder(folder / "t.safetensors"), Contains("not a folder of an inter"));
  CHECK(folder.files().size() == 1);
  // What is put into a work folder survives it.
  {
    const WorkFolder work(folder / "u.safetensors");
    std::ofstream(folder / "u.safetensors.partial/notes.txt") << "mine";
  }
  CHECK(folder.files().size() == 2);
  CHECK(folder.files().contains("u.safetensors.partial/notes.txt"));
}

TEST_CASE("a work folder that is removed can be another process's at once", "[capture]") {
  const Folder folder;
  std::optional<WorkFolder> first(std::in_place, folder / "t.safetensors");
  first->remove();
  WorkFolder second(folder / "t.safetensors");
  second.reserve("x", 8);
  first.reset();
  CHECK(second.bytes("x") == 8);
}

TEST_CASE("only reserved files of a work folder can be written", "[capture]") {
  const Folder folder;
  WorkFolder work(folder / "t.safetensors");
  CHECK_THROWS_WITH(work.write("x", 0, {}), Contains("cannot be opened"));
}

// oneTBB's threads hold what belongs to an observer until they end, and that is after the check.
// NOLINTNEXTLINE(bugprone-reserved-identifier)
extern "C" const char* __lsan_default_suppressions() { return "leak:tbb::detail::r1::observe"; }

TEST_CASE("a capture of one thread starts no other", "[capture]") {
  // Threads that help the one that captures outside the arena that it was given.
  struct Helpers : tbb::task_scheduler_observer {
    std::atomic<int> seen = 0;
    Helpers() { observe(true); }
    ~Helpers() override { observe(false); }
    void on_scheduler_entry(bool is_worker) override { seen += is_worker ? 1 : 0; }
  };
  const Folder folder;
  CaptureOptions o = base(folder / "t.safetensors");
  o.token_ids = ids_of(600);
  o.prompt = 600;
  o.generate = 0;
  o.threads = 1;
  const Helpers helpers;
  run(o);
  CHECK(helpers.seen == 0);
}

TEST_CASE("a plan counts as many probabilities as there are keys", "[capture]") {
  CaptureOptions o = base("t.safetensors");
  o.scores = ScoreOptions{.top_k = 29, .rows = {}};
  const std::int64_t all = plan_capture(fake_model(), o).memory_bytes;
  o.scores->top_k = 100'000'000;
  CHECK(plan_capture(fake_model(), o).memory_bytes == all);
}

TEST_CASE("two processes cannot write the same trace", "[capture]") {
  const Folder folder;
  const WorkFolder work(folder / "t.safetensors");
  CHECK_THROWS_WITH(WorkFolder(folder / "t.safetensors"), Contains("another process"));
}

TEST_CASE("generation that stops early leaves as many rows as tokens", "[capture]") {
  const Folder folder;
  CaptureOptions o = base(folder / "a.safetensors");
  o.scores = ScoreOptions{.top_k = 4, .rows = {}, .column_mass = true};
  o.scores_out = folder / "as.safetensors";
  o.shards = GENERATE(Shards::one, Shards::layers);
  const std::vector<std::int32_t> generated = run(o).generated;
  o.stop = generated[2];
  o.out = folder / "b.safetensors";
  o.scores_out = folder / "bs.safetensors";
  const auto length =
      std::find(generated.begin(), generated.end(), *o.stop) - generated.begin() + 1;
  const CaptureResult stopped = run(o);
  CHECK(stopped.tokens == 23 + length);
  // What remains is a prefix of the longer trace.
  for (const char* kind : {"", "s"}) {
    const Trace a = Trace::open(folder / fmt::format("a{}.safetensors", kind));
    const Trace b = Trace::open(folder / fmt::format("b{}.safetensors", kind));
    CHECK_NOTHROW(check_trace(b));
    CHECK(b.meta().tokens == 23 + length);
    for (const auto& [name, view] : b.tensors().tensors()) {
      INFO(name);
      const TensorView& longer = *a.tensors().find(name);
      if (name == "nll" || name.ends_with("column_mass")) continue;
      CHECK(std::equal(view.bytes.begin(), view.bytes.end(), longer.bytes.begin()));
    }
  }
}

TEST_CASE("scores are those of the qkv trace, for the rows that were asked for", "[capture]") {
  const Folder folder;
  CaptureOptions o = base(folder / "t.safetensors");
  o.scores_out = folder / "s.safetensors";
  o.chunk = 10;
  o.layers = {1, 3};
  o.scores = ScoreOptions{.top_k = 100, .rows = {}, .column_mass = true};
  o.scores->rows = GENERATE(RowChoice{}, RowChoice{.last = 4, .every = 1}, RowChoice{0, 5});
  run(o);
  const Trace qkv = Trace::open(o.out), scores = Trace::open(o.scores_out);
  CHECK_NOTHROW(check_trace(scores));
  CHECK(scores.meta().layer_ids == std::vector<int>{1, 3});
  CHECK(scores.meta().model_layers == 4);
  CHECK(scores.meta().passes == std::vector<std::int64_t>{10, 20, 23});
  std::vector<std::int64_t> expected;
  for (std::int64_t row = 0; row < 29; ++row) {
    const bool kept = o.scores->rows.last > 0 ? row >= 19 : row % o.scores->rows.every == 0;
    if (kept || row >= 22) expected.push_back(row);
  }
  for (int l = 0; l < 2; ++l) {
    REQUIRE(scores.scores(l).rows == expected);
    const std::vector<float> q = values_of(qkv, fmt::format("layers.{}.q", l));
    const std::vector<float> k = values_of(qkv, fmt::format("layers.{}.k", l));
    const std::vector<float> prob = values_of(scores, fmt::format("layers.{}.scores.prob", l));
    const std::vector<float> lse = values_of(scores, fmt::format("layers.{}.scores.lse", l));
    const std::vector<float> mass =
        values_of(scores, fmt::format("layers.{}.scores.column_mass", l));
    std::vector<double> sums(3 * 4 * 29);
    const std::int64_t window = l == 0 ? 7 : 29;
    std::size_t slot = 0;
    for (std::int64_t row = 0; row < 29; ++row) {
      const bool kept = slot < expected.size() && expected[slot] == row;
      for (int h = 0; h < 4; ++h) {
        std::vector<double> z(29, -INFINITY);
        double total = 0;
        for (std::int64_t j = std::max<std::int64_t>(0, row - window + 1); j <= row; ++j) {
          double dot = 0;
          for (int i = 0; i < 6; ++i) {
            dot += static_cast<double>(q[static_cast<std::size_t>((row * 4 + h) * 6 + i)]) *
                   static_cast<double>(k[static_cast<std::size_t>((j * 2 + h / 2) * 6 + i)]);
          }
          z[static_cast<std::size_t>(j)] = dot / std::sqrt(6.0);
          total += std::exp(z[static_cast<std::size_t>(j)]);
        }
        if (row < 23) {
          const std::size_t pass = row < 10 ? 0 : row < 20 ? 1 : 2;
          for (std::size_t j = 0; j < 29; ++j)
            sums[(pass * 4 + static_cast<std::size_t>(h)) * 29 + j] += std::exp(z[j]) / total;
        }
        if (!kept) continue;
        const std::size_t cell = slot * 4 + static_cast<std::size_t>(h);
        CHECK(static_cast<double>(lse[cell]) == Approx(std::log(total)).epsilon(1e-5));
        for (std::size_t i = 0; i < 29; ++i) {
          std::int32_t key = 0;
          std::memcpy(&key, scores.scores(l).index->bytes.data() + (cell * 29 + i) * 4, 4);
          const double p = key < 0 ? 0.0 : std::exp(z[static_cast<std::size_t>(key)]) / total;
          CHECK(static_cast<double>(prob[cell * 29 + i]) == Approx(p).margin(1e-6));
        }
      }
      if (kept) ++slot;
    }
    REQUIRE(mass.size() == sums.size());
    for (std::size_t i = 0; i < mass.size(); ++i)
      CHECK(static_cast<double>(mass[i]) == Approx(sums[i]).margin(1e-5));
  }
}

// ---- Replayed rows ------------------------------------------------------------------------------

TEST_CASE("a replay asks for its context chunk by chunk", "[capture][replay]") {
  const std::vector<std::int32_t> ids = ids_of(23);
  const ContextReplay replay = make_replay(ids, 2, 21, 10, {{40, 41}, {42}, {43}});
  REQUIRE(replay.passes.size() == 2);
  const ReplayPass &first = replay.passes[0], &second = replay.passes[1];
  CHECK((first.begin == 2 && first.end == 12 && second.begin == 12 && second.end == 21));
  std::vector<std::int32_t> expected{40, 41, 43};
  expected.insert(expected.end(), ids.begin() + 2, ids.begin() + 12);
  CHECK(first.ids == expected);
  expected = {42};  // the part that starts with the last eight tokens of the first
  expected.insert(expected.end(), ids.begin() + 4, ids.begin() + 12);
  expected.push_back(43);
  expected.insert(expected.end(), ids.begin() + 12, ids.begin() + 21);
  CHECK(second.ids == expected);
  CHECK(replay.at == 21);
  CHECK(replay.rows() == 13 + 19);
  CHECK(replay.most_rows() == 19);
  CHECK_THROWS_WITH(make_replay(ids, 5, 5, 10, {}), Contains("--replay: the context is [5, 5)"));
}

TEST_CASE("replayed rows are those of a text that goes on so, and leave the rest as it is",
          "[capture][replay]") {
  const Folder folder;
  // Products of few rows and of many may round otherwise.
  const auto same = [](std::span<const float> x, std::span<const float> y) {
    return std::ranges::equal(x, y, [](float a, float b) { return std::abs(a - b) < 1e-5F; });
  };
  CaptureOptions o = base(folder / "plain.safetensors");
  o.layers = {1, 3};
  run(o);
  CaptureOptions asked = o;
  asked.out = folder / "asked.safetensors";
  const std::int64_t at = GENERATE(18, 23);
  asked.replay = make_replay(o.token_ids, 1, at, 12, {{40, 41}, {42}, {43}});
  asked.replay->norms = [](int layer, std::span<const float> hidden, std::span<float> out) {
    for (std::size_t r = 0; r < out.size(); ++r)
      out[r] = static_cast<float>(layer) + std::abs(hidden[r * hidden.size() / out.size()]);
  };
  run(asked);
  const Trace plain = Trace::open(o.out), trace = Trace::open(asked.out);
  CHECK_NOTHROW(check_trace(trace));
  CHECK(plain.token_ids() == trace.token_ids());
  for (const char* name : {"layers.0.q", "layers.0.k", "layers.1.k", "layers.1.v", "nll"}) {
    INFO(name);
    CHECK(same(values_of(plain, name), values_of(trace, name)));
  }
  const std::vector<Probe> probes = probes_of(trace);
  REQUIRE(probes.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    // The context, and the request behind it, as one text.
    CaptureOptions text = base(folder / "text.safetensors");
    text.layers = o.layers;
    text.generate = 0;
    text.token_ids.resize(static_cast<std::size_t>(at));
    const std::vector<std::int32_t>& request = asked.replay->passes[i].ids;
    text.token_ids.insert(text.token_ids.end(), request.begin(), request.end());
    text.prompt = std::ssize(text.token_ids);
    run(text);
    const Trace whole = Trace::open(text.out);
    for (int l = 0; l < 2; ++l) {
      for (const auto& [name, of_text] : {std::pair("probe.q", "q"), std::pair("probe.k", "k")}) {
        INFO(name << ", pass " << i << ", layer " << l);
        const std::vector<float> x = values_of(trace, layer_tensor(l, name));
        const std::vector<float> y = values_of(whole, layer_tensor(l, of_text));
        const std::size_t width = y.size() / static_cast<std::size_t>(text.prompt);
        const std::size_t first = static_cast<std::size_t>(probes[i].first) * width;
        const std::span<const float> expected = std::span(y).last(request.size() * width);
        CHECK(same(std::span(x).subspan(first, expected.size()), expected));
      }
    }
  }
  const std::vector<float> norms = values_of(trace, "layers.1.probe.norm");
  CHECK(norms.size() == static_cast<std::size_t>(asked.replay->rows()));
  CHECK(std::ranges::all_of(norms, [](float x) { return x >= 3; }));
}

TEST_CASE("an interrupted replay, resumed, is the uninterrupted one", "[capture][replay]") {
  const Folder folder;
  CaptureOptions o = base(folder / "a.safetensors");
  o.replay = make_replay(o.token_ids, 0, 20, 8, {{40}, {41}, {42}});
  run(o);
  CaptureOptions cut = o;
  cut.out = folder / "b.safetensors";
  cut.progress = [](std::string_view stage, double done) {
    if (stage == "prefill" && done > 0.6) throw Stop();
  };
  CHECK_THROWS_AS(run(cut), Stop);
  cut.progress = nullptr;
  CHECK(run(cut).resumed_layers > 0);
  CHECK(folder.files().at("a.safetensors") == folder.files().at("b.safetensors"));
}

TEST_CASE("a replay is refused where a trace cannot hold it", "[capture][replay]") {
  const Folder folder;
  CaptureOptions o = base(folder / "t.safetensors");
  o.replay = make_replay(o.token_ids, 0, 20, 8, {});
  o.scores = ScoreOptions{.top_k = 5, .rows = {}, .column_mass = true};
  o.scores_out = folder / "s.safetensors";
  CHECK_THROWS_WITH(check_capture(fake_model(), o), Contains("inside a prefill pass"));
  o.chunk = 10;
  CHECK_NOTHROW(check_capture(fake_model(), o));
  o.qkv = false;
  CHECK_THROWS_WITH(check_capture(fake_model(), o), Contains("does not hold replayed rows"));
}

TEST_CASE("the output projection is stored as given", "[capture]") {
  const Folder folder;
  CaptureOptions o = base(folder / "t.safetensors");
  o.layers = {2};
  o.wo = [](int layer, std::int64_t first, std::int64_t rows, float* out) {
    for (std::int64_t i = 0; i < rows * 24; ++i)
      out[i] = static_cast<float>(layer * 1000 + first * 24 + i);
  };
  run(o);
  const std::vector<float> wo = values_of(Trace::open(o.out), "layers.0.wo");
  REQUIRE(wo.size() == 24 * 24);
  CHECK(wo.front() == 2000);
  CHECK(wo.back() == 2000 + 575);
}

TEST_CASE("sampling follows temperature, top-k, top-p and seed", "[capture]") {
  const Folder folder;
  const auto tokens = [&](const Sampling& sampling) {
    CaptureOptions o = base(folder / "t.safetensors");
    o.generate = 12;
    o.sampling = sampling;
    return run(o).generated;
  };
  const auto greedy = tokens({});
  CHECK(tokens({.temperature = 5, .top_p = 1, .top_k = 1, .seed = 1}) == greedy);
  CHECK(tokens({.temperature = 5, .top_p = 1e-9, .top_k = 0, .seed = 1}) == greedy);
  CHECK(tokens({.temperature = 1e-3, .top_p = 1, .top_k = 0, .seed = 1}) == greedy);
  const Sampling free{.temperature = 1, .top_p = 1, .top_k = 0, .seed = 1};
  CHECK(tokens(free) != greedy);
  CHECK(tokens(free) == tokens(free));
  Sampling other = free;
  other.seed = 2;
  CHECK(tokens(free) != tokens(other));
}

TEST_CASE("numbers that the trace's type cannot hold are refused by name", "[capture]") {
  std::vector<std::byte> bytes;
  const std::vector<float> large{1.0F, 70000.0F};
  CHECK_THROWS_WITH(narrow(large, Dtype::f16, "layer 3: k", bytes),
                    "layer 3: k holds 70000, which F16 cannot; --dtype bf16 or f32 can");
  CHECK_NOTHROW(narrow(large, Dtype::bf16, "k", bytes));
  const std::vector<float> broken{std::nanf("")};
  CHECK_THROWS_WITH(narrow(broken, Dtype::f32, "k", bytes), Contains("damaged"));
}

TEST_CASE("options that do not fit the model are refused before anything is written", "[capture]") {
  const Folder folder;
  const ModelSpec model = fake_model();
  const auto refused = [&](const std::string& why, const std::function<void(CaptureOptions&)>& f) {
    CaptureOptions o = base(folder / "t.safetensors");
    f(o);
    CHECK_THROWS_WITH(check_capture(model, o), Contains(why));
  };
  refused("expected a name that ends in .safetensors", [](auto& o) { o.out = "x.bin"; });
  refused("there is no folder", [](auto& o) { o.out = "/nowhere/x.safetensors"; });
  refused("the text has no tokens", [](auto& o) { o.token_ids.clear(); });
  refused("token 2 has id 50; the vocabulary of fake has ids 0 to 49",
          [](auto& o) { o.token_ids[2] = 50; });
  refused("has id -1", [](auto& o) { o.token_ids[2] = -1; });
  refused("found 24, and the text has 23 tokens", [](auto& o) { o.prompt = 24; });
  refused("--layers: found 4", [](auto& o) { o.layers = {0, 4}; });
  refused("ascending", [](auto& o) { o.layers = {2, 2}; });
  refused("--span: needle", [](auto& o) { o.spans = {{"needle", 20, 24}}; });
  refused("--scores-out", [](auto& o) {
    o.scores = ScoreOptions{};
    o.scores_out = o.out;
  });
  refused("--dtype", [](auto& o) {
    o.qkv = false;
    o.scores = ScoreOptions{};
    o.dtype = Dtype::bf16;
  });
  refused("--temperature", [](auto& o) { o.sampling.top_p = 0; });
  CHECK(folder.files().empty());
}

TEST_CASE("token ids are read from lists, numbers and traces", "[capture]") {
  const Folder folder;
  const auto ids = [&](const std::string& text) {
    std::ofstream(folder / "ids.txt") << text;
    return read_token_ids(folder / "ids.txt");
  };
  const std::vector<std::int32_t> expected{1, 50, 7};
  CHECK(ids("[1, 50,\n 7]\n") == expected);
  CHECK(ids(" 1 50\n7") == expected);
  CHECK(ids("[1]") == std::vector<std::int32_t>{1});
  CHECK_THROWS_WITH(ids("[1, x2]"), Contains("token 1 is 'x2', not a token id"));
  CHECK_THROWS_WITH(ids("1 -2"), Contains("token 1 is '-2'"));
  CHECK_THROWS_WITH(ids("1 2.5"), Contains("'2.5'"));
  CHECK_THROWS_WITH(ids("99999999999"), Contains("'99999999999'"));
  CHECK_THROWS_WITH(ids("[]"), Contains("holds no token ids"));
  CHECK_THROWS_WITH(ids(""), Contains("is empty"));
  CHECK_THROWS_WITH(read_token_ids(folder / "none"), Contains("No such file"));
  CHECK_THROWS_WITH(read_token_ids(folder.path), Contains("a folder"));
  const CaptureOptions o = base(folder / "t.safetensors");
  run(o);
  const auto again = read_token_ids(o.out);
  CHECK(again == Trace::open(o.out).token_ids());
}

TEST_CASE("a span is a range, or the tokens that cover a text", "[capture]") {
  const std::vector<std::string> pieces{"", "The", " pass", " key", " is ", "7", "7.", " key"};
  const auto range = [&](const std::string& option) {
    const Span span = parse_span(option, pieces);
    CHECK(span.name == "a");
    return std::pair(span.begin, span.end);
  };
  CHECK(range("a=2:4") == std::pair<std::int64_t, std::int64_t>(2, 4));
  CHECK(range("a=key is 77") == std::pair<std::int64_t, std::int64_t>(3, 7));
  CHECK(range("a=The") == std::pair<std::int64_t, std::int64_t>(1, 2));
  CHECK(range("a= key") == std::pair<std::int64_t, std::int64_t>(3, 4));
  CHECK(range("a=s k") == std::pair<std::int64_t, std::int64_t>(2, 4));
  CHECK_THROWS_WITH(range("a=lock"), Contains("'lock' does not stand in the 8 tokens"));
  CHECK_THROWS_WITH(range("a\xff=1:2"), Contains("is not valid UTF-8"));
  for (const char* wrong : {"a", "=x", "a="})
    CHECK_THROWS_WITH(parse_span(wrong, pieces), Contains("expected NAME=TEXT or NAME=BEGIN:END"));
}

TEST_CASE("a trace says in which precision it was computed", "[capture]") {
  CHECK(provenance("BF16", false, false) == "kvspan capture, fp32 forward pass of BF16 weights");
  CHECK(provenance("F16", true, false) ==
        "kvspan capture, fp32 forward pass on a GPU of F16 weights");
  CHECK_THAT(provenance("F16", true, true), !Contains("fp32"));
}
