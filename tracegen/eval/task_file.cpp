// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/task_file.h"

#include <sstream>
#include <stdexcept>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/json_fields.h"
#include "sim/base/text.h"
#include "tracegen/capture/capture_input.h"

namespace kvspan::tracegen {
namespace {

using nlohmann::json;

constexpr std::int64_t kMostGenerated = 1 << 20;

class SampleFields final : public JsonFields {
 public:
  SampleFields(json object, std::string where)
      : JsonFields(std::move(object)), where_(std::move(where)) {}
  [[noreturn]] void fail(const std::string& what) const {
    throw TraceError(fmt::format("{}: {}", where_, what));
  }

 private:
  [[noreturn]] void complain(const char* key, const json& found,
                             const std::string& expected) const override {
    fail(fmt::format("'{}' is {}; expected {}", key, json_text(found), expected));
  }
  std::string where_;
};

std::vector<std::string> answers_of(const SampleFields& fields) {
  if (fields.has("answer")) return {fields.text("answer")};
  std::vector<std::string> out;
  const json* list = fields.find("answers");
  if (list == nullptr) return out;
  if (!list->is_array()) fields.wrong("answers", "a list of texts");
  for (const json& answer : *list) {
    if (!answer.is_string()) fields.wrong("answers", "a list of texts");
    out.push_back(answer.get<std::string>());
  }
  return out;
}

void add_spans(const SampleFields& fields, Sample& sample) {
  const json* spans = fields.find("spans");
  if (spans == nullptr) return;
  if (!spans->is_object()) fields.wrong("spans", "an object: name to a text of the prompt");
  for (const auto& [name, value] : spans->items()) {
    if (!value.is_string()) fields.wrong("spans", "texts of the prompt by name");
    const auto text = value.get<std::string>();
    const std::size_t at = sample.prompt.find(text);
    if (text.empty() || at == std::string::npos) {
      fields.fail(fmt::format("span '{}': {} does not stand in the prompt", one_line(name),
                              in_quotes(text)));
    }
    sample.spans.push_back({name, at, at + text.size()});
  }
}

std::string joined(const std::vector<std::string>& answers) {
  std::string out;
  for (const std::string& answer : answers) out += (out.empty() ? " " : ", ") + answer;
  return out;
}

Sample sample_of(const SampleFields& fields, const std::string& name) {
  Sample out;
  out.name = fields.has("name") ? fields.text("name") : name;
  out.prompt = fields.text("prompt");
  if (out.prompt.empty()) fields.fail("'prompt' is missing or empty");
  out.answer_prefix = fields.text("answer_prefix");
  out.answers = answers_of(fields);
  if (fields.has("scoring")) {
    const std::string word = fields.text("scoring");
    const auto scoring = scoring_named(word);
    if (!scoring)
      fields.fail(
          fmt::format("scoring {}; {}", in_quotes(word), nearest_hint(word, scoring_names())));
    out.scoring = *scoring;
  }
  out.reference = fields.has("reference") ? fields.text("reference") : joined(out.answers);
  const bool likelihood = out.scoring == Scoring::log_likelihood;
  out.generate = fields.is_named("generate")
                     ? fields.integer("generate", 0, kMostGenerated, "tokens of an answer")
                     : (likelihood ? 0 : 32);
  if (!likelihood && (out.answers.empty() || out.generate == 0))
    fields.fail(
        "has no 'answers' to score, or generates nothing; expected both, or the scoring "
        "log-likelihood");
  if (likelihood && out.reference.empty()) fields.fail("has no 'reference' to read");
  add_spans(fields, out);
  return out;
}

}  // namespace

std::vector<Sample> read_samples(const std::filesystem::path& file, std::int64_t most) {
  std::istringstream lines(read_text(file));
  std::vector<Sample> out;
  std::int64_t number = 0;
  for (std::string line; std::getline(lines, line) && (most == 0 || std::ssize(out) < most);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{}: line {}", file.string(), number);
    try {
      json object = parse_json_strict(line);
      if (!object.is_object())
        throw TraceError(fmt::format("{}: {}; expected an object", where, json_text(object)));
      const SampleFields fields(std::move(object), where);
      out.push_back(sample_of(fields, fmt::format("{}#{}", file.filename().string(), number)));
    } catch (const std::invalid_argument& error) {
      throw TraceError(fmt::format("{}: {}", where, error.what()));
    }
  }
  if (out.empty()) throw TraceError(fmt::format("{}: holds no samples", file.string()));
  return out;
}

}  // namespace kvspan::tracegen
