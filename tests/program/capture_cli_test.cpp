// SPDX-License-Identifier: Apache-2.0
// `kvspan capture` and `kvspan eval`, as a user runs them.
#include <chrono>
#include <cmath>
#include <csignal>
#include <thread>
#include <unistd.h>

#include "sim/trace/trace.h"
#include "tests/support/program.h"

using namespace kvspan::test;
using Catch::Matchers::Contains;

namespace {

const std::string kModel = KVSPAN_MODELS_DIR "/minimind2-small";

std::string text(const char* name) { return std::string(KVSPAN_TRACES_DIR) + "/texts/" + name; }

std::string capture(const std::string& arguments) {
  return fmt::format("capture --device cpu --model {} {}", kModel, arguments);
}

}  // namespace

TEST_CASE("text becomes a trace that the reader checks and the simulator replays", "[cli]") {
  const Folder folder;
  const std::string out = folder / "t.safetensors";
  const Outcome made =
      program(capture(fmt::format("--text {} --bos 1 --prompt 512 --generate 8 --out {} --json {} "
                                  "--span 'name=Irene Adler' --span sinks=0:4 --licence Apache-2.0",
                                  text("sherlock-excerpt.txt"), out, folder / "t.json")));
  INFO(made.text);
  REQUIRE(made.code == 0);
  CHECK_THAT(made.text, Contains("of anonymous memory at most") && Contains("decode") &&
                            Contains("512 prompt + 8 generated"));
  const nlohmann::json json = read_json(folder / "t.json");
  // The independent program's figure for these 511 predictions (tests/data/references.safetensors).
  CHECK(fmt::format("{:.3f}", json["nll"]["prompt"]["mean"].get<double>()) == "4.846");
  CHECK(json["nll"]["after_prompt"]["tokens"] == 8);
  CHECK(json["generated"]["ids"].size() == 8);
  CHECK(json["bytes"] == std::filesystem::file_size(out));
  const kvspan::Trace trace = kvspan::Trace::open(out);
  CHECK(trace.meta().licence == "Apache-2.0");
  CHECK(trace.meta().spans.at(1).end == 4);
  const kvspan::Span name = trace.meta().spans.at(0);
  std::string spanned;
  for (std::int64_t i = name.begin; i < name.end; ++i) spanned += trace.token_text(i);
  CHECK_THAT(spanned, Contains("Irene Adler"));
  const Outcome checked = program("trace check " + out);
  INFO(checked.text);
  CHECK(checked.code == 0);
  CHECK(program("run " + out + " --policy snapkv --policy h2o --budget 25%").code == 0);
}

TEST_CASE("kvzip ranks by rows in which the model was asked again", "[cli]") {
  const Folder folder;
  const std::string out = folder / "t.safetensors", plain = folder / "plain.safetensors";
  const std::string text_of =
      fmt::format("--text {} --bos 1 --prompt 96 --generate 3 --span question=90:96 --out ",
                  text("sherlock-excerpt.txt"));
  const Outcome made = program(capture(text_of + out + " --replay --replay-chunk 40 --wo"));
  INFO(made.text);
  REQUIRE(made.code == 0);
  CHECK_THAT(made.text, Contains("rows ask for tokens [1, 90) in 3 passes"));
  CHECK_THAT(program("trace info " + out).text,
             Contains("after 90 tokens, which ask for [41, 81)"));
  CHECK_THAT(program("trace check " + out).text, Contains("in 3 passes"));
  const auto run = [&](const std::string& trace, const std::string& policy) {
    return program(
        fmt::format("run {} --policy \"{}\" --evict-at question --no-chart", trace, policy));
  };
  const Outcome kept = run(out, "kvzip(budget=30%)");
  INFO(kept.text);
  CHECK(kept.code == 0);
  CHECK(run(out, "kvzip(budget=30%,plus=true)").code == 0);
  CHECK(program(capture(text_of + plain)).code == 0);
  const Outcome without = run(plain, "kvzip");
  CHECK(without.code == 3);
  CHECK_THAT(without.text, Contains("capture --replay records them"));
}

