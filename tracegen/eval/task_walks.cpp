// SPDX-License-Identifier: Apache-2.0
// Tasks whose answer is a walk, a line a step.
// Sources: LongProc (arXiv 2501.05414) for path_traversal: every city has one way out, and some
// distractors lead into the route; TriAttention (arXiv 2604.04921) for dfs_state: the smallest
// neighbour first, stack and visited nodes after every step. Words are this program's own.
#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tracegen/eval/task_draws.h"
#include "tracegen/eval/task_parameters.h"

namespace kvspan::tracegen {
namespace {

// ---- Cities -------------------------------------------------------------------------------------

struct Journey {
  std::string context, from, to;
  std::vector<std::string> steps;
};

// 49 cities: 24 to 39 steps, as LongProc's shortest.
Journey journey(Draws& draws, std::int64_t cities) {
  static const std::vector<std::string> kMeans{"bus", "train", "plane", "ferry"};
  const std::vector<std::string> names = draw_names(draws, cities);
  const std::int64_t least = std::max<std::int64_t>(1, cities / 2);
  const std::int64_t most = std::max(least, 4 * cities / 5);
  const std::int64_t steps = least + draws.below(most - least + 1);
  std::vector<std::string> lines;
  Journey out{{}, names.front(), names[static_cast<std::size_t>(steps)], {}};
  for (std::int64_t c = 0; c < cities; ++c) {
    const auto to = static_cast<std::size_t>(c < steps ? c + 1 : draws.below(cities));
    const std::string& name = names[static_cast<std::size_t>(c)];
    const std::string& means = draws.of(kMeans);
    lines.push_back(fmt::format("{0} is a lively city. You can travel from {0} to {1} by {2}.",
                                name, names[to], means));
    if (c < steps)
      out.steps.push_back(fmt::format("From {}, take a {} to {}.", name, means, names[to]));
  }
  draws.shuffle(lines);
  out.context = fmt::format("{}", fmt::join(lines, "\n"));
  return out;
}

std::string problem(const Journey& j) {
  return fmt::format("{}\n\nFind the route from {} to {}.", j.context, j.from, j.to);
}

// ---- Trees --------------------------------------------------------------------------------------

struct Walk {
  std::string edges;
  std::vector<std::string> states;
};

Walk walk_tree(Draws& draws, std::int64_t nodes, std::int64_t steps) {
  std::vector<std::vector<std::int64_t>> neighbours(static_cast<std::size_t>(nodes));
  std::vector<std::string> edges;
  std::vector<std::int64_t> known{0};  // every next node hangs on one of them
  for (const std::int64_t drawn : draws.distinct(nodes - 1, nodes - 1)) {
    const std::int64_t n = drawn + 1;
    const std::int64_t parent = draws.of(known);
    known.push_back(n);
    neighbours[static_cast<std::size_t>(n)].push_back(parent);
    neighbours[static_cast<std::size_t>(parent)].push_back(n);
    edges.push_back(draws.below(2) == 0 ? fmt::format("{}-{}", parent, n)
                                        : fmt::format("{}-{}", n, parent));
  }
  draws.shuffle(edges);
  Walk out{fmt::format("{}", fmt::join(edges, ", ")), {}};
  std::vector<std::int64_t> stack{0};
  std::vector<std::int64_t> visited{0};
  for (std::int64_t s = 1; s <= steps && !stack.empty(); ++s) {
    std::vector<std::int64_t>& near = neighbours[static_cast<std::size_t>(stack.back())];
    std::sort(near.begin(), near.end());
    const auto next = std::find_if(near.begin(), near.end(), [&](std::int64_t n) {
      return std::find(visited.begin(), visited.end(), n) == visited.end();
    });
    if (next != near.end()) {
      stack.push_back(*next);
      visited.push_back(*next);
    } else {
      stack.pop_back();
    }
    std::vector<std::int64_t> sorted = visited;
    std::sort(sorted.begin(), sorted.end());
    out.states.push_back(fmt::format("Step {}: stack {}; visited {}", s, fmt::join(stack, " "),
                                     fmt::join(sorted, " ")));
  }
  return out;
}

std::string by_line(const std::vector<std::string>& steps) {
  return fmt::format("{}", fmt::join(steps, "\n"));
}

void set_answer(Sample& sample, const std::vector<std::string>& steps, const char* tag,
                const TaskRequest& request, bool published) {
  sample.answer_prefix = fmt::format("<{}>\n", tag);
  sample.answers = {by_line(steps)};
  sample.reference = fmt::format("{}\n</{}>", by_line(steps), tag);
  sample.scoring = published ? Scoring::line_prefix_published : Scoring::line_prefix;
  sample.generate = request.tokens(sample.reference) + kSpareTokens;
}

}  // namespace

std::vector<Sample> path_traversal(const TaskRequest& request, TaskParameters& parameters) {
  constexpr std::int64_t kExampleCities = 9;
  const std::int64_t length = parameters.integer("length", 2048, 256, kMostLength);
  const bool published = parameters.integer("published", 0, 0, 1) == 1;
  parameters.done();
  const Draft draft = [&request, published](Draws& draws, std::int64_t cities) {
    const Journey example = journey(draws, kExampleCities);
    const Journey asked = journey(draws, cities);
    Sample out;
    out.prompt = fmt::format(
        "In a made-up world every city has a one-way connection to one other city. Give the route "
        "from a city to another one, a line a step: begin where it begins, find the city that it "
        "is "
        "connected to, and go on until you are there.\n\n{}\n\n<Route>\n{}\n</Route>\n\nAnother "
        "world:\n\n{}\n\n",
        problem(example), by_line(example.steps), problem(asked));
    set_answer(out, asked.steps, "Route", request, published);
    const std::size_t question = out.prompt.rfind("Find the route");
    out.spans.push_back({"question", question, out.prompt.size()});
    return out;
  };
  return draw_samples(request, {length, 4, 16, 3}, draft);
}

std::vector<Sample> depth_first(const TaskRequest& request, TaskParameters& parameters) {
  constexpr std::int64_t kExampleNodes = 4;
  const std::int64_t length = parameters.integer("length", 2048, 256, kMostLength);
  const std::int64_t steps = parameters.integer("steps", 0, 0, 1 << 16);
  const bool published = parameters.integer("published", 0, 0, 1) == 1;
  parameters.done();
  const Draft draft = [&request, published, steps](Draws& draws, std::int64_t nodes) {
    const Walk example = walk_tree(draws, kExampleNodes, 2 * kExampleNodes - 2);
    const Walk asked = walk_tree(draws, nodes, steps > 0 ? steps : nodes);
    const auto tree = [](const Walk& walk) {
      return fmt::format("Edges of the tree: {}. Walk from node 0.", walk.edges);
    };
    Sample out;
    out.prompt = fmt::format(
        "Walk through a tree, depth first. A step goes to the smallest neighbour that was not "
        "visited, which is put on the stack; where there is none, it takes the node off the stack, "
        "and so goes back. Write down the stack and the visited nodes after every "
        "step.\n\n{}\n\n<Steps>\n{}\n</Steps>\n\n{} Write {} steps.\n\n",
        tree(example), by_line(example.states), tree(asked), asked.states.size());
    set_answer(out, asked.states, "Steps", request, published);
    const std::size_t edges = out.prompt.rfind("Edges of the tree");
    out.spans.push_back({"tree", edges, out.prompt.size()});
    return out;
  };
  return draw_samples(request, {length, 4, 20, 3}, draft);
}

}  // namespace kvspan::tracegen
