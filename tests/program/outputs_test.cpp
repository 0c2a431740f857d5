// SPDX-License-Identifier: Apache-2.0
// Files of the real program: which are refused, where they go, and what is left when one fails.
#include <cmath>
#include <unistd.h>

#include "sim/base/file.h"
#include "tests/support/program.h"

using namespace kvspan::test;
using Catch::Matchers::Contains;

namespace {

// In `folder`, so that names are relative.
Outcome in(const Folder& folder, const std::string& arguments) {
  return shell("cd " + (folder / ".") + " && " + KVSPAN_PROGRAM + " " + arguments);
}

const std::string kRun = "run t.safetensors --no-chart --quiet ";

// With t.safetensors, and its full run as l.safetensors and r.json.
struct Results : Folder {
  Results() {
    std::filesystem::copy_file(trace("tiny-picture.safetensors"), path / "t.safetensors");
    REQUIRE(in(*this, kRun + "--policy full --lifetimes l.safetensors --out r.json").code == 0);
  }
};

}  // namespace

TEST_CASE("no output replaces a file that the command reads", "[cli][outputs]") {
  // Bug: only the trace itself counted as an input, and only by its name.
  const Results folder;
  std::ofstream(folder / "p.json") << "[\"full\"]";
  std::ofstream(folder / "heads.tsv") << "1\n0\n";
  std::filesystem::create_hard_link(folder / "p.json", folder / "hard");
  std::filesystem::create_symlink("t.safetensors", folder / "soft");
  const auto refused = [&](const std::string& arguments, const std::string& file) {
    INFO(arguments);
    const std::string before = kvspan::sha256_of_files({folder / file});
    const Outcome out = in(folder, arguments + " 2>&1");
    CHECK(out.code == 2);
    CHECK_THAT(out.text, Contains("' is an input of this command\n"));
    CHECK(kvspan::sha256_of_files({folder / file}) == before);
  };
  for (const char* option : {"--out", "--csv", "--svg", "--lifetimes", "--timeline"}) {
    refused(
        kRun + "--policy 'chunked(scores(file=\"l.safetensors\"))' " + option + " ./l.safetensors",
        "l.safetensors");
  }
  refused(kRun + "--policy 'deaths(file=\"l.safetensors\")' --csv $PWD/l.safetensors",
          "l.safetensors");
  refused(kRun + "--policy 'locret(weights=\"l.safetensors\")' --csv l.safetensors",
          "l.safetensors");
  refused(kRun + "--policy 'headkv(heads=\"heads.tsv\")' --csv heads.tsv", "heads.tsv");
  refused(kRun + "--policy @p.json --csv p.json", "p.json");
  refused(kRun + "--policy @p.json --csv hard", "p.json");
  refused(kRun + "--policy full --out soft", "t.safetensors");
  refused("predict --model t.safetensors --prompt 9 --policy full --out soft", "t.safetensors");
  refused(
      "predict --model t.safetensors --prompt 9 --policy full --calibrate r.json --out ./r.json",
      "r.json");
  REQUIRE(in(folder, "synth --show-profile > profile.json").code == 0);
  refused("synth --profile profile.json --out ./profile.json", "profile.json");
  refused("trace slice t.safetensors --tokens 4 --out soft", "t.safetensors");
  refused("fit locret --train t.safetensors --out soft", "t.safetensors");
}

TEST_CASE("two outputs are two files, by whatever names", "[cli][outputs]") {
  const Results folder;
  for (const char* name : {"./x.csv", "$PWD/x.csv", "$PWD/../$(basename $PWD)/x.csv"}) {
    const Outcome out = in(folder, kRun + "--policy full --out x.csv --csv " + name + " 2>&1");
    CHECK(out.code == 2);
    CHECK_THAT(out.text, Contains("' is also given to --out\n"));
  }
  CHECK_FALSE(std::filesystem::exists(folder / "x.csv"));
  // Nothing is lost in /dev/null.
  CHECK(in(folder, kRun + "--policy full --out /dev/null --csv /dev/null --lifetimes /dev/null "
                          "--timeline /dev/null 2>&1")
            .code == 0);
}

