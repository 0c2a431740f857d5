// SPDX-License-Identifier: Apache-2.0
// Shared by policies: parameters that several have, and the recipe that most evictions start from.
#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

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

// The budget as the real number from which tokens are rounded down: rows * share where the sizing
// is that share of its rows, formed in doubles as Python forms n * (1 - compression_ratio); else
// tokens.
[[nodiscard]] double tokens_before_rounding(const std::optional<Amount>& size,
                                            const Sizing& sizing);

// Python's a // b of floats: the remainder is exact, and taken first. REQUIRES: a >= 0, b > 0.
[[nodiscard]] double floor_quotient(double a, double b);

// 1 where arXiv 2506.17121's program is followed: it prefills all but the prompt's last token, and
// that goes through decode. 0 where --evict-at ends the prefill before it.
[[nodiscard]] RowIndex last_row_decodes(const Geometry& geometry);

[[nodiscard]] ProtectRule protect_recent(TokenCount window);
// Of a budget that is halved between heavy hitters and the newest; the odd one is a newest.
[[nodiscard]] ProtectRule protect_newest_half();

// For policies that choose a set, not a number: what is protected, and whoever scores above zero.
[[nodiscard]] std::shared_ptr<const Budget> keep_positive();

}  // namespace kvspan::policies
