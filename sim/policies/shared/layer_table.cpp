// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/layer_table.h"

#include <cstring>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/trace/safetensors.h"

namespace kvspan::policies {
namespace {

template <class T>
void append_as_double(const TensorView& tensor, std::vector<double>& out) {
  for (std::int64_t i = 0; i < tensor.elements(); ++i) {
    T value;
    std::memcpy(&value, tensor.bytes.data() + static_cast<std::size_t>(i) * sizeof(T), sizeof(T));
    out.push_back(static_cast<double>(value));
  }
}

}  // namespace

LayerTable read_layer_table(const std::string& file, const std::vector<std::string>& tensors,
                            const Geometry& geometry, const std::string& policy) {
  const TensorSet set = TensorSet::open(file);
  const TensorView* tensor = nullptr;
  std::string name;
  for (const std::string& candidate : tensors) {
    if (tensor == nullptr && (tensor = set.find(candidate)) != nullptr) name = candidate;
  }
  if (tensor == nullptr) {
    throw TraceError(fmt::format("{}: {} has no tensor '{}'", policy, file, tensors.front()));
  }
  const auto& shape = tensor->shape;
  const auto stored = static_cast<std::int64_t>(geometry.layers());
  const bool heads_fit =
      shape.size() == 3 && (shape[1] == geometry.kv_heads || shape[1] == geometry.query_heads);
  if (!heads_fit || (shape[0] != stored && shape[0] != geometry.model_layers) ||
      shape[2] != geometry.tokens) {
    std::string found;
    for (const std::int64_t d : shape) found += (found.empty() ? "" : ", ") + std::to_string(d);
    throw TraceError(fmt::format(
        "{}: {}: '{}' has shape [{}], expected [{} layers (or {}), {} or {} heads, {} tokens]",
        policy, file, name, found, stored, geometry.model_layers, geometry.kv_heads,
        geometry.query_heads, geometry.tokens));
  }
  std::vector<double> flat;
  switch (tensor->dtype) {
    case Dtype::f32:
      append_as_double<float>(*tensor, flat);
      break;
    case Dtype::i32:
      append_as_double<std::int32_t>(*tensor, flat);
      break;
    case Dtype::u32:
      append_as_double<std::uint32_t>(*tensor, flat);
      break;
    case Dtype::i64:
      append_as_double<std::int64_t>(*tensor, flat);
      break;
    default:
      throw TraceError(fmt::format("{}: {}: '{}' is {}, expected F32, I32, U32 or I64", policy,
                                   file, name, dtype_name(tensor->dtype)));
  }
  LayerTable out{shape[1], shape[2], {}};
  const std::int64_t size = shape[1] * shape[2];
  for (int l = 0; l < geometry.layers(); ++l) {
    const std::int64_t from =
        shape[0] == stored ? l : geometry.layer_ids[static_cast<std::size_t>(l)];
    out.layers.emplace_back(flat.begin() + from * size, flat.begin() + (from + 1) * size);
  }
  return out;
}

}  // namespace kvspan::policies
