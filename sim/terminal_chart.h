// SPDX-License-Identifier: Apache-2.0
// Memory over rows as a chart of characters, and the pieces of text and of charts that the table
// and the SVG share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sim/result.h"

namespace kvspan {

// Resident bytes over rows of at most six runs, in at most `height` lines (legend included) of at
// most `width` characters, every line ended by '\n'. A column shows its largest value; runs that
// cannot be told apart share a mark. More than six (fewer where the legend has no room): `full` and
// others, evenly spread over memory held. Less than 40 x 8 is drawn as 40 x 8. A report without
// runs or rows: "".
[[nodiscard]] std::string memory_chart(const RunReport& report, int width, int height, bool utf8);

// ---- Order and names ----------------------------------------------------------------------------

// Indices of the runs as every report lists them: `full` first, then as given, bounds last.
[[nodiscard]] std::vector<std::size_t> display_order(const RunReport& report);
// The label of a run, in one line.
[[nodiscard]] std::string label_of(const RunResult& run);
// Decode rows, or all rows where no decode row was measured; null without fidelity.
[[nodiscard]] const PhaseFidelity* quality_of(const RunResult& run);

// ---- Text ---------------------------------------------------------------------------------------

// `text` with every malformed byte replaced by U+FFFD.
[[nodiscard]] std::string valid_utf8(std::string_view text);
// The same with control characters replaced by spaces: names come from files, and a terminal obeys
// them.
[[nodiscard]] std::string one_line(std::string_view text);
// Columns that a terminal uses. REQUIRES: valid UTF-8 without control characters.
[[nodiscard]] int display_width(std::string_view text);
// At most `width` columns, "..." in the middle if something had to go. REQUIRES: as display_width.
[[nodiscard]] std::string shorten_middle(std::string_view text, int width);
// "512 B", "1.50 KiB", "44.0 MiB", "100 GiB": three digits, powers of two.
[[nodiscard]] std::string human_bytes(std::int64_t bytes);

// ---- Axes ---------------------------------------------------------------------------------------

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
};
[[nodiscard]] RowAxis make_row_axis(std::int64_t tokens, std::int64_t prompt, int columns);

struct Tick {
  double value = 0;
  std::string label;
};
// Multiples of 1, 2 or 5 times a power of ten in [low, high], at most about `most`.
[[nodiscard]] std::vector<Tick> ticks(double low, double high, int most);

// The largest binary unit in which `bytes` is at least 1.
struct ByteUnit {
  double bytes = 1;
  std::string_view name = "B";
};
[[nodiscard]] ByteUnit byte_unit(double bytes);

}  // namespace kvspan
