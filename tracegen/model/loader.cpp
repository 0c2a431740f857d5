// SPDX-License-Identifier: Apache-2.0
#include "tracegen/model/loader.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/trace/tensor.h"

namespace kvspan::tracegen::loading {

using nlohmann::json;

namespace {

LayerWeights load_layer(Loader& tensors, const Names& names, const Extras& extras,
                        const ModelSpec& spec, int layer, bool interleaved) {
  const std::string prefix = names.layer + std::to_string(layer) + ".";
  const std::int64_t hidden = spec.hidden;
  const std::int64_t inner = spec.intermediate;
  const std::int64_t queries = std::int64_t{spec.query_heads} * spec.head_dim;
  const std::int64_t keys = std::int64_t{spec.kv_heads} * spec.head_dim;
  const int q_heads = interleaved ? spec.query_heads : 0;
  const int k_heads = interleaved ? spec.kv_heads : 0;
  const auto matrix = [&](const char* name, std::int64_t rows, std::int64_t columns,
                          int rope_heads = 0) {
    return tensors.matrix(prefix + name + ".weight", rows, columns, rope_heads);
  };
  const auto bias = [&](const char* name, std::int64_t size, Presence presence,
                        int rope_heads = 0) {
    return tensors.vector(prefix + name + ".bias", size, presence, rope_heads);
  };
  const auto norm = [&](const char* name, std::int64_t size, Presence presence) {
    return tensors.vector(prefix + name + ".weight", size, presence);
  };
  LayerWeights w;
  w.q = matrix(names.q, queries, hidden, q_heads);
  w.k = matrix(names.k, keys, hidden, k_heads);
  w.v = matrix(names.v, keys, hidden);
  w.o = matrix(names.o, hidden, queries);
  w.gate = matrix(names.gate, inner, hidden);
  w.up = matrix(names.up, inner, hidden);
  w.down = matrix(names.down, hidden, inner);
  w.q_bias = bias(names.q, queries, extras.qkv_bias, q_heads);
  w.k_bias = bias(names.k, keys, extras.qkv_bias, k_heads);
  w.v_bias = bias(names.v, keys, extras.qkv_bias);
  w.o_bias = bias(names.o, hidden, extras.o_bias);
  w.gate_bias = bias(names.gate, inner, extras.mlp_bias);
  w.up_bias = bias(names.up, inner, extras.mlp_bias);
  w.down_bias = bias(names.down, hidden, extras.mlp_bias);
  w.q_norm = norm(names.q_norm, spec.head_dim, extras.qk_norm);
  w.k_norm = norm(names.k_norm, spec.head_dim, extras.qk_norm);
  w.attention_norm = norm(names.attention_norm, hidden, Presence::required);
  w.mlp_norm = norm(names.mlp_norm, hidden, Presence::required);
  return w;
}

// The factor on cos and sin. Source: Hugging Face transformers, modeling_rope_utils (YaRN).
double attention_factor(const json& scaling, const std::string& file) {
  const auto number = [&](const char* key) {
    const auto found = scaling.find(key);
    if (found == scaling.end()) return 0.0;
    const double value = found->is_number() ? found->get<double>() : -1;
    if (!(value >= 0) || !std::isfinite(value))
      fail_key(file, key, "is " + in_quotes(found->dump()), "a number >= 0");
    return value;
  };
  if (number("attention_factor") > 0) return number("attention_factor");
  const auto magnitude = [factor = number("factor")](double weight) {
    return factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1;
  };
  const double over = number("mscale");
  const double under = number("mscale_all_dim");
  return over > 0 && under > 0 ? magnitude(over) / magnitude(under) : magnitude(1);
}

}  // namespace

bool Loader::same(const std::string& a, const std::string& b) const {
  const Stored& x = tensors_.at(a);
  const Stored& y = tensors_.at(b);
  return x.type_name == y.type_name && x.shape == y.shape &&
         std::equal(x.bytes.begin(), x.bytes.end(), y.bytes.begin(), y.bytes.end());
}

std::int64_t Loader::rows(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() || found->second.shape.empty() ? 0 : found->second.shape[0];
}

WeightMatrix Loader::matrix(const std::string& name, std::int64_t rows, std::int64_t columns,
                            int rope_heads) {
  const Stored& stored = take(name, {rows, columns});
  return {name, *stored.type, rows, columns, stored.bytes, rope_heads};
}

std::vector<float> Loader::vector(const std::string& name, std::int64_t size, Presence presence,
                                  int rope_heads) {
  if (presence == Presence::absent && has(name)) {
    fail(name, "is there", "none: the configuration says that the model has no such vector");
  }
  if (presence == Presence::absent || (presence == Presence::optional && !has(name))) return {};
  const Stored& stored = take(name, {size});
  std::vector<float> stored_order(static_cast<std::size_t>(size));
  widen_weights(*stored.type, stored.bytes.data(), size, stored_order.data());
  if (rope_heads == 0) return stored_order;
  WeightMatrix order;
  order.rows = size;
  order.rope_heads = rope_heads;
  std::vector<float> out;
  for (std::int64_t r = 0; r < size; ++r)
    out.push_back(stored_order[static_cast<std::size_t>(order.stored_row(r))]);
  return out;
}

std::int64_t Loader::bytes() const {
  std::int64_t sum = 0;
  for (const auto& [name, bytes] : bytes_of_type_) sum += bytes;
  return sum;
}

std::string Loader::types() const {
  std::vector<std::pair<std::int64_t, std::string_view>> order;
  for (const auto& [name, bytes] : bytes_of_type_) order.emplace_back(-bytes, name);
  std::sort(order.begin(), order.end());
  std::string text;
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (i > 0) text += i + 1 == order.size() ? " and " : ", ";
    text += order[i].second;
  }
  return text;
}

