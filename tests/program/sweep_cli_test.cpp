// SPDX-License-Identifier: Apache-2.0
// Sweeps as a user and a scheduler run them: exit codes, signals, shards, reports.
#include "tests/support/program.h"

using namespace kvspan::test;
using Catch::Matchers::Contains;

namespace {

std::string tiny_sweep() {
  return "sweep '" + trace("tiny-p*.safetensors") +
         "' --policy all --budget 2,50% --chunk 0,4 --prompt 0,5 --regret --quiet ";
}

}  // namespace

TEST_CASE("a sweep is listed, run, told of and reported", "[cli]") {
  const Folder folder;
  const std::string out = folder / "s";
  const Outcome list = program(tiny_sweep() + "--list");
  const Outcome plan = program(tiny_sweep() + "--dry-run --seconds 0.2");
  CHECK_THAT(plan.text, Contains("replays left: ") && Contains("time: about "));
  CHECK_FALSE(std::filesystem::exists(out));
  const Outcome ran = program(tiny_sweep() + "--out " + out);
  INFO(ran.text);
  REQUIRE(ran.code == 0);
  const std::string cells = read_text(out + "/cells.csv");
  CHECK(std::count(list.text.begin(), list.text.end(), '\n') + 1 ==
        std::count(cells.begin(), cells.end(), '\n'));
  const nlohmann::json schema = read_json(out + "/cells.schema.json");
  const std::string header = cells.substr(0, cells.find('\n'));
  CHECK(static_cast<long>(schema["fields"].size()) ==
        std::count(header.begin(), header.end(), ',') + 1);
  const Outcome status = program("sweep status " + out);
  CHECK(status.code == 0);
  CHECK_THAT(status.text, Contains("0 failed, 0 left") && Contains("0 damaged lines"));
  const Outcome report =
      program(fmt::format("report {} --draws 50 --out {} --csv {} --svg {} --quiet", out,
                          folder / "r.json", folder / "r.csv", folder / "r.svg"));
  CHECK(report.code == 0);
  CHECK_THAT(report.text, Contains("tiny-paper.safetensors: chunks of 4, prompt 5"));
  CHECK_THAT(report.text, Contains("## Ranking over traces"));
  CHECK_THAT(report.text, Contains("| regret % | optimum's |"));
  CHECK(read_json(folder / "r.json")["curves"].size() > 100);
  CHECK(read_json(folder / "r.csv.schema.json")["fields"].size() > 10);
  CHECK_THAT(read_text(folder / "r.svg"), Contains("</svg>"));

  // Pixels are the viewer's, which is built where Qt is.
  const std::string png = folder / "r.png";
  const Outcome picture = program(fmt::format("report {} --png {} --quiet", out, png));
  if (std::filesystem::exists(std::filesystem::path(KVSPAN_PROGRAM).parent_path().parent_path() /
                              "gui/kvspan-viewer")) {
    INFO(picture.text);
    CHECK(picture.code == 0);
    CHECK(read_text(png).substr(1, 3) == "PNG");
  } else {
    CHECK(picture.code == 2);
    CHECK_THAT(picture.text, Contains("--png needs the program kvspan-viewer"));
  }

  // The second program agrees, where there is a Python.
  if (shell("command -v python3").code == 0) {
    const Outcome check = shell(fmt::format("python3 {}/studies/sweep/check.py {} {} 2>&1",
                                            KVSPAN_TESTS_DIR, out, folder / "r.json"));
    INFO(check.text);
    CHECK(check.code == 0);
  }
  CHECK(program("report " + out + " --against " + out).code == 0);
  REQUIRE(program("sweep " + trace("tiny-paper.safetensors") + " --quiet --out " + (folder / "t"))
              .code == 0);
  const Outcome differs = program("report " + (folder / "t") + " --against " + out);
  CHECK(differs.code == 7);
  CHECK_THAT(differs.text, Contains("cells only before"));
}

