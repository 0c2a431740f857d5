// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/scoring.h"

#include <algorithm>
#include <map>
#include <utility>

#include "tracegen/eval/scoring_lines.h"

namespace kvspan::tracegen {
namespace {

constexpr std::pair<Scoring, std::string_view> kNames[] = {
    {Scoring::all_match, "all-match"},
    {Scoring::any_match, "any-match"},
    {Scoring::exact, "exact"},
    {Scoring::first_line, "first-line"},
    {Scoring::substring, "substring"},
    {Scoring::f1, "f1"},
    {Scoring::line_prefix, "line-prefix"},
    {Scoring::line_prefix_published, "line-prefix-published"},
    {Scoring::search, "search"},
    {Scoring::search_published, "search-published"},
    {Scoring::row_f1, "row-f1"},
    {Scoring::log_likelihood, "log-likelihood"}};

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }
bool is_punctuation(char c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
         (c >= '{' && c <= '~');
}

std::string lowered(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), lower);
  return out;
}

std::string_view stripped(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

std::vector<std::string> words(std::string_view text) {
  std::vector<std::string> out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(' ', at), text.size());
    if (end > at) out.emplace_back(text.substr(at, end - at));
    at = end + 1;
  }
  return out;
}

// RULER's: control characters of the output are line ends.
std::size_t matches(std::string_view output, const std::vector<std::string>& answers) {
  std::string text = lowered(stripped(output));
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c >= 0 && c < ' '; }, '\n');
  return static_cast<std::size_t>(std::count_if(
      answers.begin(), answers.end(),
      [&](const std::string& answer) { return text.find(lowered(answer)) != std::string::npos; }));
}

bool is_one_of(std::string_view output, const std::vector<std::string>& answers) {
  return std::any_of(answers.begin(), answers.end(),
                     [&](const auto& answer) { return stripped(answer) == stripped(output); });
}

std::string_view first_line(std::string_view output) {
  output = stripped(output);
  return output.substr(0, output.find('\n'));
}

double f1(const std::string& output, const std::string& answer) {
  const std::vector<std::string> said = words(output);
  const std::vector<std::string> meant = words(answer);
  std::map<std::string, int> left;
  for (const std::string& word : meant) ++left[word];
  int common = 0;
  for (const std::string& word : said) common += left[word]-- > 0 ? 1 : 0;
  if (common == 0) return 0;
  return 2.0 * common / static_cast<double>(said.size() + meant.size());
}

}  // namespace

std::string_view scoring_name(Scoring scoring) {
  return std::find_if(std::begin(kNames), std::end(kNames),
                      [&](const auto& entry) { return entry.first == scoring; })
      ->second;
}

std::optional<Scoring> scoring_named(std::string_view name) {
  for (const auto& [scoring, text] : kNames) {
    if (text == name) return scoring;
  }
  return std::nullopt;
}

std::vector<std::string> scoring_names() {
  std::vector<std::string> out;
  for (const auto& [scoring, text] : kNames) out.emplace_back(text);
  return out;
}

std::string normalised(std::string_view text) {
  std::string plain;
  for (const char c : lowered(text)) {
    if (!is_punctuation(c)) plain += is_space(c) ? ' ' : c;
  }
  std::string out;
  for (const std::string& word : words(plain)) {
    if (word == "a" || word == "an" || word == "the") continue;
    out += (out.empty() ? "" : " ") + word;
  }
  return out;
}

double score(Scoring scoring, std::string_view output, const std::vector<std::string>& answers) {
  if (answers.empty()) return 0;
  switch (scoring) {
    case Scoring::all_match:
      return static_cast<double>(matches(output, answers)) / static_cast<double>(answers.size());
    case Scoring::any_match:
      return matches(output, answers) > 0 ? 1 : 0;
    case Scoring::exact:
      return is_one_of(output, answers) ? 1 : 0;
    case Scoring::first_line:
      return is_one_of(first_line(output), answers) ? 1 : 0;
    case Scoring::substring: {
      const std::string said = normalised(output);
      return std::any_of(
                 answers.begin(), answers.end(),
                 [&](const auto& a) { return said.find(normalised(a)) != std::string::npos; })
                 ? 1
                 : 0;
    }
    case Scoring::f1: {
      double best = 0;
      for (const std::string& answer : answers)
        best = std::max(best, f1(normalised(output), normalised(answer)));
      return best;
    }
    case Scoring::line_prefix:
    case Scoring::line_prefix_published:
      return line_prefix(output, answers.front(), scoring == Scoring::line_prefix_published);
    case Scoring::search:
    case Scoring::search_published:
      return search_steps(output, answers.front(), scoring == Scoring::search_published);
    case Scoring::row_f1:
      return row_f1(output, answers.front());
    case Scoring::log_likelihood:
      break;
  }
  return 0;
}

}  // namespace kvspan::tracegen
