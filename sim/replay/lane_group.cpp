// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/lane_group.h"

#include <algorithm>
#include <map>

#include <tbb/parallel_for.h>
#include <tbb/task_group.h>

namespace kvspan {

LaneGroup::LaneGroup(const std::vector<std::string>& rankings) : shared_(rankings) {
  std::map<std::string, std::size_t> place;  // in kin_
  for (std::size_t i = 0; i < rankings.size(); ++i) {
    const std::string& ranking = rankings[i];
    const bool first = ranking.empty() || place.try_emplace(ranking, kin_.size()).second;
    if (first)
      kin_.push_back({ranking, {i}});
    else
      kin_[place.at(ranking)].lanes.push_back(i);
  }
}

void LaneGroup::process(const RowBlock& block, RowIndex prompt, const LayerShape& shape,
                        std::span<Lane* const> lanes) {
  const auto shares = [](const Lane* lane) { return lane->shares_columns(); };
  if (block.end <= prompt && std::ranges::any_of(lanes, shares)) shared_.columns.add(block, shape);
  if (tbb::is_current_task_group_canceling()) return;
  tbb::parallel_for(std::size_t{0}, kin_.size(),
                    [&](std::size_t k) { process(block, lanes, kin_[k]); });
  shared_.scores.clear();
  if (std::ranges::none_of(lanes, shares)) shared_.columns.clear();
}

// The first works for all others: alone, so that nobody does the same meanwhile.
void LaneGroup::process(const RowBlock& block, std::span<Lane* const> lanes, const Kin& kin) {
  std::size_t next = 0;
  const std::size_t count = kin.lanes.size();
  while (count > 1 && next < count && lanes[kin.lanes[next]]->does_as_others(block.end) &&
         !shared_.scores.begun(kin.ranking)) {
    lanes[kin.lanes[next++]]->process(block);
  }
  tbb::parallel_for(next, count, [&](std::size_t i) { lanes[kin.lanes[i]]->process(block); });
}

}  // namespace kvspan
