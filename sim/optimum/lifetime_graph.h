// SPDX-License-Identifier: Apache-2.0
// The graph of lives itself, on Boost.Graph: to read, and to compare slots.h with. All edges are
// there, so it is for small heads.
#pragma once

#include <span>

#include "sim/optimum/slots.h"

namespace kvspan::optimum {

inline constexpr int kGraphLives = 1024;  // at most

// Vertices that all overlap each other, by looking for all maximal cliques.
// Errors: ConfigError for more lives than that.
[[nodiscard]] std::int64_t largest_clique(std::span<const Life> lives);

// A colour for each vertex, in the order of births the least that no neighbour has.
// Errors: ConfigError for more lives than that.
[[nodiscard]] Slots coloured(std::span<const Life> lives);

}  // namespace kvspan::optimum
