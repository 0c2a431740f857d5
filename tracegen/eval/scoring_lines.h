// SPDX-License-Identifier: Apache-2.0
// Scores of answers of many lines: procedures written out, and tables.
// Source: LongProc (arXiv 2501.05414), its evaluation as of 2026-07. `published`: as its program
// counts partial answers, one line beside what is right; else as many as are right.
#pragma once

#include <string_view>

namespace kvspan::tracegen {

// Lines that are right before the first wrong one, as a share of the answer's. A line "<NAME>" of
// the output begins what counts, a line "</NAME>" ends it.
//   published  nothing without such an end; the first wrong line counts as well
[[nodiscard]] double line_prefix(std::string_view output, std::string_view answer, bool published);

// A search for a number that ends with three equations in <Solution>, of an answer that begins with
// a line of four numbers and the target. 1 if the equations are right and use each number once;
// else the share of the search's lines, after the first, in which operands and the decision to drop
// a branch agree, before the first one in which they do not; the equations count as one line more.
//   published  the equations do not count, and without a wrong line the last one does not, either
[[nodiscard]] double search_steps(std::string_view output, std::string_view answer, bool published);

// F1 of the rows of a tab-separated table with a heading, in any order. Cells in lower case,
// without punctuation, articles and blanks; a last row of another width is dropped, others match
// nothing. 0 if the heading has another width, or there is no row. "```" ends the output's table.
[[nodiscard]] double row_f1(std::string_view output, std::string_view answer);

}  // namespace kvspan::tracegen
