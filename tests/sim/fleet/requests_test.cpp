// SPDX-License-Identifier: Apache-2.0
// Public request traces are read, drawn lengths have the moments that they name.
#include "sim/fleet/requests.h"

#include <cmath>
#include <fstream>

#include <catch2/catch.hpp>

#include "sim/base/error.h"
#include "sim/fleet/memory_curve.h"
#include "tests/support/temporary_folder.h"

using namespace kvspan;
using Catch::Matchers::Contains;

namespace {

class Requests {
 public:
  explicit Requests(const std::string& text) { std::ofstream(folder_.path / "requests") << text; }
  std::vector<FleetRequest> read() { return read_requests(folder_.path / "requests", &skipped); }
  std::int64_t skipped = 0;

 private:
  test::TemporaryFolder folder_;
};

double mean(const std::string& text) {
  const LengthDistribution lengths(text, "--prompt");
  const auto drawn = draw_requests({20000, 1, lengths, LengthDistribution("1", "--gen"), 5});
  double sum = 0;
  for (const FleetRequest& r : drawn) sum += static_cast<double>(r.prompt);
  return sum / 20000;
}

}  // namespace

TEST_CASE("the three public formats of request traces are told apart and read", "[fleet]") {
  Requests azure(
      "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
      "2023-11-16 18:17:03.9799600,4808,10\r\n"
      "2023-11-16 18:17:04.0319569,3180,8\r\n"
      "2023-11-17 00:00:00+00:00,0,3\n");
  const auto a = azure.read();
  REQUIRE(a.size() == 2);
  CHECK(azure.skipped == 1);
  CHECK(a[0].arrival == 0);
  CHECK(a[1].arrival == Approx(0.0519969).epsilon(1e-4));
  CHECK(a[1].prompt == 3180);
  CHECK(a[1].generated == 8);

  Requests burst(
      "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
      "45,ChatGPT,18,20,38,Conversation log\n"
      "5,ChatGPT,472,18,490,Conversation log\n");
  const auto b = burst.read();
  REQUIRE(b.size() == 2);
  CHECK(b[0].prompt == 472);
  CHECK(b[1].arrival == 40);

  Requests mooncake(
      R"({"timestamp": 27482, "input_length": 655, "output_length": 52, "hash_ids": [46, 47]})"
      "\n"
      R"({"timestamp": 30535, "input_length": 672, "output_length": 26, "hash_ids": [46, 50]})");
  const auto m = mooncake.read();
  REQUIRE(m.size() == 2);
  CHECK(m[1].arrival == Approx(3.053));
  CHECK(m[1].blocks == std::vector<std::int64_t>{46, 50});
}

TEST_CASE("what is wrong with a request trace is said with its line", "[fleet]") {
  CHECK_THROWS_WITH(Requests("").read(), Contains("found no requests"));
  CHECK_THROWS_WITH(Requests("a,b,c\n").read(),
                    Contains("line 1: found 'a', expected the columns"));
  const std::string header = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
  CHECK_THROWS_WITH(Requests(header + "yesterday,1,1\n").read(),
                    Contains("line 2: found the time 'yesterday'"));
  CHECK_THROWS_WITH(Requests(header + "2023-02-30 00:00:00.0,1,1\n").read(),
                    Contains("line 2: found the time"));
  CHECK_THROWS_WITH(Requests(header + "1,-3,1\n").read(), Contains("found '-3', expected tokens"));
  CHECK_THROWS_WITH(Requests(header + "nan,3,1\n").read(), Contains("line 2"));
  CHECK_THROWS_WITH(Requests(header + "1,3\n").read(), Contains("found 2 fields, expected 3"));
  CHECK_THROWS_WITH(Requests("{\"timestamp\": 1}").read(), Contains("'input_length'"));
  CHECK_THROWS_WITH(Requests("{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 1, "
                             "\"hash_ids\": [1, 2]}")
                        .read(),
                    Contains("at most 1 blocks"));
  CHECK_THROWS_AS(Requests("{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 1, "
                           "\"hash_ids\": 7}\n{")
                      .read(),
                  TraceError);
}

TEST_CASE("no truncation of a request trace is more than an error", "[fleet]") {
  const std::string text =
      "Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,472,18\n6.5,GPT-4,10,2\n";
  for (std::size_t size = 0; size < text.size(); ++size) {
    std::size_t read = 0;
    try {
      read = Requests(text.substr(0, size)).read().size();
    } catch (const TraceError& error) {
      CHECK_THAT(error.what(), Contains("expected"));
    }
    CHECK(read <= 2);
  }
}

TEST_CASE("lengths that are drawn have the mean that their distribution has", "[fleet]") {
  CHECK(mean("77") == 77);
  CHECK(mean("uniform(10,20)") == Approx(15).epsilon(0.01));
  CHECK(mean("exponential(300)") == Approx(300).epsilon(0.03));
  CHECK(mean("lognormal(1000,0.5)") == Approx(1000 * std::exp(0.125)).epsilon(0.03));
  for (const char* wrong : {"", "0", "-5", "uniform(5)", "uniform(9,3)", "normal(3,4)",
                            "lognormal(10,99)", "exponential(nan)", "1e99", "uniform(1,2"}) {
    CHECK_THROWS_WITH(LengthDistribution(wrong, "--prompt"), Contains("--prompt: found"));
  }
  const LengthDistribution one("1", "--gen");
  const auto drawn = draw_requests({20000, 4, one, one, 9});
  CHECK(20000 / drawn.back().arrival == Approx(4).epsilon(0.03));
}

TEST_CASE("a request's memory is the prediction's, at its lengths and between them", "[fleet]") {
  const ModelGeometry model = load_model("Llama-3.1-8B");
  const Accounting accounting;
  const RecipeSpec full = parse_spec("full");
  const RecipeSpec snapkv = parse_spec("snapkv(budget=1024)");
  std::vector<FleetRequest> requests;
  for (int i = 0; i < 40; ++i) requests.push_back({0, 1100 + 97 * i, 1 + i, {}});
  // 128 KiB a token.
  const MemoryCurve all({full, model, accounting}, requests);
  CHECK(all.prefill(3333) == 3333 * 131072);
  CHECK(all.decode(3333, 25) == 3358 * 131072);
  const MemoryCurve blocks({full, model, accounting, 1, 0, 16 * 131072}, requests);
  CHECK(blocks.decode(3333, 25) == 3360 * 131072);
  const MemoryCurve some({snapkv, model, accounting}, requests);
  CHECK(some.decode(3333, 25) == (1024 + 25) * 131072);
  CHECK(some.prefill(3333) == 3333 * 131072);
  // On four GPUs, a quarter each.
  const MemoryCurve quarter({full, model, accounting, 4}, requests);
  CHECK(quarter.decode(3333, 25) == 3358 * 131072 / 4);
  CHECK(all.basis() == Basis::closed_form);
}
