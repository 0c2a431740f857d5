// SPDX-License-Identifier: Apache-2.0
// What the generators of tasks share: seeded draws that are the same on every machine, and the size
// of a prompt.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tracegen/eval/task.h"

namespace kvspan::tracegen {

class Draws {
 public:
  explicit Draws(std::uint64_t seed) : seed_(seed) {}
  [[nodiscard]] std::int64_t below(std::int64_t n);  // [0, n)
  template <class T>
  [[nodiscard]] const T& of(const std::vector<T>& values) {
    return values[static_cast<std::size_t>(below(std::ssize(values)))];
  }
  // `count` different numbers of [0, n), in the order drawn. REQUIRES: count <= n.
  [[nodiscard]] std::vector<std::int64_t> distinct(std::int64_t n, std::int64_t count);
  template <class T>
  void shuffle(std::vector<T>& values) {
    for (std::size_t i = values.size(); i > 1; --i)
      std::swap(values[i - 1],
                values[static_cast<std::size_t>(below(static_cast<std::int64_t>(i)))]);
  }
  [[nodiscard]] std::string digits(int count);               // the first is no 0
  [[nodiscard]] std::string letters(char first, int count);  // of the 26 from `first` on
  [[nodiscard]] std::string word();                          // "brave-otter"
  [[nodiscard]] std::string uuid();                          // version 4

 private:
  std::uint64_t seed_;
  std::int64_t drawn_ = 0;
};

// `count` different English words, longer made-up ones where the list ends.
[[nodiscard]] std::vector<std::string> draw_words(Draws& draws, std::int64_t count);

// `count` different made-up names: "Velmora".
[[nodiscard]] std::vector<std::string> draw_names(Draws& draws, std::int64_t count);

// Finds how many fillers a prompt of a length takes, then draws the samples. RULER's rule: by
// bisection, on one draw, between one step and `reach` times what a step's tokens let one expect;
// a sample that turns out longer loses a step at a time.
struct Size {
  std::int64_t length = 0;  // tokens: of prompt, answer prefix and the answer's room
  std::int64_t step = 1;    // fillers
  std::int64_t probe = 1;   // fillers of the draw that says what one takes
  std::int64_t reach = 3;
};
using Draft = std::function<Sample(Draws& draws, std::int64_t fillers)>;
// Errors: ConfigError when a prompt with one step of fillers is too long.
[[nodiscard]] std::vector<Sample> draw_samples(const TaskRequest& request, const Size& size,
                                               const Draft& draft);

// The span of the first place where `text` stands in the sample's prompt. REQUIRES: it does.
void name_span(Sample& sample, const std::string& name, const std::string& text);

}  // namespace kvspan::tracegen
