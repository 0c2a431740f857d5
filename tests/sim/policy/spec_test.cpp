// SPDX-License-Identifier: Apache-2.0
#include "sim/policy/spec.h"

#include <algorithm>

#include <catch2/catch.hpp>

#include "sim/base/error.h"
#include "sim/policy/registry.h"
#include "sim/run/run.h"

using namespace kvspan;
using Catch::Matchers::Contains;

namespace {

Geometry small_geometry() {
  Geometry g;
  g.model_layers = 4;
  g.layer_ids = {0, 1, 2, 3};
  g.query_heads = 4;
  g.kv_heads = 2;
  g.k_dim = g.v_dim = 8;
  g.tokens = 120;
  g.prompt = g.evict_point = 100;
  return g;
}

std::string canonical(const std::string& text) { return make_policy(text, small_geometry()).spec; }

}  // namespace

TEST_CASE("a specification reads back as it is written", "[spec]") {
  for (const char* text :
       {"full", "snapkv(budget=512)", "chunked(snapkv(budget=10%,window=16),count=metric)",
        "pyramid(beta=20)+snapkv(budget=64MiB)", "scores(file=\"a b.safetensors\",budget=12.5%)",
        "h2o(heavy={1,2},recent={3,4})"}) {
    CHECK(to_text(parse_spec(text)) == text);
  }
  CHECK(to_text(parse_spec(" snapkv ( budget = 5 , window=3 ) + pyramid ( ) ")) ==
        "snapkv(budget=5,window=3)+pyramid");
}

TEST_CASE("a set expands into one run each, the last set fastest", "[spec]") {
  std::vector<std::string> texts;
  for (const RecipeSpec& s : expand_sets(
           parse_spec("chunked(h2o(heavy={1,2},recent=9),count={metric,implementation})"))) {
    texts.push_back(to_text(s));
  }
  CHECK(texts == std::vector<std::string>{"chunked(h2o(heavy=1,recent=9),count=metric)",
                                          "chunked(h2o(heavy=1,recent=9),count=implementation)",
                                          "chunked(h2o(heavy=2,recent=9),count=metric)",
                                          "chunked(h2o(heavy=2,recent=9),count=implementation)"});
}

TEST_CASE("a malformed specification says where and what was expected", "[spec]") {
  CHECK_THROWS_WITH(parse_spec(""), Contains("the name of a policy at position 1, found the end"));
  CHECK_THROWS_WITH(parse_spec("snapkv(budget=5"), Contains("',' or ')' at position 16"));
  CHECK_THROWS_WITH(parse_spec("snapkv)"), Contains("position 7, found ')'"));
  CHECK_THROWS_WITH(parse_spec("snapkv(budget=)"), Contains("a value at position 15"));
  CHECK_THROWS_WITH(parse_spec("snapkv(budget=5,budget=6)"),
                    Contains("'budget' of snapkv is given twice"));
  CHECK_THROWS_WITH(parse_spec("snapkv(budget={1,2)"), Contains("',' or '}'"));
  CHECK_THROWS_WITH(parse_spec("scores(file=\"abc)"), Contains("a closing '\"'"));
  std::string deep;
  for (int i = 0; i < 100; ++i) deep += "chunked(";
  CHECK_THROWS_WITH(parse_spec(deep), Contains("nested wrappers"));
  CHECK_THROWS_AS(expand_sets(parse_spec(
                      "h2o(heavy={1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1},"
                      "recent={1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1},"
                      "a={1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1},"
                      "b={1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1})")),
                  ConfigError);
}

TEST_CASE("no text crashes the parser", "[spec]") {
  std::uint64_t state = 1;
  const std::string alphabet = "ab(){},=+\"\\% 1.@";
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    for (int n = 0; n < 24; ++n) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      text += alphabet[(state >> 33U) % alphabet.size()];
    }
    try {
      const RecipeSpec spec = parse_spec(text);
      CHECK(to_text(parse_spec(to_text(spec))) == to_text(spec));
    } catch (const ConfigError&) {
      SUCCEED();
    }
  }
}

