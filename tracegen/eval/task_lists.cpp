// SPDX-License-Identifier: Apache-2.0
// Tasks whose prompt is a list: word counts, key-value pairs, words to be copied; and a text that
// goes on.
// Sources: RULER (arXiv 2404.06654) for cwe and fwe; HELMET (arXiv 2410.02694) for json_kv. Words
// are this program's own.
#include <algorithm>
#include <cmath>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "sim/base/error.h"
#include "tracegen/eval/task_draws.h"
#include "tracegen/eval/task_parameters.h"

namespace kvspan::tracegen {
namespace {

// "1. word 2. word": `common` words `often` times, the others `seldom` times, shuffled.
struct Counted {
  std::string text;
  std::vector<std::string> common;
};
Counted counted(Draws& draws, std::int64_t words, std::int64_t often, std::int64_t seldom) {
  constexpr std::size_t kCommon = 10;
  const std::vector<std::string> all = draw_words(draws, words);
  std::vector<std::string> list;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::int64_t times = i < kCommon ? often : seldom;
    list.insert(list.end(), static_cast<std::size_t>(times), all[i]);
  }
  draws.shuffle(list);
  for (std::size_t i = 0; i < list.size(); ++i) list[i] = fmt::format("{}. {}", i + 1, list[i]);
  return {fmt::format("{}", fmt::join(list, " ")), {all.begin(), all.begin() + kCommon}};
}

constexpr const char* kMostCommon =
    "Question: What are the 10 most common words in the above list?";
constexpr const char* kTopTen = " Answer: The top 10 words that appear most often in the list are:";

std::string most_common(const std::string& list) {
  return fmt::format(
      "Below is a numbered list of words. In these words, some appear more often than others. "
      "Memorize the ones that appear most often.\n{}\n{}",
      list, kMostCommon);
}

std::string numbered(const std::vector<std::string>& words) {
  std::string out;
  for (std::size_t i = 0; i < words.size(); ++i) out += fmt::format(" {}. {}", i + 1, words[i]);
  return out;
}

// Coded words by falling frequency: rank r stands floor(words / (zeta(2) r^2)) times; the first is
// noise.
Sample frequent(Draws& draws, std::int64_t words, std::int64_t vocabulary, std::int64_t generate) {
  constexpr double kZeta2 = 1.6449340668482264;  // pi^2 / 6
  std::vector<std::string> codes{"..."};
  std::set<std::string> known;
  while (std::ssize(codes) < vocabulary) {
    std::string code = draws.letters('a', 6);
    if (known.insert(code).second) codes.push_back(std::move(code));
  }
  std::vector<std::string> list;
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const auto rank = static_cast<double>(i + 1);
    const double times = static_cast<double>(words) * std::pow(rank, -2.0) / kZeta2;
    list.insert(list.end(), static_cast<std::size_t>(times), codes[i]);
  }
  draws.shuffle(list);
  Sample out;
  const std::string question =
      "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three "
      "most frequently appeared words in the above coded text?";
  out.prompt = fmt::format(
      "Read the following coded text and track the frequency of each coded word. Find the three "
      "most frequently appeared coded words. {}\n{}",
      fmt::join(list, " "), question);
  out.answer_prefix =
      " Answer: According to the coded text above, the three most frequently appeared words are:";
  out.answers = {codes.begin() + 1, codes.begin() + 4};
  out.reference = fmt::format(" {}", fmt::join(out.answers, " "));
  out.generate = generate;
  name_span(out, "question", question);
  return out;
}

}  // namespace

std::vector<Sample> common_words(const TaskRequest& request, TaskParameters& parameters) {
  const std::int64_t length = parameters.integer("length", 2048, 512, kMostLength);
  const std::int64_t generate = parameters.integer("generate", 120, 1, 4096);
  parameters.done();
  const bool is_short = length < 4096;
  const Draft draft = [=](Draws& draws, std::int64_t words) {
    const Counted example = is_short ? counted(draws, 20, 3, 1) : counted(draws, 40, 10, 3);
    const Counted list = is_short ? counted(draws, words, 6, 1) : counted(draws, words, 30, 3);
    Sample out;
    out.prompt = fmt::format("{}{}{}\n{}", most_common(example.text), kTopTen,
                             numbered(example.common), most_common(list.text));
    out.answer_prefix = kTopTen;
    out.answers = list.common;
    out.reference = numbered(list.common);
    out.generate = generate;
    const std::size_t question = out.prompt.rfind(kMostCommon);
    out.spans.push_back({"question", question, out.prompt.size()});
    return out;
  };
  return draw_samples(request, {length, 10, 128, 2}, draft);
}

std::vector<Sample> frequent_words(const TaskRequest& request, TaskParameters& parameters) {
  const std::int64_t length = parameters.integer("length", 1024, 512, kMostLength);
  const std::int64_t generate = parameters.integer("generate", 50, 1, 4096);
  parameters.done();
  const std::int64_t room = length - generate;
  const Draft draft = [=](Draws& draws, std::int64_t words) {
    return frequent(draws, words, room / 50, generate);
  };
  return draw_samples(request, {length, room / 32, room / 6, 3}, draft);
}

