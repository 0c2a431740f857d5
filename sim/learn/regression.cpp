// SPDX-License-Identifier: Apache-2.0
#include "sim/learn/regression.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include <Eigen/Cholesky>
#include <Eigen/Core>

#include "sim/base/random.h"

namespace kvspan {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Range = std::pair<std::size_t, std::size_t>;  // of rows, [first, second)
using FloatRows =
    Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;

Eigen::Index eigen(std::size_t i) { return static_cast<Eigen::Index>(i); }

void standardise(const Samples& samples, Regressor& model) {
  const std::size_t rows = samples.rows();
  model.mean.assign(samples.width, 0);
  model.scale.assign(samples.width, 0);
  if (rows == 0) return;
  const FloatRows x(samples.x.data(), eigen(rows), eigen(samples.width));
  for (std::size_t f = 0; f < samples.width; ++f) {
    const Eigen::ArrayXd column = x.col(eigen(f)).cast<double>().array();
    const double mean = column.mean();
    const double deviation = std::sqrt((column - mean).square().mean());
    model.mean[f] = static_cast<float>(mean);
    if (deviation > 1e-6 * std::abs(mean) && deviation > 1e-30)
      model.scale[f] = static_cast<float>(1 / deviation);
  }
}

Matrix standardised(const Regressor& model, std::span<const float> x) {
  const FloatRows raw(x.data(), eigen(x.size() / model.width), eigen(model.width));
  const Eigen::Map<const Eigen::RowVectorXf> mean(model.mean.data(), eigen(model.width));
  const Eigen::Map<const Eigen::RowVectorXf> scale(model.scale.data(), eigen(model.width));
  Matrix out = raw.cast<double>();
  out.rowwise() -= mean.cast<double>();
  return (out.array().rowwise() * scale.cast<double>().array()).matrix();
}

Regressor empty_model(const char* method, const Samples& samples, std::size_t hidden = 0) {
  Regressor model;
  model.method = method;
  model.width = samples.width;
  model.outputs = samples.outputs;
  model.hidden = hidden;
  standardise(samples, model);
  model.parameters.assign(
      hidden > 0 ? hidden * (samples.width + 2) + 1 : samples.outputs * (samples.width + 1), 0);
  return model;
}

double gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::numbers::sqrt2)); }
double gelu_slope(double x) {
  return 0.5 * (1 + std::erf(x / std::numbers::sqrt2)) +
         x * std::exp(-0.5 * x * x) / std::sqrt(2 * std::numbers::pi);
}

// The network, in double.
struct Network {
  Matrix w1;           // [hidden, width]
  Eigen::VectorXd b1;  // [hidden]
  Eigen::VectorXd w2;  // [hidden]
  double b2 = 0;
  explicit Network(const Regressor& m) {
    const auto* p = m.parameters.data();
    w1 = FloatRows(p, eigen(m.hidden), eigen(m.width)).cast<double>();
    p += m.hidden * m.width;
    b1 = Eigen::Map<const Eigen::VectorXf>(p, eigen(m.hidden)).cast<double>();
    p += m.hidden;
    w2 = Eigen::Map<const Eigen::VectorXf>(p, eigen(m.hidden)).cast<double>();
    b2 = static_cast<double>(p[m.hidden]);
  }
  Eigen::VectorXd forward(const Matrix& x, Matrix& before) const {
    before = (x * w1.transpose()).rowwise() + b1.transpose();
    return (before.unaryExpr(&gelu) * w2).array() + b2;
  }
};

// d loss / d f of the rows [begin, end); adds to the loss.
double hinge(std::span<const double> y, const Eigen::VectorXd& f, double margin,
             Eigen::VectorXd& slope) {
  const std::size_t n = y.size();
  double loss = 0;
  std::int64_t pairs = 0;
  slope.setZero(eigen(n));
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      if (!(y[i] > y[j])) continue;
      ++pairs;
      const double gap = margin - (f(eigen(i)) - f(eigen(j)));
      if (gap <= 0) continue;
      loss += gap;
      slope(eigen(i)) -= 1;
      slope(eigen(j)) += 1;
    }
  }
  if (pairs == 0) return 0;
  slope /= static_cast<double>(pairs);
  return loss / static_cast<double>(pairs);
}

double cross_entropy(std::span<const double> y, const Eigen::VectorXd& f, Eigen::VectorXd& slope) {
  const std::size_t n = y.size();
  double loss = 0;
  slope.setZero(eigen(n));
  for (std::size_t i = 0; i < n; ++i) {
    const double z = f(eigen(i));
    loss += std::max(z, 0.0) - z * y[i] + std::log1p(std::exp(-std::abs(z)));
    slope(eigen(i)) = (1 / (1 + std::exp(-z)) - y[i]) / static_cast<double>(n);
  }
  return n == 0 ? 0 : loss / static_cast<double>(n);
}