TEST_CASE("the first token follows the tokenizer's settings, and the program says so", "[cli]") {
  const Folder folder;
  const std::string out = folder / "t.safetensors";
  const std::string rest =
      fmt::format("--text {} --prompt 64 --out {}", text("sherlock-excerpt.txt"), out);
  const auto first = [&] { return kvspan::Trace::open(out).token_ids().at(0); };
  const Outcome none = program(capture(rest + " --bos none"));
  CHECK(none.code == 0);
  CHECK_THAT(none.text, Contains("worse than guessing"));  // this model needs its bos
  CHECK(first() != 1);
  const Outcome given = program(capture(rest + " --bos 1"));
  CHECK_THAT(given.text, !Contains("worse than guessing"));
  CHECK(first() == 1);
  const Outcome chat = program(capture(rest + " --chat"));
  CHECK_THAT(chat.text, Contains("bos: the text begins with token 1 as it is"));
}

TEST_CASE("a model that misses its bos stops before the capture", "[cli]") {
  // A trace of perplexity 236,847 was written, with exit code 0. In numpy and torch, fp32, 1,200
  // tokens of this text have 110 with the bos and 214,432 without; ln(6400) is 8.76.
  const Folder folder;
  const std::string out = folder / "t.safetensors";
  const std::string sherlock = "--text " + text("sherlock-excerpt.txt");
  fails(capture(sherlock + " --prompt 64 --quiet --out " + out), 2,
        "worse than guessing: a mean nll of 13.");
  const Outcome stopped = program(capture(sherlock + " --prompt 64 --out " + out));
  CHECK(stopped.code == 2);
  CHECK_THAT(stopped.text,
             Contains("and 8.76 if it took all tokens for alike; expected --bos 1, or "
                      "--bos none"));
  CHECK(!std::filesystem::exists(out));
  CHECK(!std::filesystem::exists(out + ".partial"));
  CHECK(program(capture(sherlock + " --prompt 7 --out " + out)).code == 0);  // too few to tell
}

TEST_CASE("token ids without the bos that the tokenizer's settings want stop", "[cli]") {
  const Folder folder;
  namespace fs = std::filesystem;
  const fs::path model = folder / "model";
  fs::create_directory(model);
  for (const auto& entry : fs::directory_iterator(kModel)) {
    if (entry.path().filename() != "tokenizer_config.json")
      fs::create_symlink(fs::canonical(entry.path()), model / entry.path().filename());
  }
  std::ofstream(model / "tokenizer_config.json")
      << R"({"add_bos_token": true, "bos_token": "<|im_start|>"})";
  std::ofstream(folder / "ids.json") << "[5, 6, 7]";
  const std::string ids =
      fmt::format("capture --device cpu --model {} --quiet --tokens {} --out {}", model.string(),
                  folder / "ids.json", folder / "t.safetensors");
  fails(ids, 2, "the model's first token is 1 '<|im_start|>' (add_bos_token of");
  CHECK(program(ids + " --bos none").code == 0);
  CHECK(program(ids + " --bos 1").code == 0);
  std::ofstream(folder / "ids.json") << "[1, 6, 7]";
  CHECK(program(ids).code == 0);
}

TEST_CASE("a text may come from standard input", "[cli]") {
  // "-" was a file of that name, /dev/stdin an internal error.
  const Folder folder;
  for (const char* name : {"-", "/dev/stdin"}) {
    const std::string rest =
        fmt::format("--bos 1 --prompt 9 --text {} --out {}", name, folder / "t.safetensors");
    const Outcome piped = shell(fmt::format("cat {} | {} {} 2>&1", text("sherlock-excerpt.txt"),
                                            KVSPAN_PROGRAM, capture(rest)));
    INFO(piped.text);
    REQUIRE(piped.code == 0);
    CHECK(kvspan::Trace::open(folder / "t.safetensors").meta().tokens == 9);
  }
  const Outcome none =
      shell(fmt::format("{} {} 2>&1 < /dev/null", KVSPAN_PROGRAM,
                        capture("--quiet --text - --out " + (folder / "u.safetensors"))));
  CHECK(none.code == 3);
  CHECK(none.text == "kvspan: /dev/stdin: is empty\n");
}

