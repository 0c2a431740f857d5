// SPDX-License-Identifier: Apache-2.0
// The real program, as a user runs it: output, files, error lines and exit codes.
#include <fmt/ranges.h>

#include "sim/report/catalogue.h"
#include "sim/run/run.h"
#include "sim/trace/safetensors.h"
#include "tests/support/program.h"

using namespace kvspan::test;
using Catch::Matchers::Contains;

TEST_CASE("the paper's worked example is 26 of 36 on the command line", "[cli]") {
  const Folder folder;
  const Outcome out = program("run " + trace("tiny-paper.safetensors") +
                              " --policy \"streaming_llm(sinks=0,window=3)\" --prompt 1 --out " +
                              (folder / "r.json"));
  CHECK(out.code == 0);
  CHECK_THAT(out.text, Contains("72.2"));
  CHECK_THAT(out.text, Contains("memory held"));
  CHECK_THAT(program("run " + trace("tiny-paper.safetensors") + " --no-chart").text,
             !Contains("memory held"));
  const nlohmann::json run = read_json(folder / "r.json")["runs"][0];
  CHECK(run["entry_rows"] == 26);
  CHECK(run["full_entry_rows"] == 36);
}

TEST_CASE("every output of one run agrees with the others", "[cli]") {
  const Folder folder;
  const std::string result = folder / "result.json";
  const Outcome out =
      program(fmt::format("run {} --policy all --budget 25% --chunk 512 --quiet --out {} --csv {} "
                          "--svg {} --lifetimes {} --timeline {}",
                          trace("smollm2-passkey.safetensors"), result, folder / "r.csv",
                          folder / "r.svg", folder / "l.safetensors", folder / "t.safetensors"));
  INFO(out.text);
  REQUIRE(out.code == 0);
  const nlohmann::json json = read_json(result);
  CHECK(json["schema_version"] == 1);
  CHECK(json["trace"]["sha256"] == kvspan::sha256_of_files({trace("smollm2-passkey.safetensors")}));
  CHECK(json["runs"].size() == kvspan::expand_policies({"all"}, {}).size());
  CHECK(json["runs"][0]["footprint"] == 1.0);
  CHECK(json["chunk"] == 512);
  // Given deaths give the same figures again.
  std::size_t snap = 0;
  while (!json["runs"][snap]["policy"].get<std::string>().starts_with("snapkv(")) ++snap;
  const Outcome again = program(fmt::format(
      "run {} --policy 'deaths(file=\"{}\",run={})' --chunk 512 --quiet --out {}",
      trace("smollm2-passkey.safetensors"), folder / "l.safetensors", snap, folder / "again.json"));
  INFO(again.text);
  REQUIRE(again.code == 0);
  const nlohmann::json replayed = read_json(folder / "again.json")["runs"][0];
  for (const char* key :
       {"footprint", "peak_kv", "entry_rows", "peak_bytes", "byte_rows", "fidelity", "spans"}) {
    INFO(key);
    CHECK(replayed[key] == json["runs"][snap][key]);
  }
  CHECK_THAT(read_text(folder / "r.svg"), Contains("</svg>"));
  CHECK_THAT(read_text(folder / "r.csv"), Contains("peak_bytes.total"));
  const kvspan::TensorSet timeline = kvspan::TensorSet::open(folder / "t.safetensors");
  CHECK(timeline.find("runs.0.entries") != nullptr);
}

