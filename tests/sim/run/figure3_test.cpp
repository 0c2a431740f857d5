// SPDX-License-Identifier: Apache-2.0
// The footprint axis of Figure 3 of arXiv 2506.17121, from the lengths of its Table 4. The
// published points (tests/studies/figure3/figure3.json) were read off the figure's pixels, to about
// half a point.
#include <fstream>
#include <map>

#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/models/model_geometry.h"
#include "sim/policy/registry.h"
#include "sim/predict/analytic.h"
#include "sim/predict/paper_formulas.h"

using namespace kvspan;
using nlohmann::json;

namespace {

json figure3() {
  std::ifstream in(KVSPAN_TESTS_DIR "/studies/figure3/figure3.json");
  return json::parse(in);
}

double full_area(std::int64_t n, std::int64_t m) {
  return static_cast<double>(n + m) * static_cast<double>(n + m + 1) / 2;
}

// Percent; mean over the data sets of a task. s: share of streaming heads, or of entries evicted.
double footprint(const json& data, const std::string& task, const std::string& method, double s,
                 double output_share, std::int64_t chunk) {
  double sum = 0;
  for (const json& length : data["lengths"][task]) {
    const auto n = length[0].get<std::int64_t>();
    const auto m = static_cast<std::int64_t>(length[1].get<double>() * output_share + 0.5);
    const double full = full_area(n, m);
    if (method == "PyramidKV patched") {
      sum += static_cast<double>(
                 evicting_head(n, m, chunk, s, data["observation_window"]).entry_rows) /
             full;
    } else {
      const HeadArea streaming = streaming_head(n, m, chunk, data["sinks"], data["window"]);
      sum += s * static_cast<double>(streaming.entry_rows) / full + (1 - s);
    }
  }
  return 100 * sum / static_cast<double>(data["lengths"][task].size());
}

// Largest distance from the published points of a curve, in points.
double worst(const json& data, const json& curve, double output_share) {
  double out = 0;
  for (const json& point : curve["points"]) {
    const double computed = footprint(data, curve["task"], curve["method"], point[0], output_share,
                                      data["chunk"].get<std::int64_t>());
    out = std::max(out, std::abs(computed - point[1].get<double>()));
  }
  return out;
}

}  // namespace

TEST_CASE("published footprints follow from the published lengths", "[figure3]") {
  const json data = figure3();
  int curves = 0;
  for (const json& curve : data["curves"]) {
    const auto task = curve["task"].get<std::string>();
    INFO(task << ", " << curve["method"]);
    if (task == "HTML->TSV" || task == "Travel") {
      // Real outputs are shorter than the nominal lengths, which moves these curves.
      if (curve["method"] == "PyramidKV patched") CHECK(worst(data, curve, 1.0) < 3.0);
      continue;
    }
    CHECK(worst(data, curve, 1.0) < 0.7);
    ++curves;
  }
  CHECK(curves == 9);
}

TEST_CASE("one output length a task explains what is left, for all methods", "[figure3]") {
  const json data = figure3();
  for (const json& curve : data["curves"]) {
    const auto task = curve["task"].get<std::string>();
    if (!data["output_share"].contains(task)) continue;
    INFO(task << ", " << curve["method"]);
    CHECK(worst(data, curve, data["output_share"][task]) < 0.7);
  }
}

// PruLong streams whole heads, 76 of 256 full ones where the metric takes 76.8. The published
// figure is the metric's; the authors' program (preset=prulong) keeps its window inside every
// chunk's share, and prefills all but the prompt's last token.
TEST_CASE("the policies themselves land on the published footprints", "[figure3]") {
  const json data = figure3();
  const auto footprint = [&](const std::string& task, const std::string& spec) {
    double sum = 0;
    for (const json& length : data["lengths"][task]) {
      const Geometry geometry =
          geometry_of(load_model("Llama-3.1-8B"), length[0], length[1], data["chunk"], 2);
      sum += predict(make_policy(spec, geometry), geometry, {}).footprint;
    }
    return 100 * sum / static_cast<double>(data["lengths"][task].size());
  };
  for (const json& curve : data["curves"]) {
    const auto task = curve["task"].get<std::string>();
    if (data["output_share"].contains(task)) continue;
    for (const json& point : curve["points"]) {
      const double s = point[0];
      const bool streams = curve["method"] != "PyramidKV patched";
      const double published = point[1];
      INFO(task << ", " << curve["method"] << ", " << s);
      if (streams) {
        const std::string spec = fmt::format("prulong(sparsity={:.1f}", s);
        CHECK(footprint(task, spec + ")") == Approx(published).margin(1.0));
        CHECK(footprint(task, spec + ",full=quantile)") == Approx(published).margin(1.0));
        continue;
      }
      const auto patched = [&](const std::string& settings) {
        return footprint(task, fmt::format("chunked(pyramidkv(budget={:.0f}%,{}),variant=patched)",
                                           100 * (1 - s), settings));
      };
      const double metric = patched("window=64,pool=avg,kernel=5");
      const double program = patched("preset=prulong");
      CHECK(metric == Approx(published).margin(0.7));
      // 64 entries less of every chunk of 32,768.
      CHECK(program < metric);
      CHECK(program > metric - 0.3);
    }
  }
}

TEST_CASE("eviction after the prompt saves next to nothing where eviction by chunks saves half",
          "[figure3]") {
  const json data = figure3();
  // Prompts of 91 to 121 thousand tokens, outputs of at most 100.
  for (const char* task : {"Recall", "RAG", "ICL"}) {
    INFO(task);
    const double once = footprint(data, task, "PyramidKV patched", 0.9, 1.0, 131072);
    const double chunked = footprint(data, task, "PyramidKV patched", 0.9, 1.0, 32768);
    const double small_chunks = footprint(data, task, "PyramidKV patched", 0.9, 1.0, 8192);
    CHECK(once > 99.8);
    CHECK(chunked < 40);
    CHECK(small_chunks < 20);
  }
  // A long output (6K in, 3K out) is where it helps at all: 60.5 % in the paper's own formula.
  CHECK(footprint(data, "Travel", "PyramidKV patched", 0.9, 1.0, 131072) ==
        Approx(60.5).margin(0.5));
}
