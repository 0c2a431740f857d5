// SPDX-License-Identifier: Apache-2.0
#include "sim/optimum/slot_flow.h"

#include <algorithm>
#include <cassert>
#include <functional>
#include <limits>
#include <numeric>
#include <queue>
#include <utility>

#include "sim/base/error.h"

namespace kvspan::optimum {
namespace {

constexpr Mass kFar = std::numeric_limits<Mass>::max() / 4;
constexpr int kIdle = -1;    // a unit crosses from the node before
constexpr int kReturn = -2;  // an idle unit is taken back from the node after

class SlotFlow {
 public:
  explicit SlotFlow(const Values& values)
      : values_(values),
        nodes_(values.passes()),
        price_(index(nodes_)),
        idle_(index(nodes_)),
        slots_(index(nodes_ - 1)),
        at_(index(nodes_)),
        place_(index(values.entries())),
        stands_(index(values.entries())),
        reach_(index(nodes_)),
        done_(index(nodes_)),
        from_(index(nodes_)) {
    hold_nothing();
  }

  // The two ends from which any capacities can be reached.
  void hold_nothing() {
    start([&](int entry) { return values_.born(entry); });
    for (int node = nodes_ - 2; node >= 0; --node) {
      Mass best = price_[index(node + 1)];
      for (const int entry : at_[index(node)]) {
        const std::span<const Mass> gains = values_.gains(entry);
        for (std::size_t j = 1; j < gains.size(); ++j)
          best = std::max(best, gains[j] + price_[index(node) + j]);
      }
      price_[index(node)] = best;
    }
  }
  void hold_everything() {  // gains never fall, so that a slot is worth nothing to anybody
    start([&](int) { return nodes_ - 1; });
    slots_ = held(values_, stands_);
  }

  // Brings one unit, or as many as gain nothing, from `source` to the nearest node that lacks one;
  // returns how many.
  //   appear, lacks  [nodes] units to take away from a node, and to bring there
  std::int64_t send(int source, std::vector<std::int64_t>& appear,
                    std::vector<std::int64_t>& lacks) {
    const int sink = search(source, lacks);
    const std::int64_t units =
        augment(source, sink, std::min(appear[index(source)], lacks[index(sink)]));
    appear[index(source)] -= units;
    lacks[index(sink)] -= units;
    for (int k = source; k < sink; ++k) slots_[index(k)] += units;
    for (int k = sink; k < source; ++k) slots_[index(k)] -= units;
    return units;
  }

  [[nodiscard]] int nodes() const { return nodes_; }
  [[nodiscard]] const Capacities& slots() const { return slots_; }
  [[nodiscard]] Mass gain() const { return gain_; }
  [[nodiscard]] Optimum result() const {
    Optimum out{gain_, stands_, {}};
    for (int k = 0; k + 1 < nodes_; ++k)
      out.prices.push_back(price_[index(k)] - price_[index(k + 1)]);
    return out;
  }

 private:
  template <class Place>
  void start(const Place& place) {
    std::fill(price_.begin(), price_.end(), 0);
    std::fill(idle_.begin(), idle_.end(), 0);
    std::fill(slots_.begin(), slots_.end(), 0);
    for (std::vector<std::int32_t>& entries : at_) entries.clear();
    for (int entry = 0; entry < values_.entries(); ++entry) put(entry, place(entry));
    gain_ = gain_of(values_, stands_);
  }
  void put(int entry, int node) {
    stands_[index(entry)] = node;
    place_[index(entry)] = static_cast<std::int32_t>(at_[index(node)].size());
    at_[index(node)].push_back(entry);
  }
  void take(int entry) {
    std::vector<std::int32_t>& here = at_[index(stands_[index(entry)])];
    place_[index(here.back())] = place_[index(entry)];
    here[index(place_[index(entry)])] = here.back();
    here.pop_back();
  }
  [[nodiscard]] Mass gain_at(int entry, int node) const {
    return values_.gains(entry)[index(node - values_.born(entry))];
  }

