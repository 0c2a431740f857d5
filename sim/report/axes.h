// SPDX-License-Identifier: Apache-2.0
// Axes of memory over rows, for every chart: of characters, of an SVG, of the viewer.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kvspan {

// Rows on columns (characters or pixels). Decode gets at least a quarter of the width, because what
// a policy that evicts at the prompt's end holds is seen nowhere else; stretch() says how much
// wider than prefill its rows are.
struct RowAxis {
  std::int64_t tokens = 0, prompt = 0;
  int prefill_columns = 0, decode_columns = 0;
  // The rows [first, second) of a column, at least one.
  [[nodiscard]] std::pair<std::int64_t, std::int64_t> rows(int column) const;
  // Where the middle of a row lies, in columns from the left.
  [[nodiscard]] double position(double row) const;
  [[nodiscard]] double stretch() const;
  [[nodiscard]] std::string stretch_text() const;  // "2.5"
  // What a caption adds where decode is stretched: " (rows 2.5x wider)"; else "".
  [[nodiscard]] std::string wider() const;
};
[[nodiscard]] RowAxis make_row_axis(std::int64_t tokens, std::int64_t prompt, int columns);

struct Tick {
  double value = 0;
  std::string label;
};
// Multiples of 1, 2 or 5 times a power of ten in [low, high], at most about `most`.
[[nodiscard]] std::vector<Tick> ticks(double low, double high, int most);

}  // namespace kvspan
