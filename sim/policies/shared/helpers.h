// SPDX-License-Identifier: Apache-2.0
// Shared by policies: parameters that several have, group reduction, pooling, the SnapKV votes.
#pragma once

#include <concepts>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sim/policy/registry.h"

namespace kvspan::policies {

template <class T>
[[nodiscard]] Slot<T> own(T value) {
  return {std::move(value), Slot<T>::Filling::own, ""};
}
template <class T>
[[nodiscard]] Slot<T> by_default(T value) {
  return {std::move(value), Slot<T>::Filling::defaulted, ""};
}

// A budget's own class fills the slot of a recipe's shape.
using BudgetSlot = Slot<std::shared_ptr<const Budget>>;
template <std::derived_from<Budget> B>
[[nodiscard]] BudgetSlot own(std::shared_ptr<B> budget) {
  return {std::move(budget), BudgetSlot::Filling::own, ""};
}
template <std::derived_from<Budget> B>
[[nodiscard]] BudgetSlot by_default(std::shared_ptr<B> budget) {
  return {std::move(budget), BudgetSlot::Filling::defaulted, ""};
}

// How the query heads of a group are reduced to their KV head. none: one set per query head.
enum class Group : std::uint8_t { mean, max, sum, none };
[[nodiscard]] Group parse_group(const std::string& word);

// Runs `item` for every query head of a stored head and reduces: item(query_head, out) returns slack.
//   out [entries]
double reduce_group(const LayerShape& shape, int head, Group group, std::span<double> out,
                    const std::function<double(int query_head, std::span<double> out)>& item);

// The entries that a row of this pass could read: those of a stored head up to the row itself.
[[nodiscard]] std::span<const TokenIndex> resident_up_to(const View& view, int head, RowIndex row);

// Sums of probabilities, rounded to fp32 for the comparison: two sums of the same terms in another
// order (1/3 + 1/6 against 1/2) then tie, as they do on paper, and ties go to the lower token index.
void round_sums(std::span<double> scores);

[[nodiscard]] double squared_norm(std::span<const float> x);

// One-dimensional pooling with stride 1 and kernel/2 padding: maximum ignores the padding, average
// counts it as zeros and divides by the kernel, as torch does. REQUIRES: kernel odd.
enum class Pool : std::uint8_t { max, avg };
void pool(Pool kind, int kernel, std::span<double> values);

// Parameters shared by every policy that has a size.
[[nodiscard]] Parameter budget_parameter(
    const std::string& fallback = "20%",
    const std::string& help = "entries kept per layer and KV head");
[[nodiscard]] Slot<Amount> size_of(const Arguments& arguments,
                                   const std::string& parameter = "budget");
[[nodiscard]] Knob budget_knob(const Geometry& geometry);
// Entries of one KV head that a parameter stands for, as bind() counts them. See budget_tokens().
[[nodiscard]] TokenCount entries_of(const Arguments& arguments, const std::string& parameter,
                                    const Geometry& geometry);

// What most evictions start from: a scorer, the size and the knob of `budget`, and when to act.
[[nodiscard]] Recipe budgeted(
    const Arguments& arguments, const Geometry& geometry, Slot<Scoring> scorer,
    const Slot<Schedule>& schedule = by_default(Schedule::at_evict_point()));

// The parameter `seed`, and its value: --seed where it is not given; the canonical text says which.
[[nodiscard]] Parameter seed_parameter(const std::string& of_what);
[[nodiscard]] std::uint64_t seed_of(Arguments& arguments, const Geometry& geometry);
// Errors: ConfigError when the number is even.
[[nodiscard]] int odd_count(const Arguments& arguments, const std::string& parameter);

// The budget as the real number from which tokens are rounded down: rows * share where the sizing is
// that share of its rows, formed in doubles as Python forms n * (1 - compression_ratio); else tokens.
[[nodiscard]] double tokens_before_rounding(const std::optional<Amount>& size,
                                            const Sizing& sizing);

// The observation-window votes of SnapKV: parameters, scorer, and the window's protection.
[[nodiscard]] std::vector<Parameter> votes_parameters(int window, int kernel);
[[nodiscard]] Scoring votes_scoring(const Arguments& arguments);
[[nodiscard]] ProtectRule protect_recent(TokenCount window);
// Of a budget that is halved between heavy hitters and the newest; the odd one is a newest.
[[nodiscard]] ProtectRule protect_newest_half();

// Ranks entries by the attention they received from all rows so far, summed over the group (H2O).
// State: 4 bytes an entry. normalise: divided by the number of rows that saw the entry.
[[nodiscard]] Scoring column_sum_scoring(bool normalise = false);

// Ranks entries by their position: the newest are kept first.
[[nodiscard]] Scoring position_scoring();

// Ranks entries by a number that is known when an entry is born and never changes. `make` builds the
// function of one layer: values of the tokens [begin, end) of a stored head, out [end - begin].
using BirthValues = std::function<void(const View& view, int head, TokenIndex begin, TokenIndex end,
                                       std::span<double> out)>;
[[nodiscard]] ScorerFactory birth_scorer(const Needs& needs,
                                         std::function<BirthValues(const LayerShape&)> make);

[[nodiscard]] inline std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// For policies that choose a set, not a number: what is protected, and whoever scores above zero.
[[nodiscard]] std::shared_ptr<const Budget> keep_positive();

}  // namespace kvspan::policies