TEST_CASE("a wrong command line is one line, and exit code 2", "[cli]") {
  const std::string t = trace("tiny-picture.safetensors");
  fails("", 2, "subcommand");
  fails("rnu " + t, 2, "did you mean 'run'?");
  fails("run " + t + " --polcy full", 2, "did you mean '--policy'?");
  fails("run " + t + " --policy snapvk", 2, "did you mean 'snapkv'?");
  fails("run " + t + " --policy \"snapkv(budgt=1)\"", 2, "did you mean 'budget'?");
  fails("run " + t + " --policy \"snapkv(budget=1\"", 2, "position 16");
  fails("run " + t + " --policy full --chunk -1", 2, "chunk: found -1");
  fails("run " + t + " --policy full --prompt 99", 2, "expected 1 to 12");
  fails("run " + t + " --policy full --evict-at nedle", 2, "did you mean 'needle'?");
  // More digits than 64 bits hold were an internal error.
  fails("run " + t + " --policy full --evict-at 99999999999999999999", 2, "has no span");
  fails("run " + t + " --policy full --fidelity some", 2, "all, none or rows=K");
  fails("run " + t + " --policy full --layout paded", 2, "did you mean 'padded'?");
  fails("run " + t + " --quiet --policy full --match footprint=0.5", 2, "no parameter to tune");
  fails("run " + t + " --policy full --out /no/such/folder/x.json", 2, "there is no folder");
  fails("policies nosuch", 2, "unknown policy 'nosuch'");
  fails("trace slice " + t + " --layers 7 --out /tmp/kvspan_never.safetensors", 2, "7");
}

TEST_CASE("KVSPAN_SIMD chooses the instructions, or says what it knows", "[cli]") {
  const auto with = [](const std::string& name) {
    return shell("KVSPAN_SIMD=" + name + " " + KVSPAN_PROGRAM + " policies snapkv 2>&1");
  };
  CHECK(with("''").code == 0);
#if defined(__x86_64__)
  CHECK(with("SSE4").code == 0);
  CHECK(with("sse5").code == 2);
  CHECK(with("sse5").text ==
        "kvspan: KVSPAN_SIMD: found 'sse5', expected one of avx512, avx2, sse4; did you mean "
        "'sse4'?\n");
  CHECK(with("neon").text ==
        "kvspan: KVSPAN_SIMD: found 'neon', expected one of avx512, avx2, sse4\n");
#endif
}

TEST_CASE("wrong input data is one line, and exit code 3", "[cli]") {
  fails("run /no/such/trace.safetensors --policy full", 3, "/no/such/trace.safetensors");
  fails("trace check " + std::string(KVSPAN_TRACES_DIR) + "/README.md", 3, "README.md");
  fails("run " + trace("tiny-scores.safetensors") +
            " --quiet --policy \"chunked(snapkv(budget=50%,window=2),variant=patched)\" --chunk 4",
        3, "layers.*.q");
}

TEST_CASE("--evict-at a span and --match run on the bundled trace", "[cli]") {
  const Folder folder;
  const std::string t = trace("smollm2-passkey.safetensors");
  REQUIRE(
      program("run " + t +
              " --policy \"snapkv(budget=10%)\" --evict-at question --fidelity none --lifetimes " +
              (folder / "l.safetensors") + " --out " + (folder / "r.json"))
          .code == 0);
  CHECK(read_json(folder / "r.json")["runs"][0]["timeline"]["resident_entries"].size() > 10);
  REQUIRE(program("run " + t +
                  " --policy tova --policy snapkv --prompt 512 --match footprint=40% --fidelity "
                  "rows=4 --out " +
                  (folder / "m.json"))
              .code == 0);
  const nlohmann::json matched = read_json(folder / "m.json");
  CHECK(matched["runs"][0]["footprint"].get<double>() == Approx(0.4).margin(1e-3));
  CHECK(matched["runs"][0]["match"]["met"] == true);
  // What snapkv keeps after the prompt stays: the 1,368 rows of decode alone are more.
  CHECK(matched["runs"][1]["footprint"].get<double>() > 0.6);
  CHECK(matched["runs"][1]["match"]["reachable"] == false);
}