// The rows of each decision.
std::vector<Range> decisions_of(const Samples& samples) {
  std::vector<Range> out;
  const std::size_t rows = samples.rows();
  if (samples.decision.empty()) return {{0, rows}};
  for (std::size_t i = 0; i < rows;) {
    std::size_t j = i;
    while (j < rows && samples.decision[j] == samples.decision[i]) ++j;
    out.emplace_back(i, j);
    i = j;
  }
  return out;
}

// The loss of some rows with standardised features; the gradient is added.
double piece_loss(const Network& net, const Matrix& x, std::span<const double> y,
                  const MlpOptions& options, double weight, Eigen::VectorXd* gradient) {
  Matrix before;
  const Eigen::VectorXd f = net.forward(x, before);
  Eigen::VectorXd slope;
  const double loss =
      options.pairwise ? hinge(y, f, options.margin, slope) : cross_entropy(y, f, slope);
  if (gradient == nullptr) return loss * weight;
  slope *= weight;
  const Matrix inner =
      (slope * net.w2.transpose()).cwiseProduct(before.unaryExpr(&gelu_slope));  // [rows, hidden]
  const Eigen::Index hidden = net.w1.rows();
  const Eigen::Index width = net.w1.cols();
  Eigen::Map<Matrix>(gradient->data(), hidden, width) += inner.transpose() * x;
  gradient->segment(hidden * width, hidden) += inner.colwise().sum().transpose();
  gradient->segment(hidden * (width + 1), hidden) += before.unaryExpr(&gelu).transpose() * slope;
  (*gradient)(hidden*(width + 2)) += slope.sum();
  return loss * weight;
}

// Uniform within +- 1 / sqrt(inputs), as torch starts linear layers.
void start_network(std::size_t width, const MlpOptions& options, Regressor& model) {
  const std::size_t first = options.hidden * width;
  for (std::size_t i = 0; i < model.parameters.size(); ++i) {
    const double inputs = static_cast<double>(i < first + options.hidden ? width : options.hidden);
    const double u = uniform(options.seed, {static_cast<std::int64_t>(i)});
    model.parameters[i] = static_cast<float>((2 * u - 1) / std::sqrt(inputs));
  }
}

// A random decision; every stride-th of its rows, from a random one, so that a step has few.
std::vector<Eigen::Index> rows_of_step(const std::vector<Range>& decisions, std::uint64_t seed,
                                       int step) {
  constexpr std::size_t kMostRows = 256;  // pairs grow with the square
  const auto [begin, end] = decisions[static_cast<std::size_t>(
      uniform(seed, {1, step}) * static_cast<double>(decisions.size()))];
  const std::size_t stride = (end - begin + kMostRows - 1) / kMostRows;
  const auto from = static_cast<std::size_t>(uniform(seed, {2, step}) *
                                             static_cast<double>(std::max<std::size_t>(1, stride)));
  std::vector<Eigen::Index> rows;
  for (std::size_t i = begin + from; i < end; i += stride) rows.push_back(eigen(i));
  return rows;
}

// Kingma and Ba 2015, with their constants.
class Adam {
 public:
  explicit Adam(Eigen::Index size)
      : first_(Eigen::VectorXd::Zero(size)), second_(Eigen::VectorXd::Zero(size)) {}
  void step(const Eigen::VectorXd& gradient, double rate, Eigen::VectorXd& values) {
    const double t = ++steps_;
    first_ = 0.9 * first_ + 0.1 * gradient;
    second_ = 0.999 * second_ + 0.001 * gradient.cwiseAbs2();
    const Eigen::ArrayXd unbiased = second_.array() / (1 - std::pow(0.999, t));
    values.array() -= rate * (first_.array() / (1 - std::pow(0.9, t))) / (unbiased.sqrt() + 1e-8);
  }

 private:
  Eigen::VectorXd first_, second_;  // moments
  int steps_ = 0;
};

}  // namespace

void Regressor::evaluate(std::span<const float> x, std::span<double> out) const {
  if (out.empty()) return;
  const Matrix z = standardised(*this, x);
  const std::size_t rows = x.size() / width;
  Eigen::Map<Matrix> result(out.data(), eigen(rows), eigen(outputs));
  // Row by row, because tokens are ranked by this: Eigen's product of all rows sums the last ones
  // in another order, and equal rows would differ in the last bits.
  if (method == "mlp") {
    const Network network(*this);
    Matrix before;
    for (Eigen::Index r = 0; r < z.rows(); ++r) {
      result.row(r) = network.forward(z.row(r), before);
    }
    return;
  }
  const FloatRows w(parameters.data(), eigen(outputs), eigen(width));
  const Eigen::Map<const Eigen::RowVectorXf> constants(parameters.data() + outputs * width,
                                                       eigen(outputs));
  const Matrix weights = w.cast<double>();
  const Eigen::RowVectorXd last = constants.cast<double>();
  for (Eigen::Index r = 0; r < z.rows(); ++r) {
    result.row(r).noalias() = z.row(r) * weights.transpose();
    result.row(r) += last;
  }
}