  // Dijkstra over reduced costs up to the nearest node that lacks a unit; prices follow. reach_ is
  // distance + price, so that a move is weighed with one addition.
  int search(int source, const std::vector<std::int64_t>& lacks) {
    std::fill(reach_.begin(), reach_.end(), kFar);
    std::fill(done_.begin(), done_.end(), char{0});
    visited_.clear();
    queue_ = {};
    lacks_ = &lacks;
    nearest_ = kFar;
    sink_ = -1;
    reach(source, price_[index(source)], kIdle);
    while (!queue_.empty() && queue_.top().first < nearest_) {
      const auto [distance, node] = queue_.top();
      queue_.pop();
      if (done_[index(node)] != 0) continue;
      done_[index(node)] = 1;
      visited_.emplace_back(node, distance);
      leave(node);
    }
    assert(sink_ >= 0);  // there is a plan of any capacities: to hold nothing
    for (const auto& [node, distance] : visited_) price_[index(node)] += distance - nearest_;
    return sink_;
  }

  // All that a unit can do from a node that was reached.
  void leave(int node) {
    const Mass here = reach_[index(node)];
    if (node + 1 < nodes_) reach(node + 1, here, kIdle);
    if (node > 0 && idle_[index(node - 1)] > 0) reach(node - 1, here, kReturn);
    for (const int entry : at_[index(node)]) move(entry);
  }

  // Where else an entry could end.
  void move(int entry) {
    const std::span<const Mass> gains = values_.gains(entry);
    const auto born = index(values_.born(entry));
    const auto stands = index(stands_[index(entry)]);
    const Mass base = reach_[stands] + gains[stands - born];
    const Mass* const known = reach_.data() + born;
    for (std::size_t j = 0; j < gains.size(); ++j) {
      if (gains[j] + known[j] > base) reach(static_cast<int>(born + j), base - gains[j], entry);
    }
  }

  void reach(int node, Mass reached, int by) {
    if (reached >= reach_[index(node)]) return;
    assert(done_[index(node)] == 0);  // reduced costs are not below 0
    const Mass distance = reached - price_[index(node)];
    if (distance >= nearest_) return;
    reach_[index(node)] = reached;
    from_[index(node)] = by;
    if ((*lacks_)[index(node)] > 0) {
      nearest_ = distance;
      sink_ = node;
    } else {
      queue_.emplace(distance, node);
    }
  }

  // Moves entries along the path that search() left.
  std::int64_t augment(int source, int sink, std::int64_t most) {
    path_.clear();
    for (int node = sink; node != source;) {
      const int by = from_[index(node)];
      if (by >= 0) most = 1;
      if (by == kReturn) most = std::min(most, idle_[index(node)]);
      path_.emplace_back(node, by);
      node = by == kIdle ? node - 1 : by == kReturn ? node + 1 : stands_[index(by)];
    }
    for (const auto& [node, by] : path_) {
      if (by == kIdle) {
        idle_[index(node - 1)] += most;
      } else if (by == kReturn) {
        idle_[index(node)] -= most;
      } else {
        gain_ += gain_at(by, node) - gain_at(by, stands_[index(by)]);
        take(by);
        put(by, node);
      }
    }
    return most;
  }

  using Reached = std::pair<Mass, int>;  // distance, node