TEST_CASE("a split GGUF file generates llama.cpp's tokens", "[cli]") {
  // llama.cpp of October 2026, greedily, from the same files and ids.
  const Folder folder;
  std::ofstream(folder / "ids.json") << "[70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, "
                                        "84, 85, 86, 87, 88, 89, 90, 91, 92, 93]";
  for (const int part : {1, 2}) {
    const Outcome made = program(fmt::format(
        "capture --device cpu --model {}/data/tracegen/checkpoints/split-0000{}-of-00002.gguf "
        "--tokens {} --generate 6 --out {} --json {}",
        KVSPAN_TESTS_DIR, part, folder / "ids.json", folder / "t.safetensors", folder / "t.json"));
    INFO(made.text);
    REQUIRE(made.code == 0);
    CHECK(read_json(folder / "t.json")["generated"]["ids"] ==
          std::vector<int>{102, 67, 115, 162, 162, 66});
  }
}

TEST_CASE("a killed capture goes on after its last complete layer", "[cli]") {
  const Folder folder;
  const auto arguments = [&](const char* name) {
    return capture(
        fmt::format("--text {} --bos 1 --prompt 800 --generate 4 --emit both "
                    "--keys 8 --shards layers --threads 1 --out {}",
                    text("pride-excerpt.txt"), folder / name));
  };
  const Outcome whole = program(arguments("whole.safetensors"));
  INFO(whole.text);
  REQUIRE(whole.code == 0);
  const std::string journal = folder / "killed.safetensors.partial/journal.json";
  FILE* pipe = popen(fmt::format("exec 2>/dev/null; {} {} --quiet >/dev/null & echo $!; wait $!",
                                 KVSPAN_PROGRAM, arguments("killed.safetensors"))
                         .c_str(),
                     "r");
  REQUIRE(pipe != nullptr);
  int child = 0;
  REQUIRE(fscanf(pipe, "%d", &child) == 1);
  const auto layers = [&] {
    const nlohmann::json state = nlohmann::json::parse(read_text(journal), nullptr, false);
    return state.is_object() ? state["layers"].get<int>() : 0;
  };
  for (int i = 0; i < 20000 && layers() < 2; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
  REQUIRE(kill(child, SIGKILL) == 0);
  pclose(pipe);
  const int done = layers();
  REQUIRE(done >= 2);
  CHECK(!std::filesystem::exists(folder / "killed.safetensors.index.json"));
  const Outcome resumed = program(arguments("killed.safetensors"));
  INFO(resumed.text);
  REQUIRE(resumed.code == 0);
  CHECK_THAT(resumed.text, Contains("resuming"));
  CHECK(!std::filesystem::exists(folder / "killed.safetensors.partial"));
  int shards = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("whole") || name.ends_with(".json")) continue;
    ++shards;
    CHECK(read_text(folder / name) == read_text(folder / ("killed" + name.substr(5))));
  }
  CHECK(shards == 16);
}

TEST_CASE("a full disk is one line, and leaves no trace", "[cli]") {
  const Folder folder;
  const std::string out = folder / "t.safetensors";
  const std::string command = capture(fmt::format("--text {} --bos 1 --prompt 200 --quiet --out {}",
                                                  text("sherlock-excerpt.txt"), out));
  for (const int blocks : {1, 300, 2000}) {  // of 512 or 1,024 bytes a file
    const Outcome full =
        shell(fmt::format("ulimit -f {}; {} {} 2>&1", blocks, KVSPAN_PROGRAM, command));
    INFO(full.text);
    CHECK(full.code == 1);
    CHECK(std::count(full.text.begin(), full.text.end(), '\n') == 1);
    CHECK_THAT(full.text, Contains("File too large"));
    CHECK(!std::filesystem::exists(out));
  }
  const Outcome after = program(command);
  INFO(after.text);
  CHECK(after.code == 0);
  CHECK(program("trace check " + out).code == 0);
}