TEST_CASE("a sweep on a sample has intervals, which its report shows", "[cli]") {
  const Folder folder;
  const std::string out = folder / "s";
  const std::string sweep = "sweep " + trace("tiny-picture.safetensors") +
                            " --policy streaming_llm --policy tova --budget 4,6,8 --prompt 4 ";
  REQUIRE(program(sweep + "--sample rows=4 --quiet --out " + out).code == 0);
  const Outcome report =
      program(fmt::format("report {} --at 95% --out {}", out, folder / "r.json"));
  CHECK_THAT(report.text, Contains("on a random sample (rows=4)"));
  for (const nlohmann::json& curve : read_json(folder / "r.json")["curves"]) {
    CHECK(curve["critical_footprint_interval"].is_object());
    for (const nlohmann::json& point : curve["points"]) {
      CHECK(point["retained_mass_interval"]["low"] <= point["retained_mass"]);
      CHECK(point["retained_mass_interval"]["high"] >= point["retained_mass"]);
    }
  }
  if (shell("command -v python3").code == 0) {
    const Outcome check = shell(fmt::format("python3 {}/studies/sweep/check.py {} {} 2>&1",
                                            KVSPAN_TESTS_DIR, out, folder / "r.json"));
    INFO(check.text);
    CHECK(check.code == 0);
  }
  const Outcome found = program("report " + out + " --search 90% --sample rows=4");
  CHECK_THAT(found.text, Contains("| tova |") && Contains(" to "));
  fails("report " + out + " --sample rows=4", 2, "--sample: found no --search");
  fails(sweep + "--sample row=4 --out " + out, 2, "expected rows=K, heads=K or layers=K");
}

TEST_CASE("a sweep that is killed again and again ends with the same bytes", "[cli]") {
  const Folder folder;
  REQUIRE(program(tiny_sweep() + "--out " + (folder / "whole")).code == 0);
  for (const char* seconds : {"0.03", "0.06", "0.1", "0.15"}) {
    (void)shell(fmt::format("timeout -s KILL {} {} {} --threads 1 --out {} 2>&1", seconds,
                            KVSPAN_PROGRAM, tiny_sweep(), folder / "killed"));
  }
  CHECK(program(tiny_sweep() + "--out " + (folder / "killed")).code == 0);
  CHECK(read_text(folder / "killed/cells.csv") == read_text(folder / "whole/cells.csv"));
}

TEST_CASE("a disk that is full ends a sweep, which goes on when there is room", "[cli]") {
  const Folder folder;
  REQUIRE(program(tiny_sweep() + "--out " + (folder / "whole")).code == 0);
  // A limit on the size of files stands for the disk: 64 KiB hold some of the journal.
  const Outcome full = shell(fmt::format("ulimit -f 64; {} {} --out {} 2>&1", KVSPAN_PROGRAM,
                                         tiny_sweep(), folder / "full"));
  CHECK(full.code == 1);
  CHECK_THAT(full.text, Contains("cannot be written (File too large)"));
  CHECK(program("sweep status " + (folder / "full")).code == 75);
  CHECK(program(tiny_sweep() + "--out " + (folder / "full")).code == 0);
  CHECK(read_text(folder / "full/cells.csv") == read_text(folder / "whole/cells.csv"));
}

TEST_CASE("four processes share a sweep as an MPI launcher would start them", "[cli]") {
  const Folder folder;
  REQUIRE(program(tiny_sweep() + "--out " + (folder / "whole")).code == 0);
  const Outcome out = shell(fmt::format(
      "for r in 0 1 2 3; do OMPI_COMM_WORLD_RANK=$r OMPI_COMM_WORLD_SIZE=4 {} {} --out {} & "
      "jobs=\"$jobs $!\"; done; for j in $jobs; do wait $j || exit 1; done",
      KVSPAN_PROGRAM, tiny_sweep(), folder / "shared"));
  CHECK(out.code == 0);
  CHECK(read_text(folder / "shared/cells.csv") == read_text(folder / "whole/cells.csv"));
  CHECK(program("sweep status " + (folder / "shared")).code == 0);
}

namespace {

// The command line of several processes with one thread each.
std::string mpirun(int ranks, const std::string& arguments) {
  return fmt::format(
      "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun --oversubscribe -n {} {} "
      "{} --threads 1",
      ranks, KVSPAN_PROGRAM, arguments);
}

}  // namespace