std::vector<Sample> json_values(const TaskRequest& request, TaskParameters& parameters) {
  const std::int64_t length = parameters.integer("length", 2048, 512, kMostLength);
  const std::int64_t generate = parameters.integer("generate", 100, 1, 4096);
  const std::int64_t shots = parameters.integer("shots", 2, 0, 8);
  parameters.done();
  const Draft draft = [=](Draws& draws, std::int64_t pairs) {
    constexpr std::int64_t kDepths = 6;
    std::vector<std::pair<std::string, std::string>> object;
    std::vector<std::string> lines;
    for (std::int64_t i = 0; i < pairs; ++i) {
      object.emplace_back(draws.uuid(), draws.uuid());
      lines.push_back(fmt::format("\"{}\": \"{}\"", object.back().first, object.back().second));
    }
    const std::int64_t at = draws.below(kDepths) * (pairs - 1) / (kDepths - 1);
    std::string demonstrations;
    for (std::int64_t s = 0; s < shots; ++s) {
      std::int64_t other = draws.below(pairs - 1);
      other += other >= at ? 1 : 0;
      const auto& [key, value] = object[static_cast<std::size_t>(other)];
      demonstrations += fmt::format("Key: {}\nCorresponding value: {}\n\n", key, value);
    }
    const auto& [key, value] = object[static_cast<std::size_t>(at)];
    Sample out;
    out.prompt = fmt::format(
        "JSON data:\n{{{}}}\n\nExtract the value corresponding to the specified key in the JSON "
        "object below.\n\n{}Key: {}\n",
        fmt::join(lines, ",\n "), demonstrations, key);
    out.answer_prefix = "Corresponding value:";
    out.answers = {value};
    out.reference = " " + value;
    out.scoring = Scoring::substring;
    out.generate = generate;
    name_span(out, "needle", lines[static_cast<std::size_t>(at)]);
    return out;
  };
  return draw_samples(request, {length, 2, 16, 3}, draft);
}

std::vector<Sample> copying(const TaskRequest& request, TaskParameters& parameters) {
  const std::int64_t words = parameters.integer("words", 16, 2, 1 << 16);
  const std::int64_t shots = parameters.integer("shots", 2, 0, 64);
  parameters.done();
  std::vector<Sample> samples;
  for (std::int64_t i = 0; i < std::max<std::int64_t>(1, request.samples); ++i) {
    Draws draws(request.seed * 1000003 + static_cast<std::uint64_t>(i));
    Sample out;
    out.prompt = "Each list of words stands there twice.\n\n";
    std::string list;
    for (std::int64_t s = 0; s <= shots; ++s) {
      list = fmt::format("{}", fmt::join(draw_words(draws, words), " "));
      out.prompt += "List: " + list + "\n";
      if (s < shots) out.prompt += "Again: " + list + "\n\n";
    }
    out.answer_prefix = "Again:";
    out.answers = {list};
    out.reference = " " + list;
    out.scoring = Scoring::f1;
    out.generate = request.tokens(out.reference);
    name_span(out, "list", "List: " + list + "\n");
    out.name = fmt::format("{}#{}", request.text, i);
    samples.push_back(std::move(out));
  }
  return samples;
}

// Samples follow each other in the text.
std::vector<Sample> perplexity(const TaskRequest& request, TaskParameters& parameters) {
  const std::int64_t length = parameters.integer("length", 1024, 2, kMostLength);
  const std::int64_t prompt = parameters.integer("prompt", length / 2, 1, kMostLength);
  const std::vector<std::string> words = parameters.words_of_text();
  parameters.done();
  if (prompt >= length) {
    throw ConfigError(fmt::format("--task {}: prompt={}, expected less than length={}",
                                  request.text, prompt, length));
  }
  std::size_t at = 0;
  const std::int64_t none = request.tokens("");  // a bos
  // The next words, up to so many tokens.
  const auto take = [&](std::int64_t tokens, const char* before) {
    std::string out;
    std::int64_t held = 0;
    for (; at < words.size(); ++at) {
      const std::string more = (out.empty() ? before : " ") + words[at];
      held += request.tokens(more) - none;
      if (held > tokens && !out.empty()) break;
      out += more;
    }
    return out;
  };
  std::vector<Sample> samples;
  for (std::int64_t i = 0; i < std::max<std::int64_t>(1, request.samples); ++i) {
    Sample out;
    out.name = fmt::format("{}#{}", request.text, i);
    out.prompt = take(prompt, "");
    out.reference = take(length - prompt, " ");
    out.scoring = Scoring::log_likelihood;
    if (at >= words.size()) {
      throw ConfigError(fmt::format(
          "--task {}: the text ends inside sample {}; expected {} samples of {} tokens in it",
          request.text, i, request.samples, length));
    }
    samples.push_back(std::move(out));
  }
  return samples;
}

}  // namespace kvspan::tracegen