TEST_CASE("sizes are tokens, exact shares of the prompt, or bytes", "[spec]") {
  CHECK(Amount::parse("1024", "b").mantissa == 1024);
  CHECK(Amount::parse("64MiB", "b").mantissa == 64 << 20);
  CHECK(Amount::parse("1.5KiB", "b").mantissa == 1536);
  // The exact decimal product: 32 % of 1000 is 320, where int(1000 * 0.32) in double also holds,
  // and 41 where int(410 * (1 - 0.9)) is 40.
  CHECK(Amount::parse("10%", "b").share_of(410) == 41);
  CHECK(Amount::parse("68%", "b").share_of(1000) == 680);
  CHECK(Amount::parse("12.5%", "b").share_of(80) == 10);
  CHECK(Amount::parse("1%", "b").share_of(50) == 1);
  CHECK(Amount::parse("100%", "b").share_of(77) == 77);
  // s is the double nearest to 1 - r.
  CHECK(Amount::parse("10%", "b").one_minus_share() == 0.9);
  CHECK(Amount::parse("33%", "b").one_minus_share() == 0.67);
  CHECK(Amount::parse("99.9%", "b").one_minus_share() == 0.001);
  for (const char* bad : {"0", "-1", "0%", "101%", "ten", "10GB", "5.5", "%", "", "1e3"}) {
    INFO(bad);
    CHECK_THROWS_AS(Amount::parse(bad, "budget"), ConfigError);
  }
}

TEST_CASE("the canonical text writes every parameter in declaration order", "[spec]") {
  CHECK(canonical("full") == "full(model_window=keep)");
  CHECK(
      canonical("snapkv(kernel=5,budget=10)") ==
      "snapkv(budget=10,window=32,kernel=5,pool=max,group=mean,order=group_then_pool,preset=none)");
  CHECK(canonical("streaming_llm") ==
        "streaming_llm(sinks=4,window=1020,budget=auto,positions=original)");
  CHECK(canonical("streaming_llm(budget=10%)") ==
        "streaming_llm(sinks=auto,window=auto,budget=10%,positions=original)");
  CHECK(canonical("h2o(heavy=3,recent=4)") ==
        "h2o(heavy=3,recent=4,budget=auto,group=sum,variant=real_drop,heavy_share=auto,"
        "recent_share=auto,normalise=false,weight=none,grace=auto)");
  CHECK(canonical("pyramidkv(budget=50)") ==
        "pyramidkv(budget=50,window=8,kernel=7,pool=max,group=mean,order=group_then_pool,beta=20,"
        "rounding=code,preset=none)");
  CHECK(canonical("duoattention(sparsity=0.5)") ==
        "duoattention(heads=auto,sparsity=0.5,sinks=128,window=1024)");
  CHECK(canonical("chunked(tova(budget=10%))") ==
        "chunked(tova(budget=10%),count=metric,variant=naive,compete=all,small=budget)");
  for (const char* text :
       {"full", "snapkv(budget=7)", "streaming_llm(budget=9)", "h2o", "random(seed=3)",
        "chunked(snapkv(budget=10%))", "pyramid+snapkv(budget=20)", "duoattention"}) {
    INFO(text);
    CHECK(canonical(canonical(text)) == canonical(text));
  }
}

TEST_CASE("a wrong policy, key or value is refused with the nearest valid one", "[spec]") {
  const auto refuses = [](const char* text, const char* why) {
    INFO(text);
    CHECK_THROWS_WITH(canonical(text), Contains(why));
    CHECK_THROWS_AS(canonical(text), ConfigError);
  };
  refuses("snapvk", "did you mean 'snapkv'?");
  refuses("snapkv(budgt=5)", "did you mean 'budget'?");
  refuses("snapkv(budget=abc)",
          "expected tokens (1024), a share of the prompt (10%) or bytes (64MiB)");
  refuses("snapkv(window=0)", "expected 1 to");
  refuses("snapkv(window=1.5)", "expected a whole number");
  refuses("snapkv(kernel=4)", "expected an odd number; nearest: 5");
  refuses("snapkv(pool=maks)", "did you mean 'max'?");
  refuses("snapkv(full)", "takes no policy inside");
  refuses("pyramidkv(beta=0.5)", "expected 1 to");
  refuses("duoattention(sparsity=1.5)", "expected 0 to 1");
  refuses("h2o(heavy=5)", "heavy and recent go together");
  refuses("h2o(heavy=5,recent=5,budget=5)", "either budget, or heavy and recent");
  refuses("streaming_llm(budget=5,sinks=1)", "either budget, or sinks and window");
  refuses("scores(budget=5)", "needs the parameter 'file'");
  refuses("snapkv(budget=255B)", "need at least 256 B");  // 4 layers x 2 heads x (8 + 8) x 2 bytes
}