TEST_CASE("wrong input of a capture is one line", "[cli]") {
  const Folder folder;
  const std::string out = " --out " + (folder / "t.safetensors");
  const std::string sherlock = "--text " + text("sherlock-excerpt.txt");
  const auto file = [&](const char* name, const std::string& content) {
    std::ofstream(folder / name) << content;
    return folder / name;
  };
  const auto wrong = [&](const std::string& arguments, int code, const std::string& why) {
    fails(capture(arguments + " --quiet"), code, why);
  };
  wrong(sherlock + " --prompt 100000" + out, 2, "--prompt 100000: the text has ");
  wrong(sherlock + " --prompt 5000 --teacher --generate 50000" + out, 2, "teacher-forced");
  wrong("--text " + file("empty.txt", "") + out, 3, "is empty");
  wrong("--text " + (folder / "none.txt") + out, 3, "No such file");
  wrong("--text " + file("broken.txt", "abc\xff") + out, 3, "UTF-8");
  wrong("--tokens " + file("ids.json", "[1, 6400]") + out, 3,
        "token 1 has id 6400; the vocabulary of");
  wrong("--tokens " + file("words.txt", "one two") + out, 3, "token 0 is 'one'");
  wrong("--prompt 5" + out, 2, "one of --text FILE and --tokens FILE");
  wrong(sherlock + " --prompt 5 --out " + (folder / "t.bin"), 2, "ends in .safetensors");
  wrong(sherlock + " --prompt 5 --out " + (folder / "no/t.safetensors"), 2, "there is no folder");
  wrong(sherlock + " --prompt 5 --out /proc/t.safetensors", 1, "cannot be created");
  wrong(sherlock + " --prompt 5 --out " + kModel + "/model.safetensors", 2,
        "is an input of this command");
  wrong(sherlock + " --prompt 5 --span a=Zebra" + out, 2, "does not stand in the 5 tokens");
  wrong(sherlock + " --prompt 5 --bos first" + out, 2, "--bos: found 'first'");
  wrong(sherlock + " --prompt 5 --bos 9999" + out, 3, "token 0 has id 9999");
  wrong(sherlock + " --prompt 5 --emit scores --rows last=0" + out, 2, "--rows: found 'last=0'");
  wrong(sherlock + " --prompt 5 --rows last=4" + out, 2, "need --emit scores");
  wrong(sherlock + " --prompt 5 --json " + (folder / "no/x.json") + out, 2, "--json: there is no");
  wrong(sherlock + " --prompt 5 --layers 8" + out, 2, "layers 0 to 7");
  wrong(sherlock + " --prompt 5 --memory 1MiB" + out, 2, "--memory 1MiB");
  fails("capture --model " + (folder / "nothing") + " " + sherlock + out, 3, "nothing");
  wrong(sherlock + " --prompt 5 --seed -1" + out, 2, "--seed: found '-1', expected a whole number");
  fails(capture("--frobnicate"), 2, "unknown option '--frobnicate'");
  for (const auto& entry : std::filesystem::directory_iterator(folder.path))
    CHECK(entry.path().extension() != ".partial");
}