Regressor fit_ridge(const Samples& samples, double lambda) {
  Regressor model = empty_model("ridge", samples);
  const std::size_t rows = samples.rows();
  if (rows == 0) return model;
  const Matrix x = standardised(model, samples.x);
  const Eigen::Map<const Matrix> y(samples.y.data(), eigen(rows), eigen(samples.outputs));
  const Eigen::RowVectorXd mean = y.colwise().mean();
  Matrix gram = x.transpose() * x;
  gram.diagonal().array() += lambda;
  const Matrix w = gram.ldlt().solve(x.transpose() * (y.rowwise() - mean));  // [width, outputs]
  for (std::size_t o = 0; o < samples.outputs; ++o) {
    for (std::size_t f = 0; f < samples.width; ++f) {
      const double value = model.scale[f] > 0 ? w(eigen(f), eigen(o)) : 0.0;
      model.parameters[o * samples.width + f] = static_cast<float>(value);
    }
    model.parameters[samples.outputs * samples.width + o] = static_cast<float>(mean(eigen(o)));
  }
  return model;
}

Regressor fit_logit(const Samples& samples, double lambda, double positive_weight) {
  Regressor model = empty_model("logit", samples);
  const std::size_t rows = samples.rows();
  const auto positive =
      std::count_if(samples.y.begin(), samples.y.end(), [](double y) { return y > 0.5; });
  // With one class only there is nothing to tell apart; its log odds, with half a row of the other.
  if (positive == 0 || static_cast<std::size_t>(positive) == rows) {
    const double p = static_cast<double>(positive) + 0.5;
    const double n = static_cast<double>(rows) - static_cast<double>(positive) + 0.5;
    model.parameters.back() = static_cast<float>(std::log(p / n));
    return model;
  }
  Matrix x(eigen(rows), eigen(samples.width + 1));
  x.leftCols(eigen(samples.width)) = standardised(model, samples.x);
  x.rightCols(1).setOnes();
  const Eigen::Map<const Eigen::VectorXd> y(samples.y.data(), eigen(rows));
  const Eigen::ArrayXd weight =
      y.array().unaryExpr([=](double label) { return label > 0.5 ? positive_weight : 1.0; });
  Eigen::VectorXd penalty = Eigen::VectorXd::Constant(x.cols(), lambda);
  penalty(x.cols() - 1) = 1e-9;  // the constant is free
  const auto loss_of = [&](const Eigen::VectorXd& w) {
    const Eigen::ArrayXd z = (x * w).array();
    const Eigen::ArrayXd rest = (1 + (-z.abs()).exp()).log();
    return (weight * (z.max(0.0) - z * y.array() + rest)).sum() +
           0.5 * (penalty.array() * w.array().square()).sum();
  };
  Eigen::VectorXd w = Eigen::VectorXd::Zero(x.cols());
  double loss = loss_of(w);
  for (int round = 0; round < 50; ++round) {
    const Eigen::ArrayXd p = 1 / (1 + (-(x * w).array()).exp());
    const Eigen::VectorXd slope =
        x.transpose() * (weight * (p - y.array())).matrix() + penalty.cwiseProduct(w);
    Matrix curvature = x.transpose() * (x.array().colwise() * (weight * p * (1 - p))).matrix();
    curvature.diagonal() += penalty;
    curvature.diagonal().array() += 1e-12;
    const Eigen::VectorXd step = curvature.ldlt().solve(slope);
    double size = 1;
    Eigen::VectorXd next = w - step;
    double next_loss = loss_of(next);
    while (next_loss > loss && size > 1e-6) {
      size /= 2;
      next = w - size * step;
      next_loss = loss_of(next);
    }
    if (!(next_loss < loss)) break;
    const double gain = loss - next_loss;
    w = next;
    loss = next_loss;
    if (gain < 1e-10 * (1 + std::abs(loss))) break;
  }
  for (std::size_t f = 0; f <= samples.width; ++f) {
    const bool live = f == samples.width || model.scale[f] > 0;
    model.parameters[f] = live ? static_cast<float>(w(eigen(f))) : 0.0F;
  }
  return model;
}

