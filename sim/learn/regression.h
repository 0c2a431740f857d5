// SPDX-License-Identifier: Apache-2.0
// Small regressors that stand in for networks whose weights are not public or belong to another
// model: ridge and logistic regression, a one-hidden-layer network, cluster centres.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace kvspan {

// Feature rows with labels. Rows of one decision are compared with one another only.
struct Samples {
  std::size_t width = 0;               // features
  std::size_t outputs = 1;             // labels of a row
  std::vector<float> x;                // [rows, width]
  std::vector<double> y;               // [rows, outputs]
  std::vector<std::int32_t> decision;  // [rows]; empty: one decision
  [[nodiscard]] std::size_t rows() const { return outputs == 0 ? 0 : y.size() / outputs; }
};

// y = linear or network of (x - mean) * scale. scale is 1 / standard deviation, 0 for a constant.
struct Regressor {
  std::string method;     // "ridge", "logit", "mlp", "centres"
  std::size_t width = 0;  // features
  std::size_t outputs = 1;
  std::size_t hidden = 0;          // units of the network; rows of `parameters` of centres
  std::vector<float> mean, scale;  // [width]
  // linear: [outputs, width] weights, [outputs] constants
  // mlp:    [hidden, width] W1, [hidden] b1, [hidden] w2, b2; y = w2 . gelu(W1 x + b1) + b2
  // centres: [hidden, width]
  std::vector<float> parameters;
  // x [rows, width], out [rows, outputs]: the log odds of a logistic regression. REQUIRES: no
  // centres.
  void evaluate(std::span<const float> x, std::span<double> out) const;
};

// (X'X + lambda I) w = X'y on standardised features and centred labels; LDLT.
[[nodiscard]] Regressor fit_ridge(const Samples& samples, double lambda);
// Logistic regression, labels 0 and 1, by Newton steps; lambda / 2 |w|^2 is added to the loss, and
// rows with label 1 weigh `positive_weight`.
[[nodiscard]] Regressor fit_logit(const Samples& samples, double lambda,
                                  double positive_weight = 1);

struct MlpOptions {
  std::size_t hidden = 16;
  int steps = 300;
  double rate = 1e-2;  // Adam
  std::uint64_t seed = 0;
  // Pairwise hinge: mean over ordered pairs of a decision with y_i > y_j of max(0, margin - (f_i -
  // f_j)); otherwise binary cross-entropy of labels 0 and 1.
  bool pairwise = true;
  double margin = 0.01;
};
[[nodiscard]] Regressor fit_mlp(const Samples& samples, const MlpOptions& options);
// The loss, and its gradient in the order of Regressor::parameters if asked for.
[[nodiscard]] double mlp_loss(const Regressor& model, const Samples& samples,
                              const MlpOptions& options, std::vector<double>* gradient);

// k-means (k-means++ starts, 10 rounds) of x [rows, width]; fewer rows than centres repeat.
[[nodiscard]] Regressor fit_centres(std::span<const float> x, std::size_t width,
                                    std::size_t centres, std::uint64_t seed);

}  // namespace kvspan
