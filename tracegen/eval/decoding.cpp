// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/decoding.h"

#include <algorithm>
#include <utility>

#include <tbb/parallel_for.h>

#include "tracegen/eval/divergence.h"
#include "tracegen/forward/token_sampling.h"

namespace kvspan::tracegen {

RowIndex rows_of_reference(const LoopInput& input) {
  const RowIndex tokens = std::ssize(input.reference);
  return input.generate > 0 ? std::max<RowIndex>(0, tokens - 1) : tokens;
}

void Decoding::run(Batch& batch, std::vector<Course>& courses,
                   const std::function<void(double)>& progress) {
  const RowIndex prompt = std::ssize(input_.prompt.ids);
  const double most = static_cast<double>(std::max<RowIndex>(input_.generate, reference())) + 1;
  for (RowIndex step = 0;; ++step) {
    progress(static_cast<double>(step) / most);
    std::vector<std::optional<std::int32_t>> tokens(courses.size());
    // The full cache's first: the others are held against what it expects.
    for (std::size_t i = 0; i < courses.size(); ++i) {
      if (courses[i].full) tokens[i] = next_token(courses[i]);
    }
    tbb::parallel_for(std::size_t{0}, courses.size(), [&](std::size_t i) {
      if (!courses[i].full) tokens[i] = next_token(courses[i]);
    });
    std::vector<Batch::Rows> rows;
    std::vector<std::size_t> going;
    for (std::size_t i = 0; i < courses.size(); ++i) {
      if (!tokens[i]) continue;
      rows.push_back({&courses[i].branch, prompt + step, {*tokens[i]}});
      courses[i].tokens.push_back(*tokens[i]);
      going.push_back(i);
    }
    if (rows.empty()) return;
    batch.advance(rows);
    std::vector<std::size_t> wanted;
    for (std::size_t r = 0; r < going.size(); ++r) {
      if (!is_over(courses[going[r]])) wanted.push_back(r);
    }
    std::vector<std::vector<float>> logits(going.size());
    batch.logits(wanted, logits);
    for (const std::size_t r : wanted) courses[going[r]].logits = std::move(logits[r]);
  }
}

// No logits are needed behind its latest token.
bool Decoding::is_over(const Course& course) const {
  const auto rows = std::ssize(course.tokens);
  if (!course.answers) return rows >= reference();
  return rows >= input_.generate || std::ranges::count(input_.stop, course.tokens.back()) > 0;
}

// What the course reads next; nullopt: it is at its end. Measures what it expected.
std::optional<std::int32_t> Decoding::next_token(Course& course) {
  if (course.ended) return std::nullopt;
  const auto at = std::ssize(course.tokens);
  if (course.answers) {
    course.ended = at > 0 && is_over(course);
    return course.ended ? std::nullopt : std::optional(Sampler({})(course.logits));
  }
  if (at < reference()) judge(course, static_cast<std::size_t>(at));
  course.ended = at >= rows_of_reference(input_);
  return course.ended ? std::nullopt
                      : std::optional(input_.reference[static_cast<std::size_t>(at)]);
}

// How surprising the next token of the reference is, and how far from the full cache's mind.
void Decoding::judge(Course& course, std::size_t at) {
  if (course.full) full_logits_.push_back(course.logits);
  course.nll.push_back(nll_of(course.logits, input_.reference[at]));
  course.divergence.push_back(divergence(full_logits_[at], course.logits));
}

}  // namespace kvspan::tracegen
