// SPDX-License-Identifier: Apache-2.0
// Lifetimes files: what is read back gives the figures of the run, whole and layer by layer; which
// entries were read; and files that are not what they say.
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/report/lifetimes_reader.h"
#include "sim/report/lifetimes_writer.h"
#include "sim/run/run.h"
#include "tests/support/temporary_file.h"
#include "tests/support/trace_builder.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using kvspan::test::TemporaryFile;

namespace {

const std::vector<std::string> kVaried = {"full",
                                          "snapkv(budget=20,window=4)",
                                          "chunked(h2o(budget=30%))",
                                          "snapkv(budget=20,window=4,group=none)",
                                          "kivi(group=8,residual=16)",
                                          "quest(budget=16,skip=0)",
                                          "clusterkv(budget=20,clusters=4,every=8,skip=0)",
                                          "snapkv(budget=20,window=4)+mikv",
                                          "adakv(budget=20)",
                                          "h2o(budget=20)+less(rank=2)"};

// Three layers of a model of five, the second one with a window of its own.
test::TraceSpec varied_spec() {
  test::TraceSpec spec = test::random_spec({.layers = 3,
                                            .tokens = 90,
                                            .prompt_tokens = 64,
                                            .query_heads = 4,
                                            .kv_heads = 2,
                                            .head_dim = 8,
                                            .seed = 11});
  spec.meta.model_layers = 5;
  spec.meta.layer_ids = {0, 2, 4};
  spec.meta.sliding_window = {0, 24, 0};
  return spec;
}

RunReport report_of(const Trace& trace, const std::vector<std::string>& policies,
                    const EngineOptions& options, const Accounting& accounting = {}) {
  std::vector<RecipeSpec> specs;
  for (const std::string& text : policies) specs.push_back(parse_spec(text));
  RunReport report;
  report.trace_path = "a trace";
  report.trace_sha256 = std::string(64, 'b');
  report.trace = trace.meta();
  report.chunk = options.chunk;
  report.accounting = accounting;
  report.runs = run_policies(trace, specs, options, accounting);
  return report;
}

void check_same(const PeakBytes& a, const PeakBytes& b) { CHECK(a == b); }

void check_same(const Metrics& a, const Metrics& b) {
  CHECK(a.footprint == b.footprint);
  CHECK(a.peak_kv == b.peak_kv);
  CHECK(a.entry_rows == b.entry_rows);
  CHECK(a.full_entry_rows == b.full_entry_rows);
  CHECK(a.host_footprint == b.host_footprint);
  check_same(a.peak_bytes, b.peak_bytes);
  CHECK(a.byte_rows == b.byte_rows);
  CHECK(a.host_peak_bytes == b.host_peak_bytes);
  CHECK(a.entries_read == b.entries_read);
  CHECK(a.bytes_read == b.bytes_read);
  CHECK(a.timeline.resident_entries == b.timeline.resident_entries);
  CHECK(a.timeline.resident_bytes == b.timeline.resident_bytes);
  CHECK(a.timeline.overhead_bytes == b.timeline.overhead_bytes);
  CHECK(a.timeline.host_bytes == b.timeline.host_bytes);
  CHECK(a.timeline.active_entries == b.timeline.active_entries);
  REQUIRE(a.per_layer.size() == b.per_layer.size());
  for (std::size_t l = 0; l < a.per_layer.size(); ++l) {
    CHECK(a.per_layer[l].footprint == b.per_layer[l].footprint);
    CHECK(a.per_layer[l].peak_kv == b.per_layer[l].peak_kv);
    CHECK(a.per_layer[l].peak_bytes == b.per_layer[l].peak_bytes);
  }
  CHECK(a.head_footprint == b.head_footprint);
  CHECK(a.head_peak_kv == b.head_peak_kv);
  CHECK(a.layouts == b.layouts);
}

std::vector<std::byte> bytes_of(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(in), {});
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

// A small file in which every tensor of the format occurs.
RunReport hostile_report() {
  const Trace trace = test::make_trace(test::random_spec({.layers = 2,
                                                          .tokens = 20,
                                                          .prompt_tokens = 12,
                                                          .query_heads = 2,
                                                          .kv_heads = 1,
                                                          .head_dim = 4}));
  EngineOptions options;
  options.keep_scores = true;
  options.keep_reads = 24;
  return report_of(trace,
                   {"snapkv(budget=8,window=2)+quest(budget=4,skip=0)",
                    "h2o(budget=6)+kivi(group=2,residual=4)"},
                   options, {2, false, "paged16_per_layer"});
}

// Everything that a reader may do with a file; the TraceError's message, or "".
std::string use_error(TensorSet tensors) {
  try {
    const LifetimesFile file = LifetimesFile::from_tensors(std::move(tensors), "x");
    for (int r = 0; r < static_cast<int>(file.runs().size()); ++r) {
      (void)compute_metrics(file.ledger(r), file.accounting());
      for (int l = 0; l < file.layers(); ++l)
        (void)compute_metrics(file.ledger_of_layer(r, l), file.accounting());
    }
  } catch (const TraceError& error) {
    return error.what();
  }
  return "";
}

// A file as metadata and tensors that a test may spoil.
struct Parts {
  Metadata metadata;
  std::map<std::string, TensorSet::Owned> tensors;