TEST_CASE("recipes compose where that has a meaning, and are refused with the reason where not",
          "[spec]") {
  CHECK(canonical("pyramid(beta=5)+snapkv(budget=20)") ==
        "pyramid(beta=5,rounding=code,window=auto)+snapkv(budget=20,window=32,kernel=7,pool=max,"
        "group=mean,order=group_then_pool,preset=none)");
  CHECK(make_policy("pyramidkv+h2o(budget=20)", small_geometry()).rules.size() == 1);
  CHECK_THROWS_WITH(canonical("pyramid"), Contains("cannot run alone"));
  CHECK_THROWS_WITH(canonical("snapkv+h2o"), Contains("both bring their own scorer"));
  CHECK_THROWS_WITH(canonical("pyramid+pyramidkv"), Contains("both bring their own budget shape"));
  CHECK_THROWS_WITH(canonical("duoattention+snapkv"), Contains("both bring their own scorer"));
  CHECK_THROWS_WITH(canonical("chunked(full)"), Contains("full ranks nothing"));
  CHECK_THROWS_WITH(canonical("chunked(streaming_llm)"),
                    Contains("it evicts after every pass as it is"));
  CHECK_THROWS_WITH(canonical("chunked(chunked(snapkv))"), Contains("it is chunked already"));
  CHECK_THROWS_WITH(canonical("chunked"), Contains("takes a policy first"));
  CHECK_THROWS_WITH(canonical("chunked(snapkv(budget=10),compete=frozen)"),
                    Contains("give a share"));
  CHECK_THROWS_WITH(canonical("chunked(tova,variant=patched)"), Contains("observation window"));
  CHECK_THROWS_WITH(canonical("chunked(snapkv)+h2o"),
                    Contains("put the wrapper around the whole recipe"));
  CHECK_THROWS_WITH(canonical("h2o(snapkv)"), Contains("h2o takes no policy inside"));
}

TEST_CASE("--budget reaches every policy that has one, and leaves sized ones alone", "[spec]") {
  const auto texts = [](const std::vector<std::string>& specs,
                        const std::vector<std::string>& budgets) {
    std::vector<std::string> out;
    for (const RecipeSpec& s : expand_policies(specs, budgets)) out.push_back(to_text(s));
    return out;
  };
  CHECK(texts({"snapkv", "full", "h2o(heavy=1,recent=2)", "chunked(tova)"}, {"5", "10%"}) ==
        std::vector<std::string>{"snapkv(budget=5)", "snapkv(budget=10%)", "full",
                                 "h2o(heavy=1,recent=2)", "chunked(tova(budget=5))",
                                 "chunked(tova(budget=10%))"});
  const auto all = texts({"all"}, {});
  const auto alone = std::count_if(registry().begin(), registry().end(), [](const PolicyEntry& e) {
    return !e.wrapper && !e.needs_file && e.alone.empty();
  });
  CHECK(all.size() == static_cast<std::size_t>(alone));  // no external, no wrapper, no bare shape
  CHECK(all.front() == "full");
  CHECK_THROWS_WITH(expand_policies({"@/no/such/file.json"}, {}),
                    Contains("cannot read policy file"));
}

TEST_CASE("--match targets are checked", "[spec]") {
  CHECK(parse_match("footprint=0.4").value == 0.4);
  CHECK(parse_match("footprint=40%").value == 0.4);
  CHECK(parse_match("peak_bytes=2MiB").value == 2097152);
  CHECK(parse_match("retained=0.9").what == MatchTarget::What::mass);
  CHECK(parse_match("mass=0.9").what == MatchTarget::What::mass);  // its name before
  CHECK_THROWS_WITH(parse_match("footprnt=0.4"), Contains("did you mean 'footprint'?"));
  CHECK_THROWS_AS(parse_match("footprint=1.4"), ConfigError);
  CHECK_THROWS_AS(parse_match("footprint"), ConfigError);
  CHECK_THROWS_AS(parse_match("mass=abc"), ConfigError);
}
