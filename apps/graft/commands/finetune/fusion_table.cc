#include "apps/graft/commands/finetune/fusion_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <set>
#include <utility>

namespace graft::app {
namespace {

using graft::mlx::FusionRecord;
using graft::mlx::Pass;

struct Count {
  std::uint64_t fused = 0;
  std::uint64_t composed = 0;

  void add(const FusionRecord& record) { (record.fused ? fused : composed) += record.runs; }
  bool all_fused() const { return fused > 0 && composed == 0; }
  std::string text() const {
    if (fused + composed == 0) return "-";
    if (composed == 0) return "fused";
    if (fused == 0) return "composed";
    return fmt::format("fused {} of {}", fused, fused + composed);
  }
};

struct Row {
  Count forward;
  Count backward;
  std::set<std::string> modules;
};

// "q_proj" of "model.layers.3.self_attn.q_proj".
std::string kind_of(const std::string& module) {
  const std::size_t dot = module.rfind('.');
  return dot == std::string::npos ? module : module.substr(dot + 1);
}

}  // namespace

FusionSummary summarize_fusion(const std::vector<FusionRecord>& records,
                               const AdapterLayout& layout, bool trained) {
  std::map<std::pair<std::string, std::string>, Row> rows;  // by kind and operation
  std::map<std::string, Row> modules;
  std::set<std::string> reasons;
  for (const FusionRecord& record : records) {
    if (record.pass == Pass::kTangent) continue;
    for (Row* row : {&rows[{kind_of(record.module), record.op}], &modules[record.module]}) {
      (record.pass == Pass::kForward ? row->forward : row->backward).add(record);
      row->modules.insert(record.module);
    }
    if (!record.fused) reasons.insert(fmt::format("{}: {}", record.op, record.reason));
  }

  FusionSummary summary;
  for (const AdaptedModule& adapted : layout.modules()) {
    const Row& row = modules[adapted.path()];
    if (!row.forward.all_fused() || (trained && !row.backward.all_fused())) {
      summary.unfused_modules.push_back(adapted.path());
    }
  }

  std::size_t width = std::string("forward").size();
  for (const auto& [key, row] : rows) width = std::max(width, row.forward.text().size());
  const auto out = std::back_inserter(summary.table);
  fmt::format_to(out, "{:<26}{:<22}{:>7}  {:<{}}  {}\n", "module", "operation", "modules",
                 "forward", width, "backward");
  const auto add_row = [&](const auto& entry) {
    const auto& [key, row] = entry;
    fmt::format_to(out, "{:<26}{:<22}{:>7}  {:<{}}  {}\n", key.first, key.second,
                   row.modules.size(), row.forward.text(), width, row.backward.text());
  };
  // Projections in the order of a layer, then the rest.
  for (const Projection projection : kAllProjections) {
    for (const auto& entry : rows) {
      if (entry.first.first == name_of(projection)) add_row(entry);
    }
  }
  for (const auto& entry : rows) {
    if (!projection_named(entry.first.first)) add_row(entry);
  }
  for (const std::string& reason : reasons) fmt::format_to(out, "not fused: {}\n", reason);
  return summary;
}

}  // namespace graft::app
