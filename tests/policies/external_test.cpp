// SPDX-License-Identifier: Apache-2.0
// Decisions from files of the user.
#include <cstring>
#include <filesystem>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "tests/support/cases.h"
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
                    Contains("has no tensor 'scores'"));
  CHECK_THROWS_AS(deaths(trace, "scores(file=\"/no/such/file\",budget=2)"), TraceError);
  std::filesystem::remove_all(folder);
}
