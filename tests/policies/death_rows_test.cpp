// SPDX-License-Identifier: Apache-2.0
// Whose death rows a file holds, and whether a method could have them.
#include <cstring>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/report/lifetimes_writer.h"
#include "sim/run/run.h"
#include "tests/support/temporary_file.h"
#include "tests/support/trace_builder.h"

using namespace kvspan;
using Catch::Matchers::Contains;

namespace {

void write_random_trace(const std::filesystem::path& path, std::uint64_t seed) {
  test::write_trace(path, test::random_spec({.tokens = 40, .prompt_tokens = 32, .seed = seed}));
}

void write_deaths_of(const Trace& trace, const char* policy, RowIndex chunk,
                     const std::filesystem::path& path) {
  RunRequest request;
  request.specs = {parse_spec(policy)};
  request.engine.chunk = chunk;
  request.lifetimes_path = path.string();
  request.checksum = [&] { return trace.sha256(); };
  write_lifetimes(run(trace, request), path);
}

RunResult replayed(const Trace& trace, const std::filesystem::path& deaths, RowIndex chunk) {
  EngineOptions options;
  options.chunk = chunk;
  const std::string spec = fmt::format("deaths(file=\"{}\")", deaths.string());
  return run_policies(trace, {parse_spec(spec)}, options, {})[0];
}

}  // namespace

TEST_CASE("death rows of another trace are refused", "[policy][death_rows]") {
  // Lifetimes of one text were replayed on another without a word.
  const test::TemporaryFile first, second, lifetimes;
  write_random_trace(first.path, 1);
  write_random_trace(second.path, 2);
  const Trace own = Trace::open(first.path);
  const Trace other = Trace::open(second.path);
  write_deaths_of(own, "tova(budget=10)", 8, lifetimes.path);
  CHECK(replayed(own, lifetimes.path, 8).notes.empty());
  CHECK_THROWS_WITH(replayed(other, lifetimes.path, 8),
                    Contains("is of another trace, " + first.path.string()) &&
                        Contains("expected " + second.path.string()));
  CHECK_THROWS_AS(replayed(other, lifetimes.path, 8), TraceError);
}

TEST_CASE("death rows of another chunk say so, and those that lie inside a pass",
          "[policy][death_rows]") {
  const test::TemporaryFile file, lifetimes, rows;
  write_random_trace(file.path, 1);
  const Trace trace = Trace::open(file.path);
  write_deaths_of(trace, "chunked(random(budget=25%))", 8, lifetimes.path);
  const RunResult at_other = replayed(trace, lifetimes.path, 0);
  REQUIRE(at_other.notes.size() == 2);
  CHECK(at_other.notes[0] == "death rows of a run with chunk 8; this one has prompt 32, chunk 0");
  // Chunks of 8 end at rows 8, 16 and 24, inside the one pass of 32 rows.
  CHECK(at_other.notes[1] ==
        "entries die inside a pass, in 3 rows (first: 8): eviction happens at the end of a pass, "
        "so no method reaches this footprint and peak");
  // Two layers of chunks fit: every end of 16 rows is one of 8 rows.
  write_deaths_of(trace, "chunked(random(budget=25%))", 16, lifetimes.path);
  const RunResult finer = replayed(trace, lifetimes.path, 8);
  REQUIRE(finer.notes.size() == 1);
  CHECK_THAT(finer.notes[0], Contains("chunk 16"));

  // A file of another program, with a death in row 20 of the prompt's one pass.
  std::vector<std::int32_t> values(40, 40);
  values[3] = 20;
  values[4] = 32;
  values[5] = 35;
  std::vector<std::byte> bytes(values.size() * 4);
  std::memcpy(bytes.data(), values.data(), bytes.size());
  test::write_tensors(rows.path, {}, {{"death", {Dtype::i32, {1, 1, 40}, bytes}}});
  const RunResult foreign = replayed(trace, rows.path, 0);
  REQUIRE(foreign.notes.size() == 1);
  CHECK_THAT(foreign.notes[0], Contains("in 1 row (first: 20)"));
  CHECK(replayed(trace, rows.path, 20).notes.empty());
}
