// SPDX-License-Identifier: Apache-2.0
// The command `replay`, as a user runs it: what it prints, writes and refuses.
#include <functional>

#include "tests/support/program.h"

using namespace kvspan::test;
using Catch::Matchers::Contains;

namespace {

const std::string kTrace = std::string(KVSPAN_TRACES_DIR) + "/smollm2-passkey.safetensors";

}  // namespace

TEST_CASE("replay measures what run predicts, in every layout", "[cli]") {
  const Folder folder;
  const std::string asked = kTrace + " --policy \"h2o(budget=20%)\" --policy kivi --chunk 512 ";
  REQUIRE(program("run " + asked + "--fidelity none --no-timeline --out " + (folder / "run.json"))
              .code == 0);
  const Outcome out = program("replay " + asked + "--out " + (folder / "replay.json"));
  INFO(out.text);
  REQUIRE(out.code == 0);
  CHECK_THAT(out.text, Contains("openvino") && Contains("above"));
  const nlohmann::json run = read_json(folder / "run.json");
  const nlohmann::json replay = read_json(folder / "replay.json");
  for (std::size_t i = 0; i < 2; ++i) {
    const nlohmann::json& of = replay["runs"][i];
    CHECK(of["policy"] == run["runs"][i]["policy"]);
    CHECK(of["layouts"]["ideal"]["measured"] == run["runs"][i]["peak_bytes"]);
    CHECK(of["layouts"]["ideal"]["byte_rows"]["measured"] == run["runs"][i]["byte_rows"]);
    for (const auto& [name, peak] : run["runs"][i]["layouts"].items()) {
      INFO(name);
      const nlohmann::json& layout = of["layouts"][name];
      CHECK(layout["measured"] == peak);
      CHECK(layout["most_backed"]["measured"] == layout["most_backed"]["backed"]);
      CHECK(layout["out_of_memory"].is_null());
    }
  }
}

TEST_CASE("replay says how well entries could lie in blocks", "[cli]") {
  const Folder folder;
  const Outcome out = program("replay " + kTrace +
                              " --policy full --policy \"tova(budget=20%)\" --prompt 512 --layout "
                              "paged16_per_head --slots 16,64 --quiet --out " +
                              (folder / "s.json"));
  INFO(out.text);
  REQUIRE(out.code == 0);
  CHECK_THAT(out.text, Contains("first fit") && Contains("largest clique"));
  const nlohmann::json runs = read_json(folder / "s.json")["runs"];
  for (const nlohmann::json& run : runs) {
    const nlohmann::json& slots = run["slots"][0];
    CHECK(run["slots"][1]["block_size"] == 64);
    // An entry is 256 bytes: what the simulator predicts of blocks of 16 that nobody reuses.
    CHECK(slots["in_order"]["block_rows"].get<std::int64_t>() * 16 * 256 ==
          run["layouts"]["paged16_per_head"]["byte_rows"]["predicted"]);
    for (const char* less : {"first_fit", "best_found", "least"})
      CHECK(slots[less]["block_rows"] <= slots["in_order"]["block_rows"]);
  }
  // 9 heads of 1,880 entries; 118 blocks of 16 each.
  CHECK(runs[0]["slots"][0]["slots"] == 9 * 1880);
  CHECK(runs[0]["slots"][0]["least"]["blocks"] == 9 * 118);
  fails("replay " + kTrace + " --slots 0", 2, "--slots");
}

TEST_CASE("replay runs out of memory, and fills a device", "[cli]") {
  const Folder folder;
  // 30 layers' 3 of 64 + 64 elements in 3 heads: 2,304 bytes a token, 1,365.3 tokens in 3 MiB.
  const Outcome out =
      program("replay " + kTrace + " --policy full --layout ideal --limit 3MiB --quiet --out " +
              (folder / "short.json"));
  INFO(out.text);
  REQUIRE(out.code == 0);
  CHECK_THAT(out.text, Contains("out of memory: full, ideal: row 1365, layer 1: 4.00 KiB asked"));
  CHECK(read_json(folder / "short.json")["runs"][0]["layouts"]["ideal"]["out_of_memory"]["row"] ==
        1365);
  // 4,331,520 bytes each.
  const Outcome fill = program("replay " + kTrace +
                               " --policy full --layout ideal --limit 13MiB --fill --quiet --out " +
                               (folder / "fill.json"));
  REQUIRE(fill.code == 0);
  const nlohmann::json found = read_json(folder / "fill.json")["runs"][0]["layouts"]["ideal"];
  CHECK(found["fill"]["sequences"] == 3);
  CHECK(found["fill"]["predicted"] == 3);
  CHECK(found["fill"]["used"] == 3 * 4331520);
  CHECK(found["fill"]["predict"]["sequences"] == 3);
  CHECK(found["fill"]["predict"]["basis"] == "closed form");
  CHECK_THAT(fill.text, Contains("kvspan predict --gpu-memory"));
}

