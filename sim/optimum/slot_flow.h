// SPDX-License-Identifier: Apache-2.0
// The best eviction plan, exactly, for traces of real size.
//
// A slot is what holds one entry at a time. After pass k there are c_k of them: units of flow along
// a time line whose nodes are the ends of passes. A unit crosses from node to node idle, worth 0,
// or inside an entry, from the pass p that bears it to the pass q at whose end it dies:
//
//     o----->o----->o----->o----->o      idle, any number of units
//      \____________^                    entry i lives from p to q, worth gains(i)[q - p],
//             \____________^             at most one of its possible lives
//
// Units appear at node k where c_k > c_(k-1) and leave where it is smaller; the last pass's node
// takes what is left. Every entry stands at the node where it ends (its own pass, if it is never
// held), and what remains to be chosen is to move it from there to another: so an augmenting path
// is a walk over the nodes that moves entries, and needs no node for them.
//
// Successive shortest paths with node prices (the value of a slot that is free from there on). The
// first plan holds nothing, with prices from one backward sweep, or everything, with prices of 0,
// whichever is nearer to what is asked; from one answer the next is reached by the units in which
// their capacities differ. Reduced costs stay at least 0, so that Dijkstra may stop at the nearest
// node that lacks a unit.
// Cost of a unit: the gains of the entries that stand at the nodes reached, about all of them, so
// O(budget x entries x passes) for a constant budget; memory: less than the gains need.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "sim/optimum/values.h"

namespace kvspan::optimum {

struct Optimum {
  Mass gain = 0;
  Plan plan;
  // [K - 1] what one slot more after pass k would be worth at most: with them, dual_bound() of
  // certificate.h equals the gain, and no plan is better.
  std::vector<Mass> prices;
};

struct SolverWatch {
  std::function<bool()> cancelled;            // polled; true ends it with Interrupted
  std::function<void(double done)> progress;  // in [0, 1]
};

// REQUIRES: capacities of at least 0. Errors: Interrupted.
[[nodiscard]] Optimum best_plan(const Values& values, const Capacities& capacities,
                                const SolverWatch& watch = {});

// Of several capacities, each from the nearest that is known: less work than one after another.
[[nodiscard]] std::vector<Optimum> best_plans(const Values& values, std::span<const Capacities> all,
                                              const SolverWatch& watch = {});

// The best plans of constant budgets, all on the way to the largest: each unit of flow is a slot.
//   budgets  ascending, at least 0
//   use      receives each of them; null: none
// Returns the gains of the budgets 0, 1, ..., budgets.back(). Errors: Interrupted.
using UseOptimum = std::function<void(std::int64_t budget, const Optimum&)>;
std::vector<Mass> best_plans_by_budget(const Values& values, std::span<const std::int64_t> budgets,
                                       const UseOptimum& use, const SolverWatch& watch = {});

}  // namespace kvspan::optimum
