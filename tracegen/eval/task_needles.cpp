// SPDX-License-Identifier: Apache-2.0
// Needles in a haystack, and variables that hand a value on.
// Source: RULER (arXiv 2404.06654), its prompts and rules as of 2026-07. Words and the split of a
// text into sentences are this program's own; the text is the user's.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tracegen/eval/task_draws.h"
#include "tracegen/eval/task_parameters.h"

namespace kvspan::tracegen {
namespace {

constexpr const char* kNoise =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
constexpr std::int64_t kLongPrompt = 4096;  // shorter ones take smaller steps

struct Needles {
  enum class Hay : std::uint8_t { noise, text, needles };
  Hay hay = Hay::noise;
  bool uuid_keys = false, uuid_values = false;
  std::int64_t keys = 1, values = 1, asked = 1;
};

Needles kind_of(const std::string& name) {
  using Hay = Needles::Hay;
  if (name == "niah_single_1") return {};
  if (name == "niah_single_2") return {Hay::text};
  if (name == "niah_single_3") return {Hay::text, false, true};
  if (name == "niah_multikey_1") return {Hay::text, false, false, 4};
  if (name == "niah_multikey_2") return {Hay::needles};
  if (name == "niah_multikey_3") return {Hay::needles, true, true};
  if (name == "niah_multivalue") return {Hay::text, false, false, 1, 4};
  return {Hay::text, false, false, 4, 1, 4};  // niah_multiquery
}

class Haystack {
 public:
  Haystack(const Needles& kind, std::vector<std::string> words, std::int64_t generate)
      : kind_(kind), words_(std::move(words)), generate_(generate) {}

  Sample operator()(Draws& draws, std::int64_t fillers) const {
    std::vector<std::string> keys;
    std::vector<std::vector<std::string>> values(static_cast<std::size_t>(kind_.keys));
    std::vector<std::string> needles;
    for (auto& of_key : values) {
      keys.push_back(kind_.uuid_keys ? draws.uuid() : draws.word());
      for (std::int64_t v = 0; v < kind_.values; ++v) {
        of_key.push_back(value(draws));
        needles.push_back(needle(keys.back(), of_key.back()));
      }
    }
    std::vector<std::string> shuffled = needles;
    draws.shuffle(shuffled);
    const std::string context = kind_.hay == Needles::Hay::text
                                    ? in_text(draws, fillers, shuffled)
                                    : between_lines(draws, fillers, shuffled);
    std::vector<std::string> asked;
    Sample out;
    std::vector<std::string> hidden;
    for (const std::int64_t k : draws.distinct(kind_.keys, kind_.asked)) {
      const auto at = static_cast<std::size_t>(k);
      asked.push_back(keys[at]);
      for (const std::string& v : values[at]) {
        out.answers.push_back(v);
        hidden.push_back(needle(keys[at], v));
      }
    }
    ask(out, context, asked);
    for (std::size_t i = 0; i < hidden.size(); ++i)
      name_span(out, hidden.size() == 1 ? "needle" : fmt::format("needle{}", i + 1), hidden[i]);
    return out;
  }

 private:
  [[nodiscard]] std::string plural() const { return kind_.uuid_values ? "uuids" : "numbers"; }
  [[nodiscard]] std::string value(Draws& draws) const {
    return kind_.uuid_values ? draws.uuid() : draws.digits(7);
  }
  [[nodiscard]] std::string needle(const std::string& key, const std::string& of_key) const {
    return fmt::format("One of the special magic {} for {} is: {}.", plural(), key, of_key);
  }

  // Each needle before another line.
  [[nodiscard]] std::string between_lines(Draws& draws, std::int64_t fillers,
                                          const std::vector<std::string>& needles) const {
    std::vector<std::string> lines;
    for (std::int64_t i = 0; i < fillers; ++i) {
      if (kind_.hay == Needles::Hay::noise) {
        lines.emplace_back(kNoise);
        continue;
      }
      const std::string key = kind_.uuid_keys ? draws.uuid() : draws.word();
      lines.push_back(needle(key, value(draws)));
    }
    std::vector<std::int64_t> places = draws.distinct(fillers, std::ssize(needles));
    std::sort(places.rbegin(), places.rend());
    for (std::size_t i = 0; i < places.size(); ++i)
      lines.insert(lines.begin() + places[i], needles[i]);
    return fmt::format("{}", fmt::join(lines, "\n"));
  }

  // Each needle before another sentence, at one of 40 depths.
  [[nodiscard]] std::string in_text(Draws& draws, std::int64_t fillers,
                                    const std::vector<std::string>& needles) const {
    std::vector<std::string> sentences{""};
    for (std::int64_t i = 0; i < fillers; ++i) {
      const std::string& word = words_[static_cast<std::size_t>(i % std::ssize(words_))];
      std::string& sentence = sentences.back();
      sentence += (sentence.empty() ? "" : " ") + word;
      if (i + 1 < fillers && std::string_view(".!?").find(word.back()) != std::string_view::npos)
        sentences.emplace_back();
    }
    std::vector<std::size_t> places;
    for (const std::int64_t depth : draws.distinct(40, std::ssize(needles))) {
      const double percent = std::nearbyint(static_cast<double>(depth) * 100 / 39);
      places.push_back(
          static_cast<std::size_t>(static_cast<double>(sentences.size()) * (percent / 100)));
    }
    std::sort(places.begin(), places.end());
    for (std::size_t i = 0; i < places.size(); ++i) {
      sentences.insert(sentences.begin() + static_cast<std::ptrdiff_t>(places[i] + i), needles[i]);
    }
    return fmt::format("{}", fmt::join(sentences, " "));
  }

