// SPDX-License-Identifier: Apache-2.0
#include "sim/predict/analytic.h"

#include <algorithm>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/models/model_geometry.h"
#include "sim/predict/paper_formulas.h"
#include "tests/support/model_cases.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::one_head;
using Points = std::vector<std::int64_t>;

namespace {

std::string digits(double value) { return fmt::format("{:.10f}", value); }

}  // namespace

TEST_CASE("a streaming head's area and peak points are the paper's", "[analytic]") {
  const auto check = [](std::int64_t n, std::int64_t m, std::int64_t c, std::int64_t s,
                        std::int64_t w, std::int64_t area, const Points& points) {
    const HeadArea head = streaming_head(n, m, c, s, w);
    CHECK(head.entry_rows == area);
    CHECK(head.peak_points == points);
    const Geometry g = one_head(n, m, c);
    const Prediction p =
        predict(make_policy(fmt::format("streaming_llm(sinks={},window={})", s, w), g), g, {});
    CHECK(p.entry_rows == area);
    CHECK(p.peak_kv * static_cast<double>(n + m) ==
          Approx(static_cast<double>(*std::max_element(points.begin(), points.end()))));
  };
  check(8, 3, 4, 1, 2, 44, {4, 7, 4});
  check(10, 4, 4, 2, 3, 73, {4, 8, 7, 6});
  check(5, 3, 5, 1, 2, 27, {5, 4});
  check(4, 4, 2, 0, 3, 26, {2, 4, 4});
}

TEST_CASE("an evicting head's area and peak points are the paper's", "[analytic]") {
  const auto check = [](std::int64_t n, std::int64_t m, std::int64_t c, double s, std::int64_t w,
                        std::int64_t area, const Points& points) {
    const HeadArea head = evicting_head(n, m, c, s, w);
    CHECK(head.entry_rows == area);
    CHECK(head.peak_points == points);
  };
  check(8, 3, 4, .5, 0, 46, {4, 6, 7});
  check(8, 3, 4, .5, 1, 56, {4, 7, 9});
  check(10, 4, 4, .5, 1, 89, {4, 7, 8, 12});
  check(12, 2, 5, .9, 2, 66, {5, 7, 6, 8});
  // The same counts from chunked(snapkv), whose window is part of the metric's count.
  const Geometry g = one_head(12, 2, 5);
  CHECK(predict(make_policy("chunked(snapkv(budget=10%,window=2))", g), g, {}).entry_rows == 66);
  const Geometry g2 = one_head(10, 4, 4);
  CHECK(predict(make_policy("chunked(snapkv(budget=50%,window=1))", g2), g2, {}).entry_rows == 89);
}

TEST_CASE("the paper's real sizes come out to all printed digits", "[analytic]") {
  struct Row {
    std::int64_t n, m, c, sinks, window;
    double s;
    std::int64_t w;
    double h;
    const char *footprint, *peak;
  };
  for (const Row& r : {Row{131072, 128, 32768, 128, 1024, 0, 0, .7, "0.4838851526", "0.4806829268"},
                       Row{131072, 128, 8192, 128, 1024, 0, 0, .7, "0.3551947355", "0.3495609756"},
                       Row{131072, 128, 128, 128, 1024, 0, 0, .7, "0.3129202213", "0.3065365854"},
                       Row{131072, 128, 32768, 0, 0, .7, 64, 0, "0.4761199954", "0.4759908537"},
                       Row{131072, 128, 131072, 0, 0, .7, 64, 0, "0.9986364470", "0.9990243902"},
                       Row{131072, 128, 32768, 0, 0, .7, 0, 0, "0.4746542124", ""},
                       Row{131072, 128, 131072, 0, 0, .7, 0, 0, "0.9986354952", ""},
                       Row{131072, 128, 8192, 0, 0, .7, 64, 0, "0.3510412343", "0.3507774390"},
                       Row{121000, 20, 32768, 0, 0, .9, 64, 0, "0.3310660730", "0.3259791770"},
                       Row{12000, 1000, 32768, 128, 1024, 0, 0, .5, "0.9328601942", "0.9230769231"},
                       Row{6000, 1000, 32768, 0, 0, .1, 64, 0, "0.9781255739", "0.9234285714"}}) {
    const FootprintAndPeak got = mixed(streaming_head(r.n, r.m, r.c, r.sinks, r.window),
                                       evicting_head(r.n, r.m, r.c, r.s, r.w), r.h, r.n, r.m);
    CHECK(digits(got.footprint) == r.footprint);
    if (*r.peak != '\0') CHECK(digits(got.peak) == r.peak);
  }
}

