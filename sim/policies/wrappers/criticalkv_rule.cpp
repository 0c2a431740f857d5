// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/wrappers/criticalkv_rule.h"

#include <algorithm>

#include <Eigen/Core>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "sim/base/error.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {

struct OutputProjection::Matrix {
  Eigen::MatrixXd values;
};

namespace {

// Norms of the tokens [begin, end), a block of them at a time.
void append_norms(const View& view, const OutputProjection& wo, int head, TokenIndex begin,
                  TokenIndex end, std::vector<double>& known) {
  constexpr TokenIndex kBlock = 256;
  // Eigen's product sums columns beyond a multiple of its own block in another order, so that equal
  // values would differ in the last bits: a product ends in whole blocks.
  const auto padded = [](Eigen::Index columns) { return (columns + 7) / 8 * 8; };
  const LayerShape& shape = view.shape();
  const int kv_head = shape.kv_head(head);
  const Eigen::Index dim = shape.v_dim;
  for (TokenIndex first = begin; first < end; first += kBlock) {
    const Eigen::Index count = std::min(kBlock, end - first);
    Eigen::MatrixXd v = Eigen::MatrixXd::Zero(dim, padded(count));
    for (Eigen::Index i = 0; i < count; ++i) {
      const std::vector<float> raw = view.value(kv_head, first + static_cast<TokenIndex>(i));
      v.col(i) = Eigen::Map<const Eigen::VectorXf>(raw.data(), dim).cast<double>();
    }
    Eigen::RowVectorXd sums = Eigen::RowVectorXd::Zero(v.cols());
    if (!wo.matrix) {
      sums = v.cwiseAbs().colwise().sum();
    } else {
      for (int q = head * shape.group(); q < (head + 1) * shape.group(); ++q) {
        const Eigen::MatrixXd moved = wo.matrix->values.middleRows(q * dim, dim).transpose() * v;
        sums += moved.cwiseAbs().colwise().sum() / shape.group();
      }
    }
    known.insert(known.end(), sums.data(), sums.data() + count);
  }
}

OutputProjection read_projection(const TensorView& tensor, const Geometry& geometry,
                                 const std::string& name) {
  const std::int64_t width = std::int64_t{geometry.query_heads} * geometry.v_dim;
  const bool is_float =
      tensor.dtype == Dtype::f32 || tensor.dtype == Dtype::f16 || tensor.dtype == Dtype::bf16;
  if (tensor.shape.size() != 2 || tensor.shape[1] != width || tensor.shape[0] < 1 || !is_float) {
    throw TraceError(fmt::format(
        "criticalkv: {} has shape [{}] and type {}, expected [hidden, {}] of F32, F16 or BF16",
        name, fmt::join(tensor.shape, ", "), dtype_name(tensor.dtype), width));
  }
  std::vector<float> values(index(tensor.elements()));
  widen(tensor, 0, values, name);
  // Row-major [hidden, width] is column-major [width, hidden].
  const Eigen::Map<const Eigen::MatrixXf> rows(values.data(), width, tensor.shape[0]);
  return {std::make_shared<const OutputProjection::Matrix>(
      OutputProjection::Matrix{rows.cast<double>()})};
}

}  // namespace

void ValueNorms::of(const View& view, int head, std::span<const TokenIndex> entries,
                    std::span<double> out) {
  const LayerShape& shape = view.shape();
  Layer& layer = layers_[index(shape.layer)];
  const std::lock_guard lock(layer.mutex);
  if (layer.known.empty()) {
    layer.known.resize(index(shape.heads));
    layer.wo = load_(shape.layer);
  }
  std::vector<double>& known = layer.known[index(head)];
  const auto begin = static_cast<TokenIndex>(known.size());
  const auto end = static_cast<TokenIndex>(view.pass().end);
  if (begin < end) append_norms(view, layer.wo, head, begin, end, known);
  for (std::size_t i = 0; i < entries.size(); ++i) out[i] = known[index(entries[i])];
}

std::function<OutputProjection(int)> projections(const TensorSet& set, const std::string& from,
                                                 const Geometry& geometry) {
  const bool stored_names =
      set.find(fmt::format("layers.{}.wo", geometry.layers())) == nullptr;  // no more than stored
  std::vector<std::string> names;
  for (int l = 0; l < geometry.layers(); ++l) {
    const int model_layer = geometry.layer_ids[index(l)];
    for (const std::string& name :
         {fmt::format("layers.{}.wo", stored_names ? l : model_layer),
          fmt::format("model.layers.{}.self_attn.o_proj.weight", model_layer)}) {
      if (set.find(name) != nullptr && names.size() == index(l)) names.push_back(name);
    }
    if (names.size() == index(l)) {
      throw TraceError(
          fmt::format("criticalkv: {} has neither 'layers.{}.wo' nor "
                      "'model.layers.{}.self_attn.o_proj.weight'",
                      from, stored_names ? l : model_layer, model_layer));
    }
  }
  return [set, names, from, geometry](int layer) {
    const std::string& name = names[index(layer)];
    return read_projection(*set.find(name), geometry, fmt::format("{}: {}", from, name));
  };
}

}  // namespace kvspan::policies
