// SPDX-License-Identifier: Apache-2.0
// NAME:key=value,... of a task, read key by key; and the generators that read them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tracegen/eval/task.h"

namespace kvspan::tracegen {

class TaskParameters {
 public:
  // Errors: ConfigError on what is no key=value, or a key that is given twice.
  explicit TaskParameters(const std::string& text);
  [[nodiscard]] const std::string& name() const { return name_; }
  // Errors: ConfigError unless it is a whole number in [low, high].
  [[nodiscard]] std::int64_t integer(const std::string& key, std::int64_t absent, std::int64_t low,
                                     std::int64_t high);
  // The words of the file `text=`. Errors: ConfigError when the key is missing; CheckpointError
  // when the file cannot be read.
  [[nodiscard]] std::vector<std::string> words_of_text();
  // Errors: ConfigError naming a key that nobody has asked for.
  void done() const;

 private:
  std::string text_, name_;
  std::map<std::string, std::string> values_;
  std::vector<std::string> known_;
};

inline constexpr std::int64_t kMostLength = std::int64_t{1} << 24;  // tokens of a prompt
inline constexpr std::int64_t kSpareTokens = 16;  // of an answer, beyond the reference's

// The generators, by the first part of their names. Length, unless they say otherwise: `length`
// tokens (1024) of prompt and answer.
using Generator = std::vector<Sample> (*)(const TaskRequest&, TaskParameters&);
[[nodiscard]] std::vector<Sample> niah(const TaskRequest& request, TaskParameters& parameters);
[[nodiscard]] std::vector<Sample> variable_tracking(const TaskRequest& request,
                                                    TaskParameters& parameters);
[[nodiscard]] std::vector<Sample> common_words(const TaskRequest& request,
                                               TaskParameters& parameters);
[[nodiscard]] std::vector<Sample> frequent_words(const TaskRequest& request,
                                                 TaskParameters& parameters);
[[nodiscard]] std::vector<Sample> json_values(const TaskRequest& request,
                                              TaskParameters& parameters);
[[nodiscard]] std::vector<Sample> copying(const TaskRequest& request, TaskParameters& parameters);
[[nodiscard]] std::vector<Sample> many_shots(const TaskRequest& request,
                                             TaskParameters& parameters);
[[nodiscard]] std::vector<Sample> path_traversal(const TaskRequest& request,
                                                 TaskParameters& parameters);
[[nodiscard]] std::vector<Sample> countdown(const TaskRequest& request, TaskParameters& parameters);
[[nodiscard]] std::vector<Sample> depth_first(const TaskRequest& request,
                                              TaskParameters& parameters);
[[nodiscard]] std::vector<Sample> html_tables(const TaskRequest& request,
                                              TaskParameters& parameters);
[[nodiscard]] std::vector<Sample> perplexity(const TaskRequest& request,
                                             TaskParameters& parameters);

}  // namespace kvspan::tracegen
