// SPDX-License-Identifier: Apache-2.0
// The lives of one stored head's entries, as a map of tokens by rows and as a table of tokens.
#pragma once

#include <QString>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "gui/model/document.h"

namespace kvspan {
class LifetimesFile;
struct HeadAttention;
}  // namespace kvspan

namespace kvspan::gui {

// What of a map is looked at, and into how many cells it is divided.
struct LifeFrame {
  Rows rows, tokens;
  int width = 0, height = 0;  // cells
  bool operator==(const LifeFrame&) const = default;
};

// Of each cell [height, width], the share of its (row, token) pairs whose entry is born; is there;
// was read. An entry is there in the rows [token, death).
struct LifeMap {
  LifeFrame frame;
  std::vector<float> born, held;
  std::vector<float> read;  // of a selector, else empty: all that is held is read
};

// The map of a head. What a selector read is known of sampled rows (Run::read_rows) and stands for
// the rows until the next one.
// Cost: O(tokens + cells + samples * tokens / 8).
// REQUIRES: indices in range, frame not empty and inside the trace.
// Errors: TraceError of a damaged file; Interrupted.
[[nodiscard]] LifeMap map_lives(const LifetimesFile& file, int run, int layer, int head,
                                const LifeFrame& frame, const std::function<bool()>& cancelled);

// What is known of one entry.
struct Life {
  std::int64_t token = 0;
  RowIndex death = 0;            // tokens: never
  float score = 0;               // at eviction; NaN: none
  std::int32_t rank = -1;        // at eviction, 0: first to go; -1: none
  float received = 0, lost = 0;  // attention; NaN: not computed
};
[[nodiscard]] Life life_of(const LifetimesFile& file, int run, int layer, int head,
                           std::int64_t token, const HeadAttention* attention);

// token, text, birth, death, score, rank, mass_received, mass_lost; empty where nothing is known.
[[nodiscard]] std::string csv_of_lives(const LifetimesFile& file, int run, int layer, int head,
                                       const Trace* trace, const HeadAttention* attention);

// Why the lives of a run's entries cannot be shown, and what helps; empty if they can.
[[nodiscard]] QString why_no_lives(const ShownRun* shown);

// A token's text on one line, line breaks as signs; empty if the trace has none.
[[nodiscard]] QString token_label(const Trace* trace, std::int64_t token);
// "layer 14", by the model's numbers; "all layers" for -1
[[nodiscard]] QString layer_label(const TraceInfo& trace, int layer);

}  // namespace kvspan::gui
