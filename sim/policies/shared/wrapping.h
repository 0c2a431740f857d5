// SPDX-License-Identifier: Apache-2.0
// Shared by wrappers: w(p), a policy made from another.
#pragma once

#include <memory>
#include <string>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "sim/base/error.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

// Canonical text of a wrapped recipe: w(a+b,key=value,...).
[[nodiscard]] inline std::vector<std::string> wrapped_terms(const Recipe& inner,
                                                            const Arguments& arguments) {
  const std::string args = arguments.canonical();
  return {fmt::format("{}({},{}", arguments.policy(), fmt::join(inner.terms, "+"),
                      args.substr(args.find('(') + 1))};
}

[[noreturn]] inline void refuse(const Arguments& arguments, const Recipe& inner,
                                const std::string& why) {
  throw ConfigError(fmt::format("{}({}) has no meaning: {}", arguments.policy(), inner.name, why));
}

// What every wrapper of a ranking asks for.
inline void require_ranking(const Arguments& arguments, const Recipe& inner) {
  if (inner.chunked)
    refuse(arguments, inner, "put chunked() around the whole, as in chunked(w(p))");
  if (!inner.scorer) refuse(arguments, inner, fmt::format("{} ranks nothing", inner.name));
}

// A wrapper that replaces how the kept set is picked.
inline void require_plain_pick(const Arguments& arguments, const Recipe& inner) {
  require_ranking(arguments, inner);
  if (inner.pick)
    refuse(arguments, inner, fmt::format("{} already picks in its own way", inner.pick.owner));
}

// A wrapper that weighs a policy's scores with the values of each head.
inline void require_scores_of_heads(const Arguments& arguments, const Recipe& inner) {
  if (inner.scorer.value.by_position)
    refuse(arguments, inner, fmt::format("{} does not rank by importance", inner.name));
  if (inner.scorer.value.axis == Axis::layer) {
    refuse(arguments, inner,
           fmt::format("{} keeps one set for all heads, and values differ by head", inner.name));
  }
}

template <class T>
[[nodiscard]] Slot<T> own_of(const Arguments& arguments, T value) {
  return {std::move(value), Slot<T>::Filling::own, arguments.policy()};
}

// What the scorer of a recipe observes.
[[nodiscard]] inline Needs needs_of(const Recipe& recipe, const Geometry& geometry) {
  const Scoring& scoring = recipe.scorer.value;
  return scoring.make(geometry.shape(geometry.layers() - 1, scoring.per_query_head))->needs();
}

}  // namespace kvspan::policies