  explicit Parts(const RunReport& report) {
    const TemporaryFile file;
    write_lifetimes(report, file.path);
    const TensorSet set = TensorSet::open(file.path);
    metadata = set.metadata();
    for (const auto& [name, view] : set.tensors())
      tensors[name] = {view.dtype, view.shape, {view.bytes.begin(), view.bytes.end()}};
  }
  template <class T>
  void put(const std::string& tensor, std::size_t index, T value) {
    std::memcpy(tensors.at(tensor).bytes.data() + index * sizeof(T), &value, sizeof(T));
  }
  void drop(const std::string& name) { REQUIRE(metadata.erase(name) + tensors.erase(name) == 1); }
  [[nodiscard]] std::string error() const {
    return use_error(TensorSet::from_memory(metadata, tensors));
  }
};

void check_header(const LifetimesFile& file, const RunReport& report) {
  CHECK(file.tokens() == 90);
  CHECK(file.prompt() == 64);
  CHECK(file.chunk() == 24);
  CHECK(file.model_layers() == 5);
  CHECK(file.layer_ids() == std::vector<int>{0, 2, 4});
  CHECK(file.query_heads() == 4);
  CHECK(file.sliding_window() == std::vector<std::int64_t>{0, 24, 0});
  CHECK(file.trace_path() == report.trace_path);
  CHECK(file.trace_sha256() == report.trace_sha256);
  CHECK(file.accounting().layout == report.accounting.layout);
  CHECK(file.accounting().layerwise == report.accounting.layerwise);
  CHECK(file.accounting().kv_bytes == 2);
}

void check_same(const LifetimesFile::Run& of, const Ledger& ledger, const RunResult& run) {
  CHECK(of.policy == run.spec);
  CHECK(of.label == run.label);
  CHECK(of.klass == run.klass);
  CHECK(of.bound == run.bound);
  CHECK(of.evict_point == 60);
  CHECK(of.heads == run.ledger.heads);
  CHECK(ledger.plan.ends == run.ledger.plan.ends);
  CHECK(ledger.death == run.ledger.death);
  CHECK(ledger.rank == run.ledger.rank);
  CHECK(ledger.selected == run.ledger.selected);
  CHECK(ledger.state == run.ledger.state);
  CHECK(std::equal(ledger.score.begin(), ledger.score.end(), run.ledger.score.begin(),
                   run.ledger.score.end(), [](float a, float b) {
                     return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
                   }));
}

// A run of varied_spec() layer by layer, what belongs to the model added once. Returns the changes
// that were seen.
std::int64_t check_layers(const LifetimesFile& file, int r, const Ledger& ledger,
                          const RunResult& run) {
  std::vector<std::int64_t> entries(90, 0), bytes(90, 0), overhead(90, 0), host(90, 0);
  std::int64_t entry_rows = 0;
  std::int64_t changes = 0;
  for (int l = 0; l < 3; ++l) {
    const Ledger layer = file.ledger_of_layer(r, l);
    CHECK(layer.model_layers == 5);
    const Metrics alone = compute_metrics(layer, file.accounting());
    entry_rows += alone.entry_rows;
    const LayerMetrics& expected = run.metrics.per_layer[static_cast<std::size_t>(l)];
    CHECK(alone.footprint == expected.footprint);
    CHECK(alone.peak_kv == expected.peak_kv);
    CHECK(alone.peak_bytes.total == expected.peak_bytes);
    CHECK(alone.head_footprint[0] == run.metrics.head_footprint[static_cast<std::size_t>(l)]);
    changes += static_cast<std::int64_t>(layer.changes[0].size());
    for (std::size_t row = 0; row < 90; ++row) {
      entries[row] += alone.timeline.resident_entries[row];
      bytes[row] += alone.timeline.resident_bytes[row];
      overhead[row] += alone.timeline.overhead_bytes[row];
      host[row] += alone.timeline.host_bytes[row];
    }
  }
  for (std::size_t row = 0; row < 90; ++row) {
    const std::int64_t once = ledger.fixed_overhead(static_cast<RowIndex>(row));
    bytes[row] += once;
    overhead[row] += once;
  }
  CHECK(entry_rows == run.metrics.entry_rows);
  CHECK(entries == run.metrics.timeline.resident_entries);
  CHECK(bytes == run.metrics.timeline.resident_bytes);
  CHECK(overhead == run.metrics.timeline.overhead_bytes);
  CHECK(host == run.metrics.timeline.host_bytes);
  return changes;
}

}  // namespace

