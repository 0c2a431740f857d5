// SPDX-License-Identifier: Apache-2.0
#include "sim/fleet/memory_curve.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>

namespace kvspan {
namespace {

// The values themselves if they are few, else some from the smallest to the largest, ever further
// apart.
std::vector<std::int64_t> knots(const std::set<std::int64_t>& values) {
  if (values.size() <= MemoryCurve::kKnots) return {values.begin(), values.end()};
  const auto low = static_cast<double>(*values.begin());
  const auto high = static_cast<double>(*values.rbegin());
  std::set<std::int64_t> out;
  for (std::size_t i = 0; i < MemoryCurve::kKnots; ++i) {
    const double part = static_cast<double>(i) / static_cast<double>(MemoryCurve::kKnots - 1);
    out.insert(std::llround(low * std::pow(high / low, part)));
  }
  return {out.begin(), out.end()};
}

// Where x lies between two knots: the lower one's place, and how far beyond it.
struct Place {
  std::size_t at = 0;
  double beyond = 0;
};
Place place_of(const std::vector<std::int64_t>& knots, std::int64_t x) {
  if (knots.size() == 1 || x <= knots.front()) return {};
  const auto above = std::upper_bound(knots.begin(), knots.end(), x);
  if (above == knots.end()) return {knots.size() - 2, 1};
  const auto at = static_cast<std::size_t>(above - knots.begin()) - 1;
  return {at, static_cast<double>(x - knots[at]) / static_cast<double>(knots[at + 1] - knots[at])};
}

double between(double low, double high, double part) { return low + (high - low) * part; }

}  // namespace

MemoryCurve::MemoryCurve(const CurveRequest& request, std::span<const FleetRequest> requests)
    : block_(request.block) {
  std::set<std::int64_t> prompts, tokens{1};
  std::int64_t longest = 1;
  for (const FleetRequest& r : requests) {
    prompts.insert(r.prompt);
    tokens.insert(std::max<std::int64_t>(1, r.generated));
    longest = std::max(longest, r.prompt + r.generated);
  }
  prompts_ = knots(prompts);
  if (prompts_.back() < longest) prompts_.push_back(longest);  // who is preempted reads its answer
  tokens_ = knots(tokens);
  const auto bytes = [&](std::int64_t prompt, std::int64_t generated) {
    return request_bytes(request.spec, request.model, {prompt, generated, request.chunk},
                         request.accounting, request.tp, request.calibration);
  };
  for (const std::int64_t prompt : prompts_) {
    const RequestBytes alone = bytes(prompt, 0);
    basis_ = std::max(basis_, alone.basis);
    prefill_.push_back(static_cast<double>(alone.peak));
    for (const std::int64_t token : tokens_)
      decode_.push_back(static_cast<double>(bytes(prompt, token).decode));
  }
}

std::int64_t MemoryCurve::rounded(double bytes) const {
  // A straight line in doubles may end a hair above the integer that it means.
  const auto whole = static_cast<std::int64_t>(std::ceil(bytes - 1e-3));
  return block_ == 0 ? whole : (whole + block_ - 1) / block_ * block_;
}

std::int64_t MemoryCurve::prefill(std::int64_t prompt) const {
  const auto [at, beyond] = place_of(prompts_, prompt);
  return rounded(beyond == 0 ? prefill_[at] : between(prefill_[at], prefill_[at + 1], beyond));
}

std::int64_t MemoryCurve::decode(std::int64_t prompt, std::int64_t token) const {
  const Place p = place_of(prompts_, prompt);
  const Place t = place_of(tokens_, token);
  const auto row = [&](std::size_t prompt_at) {
    const double* values = decode_.data() + prompt_at * tokens_.size() + t.at;
    return t.beyond == 0 ? values[0] : between(values[0], values[1], t.beyond);
  };
  return rounded(p.beyond == 0 ? row(p.at) : between(row(p.at), row(p.at + 1), p.beyond));
}

}  // namespace kvspan
