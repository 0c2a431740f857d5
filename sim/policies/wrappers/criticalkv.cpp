// SPDX-License-Identifier: Apache-2.0
// criticalkv(policy): the first `ratio` of the budget goes to the policy's best, the rest to the best of
// (score + epsilon) * ||Wo v||_1, mean over the query heads of the group: by how much an entry can move
// the layer's output.
// Source: Feng et al., arXiv 2502.03805; kvpress CriticalKVPress, whose defaults these are. Entries that
// the policy protects count towards the first part. Votes are divided by the rows of the observation
// window, so that epsilon is compared with probabilities, as there. Wo comes from the trace
// (layers.{l}.wo), or from a safetensors file (wo=FILE: the same names, or a checkpoint's
// model.layers.{l}.self_attn.o_proj.weight); without it ||v||_1 is a stand-in.
#include <algorithm>
#include <mutex>

#include <Eigen/Core>
#include <fmt/format.h>

#include "sim/policies/shared/whole_trace.h"
#include "sim/policies/shared/wrapping.h"

namespace kvspan::policies {
namespace {

// Wo of one stored layer, [query_heads * v_dim] rows of [hidden]; empty: the identity.
using OutputProjection = Eigen::MatrixXd;

// ||Wo v||_1 of every entry, taken when first asked for. One object serves all layers of a policy.
class ValueNorms {
 public:
  ValueNorms(std::function<OutputProjection(int layer)> load, int layers)
      : load_(std::move(load)), layers_(index(layers)) {}

  // Norms of all tokens so far of one stored head; out [entries].
  void of(const View& view, int head, std::span<const TokenIndex> entries, std::span<double> out) {
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

 private:
  struct Layer {
    std::mutex mutex;
    OutputProjection wo;
    std::vector<std::vector<double>> known;  // [heads][tokens so far]
  };

  // Norms of the tokens [begin, end), a block of them at a time.
  static void append_norms(const View& view, const OutputProjection& wo, int head, TokenIndex begin,
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
      if (wo.size() == 0) {
        sums = v.cwiseAbs().colwise().sum();
      } else {
        for (int q = head * shape.group(); q < (head + 1) * shape.group(); ++q) {
          const Eigen::MatrixXd moved = wo.middleRows(q * dim, dim).transpose() * v;
          sums += moved.cwiseAbs().colwise().sum() / shape.group();
        }
      }
      known.insert(known.end(), sums.data(), sums.data() + count);
    }
  }

  std::function<OutputProjection(int)> load_;
  std::vector<Layer> layers_;
};

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
  return Eigen::Map<const Eigen::MatrixXf>(values.data(), width, tensor.shape[0]).cast<double>();
}

// Finds the projections of all stored layers now, reads them when they are needed.
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

class WithValues final : public Scorer {
 public:
  explicit WithValues(std::unique_ptr<Scorer> inner) : inner_(std::move(inner)) {}
  Needs needs() const override {
    Needs out = inner_->needs();
    out.v = true;
    return out;
  }
  void observe(const View& view, RowIndex begin, RowIndex end) override {
    inner_->observe(view, begin, end);
  }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    return inner_->score(view, head, entries, out);
  }

 private:
  std::unique_ptr<Scorer> inner_;
};

struct TwoStages {
  double ratio = 0;
  double epsilon = 0;
  TokenCount sinks = 0;  // that the policy protects
  RowIndex window = 0;   // rows that the policy's votes are summed over; 0: none
  std::string inner;     // its name
  std::shared_ptr<ValueNorms> norms;

