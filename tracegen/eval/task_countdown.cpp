// SPDX-License-Identifier: Apache-2.0
// Countdown: four numbers, a target, and the depth-first search for three equations, written out.
// Source: LongProc (arXiv 2501.05414): numbers 1 to 49, targets 10 to 50; pairs in order, the
// larger number first, + - * /; decimals and what is 2000 or more are dropped. Words are this
// program's own.
#include <algorithm>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "sim/base/error.h"
#include "tracegen/eval/task_draws.h"
#include "tracegen/eval/task_parameters.h"

namespace kvspan::tracegen {
namespace {

constexpr std::int64_t kTooLarge = 2000;

// A search with what it says; given up where it gets too long.
class Search {
 public:
  Search(std::int64_t target, std::size_t most_lines) : target_(target), most_lines_(most_lines) {}

  bool run(const std::vector<std::int64_t>& numbers, int depth = 0) {
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      for (std::size_t j = i + 1; j < numbers.size(); ++j) {
        std::vector<std::int64_t> left;
        for (std::size_t k = 0; k < numbers.size(); ++k) {
          if (k != i && k != j) left.push_back(numbers[k]);
        }
        if (!left.empty())
          say(depth, fmt::format("Take {} and {}, left: {}", numbers[i], numbers[j],
                                 fmt::join(left, ", ")));
        const std::int64_t a = std::max(numbers[i], numbers[j]);
        const std::int64_t b = std::min(numbers[i], numbers[j]);
        for (const char op : {'+', '-', '*', '/'}) {
          if (lines.size() > most_lines_) return false;
          if (one(a, op, b, left, depth + 1)) return true;
        }
      }
    }
    return false;
  }

  std::vector<std::string> lines, equations;

 private:
  bool one(std::int64_t a, char op, std::int64_t b, const std::vector<std::int64_t>& left,
           int depth) {
    if (op == '/' && b == 0) return say(depth, fmt::format("{} / 0, drop", a));
    if (op == '/' && a % b != 0) {
      return say(depth, fmt::format("{} / {} = {:.1f}, a decimal, drop", a, b,
                                    static_cast<double>(a) / static_cast<double>(b)));
    }
    const std::int64_t c = op == '+' ? a + b : op == '-' ? a - b : op == '*' ? a * b : a / b;
    const std::string equation = fmt::format("{} {} {} = {}", a, op, b, c);
    if (c >= kTooLarge) return say(depth, equation + ", too large, drop");
    if (left.empty() && c != target_)
      return say(depth, fmt::format("{}, not {}, drop", equation, target_));
    equations.push_back(equation);
    if (left.empty()) {
      say(depth, fmt::format("{}, found", equation));
      return true;
    }
    say(depth, equation + ", go on");
    std::vector<std::int64_t> numbers{c};
    numbers.insert(numbers.end(), left.begin(), left.end());
    if (run(numbers, depth + 1)) return true;
    equations.pop_back();
    return false;
  }

  // Returns false: the branch is at its end.
  bool say(int depth, const std::string& what) {
    lines.push_back(std::string(static_cast<std::size_t>(depth), ' ') + what);
    return false;
  }

  std::int64_t target_;
  std::size_t most_lines_;
};

struct Problem {
  std::string question, procedure;  // with the solution
};

// One whose procedure takes so many tokens. Errors: ConfigError when none is found.
Problem problem_of(Draws& draws, const TaskRequest& request, std::int64_t least,
                   std::int64_t most) {
  constexpr int kTries = 100'000;
  constexpr std::int64_t kFewestTokens = 6;  // of a line
  for (int attempt = 0; attempt < kTries; ++attempt) {
    std::vector<std::int64_t> numbers;
    for (int i = 0; i < 4; ++i) numbers.push_back(1 + draws.below(49));
    const std::int64_t target = 10 + draws.below(41);
    Search search(target, static_cast<std::size_t>(most / kFewestTokens));
    if (!search.run(numbers)) continue;
    Problem out;
    out.question = fmt::format("Numbers: {}. Target: {}.", fmt::join(numbers, ", "), target);
    out.procedure = fmt::format("{}\n{}\n<Solution>\n{}\n</Solution>", out.question,
                                fmt::join(search.lines, "\n"), fmt::join(search.equations, "\n"));
    const std::int64_t tokens = request.tokens(out.procedure);
    if (tokens >= least && tokens <= most) return out;
  }
  throw ConfigError(
      fmt::format("--task {}: no search of {} to {} tokens was found", request.text, least, most));
}

}  // namespace

// LongProc's shortest answers have 333 to 511 tokens.
std::vector<Sample> countdown(const TaskRequest& request, TaskParameters& parameters) {
  const std::int64_t answer = parameters.integer("answer", 512, 128, 1 << 16);
  const bool published = parameters.integer("published", 0, 0, 1) == 1;
  parameters.done();
  std::vector<Sample> samples;
  for (std::int64_t i = 0; i < std::max<std::int64_t>(1, request.samples); ++i) {
    Draws draws(request.seed * 1000003 + static_cast<std::uint64_t>(i));
    const Problem example = problem_of(draws, request, 0, answer);
    const Problem asked = problem_of(draws, request, answer * 65 / 100, answer);
    Sample out;
    out.prompt = fmt::format(
        "Use four numbers, each once, with + - * / to get the target. Search for it, depth first: "
        "take two of the numbers, in order, the larger one first, and try + - * / in this order; "
        "what comes of it goes before the numbers that are left. Drop decimals, and what is {} or "
        "more. Write the search down, then three equations.\n\n{}\n\nAnother one. {}\n\n",
        kTooLarge, example.procedure, asked.question);
    out.answers = {asked.procedure};
    out.reference = asked.procedure;
    out.scoring = published ? Scoring::search_published : Scoring::search;
    out.generate = answer;
    out.name = fmt::format("{}#{}", request.text, i);
    const std::size_t question = out.prompt.rfind("Numbers: ");
    out.spans.push_back({"question", question, out.prompt.size()});
    samples.push_back(std::move(out));
  }
  return samples;
}

}  // namespace kvspan::tracegen
