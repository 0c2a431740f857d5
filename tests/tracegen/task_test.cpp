// SPDX-License-Identifier: Apache-2.0
// Tasks against the published rules, read independently; scores by hand.
#include "tracegen/eval/task.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

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

// A route of four steps; LongProc's own count calls the first wrong step right.
TEST_CASE("walks are scored by the lines before the first wrong one", "[eval]") {
  const std::vector<std::string> route{"a to b\nb to c\nc to d\nd to e"};
  const auto both = [&](const std::string& output, double ours, double published) {
    INFO(output);
    CHECK(score(Scoring::line_prefix, output, route) == ours);
    CHECK(score(Scoring::line_prefix_published, output, route) == published);
  };
  both("a to b\nb to c\nc to d\nd to e\n</Route>", 1, 1);
  both("<Route>\na to b \n b to c\n</Route>", 0.25, 0.5);  // a blank at a line's beginning counts
  both("a to b\nb to c\n</Route>", 0.5, 0.5);              // a beginning gets its length in both
  both("a to b\nb to x\nc to d\nd to e\n</Route> more", 0.25, 0.5);
  both("x\n</Route>", 0, 0.25);
  both("a to b\nb to c\nc to", 0.5, 0);  // no end
  both("so:\n<Route>\na to b\n", 0.25, 0);
  both("a to b\nb to c\nc to d\nd to e\ne to f\n</Route>", 1, 1);
  both("", 0, 0);
  CHECK(score(Scoring::first_line, " 3\n\ntext: 4", {"3"}) == 1);
  CHECK(score(Scoring::first_line, "13\n", {"3"}) == 0);
}

TEST_CASE("searches are scored by their equations, or by what was decided", "[eval]") {
  const std::vector<std::string> answer{
      "Numbers: 8, 3, 2, 1. Target: 10.\nTake 8 and 3, left: 2, 1\n 8 + 3 = 11, go on\n"
      " Take 11 and 2, left: 1\n  11 + 2 = 13, drop\n<Solution>\n8 + 3 = 11\n11 - 2 = 9\n"
      "9 + 1 = 10\n</Solution>"};
  const std::string first = "Numbers: 8, 3, 2, 1. Target: 10.\n";
  const auto both = [&](const std::string& output, double ours, double published) {
    INFO(output);
    CHECK(score(Scoring::search, output, answer) == Approx(ours));
    CHECK(score(Scoring::search_published, output, answer) == Approx(published));
  };
  both(answer[0], 1, 1);
  // Another way, without a search: 3 - 2 = 1 of the numbers, and 1 once more.
  both("<Solution>\n3 - 2 = 1\n8 + 1 = 9\n9 + 1 = 10\n</Solution>", 1, 1);
  both("<Solution>\n8 + 2 = 10\n</Solution>", 0, 0);                            // not all numbers
  both("<Solution>\n8 + 2 = 10\n10 * 1 = 10\n10 / 3 = 3\n</Solution>", 0, 0);   // not true
  both("<Solution>\n8 + 2 = 10\n10 * 1 = 10\n10 + 8 = 18\n</Solution>", 0, 0);  // 8 twice
  // Two of four steps are right; the results of a step, and the words, are free.
  both(first + "Take 8 and 3, left: 2, 1\n 8 + 3 = 12, well\nTake 11 and 2, left: 1\n", 2.0 / 5,
       2.0 / 4);
  both(first + "Take 8 and 3, left: 2, 1\n 8 + 3 = 11, drop\n", 1.0 / 5, 1.0 / 4);
  // All steps and no equations: LongProc's count takes the last one away.
  both(answer[0].substr(0, answer[0].find("<Solution>")), 4.0 / 5, 3.0 / 4);
  both("Numbers: 8, 3, 2. Target: 10.\nTake 8 and 3, left: 2, 1\n", 0, 0);
}