TEST_CASE("1, 2 and 4 ranks, killed and gone on with, end with the same bytes", "[cli][mpi]") {
#ifndef KVSPAN_MPI_MODULE
  SUCCEED("skipped: this build has no MPI module");
#else
  if (shell("mpirun --version 2>&1").text.find("Open MPI") == std::string::npos) {
    SUCCEED("skipped: there is no mpirun of Open MPI");
    return;
  }
  const Folder folder;
  REQUIRE(program(tiny_sweep() + "--out " + (folder / "whole")).code == 0);
  const std::string whole = read_text(folder / "whole/cells.csv");
  for (const int ranks : {1, 2}) {
    const std::string out = folder / std::to_string(ranks);
    const Outcome ran = shell(mpirun(ranks, tiny_sweep() + "--out " + out) + " 2>&1");
    INFO(ran.text);
    CHECK(ran.code == 0);
    CHECK(read_text(out + "/cells.csv") == whole);
  }
  // A rank that has written something is killed, and takes the others with it.
  const std::string out = folder / "killed";
  const Outcome killed = shell(fmt::format(
      "{0} >/dev/null 2>&1 & job=$!; p=; until [ -n \"$p\" ] || ! kill -0 $job 2>/dev/null; do "
      "p=$(ls {1}/journals 2>/dev/null | sed -n 's/.*-\\([0-9]*\\)-0.journal/\\1/p' | head -1); "
      "done; kill -KILL $p; wait $job",
      mpirun(4, tiny_sweep() + "--out " + out), out));
  CHECK(killed.code != 0);
  const Outcome rest = shell(mpirun(4, tiny_sweep() + "--out " + out) + " 2>&1");
  INFO(rest.text);
  CHECK(rest.code == 0);
  CHECK(read_text(out + "/cells.csv") == whole);
  // Nothing of MPI is mapped by who was not started so.
  CHECK(
      shell(fmt::format("LD_DEBUG=files {} --version 2>&1", KVSPAN_PROGRAM)).text.find("libmpi") ==
      std::string::npos);
#endif
}

TEST_CASE("a scheduler's SIGTERM ends a sweep in order, with code 75", "[cli]") {
  const Folder folder;
  const std::string sweep = fmt::format("sweep {} --policy all --budget 10%,20%,30% --out {}",
                                        trace("smollm2-passkey.safetensors"), folder / "s");
  const Outcome out = shell(fmt::format(
      "{} {} --quiet 2>&1 & p=$!; while kill -0 $p && ! [ -e {}/sweep.json ]; do sleep 0.02; done; "
      "kill -TERM $p; wait $p",
      KVSPAN_PROGRAM, sweep, folder / "s"));
  CHECK(out.code == 75);
  CHECK_THAT(out.text, Contains("the same command goes on"));
  CHECK(program("sweep status " + (folder / "s")).code == 75);
  const std::string cells = read_text(folder / "s/cells.csv");
  CHECK_THAT(cells, Contains(",left,"));
}

TEST_CASE("a sweep's mistakes are one line each, failed cells have code 3", "[cli]") {
  const Folder folder;
  const std::string t = trace("tiny-picture.safetensors");
  const std::string out = " --out " + (folder / "s");
  fails("sweep", 2, "expected a configuration, or traces");
  fails("sweep " + t, 2, "--out: expected a folder");
  fails("sweep " + t + out + " --policy snapvk", 2, "--policy: unknown policy 'snapvk'");
  fails("sweep " + t + out + " --budget 5%,5%", 2, "--budget: '5%' stands there twice");
  fails("sweep " + t + out + " --max-cells 3", 2, "and --max-cells allows 3");
  fails("sweep " + t + out + " --shard 5/4", 2, "--shard: found part 5 of 4");
  fails("sweep " + t + ".none" + out, 3, "cannot be opened");
  fails("sweep status " + (folder / "s"), 2, "is no folder of a sweep");
  std::ofstream(folder / "c.json") << "{\n \"traces\": [\"" << t << "\"],\n \"chunk\": [0]}";
  fails("sweep " + (folder / "c.json") + out, 2, "unknown key 'chunk'; did you mean 'chunks'?");
  std::ofstream(folder / "c.json") << "{\"traces\": [\"" << t << "\"], \"prompts\": [0, 50]}";
  fails("sweep " + (folder / "c.json") + out + " --chunk 4", 2, "--chunk belongs into");
  const Outcome some = program("sweep " + (folder / "c.json") + out + " --quiet");
  CHECK(some.code == 3);
  CHECK_THAT(some.text, Contains("cells failed; the same command tries them again"));
  CHECK_THAT(some.text, Contains("found 50"));
  CHECK(program("sweep status " + (folder / "s")).code == 3);
  fails("report " + (folder / "s") + " --at 2", 2, "--at: found '2'");
  fails("report " + (folder / "s") + " --png r.jpg", 2, "expected a name that ends in .png");
}
