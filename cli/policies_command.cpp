// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/commands.h"
#include "sim/policy/registry.h"
#include "sim/report/catalogue.h"

namespace kvspan::cli {
namespace {

void list_all() {
  std::vector<std::vector<std::string>> rows;
  std::size_t name = 0;
  std::size_t klass = 0;
  for (const PolicyEntry& e : registry()) {
    name = std::max(name, e.name.size());
    klass = std::max(klass, text_of(e.kind).size());
  }
  for (const PolicyEntry& e : registry())
    fmt::print("{:<{}}  {:<{}}  {}\n", e.name, name, text_of(e.kind), klass, e.summary);
  fmt::print(
      "\nkvspan policies NAME tells parameters, defaults, what a trace must hold, and the "
      "source.\n");
}

void show(const PolicyEntry& e) {
  fmt::print("{}: {}\n\n  class     {}\n  source    {}\n  evidence  {}\n  needs     {}\n", e.name,
             e.summary, text_of(e.kind), e.source, e.evidence, e.needs);
  if (!e.differs.empty()) fmt::print("  differs   {}\n", e.differs);
  if (!e.alone.empty()) fmt::print("  alone     no: {}\n", e.alone);
  if (e.parameters.empty()) return;
  fmt::print("\n");
  std::size_t name = 0;
  std::size_t value = std::string("(required)").size();
  for (const Parameter& p : e.parameters) {
    name = std::max(name, p.name.size());
    value = std::max(value, p.fallback.size());
  }
  for (const Parameter& p : e.parameters) {
    const std::string range =
        p.words().empty() ? p.unit : fmt::format("{}", fmt::join(p.words(), "|"));
    fmt::print("  {:<{}}  {:<{}}  {}{}\n", p.name, name,
               p.fallback.empty() ? "(required)" : p.fallback, value, p.help,
               range.empty() ? "" : fmt::format(" [{}]", range));
  }
}

}  // namespace

void add_policies(CLI::App& app) {
  auto name = std::make_shared<std::string>();
  auto markdown = std::make_shared<bool>(false);
  CLI::App* sub = app.add_subcommand(
      "policies", "Every policy: class, parameters with defaults and units, source");
  sub->add_option("name", *name, "One policy in full")->type_name("NAME");
  sub->add_flag("--markdown", *markdown,
                "The whole catalogue as Markdown (sim/policies/README.md)");
  sub->footer("\nExamples:\n  kvspan policies\n  kvspan policies snapkv");
  sub->callback([name, markdown] {
    if (*markdown) {
      fmt::print("{}", policies_markdown());
    } else if (name->empty()) {
      list_all();
    } else {
      show(find_policy(*name));
    }
  });
}

}  // namespace kvspan::cli
