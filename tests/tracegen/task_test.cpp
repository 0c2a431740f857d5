// SPDX-License-Identifier: Apache-2.0
// Tasks against the published rules, read independently; scores by hand.
#include "tracegen/eval/task.h"

#include <algorithm>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "tests/support/temporary_folder.h"
#include "tracegen/eval/task_draws.h"

using namespace kvspan;
using namespace kvspan::tracegen;
using Catch::Matchers::Contains;

namespace {

// A token a word: white space separates them.
std::int64_t words(std::string_view text) {
  std::istringstream in{std::string(text)};
  std::int64_t n = 0;
  for (std::string word; in >> word;) ++n;
  return n;
}

std::vector<Sample> make(const std::string& task, std::int64_t samples = 3) {
  return make_samples({task, samples, 7, words});
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

std::string in(const Sample& sample, const std::string& span) {
  const auto at = std::ranges::find(sample.spans, span, &TextSpan::name);
  return at == sample.spans.end() ? "" : sample.prompt.substr(at->begin, at->end - at->begin);
}

const test::TemporaryFolder& folder() {
  static const test::TemporaryFolder folder;
  return folder;
}

// A text of short sentences: "w0 w1 w2. w3 w4 w5. ..."
std::string book() {
  const std::string path = folder() / "book.txt";
  std::ofstream out(path);
  for (int i = 0; i < 900; ++i) out << 'w' << i << (i % 3 == 2 ? ". " : " ");
  return path;
}

std::string error_of(const std::string& task) {
  try {
    (void)make(task);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string file_error(const std::string& line) {
  const std::string path = folder() / "wrong.jsonl";
  std::ofstream(path) << "\n" << line << "\n";
  return error_of(path);
}

}  // namespace

TEST_CASE("scores are those of pen and paper", "[eval]") {
  const std::vector<std::string> two{"1234567", "Otter"};
  CHECK(score(Scoring::all_match, " the OTTER, and 1234567.", two) == 1);
  CHECK(score(Scoring::all_match, "an otter", two) == 0.5);
  CHECK(score(Scoring::all_match, "123456", two) == 0);
  CHECK(score(Scoring::all_match, "12\t34567", two) == 0);
  CHECK(score(Scoring::any_match, "an otter", two) == 1);
  CHECK(score(Scoring::any_match, "none", two) == 0);
  CHECK(score(Scoring::exact, "\n Otter ", two) == 1);
  CHECK(score(Scoring::exact, "otter", two) == 0);
  CHECK(score(Scoring::substring, "It is: the U.S.A.!", {"an usa"}) == 1);
  CHECK(score(Scoring::substring, "us a", {"usa"}) == 0);
  // Words of the output: big red otter; of the answer: otter is red. 2 in common: F1 = 4 / 6.
  CHECK(score(Scoring::f1, "The big red otter.", {"nothing", "otter is red"}) == Approx(2.0 / 3));
  // A word counts as often as both have it: 1 of 2 and 1 of 1.
  CHECK(score(Scoring::f1, "otter otter", {"otter"}) == Approx(2.0 / 3));
  CHECK(normalised(" The  Quick, a-fox an ") == "quick afox");
}

TEST_CASE("one needle stands in RULER's filler", "[eval]") {
  const std::vector<Sample> samples = make("niah_single_1:length=512,generate=16");
  REQUIRE(samples.size() == 3);
  std::set<std::string> answers;
  for (const Sample& s : samples) {
    CHECK(words(s.prompt + s.answer_prefix) + s.generate <= 512);
    // One line more, of 19 words, would not fit.
    CHECK(words(s.prompt + s.answer_prefix) + s.generate + 19 > 512);
    REQUIRE(s.answers.size() == 1);
    CHECK(std::regex_match(s.answers[0], std::regex("[1-9][0-9]{6}")));
    CHECK(s.reference == " " + s.answers[0]);
    answers.insert(s.answers[0]);
    std::smatch m;
    const std::regex needle(
        "\nOne of the special magic numbers for ([a-z]+-[a-z]+) is: ([0-9]{7})\\."
        "\nThe grass");
    REQUIRE(std::regex_search(s.prompt, m, needle));
    CHECK(m[2] == s.answers[0]);
    CHECK(count(s.prompt, "One of the special magic") == 1);
    CHECK(s.prompt.starts_with(
        "A special magic number is hidden within the following text. Make sure to memorize it. I "
        "will quiz you about the number afterwards.\n"));
    const std::string question = fmt::format(
        "What is the special magic number for {} mentioned in the provided text?", m[1].str());
    CHECK(s.prompt.ends_with("\n" + question));
    CHECK(s.answer_prefix ==
          fmt::format(" The special magic number for {} mentioned in the provided text is",
                      m[1].str()));
    CHECK(in(s, "question") == question);
    CHECK(in(s, "needle") ==
          fmt::format("One of the special magic numbers for {} is: {}.", m[1].str(), s.answers[0]));
  }
  CHECK(answers.size() == 3);
  CHECK(make("niah_single_1:length=512,generate=16")[2].prompt == samples[2].prompt);
  // All samples have the same lines, but for the needle.
  CHECK(count(samples[0].prompt, "The grass is green.") ==
        count(samples[1].prompt, "The grass is green."));
}

TEST_CASE("other needles differ as RULER has it", "[eval]") {
  const std::string text = ",text=" + book();
  const Sample keys = make("niah_multikey_1:length=400,generate=16" + text)[0];
  CHECK(count(keys.prompt, "One of the special magic numbers for ") == 4);
  CHECK(keys.answers.size() == 1);
  const Sample values = make("niah_multivalue:length=400,generate=64" + text)[0];
  CHECK(values.answers.size() == 4);
  CHECK(std::set(values.answers.begin(), values.answers.end()).size() == 4);
  CHECK_THAT(values.prompt, Contains("Some special magic numbers are hidden within") &&
                                Contains("What are all the special magic numbers for "));
  CHECK(values.answer_prefix.ends_with("mentioned in the provided text are"));
  CHECK(values.spans.size() == 5);  // question and four needles
  const Sample queries = make("niah_multiquery:length=400,generate=64" + text)[0];
  CHECK(queries.answers.size() == 4);
  CHECK(std::regex_search(in(queries, "question"),
                          std::regex("for [a-z-]+, [a-z-]+, [a-z-]+, and [a-z-]+ mentioned")));
  const Sample lines = make("niah_multikey_2:length=400,generate=16")[0];
  // Every line but the question is a needle: 10 words each, 27 and 13 around them.
  CHECK(count(lines.prompt, "One of the special magic numbers for ") >= 30);
  CHECK(count(lines.prompt, "The grass") == 0);
  CHECK(count(lines.prompt, lines.answers[0]) == 1);
  const Sample uuids = make("niah_multikey_3:length=400,generate=16")[0];
  const std::string uuid = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}";
  CHECK(std::regex_match(uuids.answers[0], std::regex(uuid)));
  CHECK(std::regex_search(in(uuids, "needle"), std::regex("uuids for " + uuid + " is: " + uuid)));
  const Sample one = make("niah_single_3:length=400,generate=16" + text)[0];
  // Sentences stay whole, in their order: without the needle the text is the text.
  std::string rest = one.prompt;
  rest.erase(rest.find(in(one, "needle")), in(one, "needle").size() + 1);
  CHECK_THAT(rest, Contains("\nw0 w1 w2. w3 w4 w5. w6"));
}

TEST_CASE("a value goes along a chain of variables", "[eval]") {
  const Sample s = make("vt:length=900,hops=4")[0];
  CHECK(words(s.prompt + s.answer_prefix) + 30 <= 900);
  REQUIRE(s.answers.size() == 5);
  std::size_t at = 0;
  for (std::size_t i = 0; i < 5; ++i) {
    CHECK(std::regex_match(s.answers[i], std::regex("[A-Z]{5}")));
    const std::string link = in(s, fmt::format("link{}", i + 1));
    CHECK(link == fmt::format("VAR {} = ", s.answers[i]));
    const std::size_t here = s.prompt.find(link);
    CHECK(here > at);  // in order
    at = here;
    if (i > 0) CHECK_THAT(s.prompt, Contains(link + "VAR " + s.answers[i - 1]));
  }
  CHECK(std::regex_search(s.answer_prefix,
                          std::regex("5 variables are assigned the value [0-9]{5}, they are: $")));
  // The worked example has names of three letters, and its answer.
  CHECK(std::regex_search(s.prompt, std::regex("they are:  [A-Z]{3} [A-Z]{3} [A-Z]{3} [A-Z]{3} "
                                               "[A-Z]{3}\n\nMemorize and track")));
  CHECK(s.generate == 30);
}

TEST_CASE("common words are counted as RULER says", "[eval]") {
  const Sample s = make("cwe:length=1200")[0];
  CHECK(words(s.prompt + s.answer_prefix) + 120 <= 1200);
  const std::size_t list = s.prompt.rfind("Below is a numbered list");
  std::istringstream in(s.prompt.substr(s.prompt.find('\n', list)));
  std::map<std::string, int> times;
  std::string number, word;
  int expected = 1;
  while (in >> number && number != "Question:") {
    CHECK(number == fmt::format("{}.", expected++));
    in >> word;
    ++times[word];
  }
  REQUIRE(s.answers.size() == 10);
  int common = 0;
  for (const auto& [name, n] : times) {
    const bool asked = std::ranges::count(s.answers, name) == 1;
    CHECK(n == (asked ? 6 : 1));
    common += asked ? 1 : 0;
  }
  CHECK(common == 10);
  // The example before it: 20 words, 10 of them three times.
  CHECK_THAT(s.prompt, Contains(" 40. ") && Contains("in the list are: 1. "));
}

TEST_CASE("coded words follow their zeta law", "[eval]") {
  const Sample s = make("fwe:length=1000")[0];
  std::map<std::string, int> times;
  std::istringstream in(s.prompt.substr(0, s.prompt.find("\nQuestion")));
  for (std::string word; in >> word;) {
    if (word == "..." || std::regex_match(word, std::regex("[a-z]{6}"))) ++times[word];
  }
  times.erase("appear");  // of the instruction there is none; six letters otherwise
  const double n = times["..."] * 1.6449340668482264;  // rank 1: floor(N / zeta(2))
  REQUIRE(s.answers.size() == 3);
  for (int rank = 2; rank <= 4; ++rank) {
    const int found = times[s.answers[static_cast<std::size_t>(rank - 2)]];
    const double least = n / 1.6449340668482264 / (rank * rank);
    const double most = (times["..."] + 1.0) / (rank * rank);
    CHECK(found >= static_cast<int>(least));
    CHECK(found <= static_cast<int>(most));
  }
  CHECK(words(s.prompt + s.answer_prefix) + 50 <= 1000);
}

TEST_CASE("key-value pairs, copies and texts are what they say", "[eval]") {
  const Sample kv = make("json_kv:length=700")[0];
  CHECK(count(kv.prompt, "\": \"") >= 100);
  CHECK(count(kv.prompt, "Corresponding value: ") == 2);
  CHECK_THAT(in(kv, "needle"), Contains(kv.answers[0]));
  CHECK(in(kv, "needle").substr(1, 36) == kv.prompt.substr(kv.prompt.size() - 37, 36));
  const Sample copy = make("copying:words=12")[0];
  CHECK(words(copy.answers[0]) == 12);
  CHECK(copy.prompt.ends_with("List: " + copy.answers[0] + "\n"));
  CHECK(copy.generate == 12);
  const std::vector<Sample> text = make("perplexity:length=100,prompt=60,text=" + book(), 2);
  CHECK(words(text[0].prompt) == 60);
  CHECK(words(text[0].reference) == 40);
  CHECK(text[1].prompt.starts_with("w100 "));
  CHECK(text[0].generate == 0);
}

TEST_CASE("samples of one's own are read line by line", "[eval]") {
  const std::string path = folder() / "own.jsonl";
  std::ofstream(path)
      << R"({"prompt": "The key is 7. What is the key?", "answers": ["7"], "generate": 3,)"
      << R"( "spans": {"needle": "is 7"}, "scoring": "exact", "answer_prefix": " It is"})"
      << "\n\n"
      << R"({"name": "b", "prompt": "x", "reference": " y z", "scoring": "log-likelihood"})"
      << "\n";
  const std::vector<Sample> samples = make(path, 0);
  REQUIRE(samples.size() == 2);
  CHECK(samples[0].scoring == Scoring::exact);
  CHECK(samples[0].reference == " 7");
  CHECK(samples[0].answer_prefix == " It is");
  CHECK(in(samples[0], "needle") == "is 7");
  CHECK(samples[1].name == "b");
  CHECK(samples[1].generate == 0);
  CHECK(make(path, 1).size() == 1);
  CHECK_THAT(file_error("{\"prompt\": 3}"), Contains("line 2: 'prompt' is '3'"));
  CHECK_THAT(file_error("{\"prompt\": \"x\"}"), Contains("no 'answers'"));
  CHECK_THAT(file_error(R"({"prompt": "x", "answers": ["y"], "scoring": "f2"})"),
             Contains("did you mean 'f1'"));
  CHECK_THAT(file_error(R"({"prompt": "x", "answers": ["y"], "spans": {"n": "z"}})"),
             Contains("does not stand in the prompt"));
  CHECK_THAT(file_error("[1]"), Contains("expected an object"));
  CHECK_THAT(file_error("{"), Contains("line 2"));
}

TEST_CASE("a task that is wrong says what would be right", "[eval]") {
  CHECK_THAT(error_of("niah_singel_1"), Contains("did you mean 'niah_single_1'"));
  CHECK_THAT(error_of("vt:lenght=100"), Contains("did you mean 'length'"));
  CHECK_THAT(error_of("vt:length=ten"), Contains("length=ten, expected a number from 64"));
  CHECK_THAT(error_of("vt:length"), Contains("expected key=value"));
  CHECK_THAT(error_of("vt:length=100,length=200"), Contains("given twice"));
  CHECK_THAT(error_of("niah_single_2"), Contains("needs text=FILE"));
  CHECK_THAT(error_of("niah_single_1:length=100"), Contains("too short"));
  CHECK_THAT(error_of("perplexity:length=500,text=" + book()), Contains("the text ends"));
}