TEST_CASE("the optimum of a trace, and regrets against it", "[cli]") {
  const Folder folder;
  const std::string t = trace("tiny-picture.safetensors");
  const Outcome out = program("optimum " + t + " --budget 3,50%,3 --shared --reference --out " +
                              (folder / "o.json"));
  INFO(out.text);
  REQUIRE(out.code == 0);
  CHECK_THAT(out.text, Contains("optimum_global") && Contains("each proved best") &&
                           Contains("equal Boost's min-cost flow"));
  const nlohmann::json found = read_json(folder / "o.json");
  REQUIRE(found["budgets"].size() == 2);
  CHECK(found["budgets"][0]["entries"] == 3);
  CHECK(found["budgets"][1]["budget"] == "50%");
  CHECK(found["optimum_by_entries"].size() ==
        found["budgets"][1]["entries"].get<std::size_t>() + 1);
  CHECK(found["optimum_by_entries"][3] == found["budgets"][0]["optimum"]);
  CHECK(found["frontier"]["retained_mass"].back().get<double>() == Approx(1));

  // The plans as runs: they retain what was said.
  REQUIRE(
      program("optimum " + t + " --budget 3,50% --quiet --lifetimes " + (folder / "l.safetensors"))
          .code == 0);
  REQUIRE(program(fmt::format("run {} --policy \"deaths(file={},run={{0,1}})\" --out {}", t,
                              folder / "l.safetensors", folder / "d.json"))
              .code == 0);
  const nlohmann::json replayed = read_json(folder / "d.json")["runs"];
  for (std::size_t b = 0; b < 2; ++b) {
    CHECK(replayed[b]["fidelity"]["decode"]["retained_mass"]["mean"].get<double>() ==
          Approx(found["budgets"][b]["optimum"].get<double>()));
    CHECK(replayed[b]["footprint"].get<double>() ==
          Approx(found["budgets"][b]["footprint"].get<double>()));
  }

  const Outcome run =
      program("run " + t + " --policy tova --budget 4 --regret --tradeoff " + (folder / "t.svg") +
              " --out " + (folder / "r.json") + " --optimum " + (folder / "best.safetensors"));
  INFO(run.text);
  REQUIRE(run.code == 0);
  CHECK_THAT(run.text, Contains("regret"));
  CHECK_THAT(read_text(folder / "t.svg"), Contains("tova") && Contains("<polygon"));
  const nlohmann::json result = read_json(folder / "r.json");
  CHECK(result["runs"][0]["optimum"]["regret"].get<double>() >= 0);
  CHECK(result["frontier"]["footprint"].size() > 2);

  const Outcome errors =
      program("optimum " + t + " --budget 3,99% --value error --out " + (folder / "e.json"));
  INFO(errors.text);
  REQUIRE(errors.code == 0);
  CHECK_THAT(errors.text, Contains("least") && Contains("no policy has a regret in errors"));
  const nlohmann::json bounds = read_json(folder / "e.json");
  CHECK(bounds["value"] == "error");
  CHECK(bounds["budgets"][0]["plan"]["weighted_error"].get<double>() <=
        bounds["budgets"][0]["least_bound"].get<double>() + 1e-6);
  CHECK(bounds["budgets"][0]["plan_of_most_mass"]["retained_mass"].get<double>() ==
        Approx(found["budgets"][0]["optimum"].get<double>()));
  fails("optimum " + t + " --value error --shared", 2, "--shared: found --value error");
  fails("optimum " + t + " --value mas", 2, "mass");

  fails("optimum " + t + " --budget 99", 2, "expected at most the 12 of the trace");
  fails("optimum " + t + " --budget 1MiB", 2, "tokens (94) or a share");
  fails("optimum " + t + " --rows some", 2, "decode");
  fails("optimum " + trace("smollm2-passkey.safetensors") + " --reference --quiet", 2,
        "at most 512 entries, and there are 1880");
  fails("optimum " + trace("tiny-scores.safetensors") + " --quiet", 3, "a qkv trace has them all");
  // The plan of tova's own occupancy, as a run.
  REQUIRE(program("run " + t + " --policy \"deaths(file=" + (folder / "best.safetensors") +
                  ")\" --out " + (folder / "b.json"))
              .code == 0);
  CHECK(read_json(folder / "b.json")["runs"][0]["fidelity"]["decode"]["retained_mass"]["mean"]
            .get<double>() == Approx(result["runs"][0]["optimum"]["retained_mass"].get<double>()));
  fails("run " + t + " --policy full --optimum " + (folder / "n.safetensors"), 2,
        "--optimum writes the plans");
  fails("run " + t + " --policy full --regret --fidelity none", 2, "--regret: found --fidelity");
}