  void ask(Sample& out, const std::string& context, const std::vector<std::string>& asked) const {
    const bool one = kind_.asked * kind_.values == 1;
    const std::string kind = one ? plural().substr(0, plural().size() - 1) : plural();
    std::string query = asked.back();
    if (asked.size() > 1) {
      query =
          fmt::format("{}, and {}", fmt::join(asked.begin(), asked.end() - 1, ", "), asked.back());
    }
    const std::string question =
        fmt::format("What {} special magic {} for {} mentioned in the provided text?",
                    one ? "is the" : "are all the", kind, query);
    out.prompt = fmt::format(
        "{} special magic {} {} hidden within the following text. Make sure to memorize it. I will "
        "quiz you about the {} afterwards.\n{}\n{}",
        one ? "A" : "Some", kind, one ? "is" : "are", kind, context, question);
    out.answer_prefix =
        fmt::format(" The special magic {} for {} mentioned in the provided text {}", kind, query,
                    one ? "is" : "are");
    out.reference = fmt::format(" {}", fmt::join(out.answers, ", "));
    out.generate = generate_;
    name_span(out, "question", question);
  }

  Needles kind_;
  std::vector<std::string> words_;
  std::int64_t generate_;
};

// "VAR A = 12345", "VAR B = VAR A ", ...: as many as names.
std::vector<std::string> chain(const std::vector<std::string>& names, const std::string& value) {
  std::vector<std::string> out{fmt::format("VAR {} = {}", names[0], value)};
  for (std::size_t i = 1; i < names.size(); ++i)
    out.push_back(fmt::format("VAR {} = VAR {} ", names[i], names[i - 1]));
  return out;
}

Sample track(Draws& draws, std::int64_t fillers, std::int64_t hops, int letters) {
  std::vector<std::string> names;
  while (std::ssize(names) <= hops) {
    std::string name = draws.letters('A', letters);
    if (std::find(names.begin(), names.end(), name) == names.end())
      names.push_back(std::move(name));
  }
  const std::string value = draws.digits(5);
  std::vector<std::string> lines(static_cast<std::size_t>(fillers), kNoise);
  const std::vector<std::string> links = chain(names, value);
  std::vector<std::int64_t> places = draws.distinct(fillers, std::ssize(links));
  std::sort(places.begin(), places.end());
  for (std::size_t i = 0; i < links.size(); ++i)
    lines.insert(lines.begin() + places[i] + static_cast<std::ptrdiff_t>(i), links[i]);
  Sample out;
  out.answers = names;
  out.prompt = fmt::format(
      "Memorize and track the chain(s) of variable assignment hidden in the following "
      "text.\n\n{}\nQuestion: Find all variables that are assigned the value {} in the text above.",
      fmt::join(lines, "\n"), value);
  out.answer_prefix = fmt::format(
      " Answer: According to the chain(s) of variable assignment in the text above, {} variables "
      "are assigned the value {}, they are: ",
      names.size(), value);
  return out;
}

}  // namespace

std::vector<Sample> niah(const TaskRequest& request, TaskParameters& parameters) {
  const Needles kind = kind_of(parameters.name());
  const std::int64_t length = parameters.integer("length", 1024, 64, std::int64_t{1} << 24);
  const std::int64_t generate = parameters.integer("generate", 128, 1, 4096);
  const bool text = kind.hay == Needles::Hay::text;
  std::vector<std::string> words;
  if (text) words = parameters.words_of_text();
  parameters.done();
  const std::int64_t lines = length < kLongPrompt ? 5 : 25;
  const std::int64_t step = text ? (length < kLongPrompt ? 50 : 500) : lines;
  return draw_samples(request, {length, step, step, 3}, Haystack(kind, std::move(words), generate));
}

std::vector<Sample> variable_tracking(const TaskRequest& request, TaskParameters& parameters) {
  constexpr std::int64_t kExampleTokens = 500;
  const std::int64_t length = parameters.integer("length", 1024, 64, std::int64_t{1} << 24);
  const std::int64_t generate = parameters.integer("generate", 30, 1, 4096);
  const std::int64_t hops = parameters.integer("hops", 4, 1, 64);
  parameters.done();
  const std::int64_t least = std::max<std::int64_t>(5, hops + 1);
  // One worked example comes first, of the same size in all samples.
  std::int64_t fillers = least;
  const auto example_tokens = [&](std::int64_t lines) {
    Draws draws(request.seed);
    const Sample example = track(draws, lines, std::min<std::int64_t>(10, hops), 3);
    return request.tokens(example.prompt + example.answer_prefix);
  };
  while (example_tokens(fillers + 1) <= std::min(kExampleTokens, length / 2)) ++fillers;
  const Draft draft = [=](Draws& draws, std::int64_t lines) {
    const Sample example = track(draws, fillers, std::min<std::int64_t>(10, hops), 3);
    Sample out = track(draws, lines, hops, 5);
    const std::size_t question = out.prompt.rfind("Question: ");
    const std::string asked = out.prompt.substr(question);
    const std::vector<std::string> names = out.answers;
    out.prompt = fmt::format("{}{} {}\n\n{}", example.prompt, example.answer_prefix,
                             fmt::join(example.answers, " "), out.prompt);
    for (std::size_t i = 0; i < names.size(); ++i)
      name_span(out, fmt::format("link{}", i + 1), fmt::format("VAR {} = ", names[i]));
    name_span(out, "question", asked);
    out.reference = fmt::format("{}", fmt::join(out.answers, " "));
    out.generate = generate;
    return out;
  };
  const std::int64_t step = std::max(least, length < kLongPrompt ? 5 : std::int64_t{10});
  return draw_samples(request, {length, step, step, 3}, draft);
}

}  // namespace kvspan::tracegen
