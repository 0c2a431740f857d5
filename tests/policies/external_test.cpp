// SPDX-License-Identifier: Apache-2.0
// Decisions from files of the user.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policy/spec.h"
#include "sim/run/run.h"
#include "tests/support/cases.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::deaths;
using test::weights;

TEST_CASE("given scores and deaths are replayed as they are", "[policy][scores][deaths]") {
  const auto folder = std::filesystem::temp_directory_path() /
                      fmt::format("kvspan_external_{}", std::random_device{}());
  std::filesystem::create_directories(folder);
  const Trace trace = weights({0, 0, 0, 0, 0, 0}, 4);
  const std::string scores = (folder / "scores.safetensors").string();
  test::write_tensors(
      scores, {},
      {{"scores", {Dtype::f32, {1, 1, 6}, test::encode({5, 1, 4, 2, 0, 9}, Dtype::f32)}}});
  CHECK(deaths(trace, fmt::format("scores(file=\"{}\",budget=2)", scores)) ==
        std::vector<int>{6, 4, 6, 4, 6, 6});
  CHECK(deaths(trace, fmt::format("scores(file=\"{}\",budget=2,recent=1)", scores)) ==
        std::vector<int>{6, 4, 4, 6, 6, 6});
  CHECK(deaths(trace, fmt::format("scores(file=\"{}\",budget=2,at=every_pass)", scores)) ==
        std::vector<int>{6, 4, 6, 4, 5, 6});

  const std::string rows = (folder / "deaths.safetensors").string();
  const auto write = [&](std::vector<std::int32_t> values) {
    std::vector<std::byte> bytes(values.size() * 4);
    std::memcpy(bytes.data(), values.data(), bytes.size());
    test::write_tensors(rows, {}, {{"runs.0.death", {Dtype::i32, {1, 1, 6}, bytes}}});
  };
  write({2, 6, 3, 4, 6, 6});  // rows 2 and 3 lie inside the prompt's one pass
  CHECK(deaths(trace, fmt::format("deaths(file=\"{}\")", rows)) ==
        std::vector<int>{2, 6, 3, 4, 6, 6});
  write({2, 1, 3, 4, 6, 6});
  CHECK_THROWS_WITH(deaths(trace, fmt::format("deaths(file=\"{}\")", rows)),
                    Contains("token 1 dies at row 1"));
  CHECK_THROWS_WITH(deaths(trace, fmt::format("scores(file=\"{}\",budget=2)", rows)),
                    Contains("has no tensor 'scores'; it holds runs.0.death"));
  CHECK_THROWS_WITH(deaths(trace, fmt::format("deaths(file=\"{}\")", scores)),
                    Contains("has no tensor 'runs.0.death' or 'death'; it holds scores"));
  CHECK_THROWS_AS(deaths(trace, "scores(file=\"/no/such/file\",budget=2)"), TraceError);
  std::filesystem::remove_all(folder);
}

namespace {

// One tensor of one layer and head, as a file.
struct ScoreTable {
  ScoreTable(const char* name, const std::vector<double>& values, Dtype dtype = Dtype::f32) {
    const auto tokens = static_cast<std::int64_t>(values.size());
    test::write_tensors(file, {}, {{name, {dtype, {1, 1, tokens}, test::encode(values, dtype)}}});
  }
  [[nodiscard]] std::string scores(const std::string& more) const {
    return fmt::format("scores(file=\"{}\",budget=2{})", file.string(), more);
  }
  test::TemporaryFolder folder;
  std::filesystem::path file = folder.path / "a, b.safetensors";
};

}  // namespace

TEST_CASE("scores of the prompt alone are enough where nothing else is ranked", "[scores]") {
  const Trace trace = weights({0, 0, 0, 0, 0, 0}, 4);
  const ScoreTable table("scores", {5, 1, 4, 2});
  CHECK(deaths(trace, table.scores("")) == std::vector<int>{6, 4, 6, 4, 6, 6});
  CHECK_THROWS_WITH(deaths(trace, table.scores(",at=every_pass")),
                    Contains("has shape [1, 1, 4], expected [1 layers, 1 heads, 6 tokens]"));
  // Whoever ranks what comes later is told so.
  CHECK_THROWS_WITH(deaths(trace, fmt::format("decoding({},target=2,every=1)", table.scores(""))),
                    Contains("numbers of the prompt's 4 tokens, and token 4 competes, too"));
  CHECK_THROWS_WITH(deaths(trace, ScoreTable("scores", {1, 2, 3}).scores("")),
                    Contains("expected [1 layers, 1 heads, 4 or 6 tokens]"));
}

