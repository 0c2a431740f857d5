// SPDX-License-Identifier: Apache-2.0
// How an answer is scored, in [0, 1].
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvspan::tracegen {

enum class Scoring : std::uint8_t {
  all_match,    // share of the answers that occur in the output, case-blind (RULER)
  any_match,    // one of them does
  exact,        // the output is one of them, white space around it aside
  first_line,   // its first line is
  substring,    // one occurs when both are normalised (HELMET)
  f1,           // best F1 of normalised words (SQuAD)
  line_prefix,  // of the first answer, as the next ones: see scoring_lines.h
  line_prefix_published,
  search,
  search_published,
  row_f1,
  log_likelihood  // exp of the mean log-probability of the reference's tokens: 1 / perplexity
};

[[nodiscard]] std::string_view scoring_name(Scoring scoring);
[[nodiscard]] std::optional<Scoring> scoring_named(std::string_view name);
[[nodiscard]] std::vector<std::string> scoring_names();

// REQUIRES: scoring != log_likelihood. ASCII letters alone are case-blind.
[[nodiscard]] double score(Scoring scoring, std::string_view output,
                           const std::vector<std::string>& answers);

// Lower case, without punctuation and the articles a, an, the; words one blank apart.
// Source: SQuAD's evaluation.
[[nodiscard]] std::string normalised(std::string_view text);

}  // namespace kvspan::tracegen