TEST_CASE("policies predict the paper's figures through their own capacities", "[analytic]") {
  // 10 KV heads in all, so that 70 % of them is exact.
  const ModelGeometry ten{"ten heads", 1, 10, 10, 4, 4, {0}, {}};
  const Geometry g = geometry_of(ten, 131072, 128, 32768, 2);
  const Prediction duo = predict(make_policy("duoattention(sparsity=0.7)", g), g, {});
  CHECK(digits(duo.footprint) == "0.4838851526");
  CHECK(digits(duo.peak_kv) == "0.4806829268");
  const Prediction snap = predict(make_policy("chunked(snapkv(budget=30%,window=64))", g), g, {});
  CHECK(digits(snap.footprint) == "0.4761199954");
  CHECK(digits(snap.peak_kv) == "0.4759908537");
  const Geometry whole = geometry_of(ten, 131072, 128, 131072, 2);
  const Prediction post =
      predict(make_policy("chunked(snapkv(budget=30%,window=64))", whole), whole, {});
  CHECK(digits(post.footprint) == "0.9986364470");
  CHECK(digits(post.peak_kv) == "0.9990243902");
}

TEST_CASE("bytes at the end of a run are the published ones", "[analytic]") {
  // Llama-3.1-8B, 16-bit, n = 32768, 1,024 generated; values after a final eviction.
  const ModelGeometry llama = load_model("llama-3.1-8b");
  const Geometry g = geometry_of(llama, 32768, 1024, 0, 2);
  const auto bytes_at_end = [&](const std::string& spec) {
    const Policy policy = make_policy(spec, g);
    std::int64_t entries = 0;
    for (int l = 0; l < 32; ++l) {
      for (int h = 0; h < 8; ++h) {
        std::int64_t held = 32768 + 1024;
        for (const Rule& rule : policy.rules) {
          const TokenCount kept =
              rule.budget->kept(g.shape(l, false), h, rule.sizing({0, 32768, 32768, 32768, {}}));
          if (kept == kAll) continue;
          held = rule.schedule.decode_every > 0 ? std::min<std::int64_t>(held, kept)
                                                : std::min<std::int64_t>(32768, kept) + 1024;
        }
        entries += held;
      }
    }
    return entries * g.entry_bytes();
  };
  CHECK(bytes_at_end("full") == 4429185024);
  CHECK(bytes_at_end("snapkv(budget=1024)") == 268435456);
  CHECK(bytes_at_end("h2o(heavy=3276,recent=3276)") == 858783744);
  CHECK(bytes_at_end("streaming_llm(sinks=4,window=2044)") == 268435456);
  CHECK(bytes_at_end("duoattention(sparsity=0.5,window=256)") == 2239758336);
  CHECK(bytes_at_end("pyramidkv(budget=1024)") == 269090816);
  CHECK(make_policy("h2o(heavy=3276,recent=3276)", g).charge.entry * 6552 * 256 == 6709248);
}

TEST_CASE("the full cache of known models has its quoted size", "[analytic]") {
  const auto full = [](const char* model, std::int64_t tokens) {
    const Geometry g = geometry_of(load_model(model), tokens, 0, 0, 2);
    return predict(make_policy("full", g), g, {}).peak_bytes.total;
  };
  CHECK(full("Llama-3.1-70B", 128000) == 128000LL * 327680);  // "42 GB", arXiv 2506.17121 section 1
  CHECK(full("Qwen3-4B", 32768) == 4831838208);               // 4.5 GiB, ForesightKV's figure
  CHECK(full("Llama-3.1-8B", 1) == 131072);                   // 128 KiB a token
  CHECK(full("Llama-3.1-70B", 1000000) == 327680000000);      // "330 GB", kvpress
}

TEST_CASE("post-fill eviction saves almost nothing on long prompts, chunked eviction a lot",
          "[analytic]") {
  const ModelGeometry llama = load_model("Llama-3.1-8B");
  const Geometry whole = geometry_of(llama, 121000, 20, 0, 2);
  CHECK(predict(make_policy("snapkv(budget=10%)", whole), whole, {}).footprint > 0.999);
  const Geometry chunks = geometry_of(llama, 121000, 20, 32768, 2);
  CHECK(predict(make_policy("chunked(snapkv(budget=10%))", chunks), chunks, {}).footprint < 0.34);
}

TEST_CASE("what has no closed form, or an unknown model, is refused", "[analytic]") {
  const Geometry g = one_head(10, 2, 0);
  CHECK_THROWS_WITH(load_model("Llama-3.1-9B"), Contains("did you mean 'Llama-3.1-8B'?"));
  CHECK_THROWS_WITH(load_model("/no/such/config.json"), Contains("cannot read"));
  Accounting paged;
  paged.layout = "paged16_per_head";
  CHECK_THROWS_WITH(predict(make_policy("full", g), g, paged),
                    Contains("paged16_per_head_compact"));
  CHECK_THROWS_AS(geometry_of(load_model("Qwen3-8B"), 0, 5, 0, 2), ConfigError);
}