TEST_CASE("a capture replaces and removes none of its inputs", "[cli]") {
  const Folder folder;
  namespace fs = std::filesystem;
  const fs::path model = folder / "model";
  fs::create_directory(model);
  for (const auto& entry : fs::directory_iterator(kModel))
    fs::create_symlink(fs::canonical(entry.path()), model / entry.path().filename());
  // As a sharded model has it.
  fs::rename(model / "model.safetensors", model / "part.safetensors");
  nlohmann::json index{{"weight_map", nlohmann::json::object()}};
  const auto weights = kvspan::TensorSet::open(model / "part.safetensors");
  for (const auto& [name, view] : weights.tensors()) index["weight_map"][name] = "part.safetensors";
  std::ofstream(model / "model.safetensors.index.json") << index;
  const auto ids = [&](const std::string& path) {
    kvspan::SafetensorsWriter writer(path, {}, {{"token_ids", kvspan::Dtype::i32, {2}}});
    writer.finish();
  };
  ids(folder / "ids-00001-of-00001.safetensors");
  std::ofstream(folder / "ids.safetensors.index.json")
      << R"({"weight_map": {"token_ids": "ids-00001-of-00001.safetensors"}})";
  std::ofstream(folder / "text.txt") << "One two three";
  const auto refused = [&](const std::string& input, const std::string& outputs,
                           const std::string& why) {
    fails(fmt::format("capture --device cpu --model {} {} --quiet {}", model.string(), input,
                      outputs),
          2, why);
  };
  const std::string in = "--text " + (folder / "text.txt");
  const std::string out = " --out " + (folder / "t.safetensors");
  const std::string input = "is an input of this command", twice = "would be written twice";
  refused(in, "--out " + (model / "model.safetensors").string(), input);
  refused(in, out + " --json " + (model / "tokenizer.json").string(), input);
  refused(in, out + " --json " + (folder / "text.txt"), input);
  const std::string tokens = "--tokens " + (folder / "ids.safetensors.index.json");
  refused(tokens, "--out " + (folder / "ids.safetensors"), input);
  refused(tokens, out + " --json " + (folder / "ids-00001-of-00001.safetensors"), input);
  refused(in, out + " --json " + (folder / "t.safetensors"), twice);
  refused(in, out + " --emit both --json " + (folder / "t.scores.safetensors"), twice);
  refused(in, out + " --json " + (folder / "t-00003-of-00008.safetensors"), twice);
  refused(in, out + " --keys 8", "--keys, --rows");
  fails(
      fmt::format("capture --device cpu --model {} {} --prompt 9 {}", model.string(), tokens, out),
      2, "the text has 2 tokens\n");
  CHECK(fs::exists(model / "model.safetensors.index.json"));
  CHECK(fs::exists(folder / "ids.safetensors.index.json"));
}

TEST_CASE("a model under policies answers a task, and writes what several runs write", "[cli]") {
  const Folder folder;
  const std::string out = folder / "e.json";
  const std::string base = fmt::format("eval --model {} --bos 1 --quiet ", kModel);
  const Outcome done = program(
      base + fmt::format("--task perplexity:text={},prompt=32,length=48 --samples 2 --policy knorm "
                         "--policy judgeq --policy 'foresightkv(scorer=golden)' --budget 25%,50% "
                         "--out {} --csv {}",
                         text("sherlock-excerpt.txt"), out, folder / "e.csv"));
  INFO(done.text);
  REQUIRE(done.code == 0);
  CHECK_THAT(done.text, Contains("knorm(budget=25%)") && Contains("of anonymous memory at most") &&
                            Contains("keeps 90 % of the score"));
  CHECK_THAT(done.text, Contains("judgeq(budget=50%) [1]") && Contains("[1] stand-in: "));
  const nlohmann::json json = read_json(out);
  REQUIRE(json["results"].size() == 2);
  const nlohmann::json& runs = json["results"][1]["runs"];
  REQUIRE(runs.size() == 5);  // full runs along, a bound cannot
  CHECK(runs[0]["label"] == "full");
  CHECK(runs[0]["eval"]["kl"] == 0);
  // The score is 1 / perplexity; the figures by task are means over its samples.
  const double nll = runs[1]["eval"]["nll"];
  CHECK(runs[1]["eval"]["score"].get<double>() == Approx(std::exp(-nll)));
  const nlohmann::json& task = json["eval"]["tasks"][0];
  const double other = json["results"][0]["runs"][1]["eval"]["nll"];
  CHECK(task["policies"][1]["nll"].get<double>() == Approx((nll + other) / 2));
  CHECK(task["refused"].size() == 2);
  CHECK(task["policies"][3]["notes"] == runs[3]["notes"]);
  const Outcome wrong = program(base + "--task perplexity:length=64 --policy knorm");
  CHECK(wrong.code == 2);
  CHECK_THAT(wrong.text, Contains("needs text=FILE"));
}

