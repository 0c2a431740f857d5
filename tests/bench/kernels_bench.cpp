// SPDX-License-Identifier: Apache-2.0
// The kernels against the same work in Eigen and against the machine's FMA peak. All parties run in
// turns inside one benchmark iteration, and the counters take the shortest of the repetitions block
// by block, so that the ratios hold on a noisy machine as well; the time that Google Benchmark
// prints is that of all parties together.
//   KVSPAN_BENCH_TARGET=AVX2   only this target (AVX2 or AVX3); default: all that the machine has
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <benchmark/benchmark.h>
#include <hwy/targets.h>

#include "sim/attention/kernels.h"
#include "tests/bench/eigen_twin.h"

namespace {

namespace kernels = kvspan::kernels;
using kvspan::bench::EigenTwin;

struct Target {
  std::string name;
  std::int64_t highway;
  const EigenTwin* eigen;
};

std::vector<Target> targets() {
  const char* const only = std::getenv("KVSPAN_BENCH_TARGET");
  std::vector<Target> result;
#if defined(__x86_64__)
  const Target all[] = {{"AVX3", HWY_AVX3, &kvspan::bench::kEigenAvx512},
                        {"AVX2", HWY_AVX2, &kvspan::bench::kEigenAvx2}};
  for (const Target& target : all) {
    const bool wanted = only == nullptr || std::string_view(only) == target.name;
    if (wanted && (hwy::SupportedTargets() & target.highway) != 0) result.push_back(target);
  }
#endif
  return result;
}

// Floats on cache lines, as the replay has them.
class Buffer {
 public:
  explicit Buffer(std::int64_t size)
      : size_(size), data_(static_cast<float*>(::operator new(bytes(size), kAlignment))) {
    std::fill(data_.get(), data_.get() + size, 0.0F);
  }
  float* data() const { return data_.get(); }

  void fill(unsigned seed) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < size_; ++i) data_.get()[i] = normal(engine);
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  static std::size_t bytes(std::int64_t size) {
    return static_cast<std::size_t>(size) * sizeof(float);
  }
  struct Delete {
    void operator()(float* data) const { ::operator delete(data, kAlignment); }
  };
  std::int64_t size_;
  std::unique_ptr<float, Delete> data_;
};

// The shortest duration so far.
class Shortest {
 public:
  template <class F>
  void time(F f) {
    const auto start = std::chrono::steady_clock::now();
    f();
    benchmark::ClobberMemory();
    const std::chrono::duration<double> duration = std::chrono::steady_clock::now() - start;
    seconds_ = std::min(seconds_, duration.count());
  }
  double seconds() const { return seconds_; }

 private:
  double seconds_ = std::numeric_limits<double>::infinity();
};

// Operations per second of FMAs on registers.
class Peak {
 public:
  explicit Peak(const EigenTwin& eigen) : eigen_(eigen) {}
  void time() {
    shortest_.time([&] { benchmark::DoNotOptimize(lanes_ = eigen_.fma_loop(kSteps)); });
  }
  double flops() const { return 2.0 * kFmas * kSteps * lanes_ / shortest_.seconds(); }

 private:
  static constexpr double kFmas = kvspan::bench::kFmaChains;
  static constexpr std::int64_t kSteps = 20'000;
  const EigenTwin& eigen_;
  int lanes_ = 0;
  Shortest shortest_;
};

// Causal blocks over a prompt of `tokens`, at 8 places: `queries` rows of `group` query heads.
struct Shape {
  std::int64_t tokens;
  int dim;
  std::int64_t queries;
  std::int64_t group;

  std::int64_t rows() const { return queries * group; }
};

struct Block {
  std::int64_t begin;  // first query index
  std::int64_t end;
};

std::vector<Block> blocks(const Shape& shape) {
  constexpr std::int64_t kPlaces = 8;
  std::vector<Block> result;
  for (std::int64_t place = 1; place <= kPlaces; ++place) {
    const std::int64_t end = shape.tokens * place / kPlaces;
    result.push_back({end - shape.queries, end});
  }
  return result;
}