void Loader::fail(const std::string& tensor, const std::string& found,
                  const std::string& expected) const {
  throw CheckpointError(fmt::format("{}: tensor {} {}; expected {}", where_,
                                    in_quotes(valid_utf8(tensor)), found, expected));
}

const Stored& Loader::take(const std::string& name, const std::vector<std::int64_t>& shape) {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    fail(name, "is missing", fmt::format("one of shape {}", shape_text(shape)));
  }
  taken_ = std::move(found->second);
  tensors_.erase(found);
  if (!taken_.type) {
    fail(name, fmt::format("has type {}", one_line(taken_.type_name)), weight_type_names());
  }
  if (taken_.shape != shape) {
    fail(name, fmt::format("has shape {}", shape_text(taken_.shape)), shape_text(shape));
  }
  bytes_of_type_[weight_type_name(*taken_.type)] += static_cast<std::int64_t>(taken_.bytes.size());
  return taken_;
}

void load(Model& model, const Extras& extras, const Names& names, Loader& tensors,
          bool interleaved) {
  ModelSpec& spec = model.spec;
  const bool stored = tensors.has(names.embedding);
  // A tied model may store either of the two, or both. Where they differ it is not tied, whatever
  // its configuration says. Source: transformers 5.
  if (stored && tensors.has(names.head) && !tensors.same(names.embedding, names.head))
    spec.tied = false;
  const bool as_head = spec.tied && !stored && tensors.has(names.head);
  model.embedding =
      tensors.matrix(as_head ? names.head : names.embedding, spec.vocabulary, spec.hidden);
  if (spec.tied) {
    tensors.drop(names.head);
    model.head = model.embedding;
  } else {
    model.head = tensors.matrix(names.head, spec.vocabulary, spec.hidden);
  }
  model.final_norm = tensors.vector(names.final_norm, spec.hidden, Presence::required);
  for (int l = 0; l < spec.layers; ++l)
    model.layers.push_back(load_layer(tensors, names, extras, spec, l, interleaved));
  model.bytes = tensors.bytes();
  spec.weights = tensors.types();
}

void fail_key(const std::string& file, std::string_view key, const std::string& found,
              const std::string& expected) {
  throw CheckpointError(fmt::format("{}: '{}' {}; expected {}", file, key, found, expected));
}

void set_rope(ModelSpec& spec, double theta, const json& scaling, const std::string& file) {
  Metadata metadata{{"rope_theta", fmt::format("{}", theta)},
                    {"rope_dim", std::to_string(spec.head_dim)},
                    {"rope_layout", "half"}};
  if (!scaling.empty()) {
    spec.rope_scaling = scaling.dump(-1, ' ', true, json::error_handler_t::replace);
    metadata["rope_scaling"] = spec.rope_scaling;
  }
  spec.rope = read_rope(metadata, spec.head_dim, file).value();
  if (scaling.value("rope_type", json("default")) == "yarn")
    spec.rope_attention_factor = attention_factor(scaling, file);
}

void check_head_dim(const ModelSpec& spec, const std::string& file) {
  if (spec.head_dim % 2 != 0) {
    throw CheckpointError(
        fmt::format("{}: heads of {} elements; expected an even number", file, spec.head_dim));
  }
}

}  // namespace kvspan::tracegen::loading
