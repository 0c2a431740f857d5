// SPDX-License-Identifier: Apache-2.0
#include "sim/learn/regressor_set.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"

namespace kvspan {

namespace {

constexpr int kVersion = 1;

}  // namespace

void RegressorSet::save(const std::filesystem::path& path) const {
  const Regressor& any = regressors.front().front();
  const auto layers = static_cast<std::int64_t>(regressors.size());
  const auto heads = static_cast<std::int64_t>(regressors.front().size());
  Metadata metadata = about;
  metadata["kvspan_models"] = std::to_string(kVersion);
  metadata["scorer"] = scorer;
  metadata["method"] = any.method;
  metadata["layer_ids"] = nlohmann::json(layer_ids).dump();
  metadata["width"] = std::to_string(any.width);
  metadata["outputs"] = std::to_string(any.outputs);
  metadata["hidden"] = std::to_string(any.hidden);
  const auto width = static_cast<std::int64_t>(any.width);
  const auto size = static_cast<std::int64_t>(any.parameters.size());
  SafetensorsWriter writer(path, metadata,
                           {{"mean", Dtype::f32, {layers, heads, width}},
                            {"scale", Dtype::f32, {layers, heads, width}},
                            {"parameters", Dtype::f32, {layers, heads, size}}});
  std::int64_t i = 0;
  for (const auto& row : regressors) {
    for (const Regressor& m : row) {
      writer.write("mean", i * width * 4, std::as_bytes(std::span(m.mean)));
      writer.write("scale", i * width * 4, std::as_bytes(std::span(m.scale)));
      writer.write("parameters", i * size * 4, std::as_bytes(std::span(m.parameters)));
      ++i;
    }
  }
  writer.finish();
}

namespace {

// Reads a file of `kvspan fit`, whose every value is of unknown origin.
class Loader {
 public:
  explicit Loader(const std::filesystem::path& path)
      : file_(TensorSet::open(path)), name_(path.string()) {}

  RegressorSet run() {
    if (text("kvspan_models") != std::to_string(kVersion)) fail("unknown version of kvspan_models");
    RegressorSet out;
    out.about = file_.metadata();
    out.scorer = text("scorer");
    Regressor model = read_shape(out);
    const std::size_t size = model.method == "centres" ? model.hidden * model.width
                             : model.method == "mlp"   ? model.hidden * (model.width + 2) + 1
                                                       : model.outputs * (model.width + 1);
    layers_ = static_cast<std::int64_t>(out.layer_ids.size());
    const std::vector<float> mean = tensor("mean", model.width);
    const std::vector<float> scale = tensor("scale", model.width);
    const std::vector<float> parameters = tensor("parameters", size);
    std::size_t i = 0;
    for (std::int64_t l = 0; l < layers_; ++l) {
      out.regressors.emplace_back();
      for (std::int64_t h = 0; h < heads_; ++h, ++i) {
        model.mean = part(mean, i, model.width);
        model.scale = part(scale, i, model.width);
        model.parameters = part(parameters, i, size);
        out.regressors.back().push_back(model);
      }
    }
    return out;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw TraceError(fmt::format("{}: {}: not a file of `kvspan fit`", name_, what));
  }
  [[nodiscard]] std::string text(const std::string& key) const {
    const auto found = file_.metadata().find(key);
    if (found == file_.metadata().end()) fail(fmt::format("no metadata '{}'", key));
    return found->second;
  }
  // A model without its numbers.
  [[nodiscard]] Regressor read_shape(RegressorSet& out) const {
    Regressor model;
    model.method = text("method");
    try {
      out.layer_ids = nlohmann::json::parse(text("layer_ids")).get<std::vector<int>>();
      model.width = std::stoul(text("width"));
      model.outputs = std::stoul(text("outputs"));
      model.hidden = std::stoul(text("hidden"));
    } catch (const Error&) {
      throw;
    } catch (const std::exception&) {
      fail("layer_ids, width, outputs or hidden is no number");
    }
    if (model.method != "ridge" && model.method != "logit" && model.method != "mlp" &&
        model.method != "centres")
      fail(fmt::format("unknown method '{}'", model.method));
    constexpr std::size_t kMost = std::size_t{1} << 24U;  // keeps products from overflowing
    if (model.width == 0 || model.width > kMost || model.outputs == 0 || model.outputs > kMost ||
        model.hidden > kMost)
      fail("width, outputs or hidden is out of range");
    return model;
  }
  // [layers, heads, last], all of it; the first one read says how many heads there are.
  std::vector<float> tensor(const char* name, std::size_t last) {
    const TensorView* t = file_.find(name);
    if (t == nullptr || t->dtype != Dtype::f32 || t->shape.size() != 3 || t->shape[0] != layers_ ||
        t->shape[2] != static_cast<std::int64_t>(last) || (heads_ != 0 && t->shape[1] != heads_)) {
      fail(fmt::format("'{}' is missing or has another shape than [{} layers, heads, {}] F32", name,
                       layers_, last));
    }
    heads_ = t->shape[1];
    std::vector<float> values(static_cast<std::size_t>(t->elements()));
    if (!values.empty()) std::memcpy(values.data(), t->bytes.data(), values.size() * 4);
    if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }))
      fail(fmt::format("'{}' holds a number that is not finite", name));
    return values;
  }
  static std::vector<float> part(const std::vector<float>& all, std::size_t i, std::size_t n) {
    return {all.begin() + static_cast<std::ptrdiff_t>(i * n),
            all.begin() + static_cast<std::ptrdiff_t>((i + 1) * n)};
  }

  TensorSet file_;
  std::string name_;
  std::int64_t layers_ = 0;
  std::int64_t heads_ = 0;
};

}  // namespace

RegressorSet RegressorSet::load(const std::filesystem::path& path) { return Loader(path).run(); }

const std::vector<Regressor>& RegressorSet::layer(int model_layer, std::size_t heads,
                                                  std::size_t width) const {
  const auto at = std::find(layer_ids.begin(), layer_ids.end(), model_layer);
  if (at == layer_ids.end()) {
    throw ConfigError(fmt::format("{}: the weights hold no models of layer {} of the model", scorer,
                                  model_layer));
  }
  const auto& out = regressors[static_cast<std::size_t>(at - layer_ids.begin())];
  if (out.size() != heads || out.front().width != width) {
    throw ConfigError(
        fmt::format("{}: the weights are for {} heads and {} features; this trace needs {} and {}",
                    scorer, out.size(), out.empty() ? 0 : out.front().width, heads, width));
  }
  return out;
}

}  // namespace kvspan
