// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/layer_table.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <cstring>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "sim/base/error.h"
#include "sim/base/half.h"
#include "sim/policy/registry.h"
#include "sim/trace/safetensors.h"

namespace kvspan::policies {
namespace {

using Table = std::shared_ptr<const LayerTable>;

class FromTable final : public Scorer {
 public:
  FromTable(Table table, const LayerShape& shape)
      : table_(std::move(table)), layer_(static_cast<std::size_t>(shape.layer)) {}
  double score(const View& /*view*/, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const double* row = table_->layers[layer_].data() + head * table_->tokens;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (entries[i] >= table_->tokens) {
        throw TraceError(
            fmt::format("the file holds numbers of the prompt's {} tokens, and token {} competes, "
                        "too; expected "
                        "one of every token of the trace",
                        table_->tokens, entries[i]));
      }
      out[i] = row[entries[i]];
    }
    return 0;
  }

 private:
  Table table_;
  std::size_t layer_;
};

template <class T>
T raw(const TensorView& tensor, std::int64_t index) {
  T value;
  std::memcpy(&value, tensor.bytes.data() + static_cast<std::size_t>(index) * sizeof(T), sizeof(T));
  return value;
}

// Any type that a file may have, NaN and infinities included.
double element(const TensorView& tensor, std::int64_t index) {
  switch (tensor.dtype) {
    case Dtype::f32:
      return raw<float>(tensor, index);
    case Dtype::f16:
      return half_to_float(raw<std::uint16_t>(tensor, index));
    case Dtype::bf16:
      return std::bit_cast<float>(std::uint32_t{raw<std::uint16_t>(tensor, index)} << 16U);
    case Dtype::u8:
      return raw<std::uint8_t>(tensor, index);
    case Dtype::u32:
      return raw<std::uint32_t>(tensor, index);
    case Dtype::i32:
    case Dtype::i64:
      break;
  }
  return static_cast<double>(integer_at(tensor, index));
}

// "2 or 8": each number once.
std::string either(std::int64_t a, std::int64_t b) {
  return a == b ? std::to_string(a) : fmt::format("{} or {}", a, b);
}

// The first of `names` that the file has.
const TensorView& find_table(const TensorSet& set, const std::vector<std::string>& names,
                             const std::string& policy, const std::string& file,
                             std::string& name) {
  for (const std::string& candidate : names) {
    name = candidate;
    if (const TensorView* tensor = set.find(candidate)) return *tensor;
  }
  std::vector<std::string> held;
  for (const auto& [known, tensor] : set.tensors()) held.push_back(known);
  if (held.size() > 6) held.resize(6);
  throw TraceError(fmt::format("{}: {} has no tensor '{}'; it holds {}", policy, file,
                               fmt::join(names, "' or '"), fmt::join(held, ", ")));
}

}  // namespace

std::string LayerTable::place(std::size_t layer, std::size_t at) const {
  const auto index = static_cast<std::int64_t>(at);
  return fmt::format("layer {}, head {}, token {}", layer, index / tokens, index % tokens);
}

LayerTable read_layer_table(const std::string& file, const std::vector<std::string>& tensors,
                            const Geometry& geometry, const std::string& policy, TokensOf tokens) {
  const TensorSet set = TensorSet::open(file);
  std::string name;
  const TensorView& tensor = find_table(set, tensors, policy, file, name);
  const auto& shape = tensor.shape;
  const auto stored = static_cast<std::int64_t>(geometry.layers());
  const bool prompt_is_enough = tokens == TokensOf::prompt;
  const bool fits =
      shape.size() == 3 && (shape[0] == stored || shape[0] == geometry.model_layers) &&
      (shape[1] == geometry.kv_heads || shape[1] == geometry.query_heads) &&
      (shape[2] == geometry.tokens || (prompt_is_enough && shape[2] == geometry.prompt));
  if (!fits) {
    throw TraceError(
        fmt::format("{}: {}: '{}' has shape {}, expected [{} layers, {} heads, {} tokens]", policy,
                    file, name, shape_text(shape), either(stored, geometry.model_layers),
                    either(geometry.kv_heads, geometry.query_heads),
                    prompt_is_enough ? either(geometry.prompt, geometry.tokens)
                                     : std::to_string(geometry.tokens)));
  }
  LayerTable out{shape[1], shape[2], {}};
  const std::int64_t size = shape[1] * shape[2];
  for (int l = 0; l < geometry.layers(); ++l) {
    const std::int64_t from =
        shape[0] == stored ? l : geometry.layer_ids[static_cast<std::size_t>(l)];
    std::vector<double>& layer = out.layers.emplace_back();
    for (std::int64_t i = 0; i < size; ++i) layer.push_back(element(tensor, from * size + i));
  }
  return out;
}

Parameter own_name_parameter() {
  return {.name = "name",
          .kind = Parameter::Kind::text,
          .fallback = "auto",
          .help = "what reports call the method"};
}

void check_own_name(const Arguments& arguments) {
  if (!arguments.has("name")) return;
  const std::string& name = arguments.text("name");
  const bool plain = !name.empty() && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '_' || c == '-' || c == '.';
  });
  if (!plain) {
    throw ConfigError(fmt::format("{}(name): found '{}', expected letters, digits, _, - and .",
                                  arguments.policy(), name));
  }
  for (const PolicyEntry& entry : registry()) {
    if (entry.name == name) {
      throw ConfigError(
          fmt::format("{}(name): '{}' is a policy of the catalogue; expected another name, such as "
                      "my_{}",
                      arguments.policy(), name, name));
    }
  }
}

Scoring table_scoring(const Table& table, const Geometry& geometry) {
  Scoring scoring;
  scoring.make = [table](const LayerShape& shape) {
    return std::make_unique<FromTable>(table, shape);
  };
  scoring.per_query_head =
      table->heads == geometry.query_heads && geometry.query_heads != geometry.kv_heads;
  scoring.by_position = true;
  scoring.at_birth = true;
  return scoring;
}

}  // namespace kvspan::policies