double mlp_loss(const Regressor& model, const Samples& samples, const MlpOptions& options,
                std::vector<double>* gradient) {
  const Network net(model);
  const auto decisions = decisions_of(samples);
  Eigen::VectorXd sum = Eigen::VectorXd::Zero(eigen(model.parameters.size()));
  double loss = 0;
  for (const auto& [begin, end] : decisions) {
    const std::span<const float> x(samples.x.data() + begin * samples.width,
                                   (end - begin) * samples.width);
    loss += piece_loss(net, standardised(model, x), {samples.y.data() + begin, end - begin},
                       options, 1.0 / static_cast<double>(decisions.size()),
                       gradient != nullptr ? &sum : nullptr);
  }
  if (gradient != nullptr) gradient->assign(sum.data(), sum.data() + sum.size());
  return loss;
}

Regressor fit_mlp(const Samples& samples, const MlpOptions& options) {
  Regressor model = empty_model("mlp", samples, options.hidden);
  if (samples.rows() == 0) return model;
  start_network(samples.width, options, model);
  const auto decisions = decisions_of(samples);
  const Matrix x = standardised(model, samples.x);
  const auto size = eigen(model.parameters.size());
  Eigen::VectorXd values =
      Eigen::Map<const Eigen::VectorXf>(model.parameters.data(), size).cast<double>();
  Adam adam(size);
  Regressor step_model = model;
  for (int step = 0; step < options.steps; ++step) {
    const std::vector<Eigen::Index> rows = rows_of_step(decisions, options.seed, step);
    std::vector<double> y;
    for (const Eigen::Index i : rows) y.push_back(samples.y[static_cast<std::size_t>(i)]);
    Eigen::VectorXd gradient = Eigen::VectorXd::Zero(size);
    Eigen::Map<Eigen::VectorXf>(step_model.parameters.data(), size) = values.cast<float>();
    (void)piece_loss(Network(step_model), x(rows, Eigen::all), y, options, 1.0, &gradient);
    const double norm = gradient.norm();
    if (norm > 1) gradient /= norm;  // clipped at 1
    adam.step(gradient,
              options.rate * 0.5 * (1 + std::cos(std::numbers::pi * step / options.steps)), values);
  }
  Eigen::Map<Eigen::VectorXf>(model.parameters.data(), size) = values.cast<float>();
  return model;
}

Regressor fit_centres(std::span<const float> x, std::size_t width, std::size_t centres,
                      std::uint64_t seed) {
  Regressor model;
  model.method = "centres";
  model.width = model.outputs = width;
  model.hidden = centres;
  model.mean.assign(width, 0);
  model.scale.assign(width, 1);
  model.parameters.assign(centres * width, 0);
  const std::size_t rows = x.size() / width;
  if (rows == 0) return model;
  const Matrix points = FloatRows(x.data(), eigen(rows), eigen(width)).cast<double>();
  Matrix c(eigen(centres), eigen(width));
  Eigen::VectorXd nearest = Eigen::VectorXd::Constant(eigen(rows), 1e300);
  for (std::size_t i = 0; i < centres; ++i) {
    const double u = uniform(seed, {static_cast<std::int64_t>(i)});
    std::size_t chosen =
        std::min(rows - 1, static_cast<std::size_t>(u * static_cast<double>(rows)));
    if (i > 0 && nearest.sum() > 0) {
      double left = u * nearest.sum();
      for (chosen = 0; chosen + 1 < rows && left > nearest(eigen(chosen)); ++chosen)
        left -= nearest(eigen(chosen));
    }
    c.row(eigen(i)) = points.row(eigen(chosen));
    nearest = nearest.cwiseMin((points.rowwise() - c.row(eigen(i))).rowwise().squaredNorm());
  }
  for (int round = 0; round < 10; ++round) {
    Matrix sum = Matrix::Zero(c.rows(), c.cols());
    Eigen::VectorXd count = Eigen::VectorXd::Zero(c.rows());
    const Eigen::VectorXd half_norm = c.rowwise().squaredNorm() / 2;
    for (Eigen::Index r = 0; r < points.rows(); ++r) {  // one by one, as in evaluate()
      Eigen::Index best = 0;
      (c * points.row(r).transpose() - half_norm).maxCoeff(&best);
      sum.row(best) += points.row(r);
      count(best) += 1;
    }
    for (Eigen::Index i = 0; i < c.rows(); ++i) {
      if (count(i) > 0) c.row(i) = sum.row(i) / count(i);
    }
  }
  for (std::size_t i = 0; i < model.parameters.size(); ++i)
    model.parameters[i] = static_cast<float>(c.data()[i]);
  return model;
}

}  // namespace kvspan