TEST_CASE("replay allocates block by block where it is told to", "[cli]") {
  const Folder folder;
  const Outcome out =
      program("replay " + kTrace +
              " --policy \"tova(budget=20%)\" --prompt 1840 --layout padded --layout "
              "paged16_per_head --device host --allocator pool --quiet --out " +
              (folder / "r.json"));
  INFO(out.text);
  REQUIRE(out.code == 0);
  CHECK_THAT(out.text, Contains("host, heap; allocations in steps of 16 B"));
  const nlohmann::json found = read_json(folder / "r.json");
  CHECK(found["device"]["allocator"] == "pool");
  for (const char* name : {"padded", "paged16_per_head"}) {
    const nlohmann::json& layout = found["runs"][0]["layouts"][name];
    CHECK(layout["measured"] == layout["predicted"]);
    const nlohmann::json& most = layout["most_backed"];
    std::int64_t used = 0;
    for (const char* part : {"payload", "copies", "narrow", "tail", "dead", "overhead"})
      used += most[part].get<std::int64_t>();
    // State lies in blocks of 4 KiB; the runs of 9 heads end somewhere in 64 KiB each.
    const std::int64_t more = most["backed"].get<std::int64_t>() - used;
    CHECK(more >= 0);
    CHECK(more < 4096 + (std::string(name) == "padded" ? 9 * 65536 : 0));
    CHECK(most["measured"] >= most["backed"]);
  }
  fails("replay " + kTrace + " --allocator pool --granule 2MiB", 2, "only mapped memory");
}

TEST_CASE("replay takes attention from the pool, beside the run's", "[cli]") {
  const Folder folder;
  const std::string asked =
      kTrace +
      " --policy full --policy \"tova(budget=20%)\" --policy quest --policy kivi "
      "--policy kvquant --prompt 1840 ";
  REQUIRE(program("run " + asked + "--fidelity rows=4 --no-timeline --out " + (folder / "run.json"))
              .code == 0);
  const Outcome out = program("replay " + asked + "--attention 4 --layout paged16_per_head --out " +
                              (folder / "replay.json"));
  INFO(out.text);
  REQUIRE(out.code == 0);
  CHECK_THAT(out.text, Contains("its query heads choose what they read"));
  // Speed-up over `full`, which has 1.00 of both (the bug: its canonical text has an argument).
  CHECK_THAT(out.text, Catch::Matchers::Matches("[^]*\\n  full  .*  1\\.00 +1\\.00 *\\n[^]*"));
  const nlohmann::json run = read_json(folder / "run.json");
  const nlohmann::json replay = read_json(folder / "replay.json");
  for (std::size_t i = 0; i < 2; ++i) {
    const nlohmann::json& found = replay["runs"][i]["attention"];
    const nlohmann::json& decode = run["runs"][i]["fidelity"]["decode"];
    CHECK(found["rows"] == 4);
    CHECK(found["retained_mass"]["predicted"] == decode["retained_mass"]["mean"]);
    CHECK(found["retained_mass"]["measured"].get<double>() ==
          Approx(decode["retained_mass"]["mean"].get<double>()).margin(1e-5));
    CHECK(found["output_error"]["measured"].get<double>() ==
          Approx(decode["output_error"]["mean"].get<double>()).margin(1e-3));
  }
  CHECK(replay["runs"][2]["attention"]["why_not"].is_string());
  // Two bits a number: what they cost is in the pool's own output.
  const nlohmann::json& kivi = replay["runs"][3]["attention"]["output_error"];
  CHECK(kivi["predicted"] > 0.1);
  CHECK(kivi["measured"].get<double>() == Approx(kivi["predicted"].get<double>()).margin(1e-5));
  CHECK_THAT(replay["runs"][4]["attention"]["why_not"].get<std::string>(),
             Contains("in a form that the pool does not write"));
}

TEST_CASE("replay says why attention is left out where it is of all runs", "[cli]") {
  // Bug: nothing was said then. Decode rows evict entries of groups that share scales.
  const Outcome out =
      program("replay " + kTrace +
              " --policy quest --policy \"h2o(budget=300)+kivi(residual=32)\" --prompt 1840 "
              "--layout ideal --attention 2 --quiet");
  INFO(out.text);
  CHECK(out.code == 0);
  CHECK_THAT(out.text, Contains("quest: its query heads choose what they read") &&
                           Contains("an entry has left a group of keys that share scales"));
}

TEST_CASE("every field of a replay is in its page", "[cli]") {
  const Folder folder;
  const std::string asked = "replay " + kTrace + " --policy full --policy quest --layout ideal ";
  REQUIRE(
      program(asked + "--attention 1 --limit 9MiB --fill --out " + (folder / "all.json")).code ==
      0);
  REQUIRE(program(asked + "--limit 1MiB --out " + (folder / "short.json")).code == 0);
  const std::string page = read_text(std::string(KVSPAN_TESTS_DIR) + "/../gpu_replay/README.md");
  const std::function<void(const nlohmann::json&)> check = [&](const nlohmann::json& value) {
    if (value.is_array()) return;
    for (const auto& [key, of] : value.items()) {
      INFO(key);
      // "{row,asked}", ".fill", or a layout's own name.
      CHECK((key == "ideal" || page.find(key + ",") != std::string::npos ||
             page.find(key + "}") != std::string::npos ||
             page.find("." + key) != std::string::npos));
      if (of.is_object()) check(of);
    }
  };
  for (const char* name : {"all.json", "short.json"}) {
    const nlohmann::json file = read_json(folder / name);
    CHECK(file.contains("device"));
    check({{"device", file["device"]}});
    CHECK(file["trace"]["layer_ids"].size() == file["trace"]["layers"]);
    for (const nlohmann::json& run : file["runs"]) check(run);
  }
}