TEST_CASE("a lifetimes file gives back every figure of its runs", "[lifetimes]") {
  const auto [layout, layerwise] = GENERATE(table<std::string, bool>(
      {{"ideal", false}, {"ideal", true}, {"paged16_per_layer", false}, {"query_head", true}}));
  const Trace trace = test::make_trace(varied_spec());
  EngineOptions options;
  options.chunk = 24;
  options.evict_point = 60;
  options.keep_scores = true;
  options.fidelity = false;
  const RunReport report = report_of(trace, kVaried, options, {2, layerwise, layout});
  const TemporaryFile path;
  write_lifetimes(report, path.path);

  const LifetimesFile file = LifetimesFile::open(path.path);
  check_header(file, report);
  REQUIRE(file.runs().size() == kVaried.size());
  std::int64_t changes = 0;
  std::int64_t states = 0;
  std::int64_t hosts = 0;
  for (std::size_t r = 0; r < kVaried.size(); ++r) {
    const RunResult& run = report.runs[r];
    INFO(run.spec);
    const int at = static_cast<int>(r);
    const Ledger ledger = file.ledger(at);
    check_same(file.runs()[r], ledger, run);
    check_same(compute_metrics(ledger, file.accounting()), run.metrics);
    changes += check_layers(file, at, ledger, run);
    states += ledger.state.empty() ? 0 : 1;
    hosts += run.metrics.host_peak_bytes > 0 ? 1 : 0;
  }
  CHECK(changes > 0);
  CHECK(states > 0);
  CHECK(hosts > 0);
}

TEST_CASE("heads are handed out as views of the file", "[lifetimes]") {
  const RunReport report = hostile_report();
  const TemporaryFile path;
  write_lifetimes(report, path.path);
  const LifetimesFile file = LifetimesFile::open(path.path);
  for (int r = 0; r < 2; ++r) {
    const Ledger& ledger = report.runs[static_cast<std::size_t>(r)].ledger;
    for (int l = 0; l < 2; ++l) {
      const auto expected = ledger.deaths(l, 0);
      const auto found = file.deaths(r, l, 0);
      CHECK(std::equal(found.begin(), found.end(), expected.begin(), expected.end()));
      CHECK(found.data() == file.deaths(r, l, 0).data());
      CHECK(file.ranks(r, l, 0)[3] == ledger.rank[ledger.offset(l, 0) + 3]);
      CHECK(file.scores(r, l, 0).size() == 20);
    }
  }
}

