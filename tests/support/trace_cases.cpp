// SPDX-License-Identifier: Apache-2.0
#include "tests/support/trace_cases.h"

#include <fstream>
#include <span>
#include <sstream>
#include <stdexcept>

#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/trace/trace_tools.h"

namespace kvspan::test {

std::vector<std::byte> read_bytes(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream content;
  content << in.rdbuf();
  const std::string text = content.str();
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const TraceError& error) {
    const std::string message = error.what();
    if (error.exit_code() != 3 || message.find('\n') != std::string::npos)
      throw std::logic_error("a TraceError of code 3 and one line was expected: " + message);
    return message;
  }
  return "";
}

std::string use_error(const std::vector<std::byte>& bytes) {
  return error_of([&] {
    const Trace trace = Trace::from_tensors(TensorSet::from_bytes(bytes, "x"), "x");
    static_cast<void>(check_trace(trace));
    static_cast<void>(describe_trace(trace));
    static_cast<void>(trace.token_text(trace.meta().tokens - 1));
  });
}

TraceSpec full_spec(Dtype dtype) {
  TraceSpec spec = random_spec({.layers = 2,
                                .tokens = 3,
                                .prompt_tokens = 2,
                                .query_heads = 2,
                                .kv_heads = 1,
                                .head_dim = 2,
                                .dtype = dtype});
  spec.meta.model_layers = 5;
  spec.meta.layer_ids = {1, 4};
  spec.meta.rope = Rope{10000.0, 2, false, {}};
  spec.meta.spans = {{"needle", 0, 1}, {"question", 1, 3}};
  spec.meta.passes = {1, 2};
  spec.meta.sliding_window = {0, 2};
  spec.meta.special_ids = {7};
  spec.meta.logit_softcap = 30;
  spec.meta.model = "tiny";
  spec.token_ids = {7, 8, 9};
  spec.token_text = {"a", "", "bc"};
  spec.nll = {0.5, 1.5, 0};
  for (LayerSpec& layer : spec.layers) {
    layer.sink_logits = {0.25, -1};
    layer.wo = {1, 2, 3, 4};
  }
  return spec;
}

TraceSpec largest_spec() {
  TraceSpec spec;
  spec.meta.tokens = 4;
  spec.meta.prompt_tokens = 3;
  spec.meta.query_heads = 2;
  spec.meta.kv_heads = 1;
  spec.meta.head_dim = 2;
  spec.meta.passes = {2, 3};
  LayerSpec layer;
  layer.rows = {1, 3};
  layer.prob = {0.75, 0.25, 0.5, 0.5, 0.5, 0.25, 1, 0};
  layer.index = {1, 0, 0, 1, 3, 0, 2, -1};
  layer.lse = {1, 2, 3, 4};
  layer.column_mass = {1.25, 0.75, 0,    0, 1.5, 0.5, 0, 0,   // pass [0, 2), heads 0 and 1
                       0.5,  0.25, 0.25, 0, 0,   0,   1, 0};  // pass [2, 3)
  spec.layers = {layer};
  return spec;
}

TraceSpec dense_spec() {
  TraceSpec spec = largest_spec();
  LayerSpec& layer = spec.layers[0];
  layer.prob.clear();
  layer.index.clear();
  layer.dense = {0.25, 0.75,  0,     0,   0.5, 0.5, 0, 0,   // row 1
                 0.25, 0.125, 0.125, 0.5, 0,   0,   1, 0};  // row 3
  return spec;
}

std::vector<float> widened(const TensorView& tensor) {
  std::vector<float> out(static_cast<std::size_t>(tensor.elements()));
  widen(tensor, 0, out, "tensor");
  return out;
}

std::vector<double> widened_doubles(const TensorView* tensor) {
  if (tensor == nullptr) throw std::logic_error("the trace lacks a tensor");
  const std::vector<float> values = widened(*tensor);
  return {values.begin(), values.end()};
}

}  // namespace kvspan::test