TEST_CASE("replay on a GPU says what is missing where there is none", "[cli]") {
  const std::string asked = "replay " + kTrace + " --policy full --layout ideal --quiet --device ";
  const Outcome cuda = program(asked + "cuda");
  INFO(cuda.text);
  if (cuda.code != 0) {
    CHECK(cuda.code == 5);
    CHECK_THAT(cuda.text, Contains("; --device host needs none"));
  }
  CHECK(program(asked + "auto").code == 0);
  CHECK_THAT(program(asked + "host").text, Contains("host, pages of"));
  // Nothing of CUDA is mapped by who takes the host.
  const Outcome mapped =
      shell("LD_DEBUG=files " + std::string(KVSPAN_PROGRAM) + " " + asked + "host 2>&1");
  CHECK(mapped.code == 0);
  CHECK_THAT(mapped.text, Contains("libc.so.6") && !Contains("libcu") && !Contains("kvspan_cuda"));
}

TEST_CASE("replay refuses what it cannot do", "[cli]") {
  fails("replay " + kTrace + " --layout paged", 2, "layout: found 'paged'");
  fails("replay " + kTrace + " --fill", 2, "--limit SIZE");
  fails("replay " + kTrace + " --granule 1000B", 2, "multiple of a page");
  fails("replay " + kTrace + " --limit 1KiB", 2, "expected at least 4.00 KiB");
  fails("replay " + kTrace + " --out " + kTrace, 2, "is");
  fails("replay " + kTrace + " --attention some", 2, "expected all or a number of rows");
  fails("replay " + kTrace + " --attention 3 --kv-bytes 3", 2, "expected 1 (fp8), 2 (fp16, bf16)");
  fails("replay " + kTrace + " --attention 3 --prompt 1880", 2, "expected decode rows");
  fails("replay nowhere.safetensors", 3, "nowhere.safetensors");
}

TEST_CASE("run measures in one pass of a device, and audits it", "[cli]") {
  const Folder folder;
  const std::string asked =
      "run " + kTrace + " --policy \"tova(budget=20%)\" --policy \"quest(budget=20%)\" " +
      "--policy \"snapkv(budget=20%)\" --prompt 1800 --no-chart --no-timeline --quiet ";
  REQUIRE(program(asked + "--out " + (folder / "cpu.json")).code == 0);
  const Outcome host = program(asked + "--device host --audit 0.1 --out " + (folder / "host.json"));
  INFO(host.text);
  REQUIRE(host.code == 0);
  CHECK_THAT(host.text, Contains("device  host; ") && Contains("rows again on the CPU"));
  const nlohmann::json cpu = read_json(folder / "cpu.json");
  const nlohmann::json apart = read_json(folder / "host.json");
  CHECK_FALSE(cpu.contains("score_pass"));
  CHECK(apart["score_pass"]["device"] == "host");
  CHECK(apart["score_pass"]["audit"]["rows"] > 10);
  CHECK(apart["score_pass"]["audit"]["retained_mass"] == 0);
  CHECK(apart["score_pass"]["audit"]["output_error"] == 0);
  for (std::size_t p = 0; p < 3; ++p) {
    CHECK(apart["runs"][p]["fidelity"] == cpu["runs"][p]["fidelity"]);
    CHECK(apart["runs"][p]["per_head"] == cpu["runs"][p]["per_head"]);
    CHECK(apart["runs"][p]["spans"].size() == cpu["runs"][p]["spans"].size());
  }
  fails(asked + "--audit 0.1", 2, "--audit compares a device with the CPU");
  fails(asked + "--device host --audit 2", 2, "--audit");
}

TEST_CASE("run takes the CPU where there is no GPU, and says why", "[cli]") {
  const std::string asked =
      "run " + std::string(KVSPAN_TRACES_DIR) + "/tiny-picture.safetensors --policy full ";
  const Outcome cuda = program(asked + "--device cuda --no-chart");
  const Outcome any = program(asked + "--device auto --no-chart");
  CHECK(any.code == 0);
  if (cuda.code == 0) {
    CHECK_THAT(any.text, Contains("device  "));
    return;
  }
  CHECK(cuda.code == 5);
  CHECK_THAT(cuda.text, Contains("; --device cpu needs none"));
  CHECK_THAT(any.text, Contains("kvspan: on the CPU, because "));
  CHECK_THAT(any.text, !Contains("device  "));
}
