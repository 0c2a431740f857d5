// SPDX-License-Identifier: Apache-2.0
#include "sim/predict/capacity.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <string_view>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/predict/analytic.h"

namespace kvspan {
namespace {

using Count = std::int64_t;
using Split = WeightGroup::Split;
using Kind = WeightGroup::Kind;

// Sizes beyond any memory are all alike.
constexpr Count kTooMuch = std::numeric_limits<Count>::max() / 8;

Count times(Count a, Count b) {
  Count product = 0;
  return __builtin_mul_overflow(a, b, &product) ? kTooMuch : std::min(product, kTooMuch);
}

Count divided(Count a, Count b) { return a / b + (a % b != 0 ? 1 : 0); }

struct WeightFormat {
  std::string_view name;
  Count kept, matrix, experts;  // quarters of a bit of one parameter
};
constexpr std::array<WeightFormat, 8> kWeightFormats{{{"bf16", 64, 64, 64},
                                                      {"fp16", 64, 64, 64},
                                                      {"fp32", 128, 128, 128},
                                                      {"fp8", 64, 32, 32},
                                                      {"int8", 64, 32, 32},
                                                      {"int4", 64, 18, 18},
                                                      {"nvfp4", 64, 18, 18},
                                                      {"mxfp4", 64, 64, 17}}};

struct KvFormat {
  std::string_view name;
  Count bytes;
};
constexpr std::array<KvFormat, 7> kKvFormats{{{"fp16", 2},
                                              {"bf16", 2},
                                              {"fp32", 4},
                                              {"fp8", 1},
                                              {"fp8_e4m3", 1},
                                              {"fp8_e5m2", 1},
                                              {"int8", 1}}};

[[noreturn]] void refuse_format(const char* option, const std::string& found,
                                const std::vector<std::string>& known) {
  const std::string hint = nearest_hint(found, known);
  throw ConfigError(fmt::format("{}: found '{}', expected one of {}{}", option, found,
                                fmt::join(known, ", "),
                                hint.starts_with("did") ? fmt::format("; {}", hint) : ""));
}

const WeightFormat& weight_format(const std::string& dtype) {
  const auto* found = std::find_if(kWeightFormats.begin(), kWeightFormats.end(),
                                   [&](const WeightFormat& f) { return f.name == dtype; });
  if (found == kWeightFormats.end()) refuse_format("weight-dtype", dtype, weight_dtypes());
  return *found;
}

std::string dtype_of(const ModelGeometry& model, const Deployment& deployment) {
  if (!model.weights.refusal.empty()) throw ConfigError(model.weights.refusal);
  if (!deployment.weight_dtype.empty()) return deployment.weight_dtype;
  if (model.weights.dtype.empty()) {
    const std::string& unknown = model.weights.unknown_dtype;
    throw ConfigError(fmt::format(
        "the configuration of '{}' {}; give --weight-dtype {}", model.name,
        unknown.empty() ? "does not say in what format its weights are stored ('dtype', "
                          "'quantization_config')"
                        : "names a format of weights that is not known: " + unknown,
        fmt::join(weight_dtypes(), "|")));
  }
  return model.weights.dtype;
}

// Neither heads nor GPUs are left over.
bool divides(const ModelGeometry& model, Count tp) {
  return model.query_heads % tp == 0 && (model.kv_heads % tp == 0 || tp % model.kv_heads == 0);
}

// The passes that a workload's prefill is made of beside decode steps of the rest of the batch.
Count activations_of(const ModelGeometry& model, const Workload& w, const Deployment& d) {
  const Count chunk = w.chunk == 0 ? w.prompt : std::min(w.chunk, w.prompt);
  return activation_bytes(model.weights, chunk + d.batch - 1, d.batch, d.tp);
}

// Bytes of one request on one GPU.
struct Request {
  Prediction prediction;
  Count peak = 0, waiting = 0;
};

class Sizer {
 public:
  Sizer(const RecipeSpec& spec, const ModelGeometry& model, const Accounting& accounting, Count tp,
        const Calibration* calibration)
      : spec_(spec), model_(model), accounting_(accounting), tp_(tp), calibration_(calibration) {}

  [[nodiscard]] Request request(const Workload& w) const {
    Request out;
    out.peak = out.waiting = divided(model_.state_bytes, tp_);
    std::vector<PartPrediction> parts;
    for (const ModelGeometry& part : parts_of(model_)) {
      parts.push_back(predict_part(spec_, part, w, accounting_, false, calibration_));
      // Where every query head has its own entries, they are divided as query heads are.
      const bool by_query = parts.back().per_query_head || accounting_.layout == "query_head";
      const Count shards = by_query ? tp_ : kv_shards(part, tp_);
      const PeakBytes& peak = parts.back().prediction.peak_bytes;
      out.peak += divided(peak.total, shards);
      out.waiting += divided(w.generated > 0 ? peak.decode : peak.total, shards);
    }
    out.prediction = united(model_, w, parts);
    return out;
  }

