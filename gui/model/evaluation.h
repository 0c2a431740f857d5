// SPDX-License-Identifier: Apache-2.0
// What `kvspan eval --out` says beside its runs: scores, critical footprints, answers.
#pragma once

#include <QString>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "gui/model/curve_chart.h"
#include "gui/model/plain_table.h"
#include "sim/sweep/curves.h"

namespace kvspan::gui {

struct Evaluation {
  // A policy over the samples of a task: means, and 95 % intervals.
  struct Policy {
    std::string label, method;
    double score = 0, footprint = 0, peak_kv = 0;
    sweep::Interval scores, footprints;
    std::optional<double> nll, delta_nll, kl, retained;
  };
  struct Critical {
    std::string method;
    sweep::Critical footprint, peak_kv;
    std::optional<double> low, high;  // 95 % interval of the footprint; open where draws have none
  };
  // Of one policy at one sample.
  struct Answer {
    std::string text;
    double score = 0;
    std::optional<double> nll, delta_nll, kl;
    std::vector<std::pair<std::string, double>> spans;  // share that is held at the end
  };
  struct Sample {
    std::string name;
    std::vector<std::string> answers;  // what is right
    std::int64_t prompt_tokens = 0;
    std::size_t result = 0;      // in the file
    std::vector<Answer> of_run;  // [policies]
  };
  struct Task {
    std::string name;
    std::string no_critical;       // why there is no critical footprint; empty: there are some
    std::vector<Policy> policies;  // `full` first
    std::vector<Critical> criticals;
    std::vector<Sample> samples;
    std::vector<std::pair<std::string, std::string>> refused;  // label, reason
  };
  std::filesystem::path path;
  double least = 0.9;  // of the full cache's score
  std::vector<Task> tasks;
};
using EvaluationPtr = std::shared_ptr<const Evaluation>;

// Of a whole file; null: it has none. Errors: TraceError naming file and place.
[[nodiscard]] EvaluationPtr read_evaluation(const std::filesystem::path& path,
                                            const nlohmann::json& whole);

// Score against footprint: a line a method, with its intervals, the threshold and where lines reach
// it. A point's item is its policy.
[[nodiscard]] CurveChart score_chart(const Evaluation& evaluation, std::size_t index);
// Critical footprints with their intervals, or why there are none (one line). A row's item is its
// line in score_chart().
void set_criticals(const Evaluation& evaluation, std::size_t index, PlainTable& table);
// Samples as rows, answers of policies side by side, with what was left of the spans. A cell's item
// is sample * policies + policy, of all policies.
//   policies  those that are shown, in order
void set_answers(const Evaluation& evaluation, std::size_t index,
                 const std::vector<std::size_t>& policies, PlainTable& table);
// A line a sample and policy.
[[nodiscard]] std::string answers_csv(const Evaluation& evaluation, std::size_t index,
                                      const std::vector<std::size_t>& policies);
// A line a policy.
[[nodiscard]] std::string scores_csv(const Evaluation& evaluation, std::size_t index);

}  // namespace kvspan::gui