TEST_CASE("tables are scored by their rows", "[eval]") {
  const std::vector<std::string> table{"Name\tPrice\nThe Otter\t1.50\nFox\t2\nCat\t3\nDog\t4\n"};
  const auto f1 = [&](const std::string& output) { return score(Scoring::row_f1, output, table); };
  CHECK(f1(table[0] + "```") == 1);
  CHECK(f1("Here:\n```tsv\nname\tprice\ndog\t4\ncat\t3\nfox\t2\notter\t150\n```\nThat is all.") ==
        1);
  // Two of three rows, two of four: 2 (2/3) (1/2) / (7/6).
  CHECK(f1("Name\tPrice\nFox\t2\nCat\t3\nCow\t4\n") == Approx(4.0 / 7));
  // The last row is cut and goes; one of another width before it is a wrong row: 2/3 of 3, 2/4.
  CHECK(f1("Name\tPrice\nFox\t2\nCat\nDog\t4\nThe") == Approx(4.0 / 7));
  CHECK(f1("Name\nFox\nCat\n") == 0);
  CHECK(f1("Name\tPrice\n```") == 0);
  CHECK(f1("") == 0);
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

TEST_CASE("every round of shots has each label once, and words tell labels apart", "[eval]") {
  const Sample s = make("many_shot:length=400,labels=4")[0];
  std::map<std::string, std::set<std::string>> known;  // word: labels
  std::vector<std::string> labels;
  std::istringstream in(s.prompt + s.answer_prefix + s.reference);
  std::vector<std::string> text;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string first;
    words >> first;
    if (first == "text:") {
      text.clear();
      for (std::string word; words >> word;) text.push_back(word);
      CHECK(text.size() == 5);
    } else if (first == "label:") {
      std::string label;
      words >> label;
      labels.push_back(label);
      for (const std::string& word : text) known[word].insert(label);
    }
  }
  for (const auto& [word, of] : known) CHECK(of.size() == 1);  // the asked text's, too
  REQUIRE(labels.size() % 4 == 1);
  for (std::size_t i = 0; i + 4 < labels.size(); i += 4)
    CHECK(std::set(labels.begin() + static_cast<long>(i),
                   labels.begin() + static_cast<long>(i) + 4) ==
          std::set<std::string>{"0", "1", "2", "3"});
  CHECK(labels.back() == s.answers[0]);
  CHECK(words(s.prompt + s.answer_prefix) + s.generate <= 400);
  CHECK(words(s.prompt + s.answer_prefix) + s.generate + 4 * 8 > 400);
}

TEST_CASE("a route follows the only way out of every city", "[eval]") {
  const Sample s = make("path_traversal:length=1600")[1];
  CHECK(words(s.prompt + s.answer_prefix) + s.generate <= 1600);
  const std::string world = s.prompt.substr(s.prompt.find("Another world:"));
  std::map<std::string, std::pair<std::string, std::string>> way;
  const std::regex city(
      "(\\w+) is a lively city. You can travel from (\\w+) to (\\w+) by (\\w+)\\.");
  std::map<std::string, int> in;
  for (std::sregex_iterator at(world.begin(), world.end(), city), end; at != end; ++at) {
    CHECK((*at)[1] == (*at)[2]);
    CHECK(way.emplace((*at)[1], std::pair((*at)[3], (*at)[4])).second);  // one way out
    ++in[(*at)[3]];
  }
  std::smatch asked;
  REQUIRE(std::regex_search(world, asked, std::regex("Find the route from (\\w+) to (\\w+)\\.")));
  std::string route;
  std::size_t steps = 0;
  int distractors = 0;
  for (std::string at = asked[1]; at != asked[2]; ++steps) {
    REQUIRE(steps < way.size());
    const auto [to, means] = way.at(at);
    route += fmt::format("{}From {}, take a {} to {}.", steps == 0 ? "" : "\n", at, means, to);
    distractors += in[to] - 1;
    at = to;
  }
  CHECK(s.answers[0] == route);
  CHECK(steps >= way.size() / 2);
  CHECK(steps <= way.size() * 4 / 5);
  CHECK(distractors > 0);
  CHECK(s.reference == route + "\n</Route>");
  CHECK(score(s.scoring, s.reference, s.answers) == 1);
  CHECK(make("path_traversal:length=1600,published=1")[1].scoring ==
        Scoring::line_prefix_published);
}

// Another search, which keeps what it has tried in a list of what is left to do.
TEST_CASE("a countdown's search takes pairs in order, and drops what it says", "[eval]") {
  for (const Sample& s : make("countdown:answer=600")) {
    const std::string& text = s.answers[0];
    CHECK(words(text) <= 600);
    CHECK(words(text) >= 390);
    CHECK(s.prompt.ends_with(text.substr(0, text.find('\n')) + "\n\n"));
    std::smatch m;
    REQUIRE(std::regex_search(
        text, m, std::regex("^Numbers: (\\d+), (\\d+), (\\d+), (\\d+). Target: (\\d+).\n")));
    std::vector<double> numbers;
    for (int i = 1; i <= 4; ++i) numbers.push_back(std::stod(m[static_cast<std::size_t>(i)]));
    const double target = std::stod(m[5]);
    std::vector<std::string> tried;
    const std::function<bool(std::vector<double>)> search = [&](const std::vector<double>& from) {
      if (from.size() == 1) return from[0] == target;
      for (std::size_t i = 0; i < from.size(); ++i) {
        for (std::size_t j = i + 1; j < from.size(); ++j) {
          const double a = std::max(from[i], from[j]), b = std::min(from[i], from[j]);
          for (const char* op : {"+", "-", "*", "/"}) {
            const double c = *op == '+' ? a + b : *op == '-' ? a - b : *op == '*' ? a * b : a / b;
            const bool kept = c == std::floor(c) && c < 2000 && (from.size() > 2 || c == target);
            tried.push_back(fmt::format("{} {} {} {}", a, op, b, kept ? "kept" : "drop"));
            if (!kept) continue;
            std::vector<double> next{c};
            for (std::size_t k = 0; k < from.size(); ++k) {
              if (k != i && k != j) next.push_back(from[k]);
            }
            if (search(next)) return true;
          }
        }
      }
      return false;
    };
    REQUIRE(search(numbers));
    std::vector<std::string> said;
    std::istringstream lines(text.substr(0, text.find("<Solution>")));
    const std::regex step("^ *(\\d+) ([-+*/]) (\\d+)( = [\\d.]+)?,.*");
    for (std::string line; std::getline(lines, line);) {
      if (!std::regex_match(line, m, step)) continue;
      said.push_back(fmt::format("{} {} {} {}", m[1].str(), m[2].str(), m[3].str(),
                                 line.ends_with("drop") ? "drop" : "kept"));
    }
    CHECK(said == tried);
    CHECK(score(s.scoring, text, s.answers) == 1);
  }
}