TEST_CASE("-inf is never kept, and any other score that is no number is named", "[scores]") {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const Trace trace = weights({0, 0, 0, 0, 0, 0}, 4);
  CHECK(deaths(trace, ScoreTable("scores", {-kInfinity, -1e30, -kInfinity, -9, 0, 0}).scores("")) ==
        std::vector<int>{4, 6, 4, 6, 6, 6});
  CHECK_THROWS_WITH(deaths(trace, ScoreTable("scores", {1, 2, NAN, 4, 5, 6}).scores("")),
                    Contains("layer 0, head 0, token 2 has the score nan, expected a number"));
  CHECK_THROWS_WITH(deaths(trace, ScoreTable("scores", {1, kInfinity, 3, 4, 5, 6}).scores("")),
                    Contains("token 1 has the score inf"));
}

TEST_CASE("numbers of the user may have any type that a file has", "[scores][deaths]") {
  const Trace trace = weights({0, 0, 0, 0, 0, 0}, 4);
  for (const Dtype dtype : {Dtype::f16, Dtype::bf16, Dtype::f32}) {
    CHECK(deaths(trace, ScoreTable("scores", {5, 1, 4, 2, 0, 9}, dtype).scores("")) ==
          std::vector<int>{6, 4, 6, 4, 6, 6});
    const ScoreTable rows("death", {2, 6, 3, 4, 6, 6}, dtype);
    CHECK(deaths(trace, fmt::format("deaths(file=\"{}\")", rows.file.string())) ==
          std::vector<int>{2, 6, 3, 4, 6, 6});
  }
  const ScoreTable half("death", {2.5, 6, 3, 4, 6, 6});
  CHECK_THROWS_WITH(deaths(trace, fmt::format("deaths(file=\"{}\")", half.file.string())),
                    Contains("token 0 dies at row 2.5, expected a whole row in [1, 6]"));
}

TEST_CASE("a method of the user goes by its own name", "[scores][deaths]") {
  const Trace trace = weights({0, 0, 0, 0, 0, 0}, 4);
  const ScoreTable table("scores", {5, 1, 4, 2, 0, 9});
  const auto label = [&](const std::string& spec) {
    return run_policies(trace, {parse_spec(spec)}, {}, {}).front().label;
  };
  CHECK(label(table.scores(",name=mine")) == "mine(budget=2)");
  CHECK(label(fmt::format("chunked({})", table.scores(",name=mine"))) == "chunked(mine(budget=2))");
  CHECK(label(table.scores("")) == table.scores(""));
  CHECK_THROWS_WITH(label(table.scores(",name=snapkv")), Contains("a policy of the catalogue"));
  CHECK_THROWS_WITH(label(table.scores(",name=\"a b\"")),
                    Contains("found 'a b', expected letters"));
}

// ---- trimkv -------------------------------------------------------------------------------------

TEST_CASE("trimkv keeps what its retention has left, by age", "[policy][trimkv]") {
  const test::TemporaryFolder folder;
  const std::string file = (folder / "beta.safetensors").string();
  const auto write = [&](const std::vector<double>& log_beta) {
    test::write_tensors(
        file, {}, {{"log_beta", {Dtype::f32, {1, 1, 8}, test::encode(log_beta, Dtype::f32)}}});
  };
  write({-.1, -1, -.5, -.1, -.3, -.1, 0, 0});
  const Trace trace = weights({0, 5, 0, 0, 0, 0, 0, 0}, 4);
  const auto trimkv = [&](const std::string& more) {
    return deaths(trace, fmt::format("trimkv(file=\"{}\",budget=2,buffer={})", file, more));
  };
  // 4 are held after the prompt: ages 5, 4, 3, 2, so -.5, -4, -1.5, -.2. Again after row 5: -.7 of
  // token 0, -.4 of token 3, -.9, -.2.
  CHECK(trimkv("2") == std::vector<int>{6, 4, 4, 8, 6, 8, 8, 8});
  // After row 4: of -.6, -.3 and -.6 the newer goes.
  CHECK(trimkv("1") == std::vector<int>{6, 4, 4, 7, 5, 8, 8, 8});
  CHECK(trimkv("2,recent=2") == std::vector<int>{4, 4, 6, 6, 8, 8, 8, 8});
  // + ln ||k||: ln 5 of token 1, of the others ln 1e-12.
  CHECK(trimkv("2,keys=true") == std::vector<int>{4, 8, 4, 6, 6, 8, 8, 8});
  write({0, 0, 0, 0, 0, 0, 0, .5});
  CHECK_THROWS_WITH(trimkv("2"), Contains("log_beta 0.5, expected a number up to 0"));
}