TEST_CASE("what cannot be written is refused before the work", "[cli][outputs]") {
  const Results folder;
  std::filesystem::create_directory(folder / "folder");
  const auto refused = [&](const std::string& output, const std::string& why) {
    INFO(output);
    // Were it replayed first, the policy's missing file would be the error.
    const Outcome out =
        in(folder, kRun + "--policy 'deaths(file=none)' " + output + " 2>&1 >/dev/null");
    CHECK(out.code == 2);
    CHECK_THAT(out.text, Contains(why));
  };
  refused("--out folder", "--out: folder: is a directory");
  refused("--csv none/x", "--csv: there is no folder 'none'");
  refused("--csv /proc/x", "--csv: /proc/x: cannot be created");
  refused("--csv ''", "expected the name of a file");
  refused("--lifetimes -", "is a stream");
  if (::geteuid() != 0) {  // root may write anywhere
    std::filesystem::permissions(
        folder / "folder", std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
    refused("--svg folder/x", "Permission denied");
  }
}

TEST_CASE("a failing output takes neither the table nor the others along", "[cli][outputs]") {
  const Results folder;
  const Outcome out = in(folder, kRun + "--policy full --csv /dev/full --out x.json 2>e");
  CHECK(out.code == 1);
  CHECK_THAT(out.text, Contains("full              100.0"));
  CHECK(read_json(folder / "x.json")["runs"].size() == 1);
  CHECK_THAT(read_text(folder / "e"),
             Contains("kvspan: --csv: /dev/full: cannot be written (No space left on device)\n"));
  // The files are there though nobody reads the table.
  for (const char* command :
       {"run t.safetensors --policy full --quiet",
        "predict --model t.safetensors --prompt 9 --policy full", "trace stats t.safetensors"}) {
    INFO(command);
    const std::string option = std::string(command).starts_with("trace") ? "--json" : "--out";
    const Outcome full = in(folder, fmt::format("{} {} y.json 2>&1 >/dev/full", command, option));
    CHECK(full.code == 1);
    CHECK_THAT(full.text, Contains("kvspan: cannot write to standard output: No space left"));
    CHECK(read_json(folder / "y.json").is_object());
    std::filesystem::remove(folder / "y.json");
  }
}

TEST_CASE("- and /dev/std* are standard input and output", "[cli][outputs]") {
  const Results folder;
  const std::string run = kRun + "--policy full ";
  REQUIRE(in(folder, run + "--csv x.csv").code == 0);
  const std::string csv = read_text(folder / "x.csv");
  for (const char* name : {"-", "/dev/stdout"}) {
    CHECK(in(folder, run + "--csv " + name + " 2>e").text == csv);
    CHECK_THAT(read_text(folder / "e"), Contains("full              100.0"));  // the table
    in(folder, run + "--csv " + name + " 2>e >y.csv");
    CHECK(read_text(folder / "y.csv") == csv);
  }
  CHECK_FALSE(std::filesystem::exists(folder / "-"));
  CHECK(nlohmann::json::parse(
            in(folder, "predict --model t.safetensors --prompt 9 --policy full --out - 2>e").text)
            .is_object());
  std::ofstream(folder / "p.json") << "[\"full\",\"knorm(budget=3)\"]";
  CHECK_THAT(in(folder, kRun + "--policy @- < p.json").text, Contains("knorm(budget=3)"));
  CHECK_THAT(in(folder, "run - --no-chart --quiet --policy full < t.safetensors").text,
             Contains("full              100.0"));
  const Outcome pipe = shell(fmt::format("cat {} | {} run - --policy full 2>&1",
                                         folder / "t.safetensors", KVSPAN_PROGRAM));
  CHECK(pipe.code == 3);
  CHECK_THAT(pipe.text, Contains("is a pipe; this is read in place"));
}

TEST_CASE("Ctrl-C ends with 130, and leaves no file", "[cli][outputs]") {
  const Folder folder;
  const Outcome out = shell(fmt::format(
      "timeout --preserve-status -s INT 1 {} run {} --policy all --chunk 16 --quiet --out {} 2>&1",
      KVSPAN_PROGRAM, trace("smollm2-passkey.safetensors"), folder / "r.json"));
  CHECK(out.code == 130);
  CHECK(std::filesystem::is_empty(folder.path));
}

TEST_CASE("several traces and chunk sizes are the runs of each, and their means",
          "[cli][outputs]") {
  const Folder folder;
  const std::vector<std::string> traces{trace("tiny-picture.safetensors"),
                                        trace("tiny-paper.safetensors")};
  const std::string policies = " --policy full --policy 'tova(budget=3)' --quiet ";
  const Outcome out =
      in(folder, fmt::format("run {} {}{}--chunk 2,4 --out all.json --csv all.csv 2>&1", traces[0],
                             traces[1], policies));
  INFO(out.text);
  REQUIRE(out.code == 0);
  CHECK_THAT(out.text, Contains("means over 2 traces"));
  const nlohmann::json all = read_json(folder / "all.json");
  REQUIRE(all["results"].size() == 4);
  std::vector<double> footprints;  // of tova at chunk 4
  std::size_t lines = 1;
  for (std::size_t i = 0; i < 4; ++i) {
    const int chunk = i % 2 == 0 ? 2 : 4;
    REQUIRE(in(folder, fmt::format("run {}{}--chunk {} --no-chart --out one.json 2>&1",
                                   traces[i / 2], policies, chunk))
                .code == 0);
    nlohmann::json one = read_json(folder / "one.json");
    one["command"] = all["command"];
    CHECK(all["results"][i] == one);
    if (chunk == 4) footprints.push_back(one["runs"][1]["footprint"]);
    lines += one["runs"].size();
  }
  const std::string csv = read_text(folder / "all.csv");
  CHECK(static_cast<std::size_t>(std::count(csv.begin(), csv.end(), '\n')) == lines);
  const nlohmann::json& mean = all["means"][3];
  CHECK(mean["label"] == "tova(budget=3)");
  CHECK(mean["chunk"] == 4);
  CHECK(mean["traces"] == 2);
  CHECK(mean["footprint"]["mean"].get<double>() == Approx((footprints[0] + footprints[1]) / 2));
  CHECK(mean["footprint"]["sd"].get<double>() ==
        Approx(std::abs(footprints[0] - footprints[1]) / std::sqrt(2.0)));

  // What was finished is kept when a later trace cannot serve a policy.
  const Outcome partly =
      in(folder, fmt::format("run {} {} --quiet --policy 'knorm(budget=4)' --csv part.csv 2>e",
                             traces[0], trace("tiny-scores.safetensors")));
  CHECK(partly.code == 3);
  CHECK_THAT(partly.text, Contains("knorm(budget=4)"));
  CHECK_THAT(read_text(folder / "e"), Contains("1 of 2 combinations of trace and chunk are "
                                               "finished and kept\n") &&
                                          Contains("cannot run on"));
  CHECK_THAT(read_text(folder / "part.csv"), Contains("tiny-picture"));

  fails("run " + traces[0] + " " + traces[0] + " --policy full", 2, "is given twice");
  fails("run " + traces[0] + " --policy full --chunk 2,2", 2, "a size is given twice");
  fails("run " + traces[0] + " --policy full --chunk 1e3", 2, "expected whole tokens");
  fails("run " + traces[0] + " --policy full --chunk 2,4 --svg x.svg", 2, "expected one of each");
}

TEST_CASE("--json is the result and nothing else", "[cli][outputs]") {
  const Results folder;
  const Outcome run = in(folder, "run t.safetensors --policy full --json --no-timeline --quiet");
  CHECK(run.code == 0);
  CHECK(nlohmann::json::parse(run.text)["runs"][0]["footprint"] == 1.0);
  const Outcome predict =
      in(folder, "predict --model t.safetensors --prompt 8 --policy full --json");
  CHECK(predict.code == 0);
  CHECK(nlohmann::json::parse(predict.text).is_object());
  const Outcome both = in(folder, "run t.safetensors --json --out x.json 2>&1");
  CHECK(both.code == 2);
  CHECK_THAT(both.text, Contains("give one of them"));
}

TEST_CASE("a result is explained from its own command, on its own trace", "[cli][outputs]") {
  const Results folder;
  REQUIRE(in(folder, kRun + "--prompt 4 --policy full --policy 'streaming_llm(budget=2)' "
                            "--policy 'tova(budget=2)' --policy 'judgeq(budget=2)' --out s.json")
              .code == 0);
  const nlohmann::json result = read_json(folder / "s.json");
  const Outcome table = in(folder, "explain s.json --policy tova --against streaming --quiet");
  INFO(table.text);
  CHECK(table.code == 0);
  CHECK_THAT(table.text, Contains("heavy hitter") && Contains("rows that make the p5") &&
                             Contains("loses more than streaming_llm(budget=2)"));
  const Outcome json = in(folder, "explain s.json --json --quiet");
  REQUIRE(json.code == 0);
  const nlohmann::json all = nlohmann::json::parse(json.text);
  REQUIRE(all["runs"].size() == 4);
  CHECK(all["runs"][3]["notes"] == result["runs"][3]["notes"]);
  const Outcome stand_in = in(folder, "explain s.json --policy judgeq --policy tova --quiet");
  CHECK_THAT(stand_in.text, Contains("judgeq(budget=2) [1]") && Contains("[1] stand-in: "));
  for (std::size_t r = 0; r < 4; ++r) {
    const double retained =
        result["runs"][r]["fidelity"]["decode"]["retained_mass"]["mean"].get<double>();
    CHECK(std::abs(all["runs"][r]["lost"]["all"].get<double>() - (1 - retained)) < 1e-6);
    CHECK(all["runs"][r]["policy"] == result["runs"][r]["policy"]);
  }
  const auto refused = [&](const std::string& arguments, int code, const std::string& why) {
    const Outcome out = in(folder, "explain " + arguments + " 2>&1");
    INFO(out.text);
    CHECK(out.code == code);
    CHECK_THAT(out.text, Contains(why));
  };
  refused("s.json --policy h2o", 2, "0 runs of 'h2o'");
  refused("t.safetensors", 3, "no result of `kvspan run --out`");
  refused("s.json --trace " + trace("tiny-paper.safetensors"), 3, "its checksum");
  std::ofstream(folder / "cut.json") << read_text(folder / "s.json").substr(0, 400);
  refused("cut.json", 3, "no result");
}
