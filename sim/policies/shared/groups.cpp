// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/groups.h"

#include <algorithm>
#include <vector>

#include "sim/policies/shared/kernels.h"

namespace kvspan::policies {

Group parse_group(const std::string& word) {
  if (word == "mean") return Group::mean;
  if (word == "max") return Group::max;
  return word == "sum" ? Group::sum : Group::none;
}

double reduce_group(const LayerShape& shape, int head, Group group, std::span<double> out,
                    const std::function<double(int, std::span<double>)>& item) {
  const int size = shape.group();
  double slack = item(head * size, out);
  if (size == 1) return slack;
  std::vector<double> one(out.size());
  for (int g = 1; g < size; ++g) {
    const double s = item(head * size + g, one);
    slack = group == Group::max ? std::max(slack, s) : slack + s;
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = group == Group::max ? std::max(out[i], one[i]) : out[i] + one[i];
    }
  }
  if (group != Group::mean) return slack;
  for (double& value : out) value /= size;
  return slack / size;
}

std::span<const TokenIndex> resident_up_to(const View& view, int head, RowIndex row) {
  const std::span<const TokenIndex> all = view.resident(head);
  return all.first(index(std::upper_bound(all.begin(), all.end(), row) - all.begin()));
}

void round_sums(std::span<double> scores) {
  for (double& score : scores) score = static_cast<double>(static_cast<float>(score));
}

std::vector<float> vectors_of(const View& view, Vectors which, int kv_head,
                              std::span<const TokenIndex> entries) {
  const bool keys = which == Vectors::keys;
  std::vector<float> out(entries.size() * index(keys ? view.shape().k_dim : view.shape().v_dim));
  keys ? view.keys(kv_head, entries, out) : view.values(kv_head, entries, out);
  return out;
}

std::vector<double> SquaredNorms::of(const View& view, int kv_head,
                                     std::span<const TokenIndex> entries) {
  take_in(view);
  std::vector<double> out;
  out.reserve(entries.size());
  for (const TokenIndex t : entries) out.push_back(norms_[index(kv_head)][index(t)]);
  return out;
}

void SquaredNorms::take_in(const View& view) {
  constexpr TokenIndex kPiece = 64;  // tokens whose vectors stay in a core's cache
  const LayerShape& shape = view.shape();
  const bool keys = which_ == Vectors::keys;
  const int dim = keys ? shape.k_dim : shape.v_dim;
  const std::int64_t stride = std::int64_t{shape.kv_heads} * dim;
  const auto last = static_cast<TokenIndex>(view.pass().end);
  norms_.resize(index(shape.kv_heads));
  if (end_ < last) {
    for (auto& head : norms_) head.resize(index(last));
  }
  std::vector<float> rows(index(std::min(kPiece, last - end_) * stride));
  for (; end_ < last; end_ = std::min(end_ + kPiece, last)) {
    const TokenIndex count = std::min(kPiece, last - end_);
    const std::span<float> piece = std::span(rows).first(index(count * stride));
    keys ? view.key_rows(end_, end_ + count, piece) : view.value_rows(end_, end_ + count, piece);
    for (int h = 0; h < shape.kv_heads; ++h) {
      kernels::squared_norms(piece.data() + std::ptrdiff_t{h} * dim, count, stride, dim,
                             norms_[index(h)].data() + end_);
    }
  }
}

double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

double squared_norm(std::span<const float> x) { return dot(x, x); }

void pool(Pool kind, int kernel, std::span<double> values) {
  if (kernel == 1) return;
  const std::vector<double> in(values.begin(), values.end());
  const auto count = static_cast<std::ptrdiff_t>(in.size());
  const std::ptrdiff_t reach = kernel / 2;
  for (std::ptrdiff_t i = 0; i < count; ++i) {
    const std::ptrdiff_t begin = std::max<std::ptrdiff_t>(0, i - reach);
    const std::ptrdiff_t end = std::min(count, i + reach + 1);
    double result = kind == Pool::max ? in[static_cast<std::size_t>(begin)] : 0.0;
    for (std::ptrdiff_t j = begin; j < end; ++j) {
      const double value = in[static_cast<std::size_t>(j)];
      result = kind == Pool::max ? std::max(result, value) : result + value;
    }
    values[static_cast<std::size_t>(i)] = kind == Pool::max ? result : result / kernel;
  }
}

}  // namespace kvspan::policies
