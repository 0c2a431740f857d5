// SPDX-License-Identifier: Apache-2.0
#include "sim/models/quantization.h"

#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/text.h"

namespace kvspan::config {
namespace {

// From "layers." on, in dots: "model.layers.3.mlp" and "language_model.model.layers.3.mlp" are one.
std::string trunk(const std::string& name) {
  const std::size_t at = name.find("layers.");
  return "." + (at == std::string::npos || name.find('*') < at ? name : name.substr(at)) + ".";
}

std::string escaped(const std::string& glob) {
  std::string out;
  for (const char c : glob) {
    if (c == '*') {
      out += ".*";
    } else if (std::string_view(".^$|()[]{}+?\\").find(c) != std::string_view::npos) {
      out += {'\\', c};
    } else {
      out += c;
    }
  }
  return out;
}

// Texts of a list, or of lists in it; anything else is nobody's name.
void each_text(const nlohmann::json& value, const auto& take) {
  if (value.is_string()) take(value.get<std::string>());
  if (!value.is_array()) return;
  for (const nlohmann::json& item : value) each_text(item, take);
}

std::string format_of(const std::string& type, std::int64_t bits) {
  if (type == "float") return bits == 8 ? "fp8" : bits == 4 ? "nvfp4" : "";
  return bits == 8 ? "int8" : bits == 4 ? "int4" : "";
}

}  // namespace

void ModuleSet::add_regex(const std::string& pattern) {
  try {
    regexes_.emplace_back(pattern, std::regex::ECMAScript | std::regex::optimize);
  } catch (const std::regex_error&) {  // nothing that this language of patterns knows
  }
}

void ModuleSet::add(const std::string& pattern) {
  if (pattern.empty()) return;
  if (pattern.starts_with("re:")) return add_regex(pattern.substr(3));
  if (pattern.find('*') != std::string::npos) return add_regex(".*" + escaped(pattern) + ".*");
  names_.push_back(trunk(pattern));
}

bool ModuleSet::has(const std::string& name) const {
  const std::string dotted = trunk(name);
  return std::any_of(
             names_.begin(), names_.end(),
             [&](const std::string& part) { return dotted.find(part) != std::string::npos; }) ||
         std::any_of(regexes_.begin(), regexes_.end(), [&](const std::regex& regex) {
           // Models with vision put their text part behind a prefix.
           for (const char* prefix : {"", "language_model.", "model.language_model."}) {
             const std::string full = prefix + name;
             if (std::regex_search(full, regex, std::regex_constants::match_continuous))
               return true;
           }
           return false;
         });
}

Quantization::Quantization(const Fields& c) {
  if (!c.has("quantization_config")) {
    const std::string dtype = c.text(c.has("dtype") ? "dtype" : "torch_dtype");
    if (dtype == "bfloat16") dtype_ = "bf16";
    if (dtype == "float16") dtype_ = "fp16";
    if (dtype == "float32") dtype_ = "fp32";
    if (dtype_.empty() && !dtype.empty()) unknown_ = fmt::format("dtype '{}'", one_line(dtype));
    return;
  }
  const nlohmann::json& found = c.at("quantization_config");
  if (!found.is_object()) c.wrong("quantization_config", "an object");
  const Fields quantization = c.part(found);
  read_exceptions(quantization);
  read_method(quantization);
}

void Quantization::read_method(const Fields& q) {
  const std::string method = q.text("quant_method");
  const auto by_bits = [&] {
    const Count bits = q.has("bits") ? q.count("bits", "bits of a weight", 64) : 0;
    dtype_ = format_of("int", bits);
    if (dtype_.empty())
      unknown_ = fmt::format("quant_method '{}' with {} bits", one_line(method), bits);
  };
  if (method == "fp8" || method == "fbgemm_fp8") {
    dtype_ = "fp8";
  } else if (method == "mxfp4") {
    dtype_ = "mxfp4";
  } else if (method == "awq" || method == "gptq" || method == "auto-round") {
    by_bits();
  } else if (method == "bitsandbytes") {
    dtype_ = q.flag("load_in_4bit", false) ? "int4" : q.flag("load_in_8bit", false) ? "int8" : "";
  } else if (method == "compressed-tensors") {
    read_groups(q);
  } else if (method == "modelopt") {
    constexpr std::array<std::pair<const char*, const char*>, 6> kAlgorithms{
        {{"FP8", "fp8"},
         {"NVFP4", "nvfp4"},
         {"W4A16_AWQ", "int4"},
         {"W4A8_AWQ", "int4"},
         {"W8A8_SQ_PER_CHANNEL", "int8"},
         {"INT8_SQ", "int8"}}};
    for (const auto& [algorithm, dtype] : kAlgorithms) {
      if (q.text("quant_algo") == algorithm) dtype_ = dtype;
    }
    if (dtype_.empty() && q.has("config_groups")) read_groups(q);
    if (dtype_.empty() && unknown_.empty())
      unknown_ = fmt::format("quant_algo '{}' of modelopt", one_line(q.text("quant_algo")));
  } else if (method == "quark") {
    const nlohmann::json& config =
        q.has("global_quant_config") ? q.at("global_quant_config") : nlohmann::json::object();
    const nlohmann::json weight = config.value("weight", nlohmann::json::object());
    const std::string dtype = weight.is_object() ? weight.value("dtype", "") : "";
    if (dtype.starts_with("fp8")) dtype_ = "fp8";
    if (dtype == "int8" || dtype == "uint8") dtype_ = "int8";
    if (dtype == "int4" || dtype == "uint4") dtype_ = "int4";
    if (dtype_.empty()) unknown_ = fmt::format("weights of '{}' by quark", one_line(dtype));
  }
  if (dtype_.empty() && unknown_.empty())
    unknown_ = fmt::format("quant_method '{}'", one_line(method));
}

// config_groups: one format, for the modules that its groups target.
void Quantization::read_groups(const Fields& q) {
  if (!q.has("config_groups") || !q.at("config_groups").is_object()) {
    unknown_ =
        fmt::format("quant_method '{}' without 'config_groups'", one_line(q.text("quant_method")));
    return;
  }
  bool all = false;
  for (const auto& [name, group] : q.at("config_groups").items()) {
    const nlohmann::json weights = group.value("weights", nlohmann::json());
    if (!weights.is_object()) continue;
    const Fields fields = q.part(weights);
    const std::string type = fields.text("type");
    const Count bits = fields.count("num_bits", "bits of a weight", 64);
    const std::string dtype = format_of(type, bits);
    if (dtype.empty() || (!dtype_.empty() && dtype != dtype_)) {
      dtype_.clear();
      unknown_ = dtype.empty() ? fmt::format("'{}' of {} bits", one_line(type), bits)
                               : std::string("several at once (config_groups)");
      return;
    }
    dtype_ = dtype;
    each_text(group.value("targets", nlohmann::json::array()), [&](const std::string& target) {
      if (target == "Linear") all = true;
      targets_.add(target);
    });
  }
  if (all) targets_ = {};
}

void Quantization::read_exceptions(const Fields& q) {
  for (const char* key : {"modules_to_not_convert", "ignore", "ignored_layers", "exclude",
                          "exclude_modules", "llm_int8_skip_modules"}) {
    if (q.has(key)) each_text(q.at(key), [&](const std::string& name) { kept_.add(name); });
  }
  if (!q.has("dynamic") || !q.at("dynamic").is_object()) return;
  for (const auto& [pattern, rule] : q.at("dynamic").items()) {  // of GPTQModel: "-:" leaves out
    if (pattern.starts_with("-:")) kept_.add_regex(pattern.substr(2));
  }
}

bool Quantization::keeps(int layer, std::string_view aliases) const {
  if (kept_.empty() && targets_.empty()) return false;
  bool targeted = targets_.empty();
  for (std::size_t begin = 0; begin < aliases.size();) {
    const std::size_t end = std::min(aliases.find('|', begin), aliases.size());
    const std::string name =
        fmt::format("model.layers.{}.{}", layer, aliases.substr(begin, end - begin));
    if (kept_.has(name)) return true;
    targeted = targeted || targets_.has(name);
    begin = end + 1;
  }
  return !targeted;
}

}  // namespace kvspan::config
