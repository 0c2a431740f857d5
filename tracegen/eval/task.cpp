// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/task.h"

#include <algorithm>
#include <charconv>
#include <sstream>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "tracegen/capture/capture_input.h"
#include "tracegen/eval/task_file.h"
#include "tracegen/eval/task_parameters.h"

namespace kvspan::tracegen {
namespace {

struct Known {
  TaskEntry entry;
  Generator make;
};

const std::vector<Known>& known() {
  static const std::vector<Known> all{
      {{"niah_single_1", "one number in repeated filler"}, niah},
      {{"niah_single_2", "one number in a text (text=FILE)"}, niah},
      {{"niah_single_3", "one uuid in a text (text=FILE)"}, niah},
      {{"niah_multikey_1", "one number of four in a text (text=FILE)"}, niah},
      {{"niah_multikey_2", "one number, all other lines are such needles, too"}, niah},
      {{"niah_multikey_3", "the same with uuids as keys and values"}, niah},
      {{"niah_multivalue", "four numbers of one key in a text (text=FILE)"}, niah},
      {{"niah_multiquery", "numbers of four keys in a text (text=FILE)"}, niah},
      {{"vt", "variables that get a value along a chain (hops=4)"}, variable_tracking},
      {{"cwe", "the ten most common words of a list"}, common_words},
      {{"fwe", "the three most frequent coded words"}, frequent_words},
      {{"json_kv", "the value of a uuid in a JSON object"}, json_values},
      {{"copying", "a list of words once more (words=16)"}, copying},
      {{"many_shot", "the label of a text, after many of them (labels=8)"}, many_shots},
      {{"path_traversal", "the way through a graph of cities, step by step"}, path_traversal},
      {{"countdown", "a search for equations that give a number, written out"}, countdown},
      {{"dfs_state", "stack and visited nodes along a depth-first walk"}, depth_first},
      {{"html_tsv", "columns of a web page's table, as TSV (filter=1: some rows)"}, html_tables},
      {{"perplexity", "a text goes on (text=FILE, prompt=512): score 1 / perplexity"}, perplexity}};
  return all;
}

bool is_file(const std::string& text) {
  return text.ends_with(".jsonl") || text.ends_with(".json");
}

}  // namespace

const std::vector<TaskEntry>& task_list() {
  static const std::vector<TaskEntry> list = [] {
    std::vector<TaskEntry> out;
    for (const Known& task : known()) out.push_back(task.entry);
    return out;
  }();
  return list;
}

std::vector<Sample> make_samples(const TaskRequest& request) {
  if (is_file(request.text)) return read_samples(request.text, request.samples);
  TaskParameters parameters(request.text);
  std::vector<std::string> names;
  for (const Known& task : known()) {
    if (parameters.name() == task.entry.name) {
      std::vector<Sample> out = task.make(request, parameters);
      return out;
    }
    names.emplace_back(task.entry.name);
  }
  throw ConfigError(fmt::format("--task: no task '{}', nor a .jsonl file; {}",
                                one_line(parameters.name()),
                                nearest_hint(parameters.name(), names)));
}

std::vector<std::filesystem::path> files_of_task(const std::string& text) {
  if (is_file(text)) return {text};
  constexpr std::string_view kKey = "text=";
  const std::size_t at = text.find(kKey);
  if (at == std::string::npos) return {};
  const std::size_t begin = at + kKey.size();
  return {text.substr(begin, text.find(',', begin) - begin)};
}

// ---- Parameters ---------------------------------------------------------------------------------

TaskParameters::TaskParameters(const std::string& text)
    : text_(text), name_(text.substr(0, text.find(':'))) {
  for (std::size_t at = name_.size(); at < text.size();) {
    const std::size_t end = std::min(text.find(',', at + 1), text.size());
    const std::string word = text.substr(at + 1, end - at - 1);
    const std::size_t equals = word.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == word.size()) {
      throw ConfigError(fmt::format("--task {}: found '{}', expected key=value", one_line(text_),
                                    one_line(word)));
    }
    if (!values_.emplace(word.substr(0, equals), word.substr(equals + 1)).second) {
      throw ConfigError(
          fmt::format("--task {}: '{}' is given twice", one_line(text_), word.substr(0, equals)));
    }
    at = end;
  }
}

std::int64_t TaskParameters::integer(const std::string& key, std::int64_t absent, std::int64_t low,
                                     std::int64_t high) {
  known_.push_back(key);
  const auto found = values_.find(key);
  if (found == values_.end()) return absent;
  const std::string& word = found->second;
  std::int64_t value = 0;
  const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error != std::errc{} || stop != word.data() + word.size() || value < low || value > high) {
    throw ConfigError(fmt::format("--task {}: {}={}, expected a number from {} to {}",
                                  one_line(text_), key, one_line(word), low, high));
  }
  return value;
}

std::vector<std::string> TaskParameters::words_of_text() {
  known_.emplace_back("text");
  const auto found = values_.find("text");
  if (found == values_.end()) {
    throw ConfigError(
        fmt::format("--task {}: needs text=FILE, a long text that its fillers are taken from",
                    one_line(text_)));
  }
  std::istringstream words(read_text(found->second));
  std::vector<std::string> out;
  for (std::string word; words >> word;) out.push_back(word);
  if (out.empty()) throw ConfigError(fmt::format("{}: holds no words", found->second));
  return out;
}

void TaskParameters::done() const {
  for (const auto& [key, value] : values_) {
    if (std::find(known_.begin(), known_.end(), key) == known_.end()) {
      throw ConfigError(fmt::format("--task {}: unknown '{}'; {}", one_line(text_), one_line(key),
                                    nearest_hint(key, known_)));
    }
  }
}

}  // namespace kvspan::tracegen
