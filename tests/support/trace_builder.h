// SPDX-License-Identifier: Apache-2.0
// Traces for tests, built from plain numbers: in memory, or as a file.
//   TraceSpec spec = random_spec({.layers = 2, .tokens = 32, .prompt_tokens = 24});
//   spec.meta.spans = {{"needle", 5, 9}};
//   const Trace trace = make_trace(spec);
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "sim/trace/safetensors.h"
#include "sim/trace/trace.h"

namespace kvspan::test {

// One stored layer; an empty vector means that the trace lacks the tensor.
//   q [tokens, query_heads, head_dim], k [tokens, kv_heads, head_dim]
//   v [tokens, kv_heads, v_head_dim], wo [hidden, query_heads * v_head_dim]
//   sink_logits [query_heads]
//   rows [R], lse [R, query_heads], prob and index [R, query_heads, K]
//   dense [R, query_heads, tokens], column_mass [passes, query_heads, tokens]
struct LayerSpec {
  std::vector<double> q, k, v;
  std::vector<double> sink_logits, wo;
  std::vector<std::int64_t> rows;
  std::vector<double> prob, dense, lse, column_mass;
  std::vector<std::int32_t> index;
};

struct TraceSpec {
  // Fields that are zero or empty are derived: layers of the list below, kv_heads = query_heads,
  // v_head_dim = head_dim, prompt_tokens = tokens, layer_ids = all, score_scale =
  // 1 / sqrt(head_dim).
  // Of rope, inverse_frequencies is ignored: set extra["rope_scaling"] instead.
  TraceMeta meta;
  std::vector<LayerSpec> layers;
  Dtype dtype = Dtype::f32;        // of q, k, v, wo and sink_logits: f32, f16 or bf16
  Dtype score_dtype = Dtype::f32;  // of prob and dense: f32 or f16
  std::vector<std::int32_t> token_ids;
  std::vector<std::string> token_text;
  std::vector<double> nll;
  Metadata extra;                    // replaces or adds metadata keys, after everything else
  std::vector<std::string> without;  // metadata keys to leave out
  std::string name = "test trace";
};

// The metadata of a trace with these fields; `meta` must be complete (see completed()).
[[nodiscard]] Metadata base_metadata(const TraceMeta& meta);
// The derived fields of TraceSpec::meta filled in.
[[nodiscard]] TraceMeta completed(const TraceSpec& spec);

using TensorMap = std::map<std::string, TensorSet::Owned>;
[[nodiscard]] Metadata make_metadata(const TraceSpec& spec);
[[nodiscard]] TensorMap make_tensors(const TraceSpec& spec);

// Errors: those of Trace::from_tensors.
[[nodiscard]] Trace make_trace(const TraceSpec& spec);

// The same as a file; tensors are written in the order of their names.
void write_trace(const std::filesystem::path& path, const TraceSpec& spec);
void write_tensors(const std::filesystem::path& path, const Metadata& metadata,
                   const TensorMap& tensors);

// Little-endian bytes of the values, rounded to nearest even. REQUIRES: f32, f16 or bf16.
[[nodiscard]] std::vector<std::byte> encode(const std::vector<double>& values, Dtype dtype);
// The value that a number has once it has been stored with this dtype.
[[nodiscard]] double rounded_to(double value, Dtype dtype);

// q, k and v of standard normal numbers, which depend on the seed only.
struct RandomShape {
  int layers = 1;
  std::int64_t tokens = 16;
  std::int64_t prompt_tokens = 0;  // 0: all
  int query_heads = 2;
  int kv_heads = 1;
  int head_dim = 4;
  int v_head_dim = 0;  // 0: head_dim
  std::uint64_t seed = 1;
  Dtype dtype = Dtype::f32;
};
[[nodiscard]] TraceSpec random_spec(const RandomShape& shape);

}  // namespace kvspan::test
