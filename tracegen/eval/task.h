// SPDX-License-Identifier: Apache-2.0
// Tasks with an answer: samples as text, seeded, of any length; written from published rules, or
// read from a file of one's own.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tracegen/eval/scoring.h"

namespace kvspan::tracegen {

// Where the text of a prompt is worth a name: needles, the question. In bytes.
struct TextSpan {
  std::string name;
  std::size_t begin = 0, end = 0;
};

struct Sample {
  std::string name;
  std::string prompt;
  std::string answer_prefix;  // stands behind the prompt (in a chat: begins the answer); not scored
  std::vector<std::string> answers;
  std::string reference;  // what a right answer reads like, for its likelihood
  Scoring scoring = Scoring::all_match;
  std::int64_t generate = 0;    // tokens of an answer, at most; 0: none is generated
  std::vector<TextSpan> spans;  // of the prompt
};

// A task as the command line names it: NAME[:key=value,...], or a file.
struct TaskRequest {
  std::string text;          // as given
  std::int64_t samples = 5;  // of a file: its first ones; 0: all of them
  std::uint64_t seed = 0;
  // Tokens of a text, for tasks that have a length.
  std::function<std::int64_t(std::string_view)> tokens;
};

// Errors: ConfigError naming the task, key or value that is wrong and the nearest one that exists;
// TraceError naming file and line.
[[nodiscard]] std::vector<Sample> make_samples(const TaskRequest& request);

// What there is, for the help: name, and what it asks for.
struct TaskEntry {
  const char* name;
  const char* summary;
};
[[nodiscard]] const std::vector<TaskEntry>& task_list();

// The files that make_samples() reads.
[[nodiscard]] std::vector<std::filesystem::path> files_of_task(const std::string& text);

}  // namespace kvspan::tracegen
