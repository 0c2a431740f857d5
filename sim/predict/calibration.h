// SPDX-License-Identifier: Apache-2.0
// Predictions for policies whose occupancy depends on content: from what a replay measured.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "sim/policy/spec.h"
#include "sim/predict/analytic.h"

namespace kvspan {

// What to predict: a policy for a run of a model.
struct PredictionRequest {
  const RecipeSpec& spec;
  const Policy& policy;  // `spec`, bound to `geometry`
  const Geometry& geometry;
  const std::string& model;  // its name
  const Accounting& accounting;
};

// One run of a result file.
struct MeasuredRun {
  Prediction figures;
  std::int64_t heads = 0;  // layers x stored heads
  // {row, entries of all heads while it attends}, ascending; empty: not written
  std::vector<std::pair<RowIndex, std::int64_t>> timeline;
};

// A result file (kvspan run --out), of one replay or of several traces and chunk sizes.
class Calibration {
 public:
  // Errors: ConfigError when the file is not such a result.
  explicit Calibration(const std::string& result_file);

  // Closed forms as they are. For the others the file's own figures where it is of the same model,
  // prompt, generated tokens, chunk and accounting; elsewhere the bound, scaled by the share of its
  // bound that the policy held there: pass by pass in a prompt that was chunked, then as its
  // entries grew in decode. Of several replays, the first that was chunked like what is predicted.
  // A policy that the file is not about keeps its bound, and a note.
  [[nodiscard]] Prediction predict(const PredictionRequest& request, bool every_layout) const;
  // "MODEL, 1868 prompt + 12 generated tokens, chunk 512 (FILE)"; of several: "3 replays (FILE)".
  [[nodiscard]] std::string where() const;

 private:
  struct Replay {
    std::string where, model;
    Geometry geometry;
    Accounting accounting;
    std::map<std::string, MeasuredRun> runs;  // by canonical specification
    [[nodiscard]] const MeasuredRun* find(const PredictionRequest& request) const;
    [[nodiscard]] bool is_of(const PredictionRequest& request) const;
  };
  [[nodiscard]] const Replay* choose(const PredictionRequest& request) const;
  std::string file_;
  std::vector<Replay> replays_;
};

}  // namespace kvspan