struct Data {
  explicit Data(const Shape& s)
      : shape(s),
        stride(kernels::padded(s.tokens) + 16),  // not a power of two: rows spread over cache sets
        q(s.rows() * s.dim),
        scaled_q(s.rows() * s.dim),
        keys(s.tokens * s.dim),
        panels(kernels::padded(s.tokens) * s.dim),
        ours(s.rows() * stride),
        theirs(s.rows() * stride),
        mask(kernels::padded(s.tokens)),
        sums(static_cast<std::size_t>(kernels::padded(s.tokens))),
        row_sums(static_cast<std::size_t>(s.rows())),
        inverse(static_cast<std::size_t>(s.rows()), 0.5) {
    q.fill(1);
    keys.fill(2);
    const float scale = 1 / std::sqrt(static_cast<float>(s.dim));
    for (std::int64_t i = 0; i < s.rows() * s.dim; ++i) {
      q.data()[i] *= 3;  // logits with a deviation of 3
      scaled_q.data()[i] = q.data()[i] * scale;
    }
    kernels::pack_keys(keys.data(), s.tokens, s.dim, s.dim, panels.data());
    for (std::int64_t r = 0; r < s.rows(); ++r) {
      q_rows.push_back(q.data() + r * s.dim);
      z_rows.push_back(ours.data() + r * stride);
      term_rows.push_back(ours.data() + r * stride);
    }
    for (std::int64_t j = 0; j < s.tokens; ++j) mask.data()[j] = j % 3 == 0 ? 0.0F : 1.0F;
  }

  Shape shape;
  std::int64_t stride;
  Buffer q, scaled_q, keys, panels, ours, theirs, mask;
  std::vector<double> sums, row_sums, inverse;
  std::vector<const float*> q_rows, term_rows;
  std::vector<float*> z_rows;
};

void our_logits(Data& data, const Block& block) {
  const float scale = 1 / std::sqrt(static_cast<float>(data.shape.dim));
  kernels::logits(data.q_rows.data(), data.shape.rows(), data.shape.dim, data.panels.data(), 0,
                  kernels::padded(block.end) / kernels::kPanel, scale, 0, data.z_rows.data());
}

void our_softmax(Data& data, const Block& block) {
  for (std::int64_t r = 0; r < data.shape.rows(); ++r) {
    const std::int64_t end = block.begin + r / data.shape.group + 1;
    const kernels::Softmax softmax = kernels::softmax_terms(
        data.z_rows[static_cast<std::size_t>(r)], 0, end, kernels::padded(block.end));
    benchmark::DoNotOptimize(softmax);
  }
}

void their_logits(const EigenTwin& eigen, Data& data, const Block& block) {
  eigen.logits(data.scaled_q.data(), data.shape.rows(), data.shape.dim, data.keys.data(), block.end,
               data.theirs.data(), data.stride);
}

void their_softmax(const EigenTwin& eigen, Data& data, const Block& block) {
  for (std::int64_t r = 0; r < data.shape.rows(); ++r) {
    const std::int64_t end = block.begin + r / data.shape.group + 1;
    benchmark::DoNotOptimize(eigen.softmax(data.theirs.data() + r * data.stride, end));
  }
}

double cells(const Shape& shape) {
  double result = 0;
  for (const Block& block : blocks(shape)) {
    result += static_cast<double>(kernels::padded(block.end) * shape.rows());
  }
  return result;
}

// One shortest time per block: a disturbance spoils one block of one repetition only.
double total(const std::vector<Shortest>& times) {
  double result = 0;
  for (const Shortest& time : times) result += time.seconds();
  return result;
}