TEST_CASE("a depth-first walk says its stack and what it has seen", "[eval]") {
  const Sample s = make("dfs_state:length=1200,steps=25")[0];
  const std::size_t tree = s.prompt.rfind("Edges of the tree");
  std::map<int, std::set<int>> near;
  const std::string edges = s.prompt.substr(tree, s.prompt.find('.', tree) - tree);
  const std::regex edge("(\\d+)-(\\d+)");
  for (std::sregex_iterator at(edges.begin(), edges.end(), edge), end; at != end; ++at) {
    near[std::stoi((*at)[1])].insert(std::stoi((*at)[2]));
    near[std::stoi((*at)[2])].insert(std::stoi((*at)[1]));
  }
  // By recursion: a state at every arrival, and at every return.
  std::vector<std::string> states;
  std::set<int> seen;
  std::vector<int> path;
  const std::function<void(int)> visit = [&](int node) {
    seen.insert(node);
    path.push_back(node);
    const auto note = [&] {
      states.push_back(fmt::format("Step {}: stack {}; visited {}", states.size(),
                                   fmt::join(path, " "), fmt::join(seen, " ")));
    };
    if (states.empty())
      states.emplace_back();  // the start is no step
    else
      note();
    for (const int next : near[node]) {
      if (seen.contains(next)) continue;
      visit(next);
      path.pop_back();
      note();
    }
  };
  visit(0);
  CHECK(near.size() >= 20);
  states.erase(states.begin());
  states.resize(25);
  CHECK(s.answers[0] == fmt::format("{}", fmt::join(states, "\n")));
  CHECK(words(s.prompt + s.answer_prefix) + s.generate <= 1200);
}

TEST_CASE("a page's table has the columns and rows that are asked for", "[eval]") {
  for (const char* task : {"html_tsv:length=700", "html_tsv:length=700,filter=1"}) {
    const Sample s = make(task)[2];
    std::smatch m;
    REQUIRE(std::regex_search(
        s.prompt, m,
        std::regex("Write the columns (\\w+),(\\w+),(\\w+) of this table(, of rows whose Colour is "
                   "(\\w+),)? as tab-separated")));
    const std::string colour = m[5];
    CHECK(colour.empty() == (std::string(task).find("filter") == std::string::npos));
    std::vector<std::string> headings;
    std::string tsv = fmt::format("{}\t{}\t{}\n", m[1].str(), m[2].str(), m[3].str());
    const std::set<std::string> asked{m[1], m[2], m[3]};
    const std::regex row("<tr[^>]*>(.*)</tr>"), cell("<t[dh]>([^<]*)</t[dh]>");
    for (std::sregex_iterator at(s.prompt.begin(), s.prompt.end(), row), end; at != end; ++at) {
      const std::string inside = (*at)[1];
      std::vector<std::string> cells;
      for (std::sregex_iterator c(inside.begin(), inside.end(), cell); c != end; ++c)
        cells.push_back((*c)[1]);
      if (headings.empty()) {
        headings = cells;
        continue;
      }
      REQUIRE(cells.size() == headings.size());
      std::string line;
      for (std::size_t i = 0; i < cells.size(); ++i) {
        if (asked.contains(headings[i])) line += (line.empty() ? "" : "\t") + cells[i];
      }
      if (colour.empty() || std::ranges::count(cells, colour) > 0) tsv += line + "\n";
    }
    CHECK(s.answers[0] == tsv);
    CHECK(s.reference == tsv + "```");
    CHECK(score(s.scoring, s.reference, s.answers) == 1);
  }
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