TEST_CASE("a file from before passes and query heads were written opens", "[lifetimes]") {
  const Trace trace = test::make_trace(varied_spec());
  EngineOptions options;
  options.chunk = 24;
  options.fidelity = false;
  const RunReport report =
      report_of(trace, {"snapkv(budget=20,window=4)", "h2o(budget=20,group=none)"}, options);
  Parts old(report);
  for (const char* name :
       {"evict_at", "query_heads", "sliding_window", "runs.0.passes", "runs.1.passes"})
    old.drop(name);
  const LifetimesFile file =
      LifetimesFile::from_tensors(TensorSet::from_memory(old.metadata, old.tensors), "old");
  CHECK(file.query_heads() == 4);
  CHECK(file.sliding_window().empty());
  for (int r = 0; r < 2; ++r) {
    CHECK(file.runs()[static_cast<std::size_t>(r)].evict_point == 64);
    CHECK(file.plan(r).ends == report.runs[static_cast<std::size_t>(r)].ledger.plan.ends);
  }
}

TEST_CASE("runs that evict at different rows say so", "[lifetimes]") {
  RunReport report = hostile_report();
  report.runs[1].ledger.plan = make_passes(20, 12, 9, 0);
  const Parts parts(report);
  CHECK(parts.metadata.at("evict_at") == "12");
  CHECK(parts.metadata.at("runs.1.evict_at") == "9");
  CHECK(parts.metadata.count("runs.0.evict_at") == 0);
  CHECK(parts.error() == "");
  const LifetimesFile file =
      LifetimesFile::from_tensors(TensorSet::from_memory(parts.metadata, parts.tensors), "x");
  CHECK(file.plan(1).evict_point == 9);
  CHECK(file.plan(1).ends.size() == 10);
}

// `selected` counts what is loaded; retroattention attends to what it loaded earlier as well.
TEST_CASE("sampled reads are the entries that rows attend to", "[lifetimes][reads]") {
  const std::string policy = GENERATE(
      "quest(budget=16,skip=0)", "quest(budget=16,skip=1)", "minference(verticals=10,slashes=12)",
      "retroattention(budget=24,skip=0,window=3)", "h2o(budget=30)+quest(budget=16,page=4,skip=0)");
  INFO(policy);
  const Trace trace = test::make_trace(varied_spec());
  EngineOptions options;
  options.fidelity = false;
  options.chunk = GENERATE(0, 24);
  options.keep_reads = 1 << 20;
  const RunReport report = report_of(trace, {policy, "full"}, options);
  const Ledger& ledger = report.runs[0].ledger;
  REQUIRE(ledger.read_rows.size() == 90);  // all of them
  CHECK(report.runs[1].ledger.read_rows.empty());
  CHECK(report.runs[1].ledger.reads.empty());
  const TemporaryFile path;
  write_lifetimes(report, path.path);
  const LifetimesFile file = LifetimesFile::open(path.path);
  CHECK(file.ledger(0).reads == ledger.reads);
  const bool loads_less = policy.starts_with("retroattention");
  bool some_were_not_read = false;
  bool attends_to_more = false;
  for (std::size_t sample = 0; sample < 90; ++sample) {
    const RowIndex row = file.runs()[0].read_rows[sample];
    CHECK(row == static_cast<RowIndex>(sample));
    std::int64_t count = 0;
    for (int l = 0; l < 3; ++l) {
      for (int h = 0; h < ledger.heads; ++h) {
        const auto deaths = file.deaths(0, l, h);
        const auto bits = file.reads(0, l, h, sample);
        for (std::size_t t = 0; t < 90; ++t) {
          const bool read = (bits[t / 8] >> (t % 8) & 1U) != 0;
          const bool there =
              static_cast<RowIndex>(t) <= row && row < static_cast<RowIndex>(deaths[t]);
          if (read && !there) FAIL_CHECK("row " << row << " reads token " << t);
          some_were_not_read |= there && !read;
          count += read ? 1 : 0;
        }
      }
    }
    const std::int64_t loaded = ledger.selected[static_cast<std::size_t>(row)];
    attends_to_more |= count > loaded;
    if (loads_less) {
      CHECK(count >= loaded);
    } else {
      CHECK(count == loaded);
    }
  }
  CHECK(some_were_not_read);
  CHECK(attends_to_more == loads_less);
}

