// SPDX-License-Identifier: Apache-2.0
// Tests of the viewer with Qt's own library: one class a file, all in one program, which is told
// the class to run. See main.cpp.
#pragma once

#include <QDir>
#include <QObject>
#include <QTemporaryDir>
#include <QtTest>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "gui/model/document.h"

namespace kvspan::gui::test {

struct TestClass {
  std::string name;
  std::function<std::unique_ptr<QObject>()> make;
};
std::vector<TestClass>& test_classes();

template <class T>
bool add_test_class(const std::string& name) {
  test_classes().push_back({name, [] { return std::make_unique<T>(); }});
  return true;
}

// A result of the bundled trace with its timeline and lifetimes, made once for all tests of the
// process: 512 tokens as the prompt, `full`, a few that evict, one that selects and one that
// quantises, at 20 %.
[[nodiscard]] QString bundled_result();
// One of a trace of 12 tokens, one layer and one KV head: `full` and two that evict, at 50 %.
[[nodiscard]] QString small_result();
// bundled_result() without what its JSON names.
[[nodiscard]] QString bundled_json_alone();
// A result of one layer and head in which entry i dies at deaths[i]: a timeline in work_folder().
[[nodiscard]] QString result_of_deaths(const QString& name,
                                       const std::vector<std::uint32_t>& deaths);
// The timelines of a result JSON, which opened results do not keep: those of its runs.
[[nodiscard]] nlohmann::json timelines_of(const QString& path);
// A folder of this process, removed at its end.
[[nodiscard]] QDir work_folder();
// Where pictures that a person looks at are left: a folder of the build.
[[nodiscard]] QDir picture_folder();

}  // namespace kvspan::gui::test

// Behind a class `T : public QObject` with Q_OBJECT in NAME_test.cpp: makes it a test of that name.
#define KVSPAN_GUI_TEST(T, name) \
  static const bool added_##T = kvspan::gui::test::add_test_class<T>(name)
