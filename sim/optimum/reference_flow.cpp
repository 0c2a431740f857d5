// SPDX-License-Identifier: Apache-2.0
// One node for each pass end, one for each entry, and
//
//   source -> k      as many units as slots appear there         k -> sink   as many as go
//   k -> k + 1       idle, any number
//   p(i) -> i        one unit: the entry is paid once
//   i -> q, q > p(i) one unit, worth what i gains until it dies at the end of pass q
//
// Boost's successive shortest paths want costs of at least 0. A unit that crosses from node k to
// node q pays high * (q - k) in all, whatever its way, so that this may be added to the cost of
// every edge, and with `high` as large as the most that a pass is worth to an entry, no edge is
// below 0 any more.
#include "sim/optimum/reference_flow.h"

#include <algorithm>
#include <limits>
#include <utility>

#include <boost/graph/adjacency_list.hpp>
#include <boost/graph/successive_shortest_path_nonnegative_weights.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan::optimum {
namespace {

using Traits = boost::adjacency_list_traits<boost::vecS, boost::vecS, boost::directedS>;
struct EdgeData {
  std::int64_t capacity = 0, residual = 0;
  Mass cost = 0;
  Traits::edge_descriptor reverse;
};
using Graph =
    boost::adjacency_list<boost::vecS, boost::vecS, boost::directedS, boost::no_property, EdgeData>;

Traits::edge_descriptor connect(Graph& graph, std::size_t from, std::size_t to,
                                std::int64_t capacity, Mass cost) {
  const auto there = boost::add_edge(from, to, EdgeData{capacity, 0, cost, {}}, graph).first;
  const auto back = boost::add_edge(to, from, EdgeData{0, 0, -cost, {}}, graph).first;
  graph[there].reverse = back;
  graph[back].reverse = there;
  return there;
}

// What Boost adds up for a node. Of one that is out of reach by now, so at the largest distance
// that there is, it adds that, too: it cannot come into reach again, and stays as it is.
struct Potential {
  Potential(Mass v = 0) : value(v) {}  // NOLINT(google-explicit-constructor)
  Mass value;
  friend Potential operator+(Potential a, Mass distance) {
    return distance == std::numeric_limits<Mass>::max() ? a : Potential(a.value + distance);
  }
  friend Mass operator-(Potential a, Potential b) { return a.value - b.value; }
};

Mass most_of_a_pass(const Values& values) {
  Mass most = 0;
  for (int entry = 0; entry < values.entries(); ++entry) {
    const std::span<const Mass> gains = values.gains(entry);
    for (std::size_t j = 1; j < gains.size(); ++j) most = std::max(most, gains[j] - gains[j - 1]);
  }
  return most;
}

}  // namespace

Plan reference_plan(const Values& values, const Capacities& capacities) {
  if (values.entries() > kReferenceEntries) {
    throw ConfigError(fmt::format("the reference solver takes at most {} entries, and there are {}",
                                  kReferenceEntries, values.entries()));
  }
  const auto passes = index(values.passes());
  const auto entries = index(values.entries());
  const Mass high = most_of_a_pass(values);
  Graph graph(passes + entries + 2);
  const std::size_t source = passes + entries;
  const std::size_t sink = source + 1;
  std::int64_t before = 0;
  for (std::size_t k = 0; k < passes; ++k) {
    const std::int64_t here = k < capacities.size() ? capacities[k] : 0;
    if (here > before) connect(graph, source, k, here - before, 0);
    if (here < before) connect(graph, k, sink, before - here, 0);
    if (k + 1 < passes) connect(graph, k, k + 1, here, high);
    before = here;
  }
  std::vector<std::pair<std::size_t, Traits::edge_descriptor>> lives;
  for (int entry = 0; entry < values.entries(); ++entry) {
    const auto node = passes + index(entry);
    const auto born = index(values.born(entry));
    connect(graph, born, node, 1, 0);
    const std::span<const Mass> gains = values.gains(entry);
    for (std::size_t j = 1; j < gains.size(); ++j) {
      lives.emplace_back(born + j,
                         connect(graph, node, born + j, 1, high * static_cast<Mass>(j) - gains[j]));
    }
  }
  std::vector<Potential> potentials(boost::num_vertices(graph));
  boost::successive_shortest_path_nonnegative_weights(
      graph, source, sink,
      boost::capacity_map(boost::get(&EdgeData::capacity, graph))
          .residual_capacity_map(boost::get(&EdgeData::residual, graph))
          .weight_map(boost::get(&EdgeData::cost, graph))
          .reverse_edge_map(boost::get(&EdgeData::reverse, graph))
          .distance_map2(boost::make_iterator_property_map(
              potentials.begin(), boost::get(boost::vertex_index, graph))));
  Plan plan;
  for (int entry = 0; entry < values.entries(); ++entry) plan.push_back(values.born(entry));
  for (const auto& [pass, edge] : lives) {
    if (graph[edge].residual == 0)
      plan[boost::source(edge, graph) - passes] = static_cast<std::int32_t>(pass);
  }
  return plan;
}

}  // namespace kvspan::optimum