TEST_CASE("rows of a sample are spread over both phases and stay under their limit",
          "[lifetimes][reads]") {
  // A row is 3 layers x 2 heads x 12 bytes; 64 rows of the prompt, 26 decoded.
  const auto [bytes, rows, decoded] = GENERATE(table<std::int64_t, std::size_t, std::ptrdiff_t>(
      {{71, 0, 0}, {72, 1, 0}, {1440, 20, 10}, {4320, 60, 26}, {6479, 89, 26}, {1 << 20, 90, 26}}));
  const Trace trace = test::make_trace(varied_spec());
  EngineOptions options;
  options.fidelity = false;
  const std::int64_t without =
      plan_memory(trace, {make_policy(parse_spec("quest(budget=16)"), geometry_of(trace, options))},
                  options)
          .bytes;
  options.keep_reads = bytes;
  const Ledger ledger = report_of(trace, {"quest(budget=16)"}, options).runs[0].ledger;
  CHECK(ledger.read_rows.size() == rows);
  CHECK(ledger.reads.size() == rows * 72);
  CHECK(std::count_if(ledger.read_rows.begin(), ledger.read_rows.end(),
                      [](RowIndex row) { return row >= 64; }) == decoded);
  CHECK(std::adjacent_find(ledger.read_rows.begin(), ledger.read_rows.end(),
                           std::greater_equal<>()) == ledger.read_rows.end());
  CHECK(plan_memory(trace,
                    {make_policy(parse_spec("quest(budget=16)"), geometry_of(trace, options))},
                    options)
                .bytes -
            without ==
        static_cast<std::int64_t>(ledger.reads.size()));
}

// ---- Files that are not what they say -----------------------------------------------------------

TEST_CASE("a lifetimes file cut off at any byte is refused", "[lifetimes][hostile]") {
  const TemporaryFile path;
  write_lifetimes(hostile_report(), path.path);
  const std::vector<std::byte> bytes = bytes_of(path.path);
  REQUIRE(use_error(TensorSet::from_bytes(bytes, "x")) == "");
  std::size_t accepted = 0;
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    try {
      (void)TensorSet::from_bytes(std::span(bytes).first(size), "x");
      ++accepted;
    } catch (const TraceError&) {
    }
  }
  CHECK(accepted == 0);
  std::filesystem::resize_file(path.path, bytes.size() - 1);
  CHECK_THROWS_AS(LifetimesFile::open(path.path), TraceError);
}

TEST_CASE("a lifetimes file with any byte changed opens or is refused", "[lifetimes][hostile]") {
  const TemporaryFile path;
  write_lifetimes(hostile_report(), path.path);
  std::vector<std::byte> bytes = bytes_of(path.path);
  const int turn = std::getenv("KVSPAN_DEEP") == nullptr ? 0 : GENERATE(0, 5);
  std::size_t refused = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const std::byte old = bytes[i];
    bytes[i] ^= static_cast<std::byte>(1U << ((i + static_cast<std::size_t>(turn)) % 8));
    try {  // anything but a TraceError fails the test
      refused += use_error(TensorSet::from_bytes(bytes, "x")).empty() ? 0 : 1;
    } catch (const TraceError&) {
      ++refused;
    }
    bytes[i] = old;
  }
  CHECK(refused > bytes.size() / 4);
}

