// SPDX-License-Identifier: Apache-2.0
#include "cli/replay_slots.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "sim/base/error.h"

namespace kvspan::cli {
namespace {

using optimum::BlockUse;

void add_use(const BlockUse& use, BlockUse& sum) {
  sum.most += use.most;
  sum.rows += use.rows;
}

std::string percent_of(double share) { return fmt::format("{:.1f}", 100 * share); }

}  // namespace

double SlotsFound::empty(const BlockUse& use) const {
  const auto all = static_cast<double>(use.rows * block_size);
  return all > 0 ? 1 - static_cast<double>(entry_rows) / all : 0;
}

std::vector<SlotsFound> find_slots(const Ledger& ledger,
                                   const std::vector<std::int64_t>& block_sizes,
                                   const std::function<bool()>& cancelled) {
  std::vector<SlotsFound> out(block_sizes.size());
  for (int layer = 0; layer < ledger.layers; ++layer) {
    for (int head = 0; head < ledger.heads; ++head) {
      const std::vector<optimum::Life> lives = optimum::lives_of(ledger.deaths(layer, head));
      const optimum::Slots first_fit = optimum::first_fit(lives);
      for (std::size_t b = 0; b < out.size(); ++b) {
        if (cancelled && cancelled()) throw Interrupted();
        SlotsFound& found = out[b];
        const std::int64_t size = found.block_size = block_sizes[b];
        found.slots += optimum::most_at_once(lives);
        for (const optimum::Life& life : lives) found.entry_rows += life.death - life.birth;
        add_use(use_of(lives, optimum::in_order(lives), size), found.in_order);
        add_use(use_of(lives, first_fit, size), found.first_fit);
        add_use(use_of(lives, optimum::best_found(lives, size), size), found.best_found);
        add_use(optimum::least_use(lives, size), found.least);
      }
    }
  }
  return out;
}

void print_slots(const RunReport& report, const std::vector<std::vector<SlotsFound>>& found) {
  std::vector<std::vector<std::string>> rows = {
      {"", "", "slots", "blocks at", "once:", "empty slots, %:", "", "best", "not"},
      {"entries in blocks", "of", "needed", "in order", "first fit", "in order", "first fit",
       "found", "below"}};
  for (std::size_t run = 0; run < found.size(); ++run) {
    for (const SlotsFound& of : found[run]) {
      rows.push_back({"  " + report.runs[run].label, fmt::format("{}", of.block_size),
                      fmt::format("{}", of.slots), fmt::format("{}", of.in_order.most),
                      fmt::format("{}", of.first_fit.most), percent_of(of.empty(of.in_order)),
                      percent_of(of.empty(of.first_fit)), percent_of(of.empty(of.best_found)),
                      percent_of(of.empty(of.least))});
    }
  }
  fmt::print("\n{}", align(rows));
  fmt::print(
      "sums over layers and heads, each with blocks of its own. Slots needed: most entries at "
      "once,\n"
      "the largest clique of the graph of lifetimes. Empty: of the slots of held blocks, over all\n"
      "rows. In order: no slot twice, as a paged cache (paged{}_per_head); first fit: into the "
      "lowest\n"
      "free slot; best found: with deaths known; not below: what no placement beats, and moving\n"
      "entries reaches (paged{}_per_head_compact)\n",
      found.front().front().block_size, found.front().front().block_size);
}

nlohmann::json slots_json(const std::vector<SlotsFound>& found) {
  nlohmann::json out = nlohmann::json::array();
  for (const SlotsFound& of : found) {
    const auto use = [&](const BlockUse& one) {
      return nlohmann::json{
          {"blocks", one.most}, {"block_rows", one.rows}, {"empty_share", of.empty(one)}};
    };
    out.push_back({{"block_size", of.block_size},
                   {"slots", of.slots},
                   {"entry_rows", of.entry_rows},
                   {"in_order", use(of.in_order)},
                   {"first_fit", use(of.first_fit)},
                   {"best_found", use(of.best_found)},
                   {"least", use(of.least)}});
  }
  return out;
}

}  // namespace kvspan::cli