TEST_CASE("an evaluation that is killed goes on, and ends with the same bytes", "[cli]") {
  const Folder folder;
  const std::string command = fmt::format(
      "{} eval --model {} --bos 1 --quiet --task perplexity:text={},prompt=16,length=20 --samples "
      "3 "
      "--policy knorm --budget 50% --memory 300MiB --threads ",
      KVSPAN_PROGRAM, kModel, text("sherlock-excerpt.txt"));
  const auto in = [&](const char* name, const std::string& what) {
    std::filesystem::create_directories(folder / name);
    return shell(fmt::format("exec 2>&1; cd {} || exit 9; {}", folder / name, what));
  };
  const Outcome whole = in("whole", command + "2 --out e.json");
  INFO(whole.text);
  REQUIRE(whole.code == 0);
  CHECK_FALSE(std::filesystem::exists(folder / "whole/e.json.partial"));
  const std::string after_one =
      " & p=$!; until [ -s e.json.partial/*.journal ]; do sleep 0.01; done;";
  (void)in("killed", command + "2 --out e.json" + after_one + " kill -KILL $p; wait $p");
  CHECK_FALSE(std::filesystem::exists(folder / "killed/e.json"));
  // What was being written when the power went.
  (void)in("killed", "for j in e.json.partial/*; do printf '000000ff 0123' >> $j; done");
  const Outcome on = in("killed", command + "2 --out e.json");
  CHECK(on.code == 0);
  CHECK_THAT(on.text, Contains(" samples were there"));
  CHECK(read_text(folder / "killed/e.json") == read_text(folder / "whole/e.json"));
  CHECK_FALSE(std::filesystem::exists(folder / "killed/e.json.partial"));

  const Outcome stopped =
      in("stopped", command + "2 --out e.json" + after_one + " kill -TERM $p; wait $p");
  CHECK((stopped.code == 75 || stopped.code == 0));  // 0: it was at its end
  if (stopped.code == 75) CHECK_THAT(stopped.text, Contains("the same command goes on"));

  nlohmann::json alone = read_json(folder / "whole/e.json");
  const Outcome one = in("one", command + "1 --out e.json");
  CHECK(one.code == 0);
  nlohmann::json other = read_json(folder / "one/e.json");
  for (nlohmann::json* file : {&alone, &other}) {
    file->erase("command");
    for (nlohmann::json& result : (*file)["results"]) result.erase("command");
  }
  CHECK(other == alone);

  const Outcome report = program(
      fmt::format("report {0} --at 50% --csv {1} --svg {2} --out {3} --quiet",
                  folder / "one/e.json", folder / "r.csv", folder / "r.svg", folder / "r.json"));
  CHECK(report.code == 0);
  CHECK_THAT(report.text, Contains("# Critical footprint at 50 % of the full cache's score"));
  CHECK(read_json(folder / "r.json")["tasks"][0]["methods"][0]["method"] == "knorm");
  CHECK_THAT(read_text(folder / "r.svg"), Contains("</svg>"));
  CHECK(read_json(folder / "r.csv.schema.json")["fields"].size() > 10);
  // The same samples under the same policies, once more: nothing changes.
  const Outcome both =
      program(fmt::format("report {} {} --at 50% --out {} --quiet", folder / "one/e.json",
                          folder / "whole/e.json", folder / "both.json"));
  CHECK(both.code == 0);
  CHECK(read_json(folder / "both.json")["results"].size() == 2);
  CHECK(read_json(folder / "both.json")["tasks"] == read_json(folder / "r.json")["tasks"]);
  fails("report " + (folder / "one/e.json") + " " + (folder / "one"), 2, "is no file");
  fails("report " + (folder / "one/e.json") + " --search 90%", 2, "--search is of sweeps");
  fails("report " + (folder / "r.json"), 3, "no result of `kvspan eval --out`");
}
