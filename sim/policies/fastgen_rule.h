// SPDX-License-Identifier: Apache-2.0
// FastGen's choice of a set for every head, and who is in it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sim/policies/shared/groups.h"

namespace kvspan::policies {

// So many per cent of a length, rounded up.
[[nodiscard]] TokenCount percent_of(double percent, RowIndex length);

class Profile final : public Scorer {
 public:
  struct Settings {
    double recovery, recent, frequent;
    bool punctuation;
    std::vector<char> is_special, is_punctuation;  // [tokens]; empty: unknown
  };
  Profile(const Settings& settings, const LayerShape& shape)
      : settings_(settings),
        band_(index(shape.query_heads)),
        class_(index(shape.heads), Class::full),
        sure_(index(shape.heads), 1) {}
  Needs needs() const override { return {.column_sums = true, .observe = Observe::always}; }
  // What every entry receives from the rows whose band it is in.
  void observe(const View& view, RowIndex begin, RowIndex end) override;
  // 1 for an entry of the head's set, 0 for the others.
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  enum class Class : std::uint8_t { special, punctuation, frequent, local, full };
  // Returns false if the cut among the frequent entries lies within the slack.
  bool mark(const View& view, int head, std::span<const TokenIndex> entries, Class chosen,
            std::span<double> out) const;
  // Adds the frequent ones among the entries at the places `others`; returns as mark() does.
  bool mark_frequent(const View& view, int head, std::span<const TokenIndex> entries,
                     std::vector<std::size_t> others, std::span<double> out) const;
  // The first class that recovers enough for every query head of the group.
  void choose_class(const View& view, int head, std::span<const TokenIndex> entries);
  // An entry that is in the set as a local one only: earlier rows had another band.
  [[nodiscard]] bool moves(const View& view, TokenIndex token) const;
  [[nodiscard]] bool is_special(std::size_t token) const {
    return settings_.is_special.empty() ? token == 0 : settings_.is_special[token] != 0;
  }
  [[nodiscard]] bool is_punctuation(std::size_t token) const {
    return settings_.punctuation && settings_.is_punctuation[token] != 0;
  }

  Settings settings_;
  std::vector<std::vector<double>> band_;  // [query_heads][prompt tokens]
  std::vector<Class> class_;               // [heads]
  std::vector<char> sure_;                 // [heads]
};

}  // namespace kvspan::policies
