// SPDX-License-Identifier: Apache-2.0
// What every report says of its runs in the same way: their order, their names, their notes.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sim/run/result.h"

namespace kvspan {

// Indices of the runs as every report lists them: `full` first, then as given, bounds last.
[[nodiscard]] std::vector<std::size_t> display_order(const RunReport& report);
// The label of a run, in one line. Under chunked() it says what the budget is of, in place of it:
// "chunked(snapkv(20% of each chunk))".
[[nodiscard]] std::string label_of(const RunResult& run);
[[nodiscard]] std::string label_with_amount(const std::string& label, const std::string& amount);
// The same where there is little room: "chunked(snapkv(20% of each))".
[[nodiscard]] std::string brief_label(std::string label);
// What the budget of a canonical spec is of under chunked(), where a share and a number are
// different methods: "20% of each chunk", "20% of all chunks so far", "204 in all"; else empty.
[[nodiscard]] std::string chunked_amount(const std::string& spec);
// Decode rows, or all rows where no decode row was measured; null without fidelity.
[[nodiscard]] const PhaseFidelity* judged_phase(const RunResult& run);

// Runs whose intervals of retained attention overlap, so that the trace, a score trace, cannot tell
// which retains more: pairs of indices, in display order; bounds are left out.
[[nodiscard]] std::vector<std::pair<std::size_t, std::size_t>> not_ranked(const RunReport& report);

// The notes of a run with those that follow from the report itself: the layers that its bytes are
// of, that it is a bound, that its percentiles are from a histogram, that it has intervals, that
// not all rows were measured.
inline constexpr std::string_view kIntervalNote =
    "score trace: retained attention is at least what stands there, at most its upper bound";
[[nodiscard]] std::vector<std::string> notes_of(const RunReport& report, const RunResult& run);

// What tables say of their runs below them, numbered: equal notes have one number.
class Footnotes {
 public:
  // " [1][3]", or empty where there are none.
  std::string marks(const std::vector<std::string>& notes);
  // In one line each, the first one has number 1.
  [[nodiscard]] const std::vector<std::string>& notes() const { return notes_; }

 private:
  std::vector<std::string> notes_;
};

// "retained attention and output error of prompt rows are of 512 of 32768", or empty when all rows
// of both phases were measured.
[[nodiscard]] std::string sample_note(const RunResult& run);

// "bytes of 3 of 30 layers", or empty when the trace stores all of them.
[[nodiscard]] std::string layer_subset(const TraceMeta& trace);

}  // namespace kvspan