TEST_CASE("a fit says how good it is, and its weights run", "[cli]") {
  const Folder folder;
  const std::string from = "fit locret --train " + trace("smollm2-passkey.safetensors") + " --out ";
  const Outcome out = program(from + (folder / "w") + " --json " + (folder / "w.json"));
  CHECK(out.code == 0);
  CHECK_THAT(out.text, Contains("not the authors' weights"));
  CHECK_THAT(out.text, Contains("test Kendall tau"));
  const nlohmann::json about = read_json(folder / "w.json");
  CHECK(about["train_score"].get<std::string>() > "0.4");
  CHECK(about["train_sha256"] == kvspan::sha256_of_files({trace("smollm2-passkey.safetensors")}));
  // The same file again, bit for bit; it gives what weights=self fits.
  CHECK(program(from + (folder / "again") + " --quiet").code == 0);
  CHECK(read_text(folder / "w") == read_text(folder / "again"));
  REQUIRE(program("run " + trace("smollm2-passkey.safetensors") +
                  " --policy locret --policy 'locret(weights=\"" + (folder / "w") + "\")' --out " +
                  (folder / "r.json"))
              .code == 0);
  const nlohmann::json runs = read_json(folder / "r.json")["runs"];
  CHECK(runs[0]["fidelity"] == runs[1]["fidelity"]);
  fails("fit h2o --train " + trace("tiny-paper.safetensors") + " --out x", 2, "nothing to fit");
  fails("fit locret --method forest --train " + trace("smollm2-passkey.safetensors") + " --out x",
        2, "expected one of ridge");
  fails("fit judgeq --train " + trace("tiny-scores.safetensors") + " --out x", 3, "score trace");
  fails("fit locret --seed -1 --train " + trace("tiny-paper.safetensors") + " --out x", 2,
        "expected a whole number from 0");
}

TEST_CASE("weights that judgeq fits by default are those that it takes by default", "[cli]") {
  // "holds ridge, expected centres", and nothing said scorer=ridge.
  const Folder folder;
  const std::string bundled = trace("smollm2-passkey.safetensors");
  for (const char* method : {"", "--method ridge"}) {
    const std::string weights = folder / "w.safetensors";
    const Outcome fitted =
        program(fmt::format("fit judgeq --quiet --train {} --out {} {}", bundled, weights, method));
    INFO(fitted.text);
    REQUIRE(fitted.code == 0);
    const Outcome ran =
        program(fmt::format("run {} --no-chart --out {} --policy 'judgeq(weights={})'", bundled,
                            folder / "r.json", weights));
    INFO(ran.text);
    CHECK(ran.code == 0);
    CHECK_THAT(read_text(folder / "r.json"),
               Catch::Matchers::Contains(*method == 0 ? "scorer=static" : "scorer=ridge"));
  }
}

TEST_CASE("outputs of one command are different files, and none is its input", "[cli]") {
  const Folder folder;
  const std::string t = folder / "t.safetensors";
  std::filesystem::copy_file(trace("tiny-picture.safetensors"), t);
  const std::string before = kvspan::sha256_of_files({t});
  const std::string fit = "synth fit " + t + " --quiet";
  const std::string x = folder / "x";
  fails(fit + " --out " + x + " --json " + x, 2, "--json: '" + x + "' is also given to --out");
  fails(fit + " --json " + x + " --trace-out " + (folder / "./x"), 2, "also given to --");
  fails(fit + " --trace-out " + t, 2, "--trace-out: '" + t + "' is an input of this command");
  CHECK(kvspan::sha256_of_files({t}) == before);
  CHECK_FALSE(std::filesystem::exists(x));
  fails("synth --tokens 2147483648 --out " + x, 2, "16 to 2147483647 are possible");
}