TEST_CASE("each defect of a lifetimes file is refused by name", "[lifetimes][hostile]") {
  const RunReport report = hostile_report();
  const auto defect = [&](const auto& spoil) {
    Parts parts(report);
    REQUIRE(parts.error() == "");
    spoil(parts);
    return parts.error();
  };
  const auto metadata = [&](const std::string& key, const std::string& value) {
    return defect([&](Parts& p) { p.metadata[key] = value; });
  };
  CHECK_THAT(metadata("format", "kvspan.trace"),
             Contains("metadata key 'format' is 'kvspan.trace'; expected 'kvspan.lifetimes'"));
  CHECK_THAT(metadata("version", "2"), Contains("'version' is 2, newer than this program reads"));
  CHECK_THAT(metadata("tokens", "21"), Contains("'runs.0.death'"));
  CHECK_THAT(metadata("prompt_tokens", "21"), Contains("'prompt_tokens'"));
  CHECK_THAT(metadata("evict_at", "13"), Contains("'evict_at'"));
  CHECK_THAT(metadata("evict_at", "11"), Contains("no pass ends at row 11"));
  CHECK_THAT(metadata("layer_ids", "[1,0]"), Contains("'layer_ids'"));
  CHECK_THAT(metadata("layer_ids", "[]"), Contains("'layer_ids' is empty"));
  CHECK_THAT(metadata("model_layers", "1"), Contains("'layer_ids' holds"));
  CHECK_THAT(metadata("sliding_window", "[3]"), Contains("'sliding_window' lists 1 layers"));
  CHECK_THAT(metadata("query_heads", "0"), Contains("'query_heads'"));
  CHECK_THAT(metadata("prefill", "half"), Contains("expected 'layerwise' or 'whole'"));
  CHECK_THAT(metadata("layout", "pagd"), Contains("'layout' is 'pagd'"));
  CHECK_THAT(metadata("runs", "3"), Contains("'runs.2.policy' is missing"));
  CHECK_THAT(metadata("runs", "0"), Contains("'runs'"));
  CHECK_THAT(metadata("runs.1.bound", "yes"), Contains("'runs.1.bound'"));
  CHECK_THAT(metadata("runs.0.representations", "[]"), Contains("'runs.0.representations'"));
  CHECK_THAT(metadata("runs.0.representations", R"([{"name":1,"device_bytes":2,"host_bytes":0}])"),
             Contains("'runs.0.representations' holds"));
  CHECK_THAT(metadata("runs.0.representations", R"([{"name":"x","device_bytes":-2}])"),
             Contains("'device_bytes' in [0"));
  CHECK_THAT(metadata("runs.0.charge", "3"), Contains("'runs.0.charge' holds"));
  CHECK_THAT(metadata("runs.0.charge", R"({"entry":0,"once":1152921504606846976})"),
             Contains("above 2^62"));
  const std::string dead = defect([](Parts& p) { p.put<std::uint32_t>("runs.1.death", 23, 3); });
  CHECK_THAT(dead, Contains("'runs.1.death': layer 1, head 0, token 3 dies at row 3; "
                            "expected 4 to 20"));
  CHECK_THAT(defect([](Parts& p) { p.put<std::uint32_t>("runs.0.death", 0, 21); }),
             Contains("token 0 dies at row 21"));
  CHECK_THAT(defect([](Parts& p) { p.put<std::int64_t>("runs.0.passes", 0, 13); }),
             Contains("do not ascend"));
  CHECK_THAT(defect([](Parts& p) { p.put<std::int64_t>("runs.0.selected", 0, -1); }),
             Contains("'runs.0.selected': element 0 is -1"));
  CHECK_THAT(defect([](Parts& p) { p.put<std::int64_t>("runs.0.read_rows", 0, 20); }),
             Contains("'runs.0.read_rows'"));
  CHECK_THAT(defect([](Parts& p) { p.put<std::uint8_t>("runs.0.reads", 2, 0x80); }),
             Contains("not born"));
  CHECK_THAT(defect([](Parts& p) { p.put<std::int64_t>("runs.1.changes", 0, 1); }),
             Contains("'runs.1.changes'"));
  CHECK_THAT(defect([](Parts& p) { p.put<std::int64_t>("runs.1.changes", 0, 2); }),
             Contains("'runs.1.changes'"));
  CHECK_THAT(defect([](Parts& p) { p.put<std::int64_t>("runs.1.changes", 4, 9); }),
             Contains("'runs.1.changes': [0, 4] is 9"));
  CHECK_THAT(defect([](Parts& p) { p.drop("runs.0.death"); }), Contains("'runs.0.death'"));
  CHECK_THAT(defect([](Parts& p) { p.drop("runs.0.read_rows"); }),
             Contains("'runs.0.read_rows': is missing beside"));
  CHECK_THAT(defect([](Parts& p) { p.tensors["runs.0.score"].dtype = Dtype::i32; }),
             Contains("'runs.0.score': I32 [2, 1, 20]; expected F32 [2, 1, 20]"));
}