 private:
  const RecipeSpec& spec_;
  const ModelGeometry& model_;
  const Accounting& accounting_;
  Count tp_;
  const Calibration* calibration_;
};

Count batch_bytes(const Request& r, Count batch) {
  return std::min(kTooMuch, r.peak + times(batch - 1, r.waiting));
}

// The largest x in [low, high] that holds; nothing if `low` does not.
template <class Holds>
std::optional<Count> largest(Count low, Count high, const Holds& holds) {
  if (low > high || !holds(low)) return std::nullopt;
  if (holds(high)) return high;
  while (high - low > 1) {
    const Count middle = low + (high - low) / 2;
    (holds(middle) ? low : high) = middle;
  }
  return low;
}

// What would make weights and activations fit.
std::string advice_for(const ModelGeometry& model, const Workload& workload, const Deployment& d,
                       const FixedMemory& now) {
  const auto left = [&](const std::string& dtype, Count tp) {
    Deployment other = d;
    other.tp = tp;
    return now.usable - weight_bytes(model, dtype, tp) - activations_of(model, workload, other);
  };
  std::vector<std::string> ways;
  for (Count tp = d.tp + 1; tp <= model.query_heads; ++tp) {
    if (!divides(model, tp) || left(now.weight_dtype, tp) <= 0) continue;
    ways.push_back(fmt::format("--tp {}", tp));
    break;
  }
  const WeightFormat& format = weight_format(now.weight_dtype);
  for (const char* dtype : {"fp8", "int4"}) {
    if (weight_format(dtype).matrix >= format.matrix || left(dtype, d.tp) <= 0) continue;
    ways.push_back(fmt::format("--weight-dtype {}", dtype));
    break;
  }
  if (now.weights < now.usable) ways.emplace_back("a smaller --chunk or --batch");
  return ways.empty() ? "no number of GPUs that its heads allow is enough"
                      : fmt::format("try {}", fmt::join(ways, ", or "));
}

}  // namespace

std::vector<std::string> weight_dtypes() {
  std::vector<std::string> names;
  for (const WeightFormat& f : kWeightFormats) names.emplace_back(f.name);
  return names;
}

std::vector<std::string> kv_dtypes() {
  std::vector<std::string> names;
  for (const KvFormat& f : kKvFormats) names.emplace_back(f.name);
  return names;
}

Count kv_dtype_bytes(const std::string& dtype) {
  for (const KvFormat& f : kKvFormats) {
    if (f.name == dtype) return f.bytes;
  }
  refuse_format("kv-dtype", dtype, kv_dtypes());
}

Count weight_bytes(const ModelGeometry& model, const std::string& dtype, Count tp) {
  if (!model.weights.refusal.empty()) throw ConfigError(model.weights.refusal);
  const WeightFormat& format = weight_format(dtype);
  Count sum = 0;
  for (const WeightGroup& g : model.weights.groups) {
    const Count quarters = g.kind == Kind::kept     ? format.kept
                           : g.kind == Kind::matrix ? format.matrix
                                                    : format.experts;
    const Count copies = g.split == Split::sharded    ? tp
                         : g.split == Split::kv_heads ? std::min<Count>(tp, model.kv_heads)
                                                      : 1;
    sum += divided(divided(g.parameters, copies) * quarters, 32);  // at most 10^15 parameters
  }
  return sum;
}

Count activation_bytes(const ModelWeights& weights, Count tokens, Count requests, Count tp) {
  const Count wide = 2 * weights.hidden + divided(weights.inner, tp);
  return std::max(times(times(tokens, wide), 2),
                  times(times(requests, divided(weights.vocabulary, tp)), 4));
}

Count kv_shards(const ModelGeometry& model, Count tp) {
  if (tp >= 1 && divides(model, tp)) return std::min<Count>(tp, model.kv_heads);
  Count below = 1;
  Count above = model.query_heads;
  for (Count k = 1; k <= model.query_heads; ++k) {
    if (!divides(model, k)) continue;
    if (k < tp) below = k;
    if (k > tp) above = std::min(above, k);
  }
  throw ConfigError(fmt::format(
      "tp: {} GPUs cannot share {} query heads and {} KV heads evenly; "
      "the nearest that can: {}",
      tp, model.query_heads, model.kv_heads,
      below == above || tp > model.query_heads ? std::to_string(below)
                                               : fmt::format("{} or {}", below, above)));
}

FixedMemory fixed_memory(const ModelGeometry& model, const Workload& workload,
                         const Deployment& d) {
  const bool is_share = d.utilization > 0 && d.utilization <= 1;
  if (!is_share) {
    throw ConfigError(
        fmt::format("gpu-utilization: found {}, expected above 0 and at most 1", d.utilization));
  }
  if (d.batch < 1)
    throw ConfigError(fmt::format("batch: found {}, expected 1 or more requests", d.batch));
  for (const ModelGeometry& part : parts_of(model)) (void)kv_shards(part, d.tp);
  FixedMemory out;
  out.weight_dtype = dtype_of(model, d);
  out.usable =
      static_cast<Count>(std::floor(static_cast<double>(d.gpu_memory) * d.utilization)) - d.reserve;
  out.parameters = model.weights.parameters();
  out.all_weights = weight_bytes(model, out.weight_dtype, 1);
  out.weights = weight_bytes(model, out.weight_dtype, d.tp);
  out.activations = activations_of(model, workload, d);
  out.left = out.usable - out.weights - out.activations;
  if (out.left <= 0) out.advice = advice_for(model, workload, d, out);
  return out;
}

VllmFigures vllm_figures(const ModelGeometry& model, const Workload& workload, Count kv_bytes,
                         Count left, Count tp) {
  const Count tokens = workload.prompt + workload.generated;
  const Count pass = workload.chunk == 0 ? workload.prompt : workload.chunk;
  Count request = divided(model.state_bytes, tp);
  for (const ModelGeometry& part : parts_of(model)) {
    Count entries = 0;  // of one request, in all layers
    for (std::size_t l = 0; l < part.layer_ids.size(); ++l) {
      const Count window = part.sliding_window.empty() ? 0 : part.sliding_window[l];
      entries += window == 0 ? tokens : std::min(tokens, window - 1 + pass);
    }
    const Count elements = Count{part.kv_heads} * (part.head_dim + part.v_head_dim);
    request += divided(entries * elements * kv_bytes, kv_shards(part, tp));
  }
  VllmFigures out;
  if (left <= 0) return out;
  out.concurrency = static_cast<double>(left) / static_cast<double>(request);
  out.kv_tokens = static_cast<Count>(out.concurrency * static_cast<double>(tokens));
  return out;
}

RequestBytes request_bytes(const RecipeSpec& spec, const ModelGeometry& model,
                           const Workload& workload, const Accounting& accounting, Count tp,
                           const Calibration* calibration) {
  const Request r = Sizer(spec, model, accounting, tp, calibration).request(workload);
  return {r.peak, r.waiting, r.prediction.basis};
}

Capacity capacity_of(const RecipeSpec& spec, const ModelGeometry& model, const Workload& workload,
                     const Accounting& accounting, const Deployment& deployment,
                     const Calibration* calibration) {
  const FixedMemory fixed = fixed_memory(model, workload, deployment);
  const Sizer sizer(spec, model, accounting, deployment.tp, calibration);
  const Request own = sizer.request(workload);
  Capacity out;
  out.basis = own.prediction.basis;
  out.kv = own.prediction.peak_bytes.kv;
  out.overhead = own.prediction.peak_bytes.overhead;
  out.state = model.state_bytes;
  out.request = own.peak;
  out.waiting = own.waiting;
  out.total = fixed.weights + fixed.activations + batch_bytes(own, deployment.batch);
  out.beyond_model =
      model.max_context > 0 && workload.prompt + workload.generated > model.max_context;
  out.fits = out.total <= fixed.usable && !out.beyond_model;

  const auto holds = [&](const Workload& w, const Deployment& d, const Request& r) {
    return activations_of(model, w, d) + batch_bytes(r, d.batch) <= fixed.usable - fixed.weights;
  };
  // Where the configuration states no limit, 16 Mi tokens are taken as one.
  const Count limit = model.max_context > 0 ? model.max_context : Count{1} << 24;
  const auto longest = largest(1, limit - workload.generated, [&](Count prompt) {
    Workload w = workload;
    w.prompt = prompt;
    return holds(w, deployment, sizer.request(w));
  });
  out.longest_prompt = longest.value_or(0);
  out.limited_by_model = longest && *longest == limit - workload.generated;
  if (out.beyond_model) return out;
  const Count most = fixed.usable / std::max<Count>(1, own.waiting) + 1;
  out.largest_batch = largest(1, most, [&](Count batch) {
                        Deployment d = deployment;
                        d.batch = batch;
                        return holds(workload, d, own);
                      }).value_or(0);
  return out;
}

}  // namespace kvspan