void score_pass(benchmark::State& state, const Target& target, const Shape& shape) {
  hwy::SetSupportedTargetsForTest(target.highway);
  Data data(shape);
  const std::vector<Block> where = blocks(shape);
  const std::size_t count = where.size();
  Peak peak(*target.eigen);
  std::vector<Shortest> dots(count), softmaxes(count), passes(count), masked(count),
      masked_blocks(count), columns(count), their_dots(count), their_softmaxes(count),
      their_passes(count);
  for (auto _ : state) {
    for (std::size_t b = 0; b < count; ++b) {
      const std::int64_t padded = kernels::padded(where[b].end);
      peak.time();
      passes[b].time([&] {
        dots[b].time([&] { our_logits(data, where[b]); });
        softmaxes[b].time([&] { our_softmax(data, where[b]); });
      });
      masked[b].time([&] {
        for (const float* terms : data.term_rows) {
          benchmark::DoNotOptimize(kernels::masked_sum(terms, data.mask.data(), padded));
        }
      });
      masked_blocks[b].time([&] {
        kernels::masked_sums(data.term_rows.data(), shape.rows(), data.mask.data(), padded,
                             data.row_sums.data());
      });
      columns[b].time([&] {
        kernels::add_columns(data.term_rows.data(), data.inverse.data(), shape.rows(),
                             data.mask.data(), padded, data.sums.data());
      });
    }
    for (std::size_t b = 0; b < count; ++b) {
      peak.time();
      their_passes[b].time([&] {
        their_dots[b].time([&] { their_logits(*target.eigen, data, where[b]); });
        their_softmaxes[b].time([&] { their_softmax(*target.eigen, data, where[b]); });
      });
    }
  }
  const double pass = total(passes);
  state.counters["peak"] = peak.flops();
  state.counters["flops"] = 2 * shape.dim * cells(shape) / pass;
  state.counters["share_of_peak"] = 2 * shape.dim * cells(shape) / pass / peak.flops();
  state.counters["logits_share_of_peak"] =
      2 * shape.dim * cells(shape) / total(dots) / peak.flops();
  state.counters["speedup"] = total(their_passes) / pass;
  state.counters["speedup_logits"] = total(their_dots) / total(dots);
  state.counters["speedup_softmax"] = total(their_softmaxes) / total(softmaxes);
  state.counters["softmax_percent"] = 100 * total(softmaxes) / pass;
  state.counters["masked_percent"] = 100 * total(masked) / pass;
  state.counters["masked_block_percent"] = 100 * total(masked_blocks) / pass;
  state.counters["columns_percent"] = 100 * total(columns) / pass;
  state.counters["masked_us_per_Mcell"] = 1e12 * total(masked) / cells(shape);
  hwy::SetSupportedTargetsForTest(0);
}

void weighted_values(benchmark::State& state, const Target& target, const Shape& shape) {
  hwy::SetSupportedTargetsForTest(target.highway);
  Data data(shape);
  data.ours.fill(3);
  std::vector<std::int32_t> entries(static_cast<std::size_t>(shape.tokens));
  for (std::size_t e = 0; e < entries.size(); ++e) entries[e] = static_cast<std::int32_t>(e);
  std::vector<double> out(static_cast<std::size_t>(shape.rows() * shape.dim));
  std::vector<double*> out_rows;
  for (std::int64_t r = 0; r < shape.rows(); ++r) out_rows.push_back(out.data() + r * shape.dim);
  Buffer their_out(shape.rows() * shape.dim);
  Peak peak(*target.eigen);
  Shortest ours;
  Shortest theirs;
  for (auto _ : state) {
    peak.time();
    ours.time([&] {
      kernels::weighted_values(data.term_rows.data(), shape.rows(), entries.data(), shape.tokens,
                               data.keys.data(), shape.dim, shape.dim, out_rows.data());
    });
    theirs.time([&] {
      target.eigen->values(data.ours.data(), shape.rows(), shape.tokens, data.stride,
                           data.keys.data(), shape.dim, their_out.data());
    });
  }
  const double operations =
      2.0 * static_cast<double>(shape.rows() * shape.tokens) * static_cast<double>(shape.dim);
  state.counters["peak"] = peak.flops();
  state.counters["flops"] = operations / ours.seconds();
  state.counters["share_of_peak"] = operations / ours.seconds() / peak.flops();
  state.counters["speedup"] = theirs.seconds() / ours.seconds();
  hwy::SetSupportedTargetsForTest(0);
}

std::string label(std::string_view what, const Target& target, const Shape& shape) {
  return std::string(what) + '/' + target.name + "/tokens:" + std::to_string(shape.tokens) +
         "/dim:" + std::to_string(shape.dim) + "/rows:" + std::to_string(shape.queries) + 'x' +
         std::to_string(shape.group);
}

}  // namespace

int main(int argc, char** argv) {
  for (const Target& target : targets()) {
    for (const Shape& shape :
         {Shape{2048, 64, 32, 4}, Shape{2048, 128, 32, 3}, Shape{8192, 64, 16, 4},
          Shape{8192, 128, 16, 3}, Shape{8192, 128, 32, 4}, Shape{32768, 128, 8, 4}}) {
      benchmark::RegisterBenchmark(label("score_pass", target, shape).c_str(), score_pass, target,
                                   shape)
          ->Unit(benchmark::kMillisecond);
    }
    for (const Shape& shape : {Shape{2048, 64, 16, 4}, Shape{8192, 128, 16, 4}}) {
      benchmark::RegisterBenchmark(label("weighted_values", target, shape).c_str(), weighted_values,
                                   target, shape)
          ->Unit(benchmark::kMillisecond);
    }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