  const Values& values_;
  int nodes_;
  std::vector<Mass> price_;                    // [nodes]
  std::vector<std::int64_t> idle_;             // [nodes] units from a node to the next
  Capacities slots_;                           // [nodes - 1] for which the plan is the best
  std::vector<std::vector<std::int32_t>> at_;  // [nodes] entries that end there
  std::vector<std::int32_t> place_;            // [entries] where in at_
  Plan stands_;                                // [entries] the node in whose at_
  Mass gain_ = 0;
  // Of one search.
  std::vector<Mass> reach_;
  std::vector<char> done_;
  std::vector<int> from_;
  std::priority_queue<Reached, std::vector<Reached>, std::greater<>> queue_;
  const std::vector<std::int64_t>* lacks_ = nullptr;
  Mass nearest_ = 0;  // of the nodes that lack a unit
  int sink_ = -1;
  std::vector<std::pair<int, Mass>> visited_;  // nodes and their distances
  std::vector<std::pair<int, int>> path_;      // nodes and how they were reached
};

void poll(const SolverWatch& watch, double done) {
  if (watch.cancelled && watch.cancelled()) throw Interrupted();
  if (watch.progress) watch.progress(done);
}

// Units to send from one to the other.
std::int64_t units_between(const Capacities& from, const Capacities& to) {
  std::int64_t units = 0;
  std::int64_t before = 0;
  for (std::size_t k = 0; k < to.size(); ++k) {
    units += std::max<std::int64_t>(0, to[k] - from[k] - before);
    before = to[k] - from[k];
  }
  return units + std::max<std::int64_t>(0, -before);
}

// Sends what separates the flow from `capacities`.
void move_to(SlotFlow& flow, const Capacities& capacities, const SolverWatch& watch) {
  const auto nodes = index(flow.nodes());
  std::vector<std::int64_t> appear(nodes, 0), lacks(nodes, 0);
  std::int64_t before = 0;
  for (std::size_t k = 0; k < nodes; ++k) {
    const std::int64_t more = k < capacities.size() ? capacities[k] - flow.slots()[k] : 0;
    (more > before ? appear : lacks)[k] = std::abs(more - before);
    before = more;
  }
  const std::int64_t all = std::accumulate(appear.begin(), appear.end(), std::int64_t{0});
  std::int64_t sent = 0;
  for (std::size_t k = 0; k < nodes; ++k) {
    while (appear[k] > 0) {
      poll(watch, static_cast<double>(sent) / static_cast<double>(all));
      sent += flow.send(static_cast<int>(k), appear, lacks);
    }
  }
}

}  // namespace

std::vector<Optimum> best_plans(const Values& values, std::span<const Capacities> all,
                                const SolverWatch& watch) {
  SlotFlow flow(values);
  const Capacities nothing(index(values.passes() - 1), 0);
  const Capacities everything = held(values, Plan(index(values.entries()), values.passes() - 1));
  std::vector<Optimum> best(all.size());
  std::vector<char> known(all.size(), 0);
  for (std::size_t solved = 0; solved < all.size(); ++solved) {
    // Whichever is nearest to what the flow holds, or to one of its two ends.
    std::size_t next = 0;
    std::int64_t least = std::numeric_limits<std::int64_t>::max();
    const Capacities* from = nullptr;
    for (std::size_t i = 0; i < all.size(); ++i) {
      for (const Capacities* start : {&flow.slots(), &nothing, &everything}) {
        if (known[i] != 0 || units_between(*start, all[i]) >= least) continue;
        least = units_between(*start, all[i]);
        next = i;
        from = start;
      }
    }
    if (from == &nothing) flow.hold_nothing();
    if (from == &everything) flow.hold_everything();
    move_to(flow, all[next], watch);
    best[next] = flow.result();
    known[next] = 1;
  }
  return best;
}

Optimum best_plan(const Values& values, const Capacities& capacities, const SolverWatch& watch) {
  return std::move(best_plans(values, std::span(&capacities, 1), watch).front());
}

std::vector<Mass> best_plans_by_budget(const Values& values, std::span<const std::int64_t> budgets,
                                       const UseOptimum& use, const SolverWatch& watch) {
  assert(std::is_sorted(budgets.begin(), budgets.end()));
  if (budgets.empty()) return {};
  SlotFlow flow(values);
  std::vector<Mass> gains{0};
  std::vector<std::int64_t> appear(index(flow.nodes()), 0), lacks(appear);
  std::int64_t before = 0;
  for (const std::int64_t budget : budgets) {
    appear.front() = lacks.back() = values.passes() > 1 ? budget - before : 0;
    before = budget;
    while (appear.front() > 0) {
      const std::int64_t slots = budget - appear.front();
      poll(watch, static_cast<double>(slots) / static_cast<double>(budgets.back()));
      flow.send(0, appear, lacks);
      gains.resize(index(budget - appear.front()) + 1, flow.gain());  // several gain nothing
    }
    if (use) use(budget, flow.result());
  }
  gains.resize(index(budgets.back()) + 1, flow.gain());
  return gains;
}

}  // namespace kvspan::optimum
