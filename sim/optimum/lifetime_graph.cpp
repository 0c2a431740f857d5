// SPDX-License-Identifier: Apache-2.0
#include "sim/optimum/lifetime_graph.h"

#include <algorithm>
#include <numeric>

#include <boost/graph/adjacency_matrix.hpp>
#include <boost/graph/bron_kerbosch_all_cliques.hpp>
#include <boost/graph/sequential_vertex_coloring.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan::optimum {
namespace {

using Graph = boost::adjacency_matrix<boost::undirectedS>;

Graph graph_of(std::span<const Life> lives) {
  if (std::ssize(lives) > kGraphLives) {
    throw ConfigError(fmt::format("the graph of lifetimes takes at most {}, and there are {}",
                                  kGraphLives, lives.size()));
  }
  Graph graph(lives.size());
  for (std::size_t a = 0; a < lives.size(); ++a) {
    for (std::size_t b = 0; b < a; ++b) {
      if (lives[a].birth < lives[b].death && lives[b].birth < lives[a].death)
        boost::add_edge(a, b, graph);
    }
  }
  return graph;
}

struct Largest {
  std::size_t* size;
  template <class Clique>
  void clique(const Clique& clique, const Graph& /*graph*/) const {
    *size = std::max(*size, clique.size());
  }
};

}  // namespace

std::int64_t largest_clique(std::span<const Life> lives) {
  std::size_t size = std::min<std::size_t>(1, lives.size());
  boost::bron_kerbosch_all_cliques(graph_of(lives), Largest{&size});
  return static_cast<std::int64_t>(size);
}

Slots coloured(std::span<const Life> lives) {
  const Graph graph = graph_of(lives);
  std::vector<std::size_t> order(lives.size()), colours(lives.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return lives[a].birth < lives[b].birth; });
  const auto index = boost::get(boost::vertex_index, graph);
  boost::sequential_vertex_coloring(
      graph, boost::make_iterator_property_map(order.begin(), boost::identity_property_map()),
      boost::make_iterator_property_map(colours.begin(), index));
  Slots slots;
  for (const std::size_t colour : colours) slots.push_back(static_cast<std::int32_t>(colour));
  return slots;
}

}  // namespace kvspan::optimum