TEST_CASE("tokenize prints the ids that the tokenizers library gives", "[cli]") {
  const Folder folder;
  const std::string fixtures = std::string(KVSPAN_TESTS_DIR) + "/data/tracegen/tokenizers/";
  const nlohmann::json expected = read_json(fixtures + "expected.json");
  const std::string text = expected["texts"][2];
  const auto ids = expected["ids"]["gpt2"][2].get<std::vector<int>>();
  REQUIRE(ids.size() > 10);
  std::ofstream(folder / "text") << text;
  const std::string tokenize = "tokenize --model " + fixtures + "gpt2 ";
  const std::string from = tokenize + "--text " + (folder / "text");
  CHECK(program(from + " --ids").text == fmt::format("{}\n", fmt::join(ids, " ")));
  CHECK(program(tokenize + "--ids < " + (folder / "text")).text == program(from + " --ids").text);
  const nlohmann::json json = nlohmann::json::parse(program(from + " --json").text);
  CHECK(json["ids"] == ids);
  std::string pieces;
  for (const nlohmann::json& piece : json["pieces"]) pieces += piece.get<std::string>();
  CHECK(pieces == text);
  const Outcome table = program(from);
  CHECK(table.code == 0);
  CHECK_THAT(table.text, Contains(fmt::format("\n 0  {:>3}  'H'\n", ids[0])) &&
                             Contains(fmt::format("\n{} tokens of {} bytes; leading bos: none",
                                                  ids.size(), text.size())));
  // A chat's markers are single tokens, unless they are to be plain text.
  const std::string chat =
      "tokenize --model " + trace("minimind2-small") + " --chat --ids --text " + (folder / "text");
  CHECK_THAT(program(chat).text, Catch::Matchers::StartsWith("1 "));
  CHECK_THAT(program(chat + " --plain").text, !Catch::Matchers::StartsWith("1 "));
  std::ofstream(folder / "text") << "abc\xFF";
  fails(from, 3, "not UTF-8");
  fails(tokenize + "--text " + (folder / "none"), 3, "cannot be read");
  fails(tokenize + "--ids --json", 2, "--ids");
  fails("tokenize --model " + (folder / "none"), 3, "none");
}

TEST_CASE("every help has examples, and every bundled trace passes its check", "[cli]") {
  for (const char* command :
       {"", "run", "predict", "policies", "trace", "fit", "synth", "tokenize"}) {
    const Outcome out = program(std::string(command) + " --help");
    CHECK(out.code == 0);
    CHECK_THAT(out.text, Contains("Examples:"));
  }
  for (const char* name : {"smollm2-passkey.safetensors", "tiny-paper.safetensors",
                           "tiny-picture.safetensors", "tiny-scores.safetensors"}) {
    INFO(name);
    CHECK(program("trace check " + trace(name)).code == 0);
    CHECK(program("trace info " + trace(name)).code == 0);
    // Provenance: the checksum in the README is the file's.
    CHECK_THAT(read_text(trace("README.md")), Contains(kvspan::sha256_of_files({trace(name)})));
  }
}

TEST_CASE("the catalogue in sim/policies/README.md is current", "[cli]") {
  INFO("renew it: build/dev/cli/kvspan policies --markdown > sim/policies/README.md");
  const bool current = read_text(std::string(KVSPAN_TESTS_DIR) + "/../sim/policies/README.md") ==
                       kvspan::policies_markdown();
  CHECK(current);
}
