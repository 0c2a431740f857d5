// SPDX-License-Identifier: Apache-2.0
// Internal to the reader of config.json: what its quantization_config says of the weights.
#pragma once

#include <regex>
#include <string>
#include <string_view>
#include <vector>

#include "sim/models/config_fields.h"

namespace kvspan::config {

// A set of modules, by names, parts of names, globs, or regular expressions ("re:...").
class ModuleSet {
 public:
  void add(const std::string& pattern);
  void add_regex(const std::string& pattern);
  [[nodiscard]] bool empty() const { return names_.empty() && regexes_.empty(); }
  // name: "model.layers.3.self_attn.q_proj"; whatever stands before "layers." is not compared.
  [[nodiscard]] bool has(const std::string& name) const;

 private:
  std::vector<std::string> names_;  // ".layers.3.self_attn."
  std::vector<std::regex> regexes_;
};

// Reads compressed-tensors, modelopt, quark, awq, gptq, auto-round, fp8, fbgemm_fp8, mxfp4 and
// bitsandbytes; without a quantization_config, the dtype.
class Quantization {
 public:
  explicit Quantization(const Fields& c);
  // What matrices are stored in; empty: the file leaves it open, or unknown() says what it says.
  [[nodiscard]] const std::string& dtype() const { return dtype_; }
  [[nodiscard]] const std::string& unknown() const { return unknown_; }
  // Whether the matrix of a layer is stored in 16 bits all the same.
  //   aliases  its names within the layer by code base, separated by '|': "mlp.up_proj|mlp.w3"
  [[nodiscard]] bool keeps(int layer, std::string_view aliases) const;

 private:
  void read_method(const Fields& quantization);
  void read_groups(const Fields& quantization);
  void read_exceptions(const Fields& quantization);
  std::string dtype_, unknown_;
  ModuleSet kept_;
  ModuleSet targets_;  // empty: every matrix
};

}  // namespace kvspan::config