  void operator()(const View& view, int head, std::span<const TokenIndex> entries,
                  std::span<const double> scores, TokenCount keep,
                  std::vector<char>& leaves) const {
    // Protected entries of the domain: sinks below the first candidate, the window behind the last.
    const auto all = view.resident(head);
    const auto held =
        (std::lower_bound(all.begin(), all.end(), std::min<TokenCount>(sinks, entries.front())) -
         all.begin()) +
        (all.end() - std::upper_bound(all.begin(), all.end(), entries.back()));
    const auto total = static_cast<double>(keep + held);
    const TokenCount first = std::clamp<TokenCount>(
        std::max<TokenCount>(1, static_cast<TokenCount>(total * ratio)) - held, 0, keep);
    pick_top(view, head, entries, scores, first, leaves);
    std::vector<std::size_t> rest;
    std::vector<TokenIndex> tokens;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (leaves[i] == 0) continue;
      rest.push_back(i);
      tokens.push_back(entries[i]);
    }
    const auto rows = static_cast<double>(std::max<RowIndex>(1, std::min(window, view.pass().end)));
    std::vector<double> second(rest.size());
    norms->of(view, head, tokens, second);
    for (std::size_t i = 0; i < rest.size(); ++i) {
      const double score = scores[rest[i]];
      if (score < 0) {
        throw ConfigError(fmt::format(
            "criticalkv({}) has no meaning: it multiplies scores by norms of values, and {} ranks "
            "by negative numbers ({:g} for token {})",
            inner, inner, score, tokens[i]));
      }
      second[i] *= score / rows + epsilon;
    }
    round_sums(second);
    std::vector<char> out(rest.size(), 0);
    pick_top(view, head, tokens, second, keep - first, out);
    for (std::size_t i = 0; i < rest.size(); ++i) leaves[rest[i]] = out[i];
  }
};

}  // namespace

PolicyEntry criticalkv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "criticalkv";
  entry.kind = MethodKind::wrapper;
  entry.summary = "spends half of a policy's budget on entries that can move the output most";
  entry.source = "Feng et al. 2025, arXiv 2502.03805; code NVIDIA/kvpress";
  entry.evidence = "code read (kvpress)";
  entry.needs = "what the inner policy needs, and v; Wo in the trace or in a file, else a stand-in";
  entry.wrapper = true;
  entry.parameters = {{.name = "ratio",
                       .kind = Kind::real,
                       .fallback = "0.5",
                       .help = "share of the budget picked by the policy alone",
                       .range = {0, 1}},
                      {.name = "epsilon",
                       .kind = Kind::real,
                       .fallback = "1e-4",
                       .help = "added to the policy's scores",
                       .range = {0, 1e6}},
                      {.name = "wo",
                       .kind = Kind::text,
                       .fallback = "auto",
                       .help = "file of output projections; auto: the trace's"}};
  entry.wrap = [](Arguments& arguments, const Geometry& geometry, Recipe inner) {
    require_plain_pick(arguments, inner);
    Scoring& scoring = inner.scorer.value;
    if (scoring.by_position)
      refuse(arguments, inner, fmt::format("{} does not rank by importance", inner.name));
    if (scoring.axis == Axis::layer) {
      refuse(arguments, inner,
             fmt::format("{} keeps one set for all heads, and values differ by head", inner.name));
    }
    std::function<OutputProjection(int)> load = [](int) { return OutputProjection(); };
    if (arguments.has("wo")) {
      const std::string file = arguments.text("wo");
      if (geometry.trace != nullptr) load = projections(TensorSet::open(file), file, geometry);
    } else if (geometry.trace != nullptr && geometry.trace->has_wo()) {
      load = projections(geometry.trace->tensors(), geometry.trace->name(), geometry);
    } else if (geometry.trace != nullptr) {
      inner.notes.emplace_back(
          "stand-in: criticalkv without output projections (wo) takes ||v||_1 for ||Wo v||_1");
    }
    scoring.make = [make = scoring.make](const LayerShape& shape) {
      return std::make_unique<WithValues>(make(shape));
    };
    TwoStages pick{arguments.real("ratio"),
                   arguments.real("epsilon"),
                   0,
                   scoring.window,
                   inner.name,
                   std::make_shared<ValueNorms>(load, geometry.layers())};
    if (inner.protect) pick.sinks = inner.protect.value(kAll / 2).sinks;
    inner.pick = own_of<Pick>(arguments, pick);
    inner.terms = wrapped_terms(inner, arguments);
    return inner;
  };
  return entry;
}

}  // namespace kvspan::policies
