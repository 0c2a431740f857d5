// SPDX-License-Identifier: Apache-2.0
#include <QFile>

#include <nlohmann/json.hpp>

#include "gui/model/document.h"
#include "gui/model/peak_table.h"
#include "gui/model/several.h"
#include "sim/base/error.h"
#include "sim/report/lifetimes_reader.h"
#include "tests/gui/gui_test.h"

namespace kvspan::gui::test {

using nlohmann::json;

// Opened results: what belongs to them, and files that are not what they should be.
class ResultTest : public QObject {
  Q_OBJECT
 private slots:
  void a_result_has_its_timeline_and_its_lifetimes();
  void passes_are_counted_where_they_are_shown();
  void lifetimes_alone_equal_the_timeline_of_the_result();
  void a_bad_result_is_one_line_that_says_what_is_wrong_data();
  void a_bad_result_is_one_line_that_says_what_is_wrong();
  void a_bad_companion_is_a_warning_and_the_rest_is_shown_data();
  void a_bad_companion_is_a_warning_and_the_rest_is_shown();
  void bad_lifetimes_are_one_line_data();
  void bad_lifetimes_are_one_line();
  void a_file_of_several_results_opens_whole_or_by_number();
  void a_replay_is_a_run_for_every_pool();
};

namespace {

QByteArray content(const QString& path) {
  QFile file(path);
  return file.open(QIODevice::ReadOnly) ? file.readAll() : QByteArray();
}

QString written(const QString& name, const QByteArray& bytes) {
  const QString path = work_folder().filePath(name);
  QFile file(path);
  if (!file.open(QIODevice::WriteOnly) || file.write(bytes) != bytes.size()) qFatal("disk");
  return path;
}

QString error_of(const QString& path) {
  try {
    (void)open_result(path.toStdString());
  } catch (const Error& error) {
    return QString::fromUtf8(error.what());
  }
  return {};
}

// What kvspan replay writes of the second run of a result, in two layouts.
QByteArray replay_of(const QString& result) {
  json replay = json::parse(content(result).toStdString());
  const json run = replay["runs"][1];
  const auto peak = [](int total) {
    return json{{"total", total}, {"prefill", 5000}, {"decode", total}, {"row", 8}};
  };
  const json blocks = {{"predicted", peak(6000)},
                       {"measured", peak(6100)},
                       {"most_backed", {{"backed", 8192}, {"row", 8}, {"measured", nullptr}}},
                       {"out_of_memory", nullptr},
                       {"timeline", {{"row", {0, 4, 8}}, {"backed", {4096, 4096, 8192}}}}};
  json short_of = blocks;
  short_of.erase("timeline");
  short_of["out_of_memory"] = {{"row", 3}, {"layer", 0}, {"asked", 4096}, {"free", 100}};
  replay["trace"]["layer_ids"] = json::array({run["per_layer"][0]["layer"]});
  replay["device"] = {{"name", "host, pages of 4.00 KiB"}, {"granule", 4096}, {"limit", nullptr}};
  replay["runs"] =
      json::array({{{"policy", run["policy"]},
                    {"label", run["label"]},
                    {"layouts", {{"ideal", short_of}, {"paged16_per_head", blocks}}}}});
  return QByteArray::fromStdString(replay.dump());
}

QString errors_of_all(const QString& path) {
  try {
    (void)open_results(path.toStdString());
  } catch (const Error& error) {
    return QString::fromUtf8(error.what());
  }
  return {};
}

QByteArray changed_json(const std::function<void(json&)>& change) {
  json value = json::parse(content(bundled_result()).toStdString());
  change(value);
  return QByteArray::fromStdString(value.dump());
}

QString lifetimes_path() { return work_folder().filePath("bundled.lifetimes.safetensors"); }

// The header's text is replaced by as many characters.
QByteArray changed_lifetimes(const char* from, const char* to) {
  QByteArray bytes = content(lifetimes_path());
  if (qstrlen(from) != qstrlen(to) || !bytes.contains(from)) qFatal("no %s in the file", from);
  return bytes.replace(from, to);
}

}  // namespace

void ResultTest::a_result_has_its_timeline_and_its_lifetimes() {
  const ResultPtr result = open_result(bundled_result().toStdString());
  QVERIFY2(result->warnings.empty(), result->warnings.empty() ? "" : result->warnings[0].c_str());
  QVERIFY(result->lifetimes != nullptr);
  QCOMPARE(result->lifetimes->runs().size(), result->runs.size());
  for (const Run& run : result->runs) {
    QCOMPARE(run.entries->rows(), result->trace.tokens);
    QCOMPARE(run.newborn_bytes, result->lifetimes->runs()[0].representations[0].device_bytes);
  }
}

void ResultTest::passes_are_counted_where_they_are_shown() {
  using List = std::vector<RowIndex>;
  Result result;
  result.trace.prompt = 1000;
  QCOMPARE(pass_ends(result, 0, 2000, 1), List{1000});
  result.chunk = 300;
  QCOMPARE(pass_ends(result, 0, 2000, 1), (List{300, 600, 900, 1000}));
  QCOMPARE(pass_ends(result, 300, 600, 1), (List{300, 600}));
  QCOMPARE(pass_ends(result, 301, 599, 1), List{});
  QCOMPARE(pass_ends(result, 0, 2000, 301), List{1000});
  result.chunk = 500;
  QCOMPARE(pass_ends(result, 0, 2000, 1), (List{500, 1000}));
  // Whoever says so in a small file gets no list of all.
  result.chunk = 1;
  result.trace.prompt = std::numeric_limits<std::int32_t>::max();
  QCOMPARE(pass_ends(result, 0, result.trace.prompt, 1e6), List{result.trace.prompt});
}

void ResultTest::lifetimes_alone_equal_the_timeline_of_the_result() {
  const ResultPtr result = open_result(bundled_result().toStdString());
  const ResultPtr alone = open_result(lifetimes_path().toStdString());
  QCOMPARE(alone->runs.size(), result->runs.size());
  QCOMPARE(alone->trace.sha256, result->trace.sha256);
  QCOMPARE(alone->trace.layer_ids, result->trace.layer_ids);
  QCOMPARE(alone->chunk, result->chunk);
  const json lines = timelines_of(bundled_result());
  for (std::size_t r = 0; r < alone->runs.size(); ++r) {
    const Run& run = alone->runs[r];
    QVERIFY(!result->runs[r].figures->contains("timeline"));
    const json& line = lines[r];
    const auto check = [&](const char* name, const SeriesPtr& series) {
      for (std::size_t i = 0; i < line["row"].size(); ++i) {
        QCOMPARE(series->at(line["row"][i].get<RowIndex>()), line[name][i].get<double>());
      }
    };
    check("resident_entries", run.entries);
    check("resident_bytes", run.bytes);
    check("overhead_bytes", run.overhead);
    check("active_entries", run.active);
    for (RowIndex row = 0; row < alone->trace.tokens; ++row) {
      QCOMPARE(run.bytes->at(row), result->runs[r].bytes->at(row));
      QCOMPARE(run.host->at(row), result->runs[r].host->at(row));
    }
    QCOMPARE(run.heads_over_time.size(), result->runs[r].heads_over_time.size());
    for (std::size_t h = 0; h < run.heads_over_time.size(); ++h) {
      for (RowIndex row = 0; row < alone->trace.tokens; row += 3) {
        QCOMPARE(run.heads_over_time[h].at(row), result->runs[r].heads_over_time[h].at(row));
      }
    }
    QVERIFY(run.figures == nullptr);
    QVERIFY(run.mass == nullptr);
  }
}

void ResultTest::a_bad_result_is_one_line_that_says_what_is_wrong_data() {
  QTest::addColumn<QByteArray>("bytes");
  QTest::addColumn<QString>("message");
  const QByteArray good = content(bundled_result());
  const auto row = [](const char* name, const QByteArray& bytes, const char* message) {
    QTest::newRow(name) << bytes << QString(message);
  };
  row("truncated", good.left(good.size() / 2), "breaks off after");
  row("malformed", QByteArray(good).replace("\"runs\":", "\"runs\" "), "is not JSON: at byte");
  row("empty", "", "0 bytes; expected a safetensors file");
  row("another JSON", "{\"a\": 1}", "not a result of 'kvspan run --out'");
  row("a list", "[1, 2]", "not a result of 'kvspan run --out'");
  row("future", changed_json([](json& j) { j["schema_version"] = 7; }),
      "is a result of schema_version 7, this program reads 1; a newer kvspan-viewer reads it");
  row("no runs", changed_json([](json& j) { j["runs"] = json::array(); }), "holds no runs");
  row("runs of another type", changed_json([](json& j) { j["runs"] = "many"; }),
      "runs: found string, expected a list");
  row("no tokens", changed_json([](json& j) { j["trace"].erase("tokens"); }),
      "trace: 'tokens' is missing");
  row("tokens as text", changed_json([](json& j) { j["trace"]["tokens"] = "many"; }),
      "trace.tokens: found string, expected a whole number");
  row("tokens below zero", changed_json([](json& j) { j["trace"]["tokens"] = -4; }),
      "trace.tokens: found -4, expected 1 to");
  row("rows that do not ascend",
      changed_json([](json& j) { j["runs"][1]["timeline"]["row"][2] = 0; }),
      "runs.1.timeline.row.2: found 0, expected");
  row("a series that is short",
      changed_json([](json& j) { j["runs"][1]["timeline"]["resident_bytes"].erase(0); }),
      "runs.1.timeline.resident_bytes: found");
  row("a value of another type",
      changed_json([](json& j) { j["runs"][0]["timeline"]["resident_bytes"][3] = "x"; }),
      "runs.0.timeline.resident_bytes.3: found string, expected a number or null");
}

void ResultTest::a_bad_result_is_one_line_that_says_what_is_wrong() {
  QFETCH(QByteArray, bytes);
  QFETCH(QString, message);
  const QString path = written("bad.json", bytes);
  const QString error = error_of(path);
  QVERIFY2(error.contains(message), qPrintable(error));
  QVERIFY2(error.startsWith(path), qPrintable(error));
  QVERIFY2(!error.contains('\n'), qPrintable(error));
}

void ResultTest::a_bad_companion_is_a_warning_and_the_rest_is_shown_data() {
  QTest::addColumn<QByteArray>("bytes");
  QTest::addColumn<QString>("message");
  const auto row = [](const char* name, const QByteArray& bytes, const char* message) {
    QTest::newRow(name) << bytes << QString(message);
  };
  const QByteArray good = content(lifetimes_path());
  row("missing", {}, "cannot");
  row("truncated", good.left(good.size() - 100), "other.lifetimes.safetensors");
  row("no safetensors", "hello, world", "other.lifetimes.safetensors");
  QByteArray hash = good;
  const char* const key = "\"trace.sha256\":\"";
  char& digit = hash[hash.indexOf(key) + static_cast<qsizetype>(qstrlen(key))];
  digit = digit == '0' ? '1' : '0';
  row("another trace", hash, "is of another run");
  row("another policy", changed_lifetimes("h2o(heavy=auto", "h2o(heavy=7777"), "is of another run");
  QTest::newRow("a timeline") << content(work_folder().filePath("bundled.timeline.safetensors"))
                              << QString("format");
}

void ResultTest::a_bad_companion_is_a_warning_and_the_rest_is_shown() {
  QFETCH(QByteArray, bytes);
  QFETCH(QString, message);
  const QString path = work_folder().filePath("other.lifetimes.safetensors");
  QFile::remove(path);
  if (!bytes.isEmpty()) (void)written("other.lifetimes.safetensors", bytes);
  const QString json_path = written(
      "other.json", changed_json([&](json& j) { j["files"]["lifetimes"] = path.toStdString(); }));
  const ResultPtr result = open_result(json_path.toStdString());
  QVERIFY(result->lifetimes == nullptr);
  QCOMPARE(result->warnings.size(), std::size_t{1});
  const QString warning = QString::fromStdString(result->warnings[0]);
  QVERIFY2(warning.startsWith("without its lifetimes file: "), qPrintable(warning));
  QVERIFY2(warning.contains(message), qPrintable(warning));
  QVERIFY2(!warning.contains('\n'), qPrintable(warning));
  QVERIFY(result->runs[1].entries != nullptr);
  QVERIFY(!result->runs[1].heads_over_time.empty());  // its timeline is still there
}

void ResultTest::bad_lifetimes_are_one_line_data() {
  QTest::addColumn<QByteArray>("bytes");
  QTest::addColumn<QString>("message");
  const auto row = [](const char* name, const QByteArray& bytes, const char* message) {
    QTest::newRow(name) << bytes << QString(message);
  };
  const QByteArray good = content(lifetimes_path());
  row("truncated", good.left(good.size() / 3), "bad.safetensors");
  row("future", changed_lifetimes("\"version\":\"1\"", "\"version\":\"9\""), "version");
  QByteArray dead = good;  // an entry that dies before it is born
  const auto head = *reinterpret_cast<const std::uint64_t*>(good.constData());
  const json header = json::parse(good.mid(8, static_cast<qsizetype>(head)).toStdString());
  const auto at = header["runs.2.death"]["data_offsets"][0].get<qsizetype>();
  dead.replace(8 + static_cast<qsizetype>(head) + at + 4 * 7, 4, QByteArray(4, '\0'));
  row("a death before the birth", dead, "tensor 'runs.2.death': layer 0, head 0, token 7");
}

void ResultTest::bad_lifetimes_are_one_line() {
  QFETCH(QByteArray, bytes);
  QFETCH(QString, message);
  const QString path = written("bad.safetensors", bytes);
  const QString error = error_of(path);
  QVERIFY2(error.contains(message), qPrintable(error));
  QVERIFY2(!error.contains('\n'), qPrintable(error));
}

void ResultTest::a_file_of_several_results_opens_whole_or_by_number() {
  json one = json::parse(content(small_result()).toStdString());
  one["files"] = {{"timeline", nullptr}, {"lifetimes", nullptr}};
  json two = one;
  two["chunk"] = 4;
  for (json& run : two["runs"]) run.erase("timeline");  // --no-timeline
  const json several = {{"schema_version", 1}, {"results", {one, two}}};
  const QString path = written("several.json", QByteArray::fromStdString(several.dump()));
  const std::vector<ResultPtr> all = open_results(path.toStdString());
  QCOMPARE(all.size(), std::size_t{2});
  QCOMPARE(QString::fromStdString(all[1]->path.string()), path + "[1]");
  QCOMPARE(all[0]->chunk, RowIndex{0});
  QCOMPARE(all[1]->chunk, RowIndex{4});
  QVERIFY(all[0]->runs[0].bytes != nullptr);
  QVERIFY(all[1]->runs[0].bytes == nullptr);
  QCOMPARE(figure(all[1]->runs[1], "footprint"), figure(all[0]->runs[1], "footprint"));
  Document document;
  for (const ResultPtr& result : all) document.add(result);
  QCOMPARE(document.results().size(), std::size_t{2});  // none replaces the other
  const std::vector<ResultPtr> second = open_results(path.toStdString() + "[1]");
  QCOMPARE(second.size(), std::size_t{1});
  QCOMPARE(second[0]->chunk, RowIndex{4});
  QVERIFY(errors_of_all(path + "[2]").contains("holds the results 0 to 1, and no result 2"));
  QVERIFY(errors_of_all(small_result() + "[0]").contains("one result, which has no number"));
  QCOMPARE(open_results(small_result().toStdString()).size(), std::size_t{1});
}

void ResultTest::a_replay_is_a_run_for_every_pool() {
  const QString simulated = small_result();
  const QString path = written("replay.json", replay_of(simulated));
  const ResultPtr replay = open_result(path.toStdString());
  QCOMPARE(replay->runs.size(), std::size_t{2});
  const Run& ran_out = replay->runs[0];  // in the order of names
  const Run& blocks = replay->runs[1];
  QVERIFY(QString::fromStdString(blocks.label).endsWith("in paged16_per_head, measured"));
  QVERIFY(QString::fromStdString(blocks.klass).endsWith("on host, pages of 4.00 KiB"));
  QCOMPARE(blocks.bytes->at(0), 4096.0);
  QCOMPARE(blocks.bytes->at(9), 8192.0);  // holds from row 8 on
  QVERIFY(blocks.notes.empty() && blocks.entries == nullptr);
  QVERIFY(ran_out.bytes == nullptr);  // --no-timeline
  QVERIFY(QString::fromStdString(ran_out.notes.at(0)).contains("row 3: 4096 bytes asked, 100"));
  const std::vector<std::string> figures{kPredicted, kPool, kBacked};  // the device did not say
  QCOMPARE(peak_layouts(*replay, 1), figures);
  QCOMPARE(peak_total(*replay, 1, kPredicted, PeakPhase::decode), std::int64_t{6000});
  QCOMPARE(peak_total(*replay, 1, kPool, PeakPhase::peak), std::int64_t{6100});
  QCOMPARE(peak_total(*replay, 1, kBacked, PeakPhase::peak), std::int64_t{8192});

  Document document;
  document.add(replay);
  document.add(open_result(simulated.toStdString()));
  const auto& runs = document.runs();
  QCOMPARE(runs.size(), std::size_t{5});
  QCOMPARE(runs[3].run().policy, blocks.replayed);  // the simulated one, after `full`
  QCOMPARE(runs[3].colour, runs[0].colour);
  QVERIFY(runs[2].colour != runs[3].colour && runs[4].colour != runs[3].colour);

  json broken = json::parse(content(path).toStdString());
  broken["runs"][0]["layouts"]["paged16_per_head"]["timeline"]["backed"].push_back(1);
  QVERIFY(error_of(written("broken.json", QByteArray::fromStdString(broken.dump())))
              .contains("found 4 values, expected one for each of 3 rows"));
  broken["runs"][0]["layouts"] = json::object();
  QVERIFY(error_of(written("broken.json", QByteArray::fromStdString(broken.dump())))
              .contains("found no layout"));
}

KVSPAN_GUI_TEST(ResultTest, "result");

}  // namespace kvspan::gui::test

#include "result_test.moc"
