// From terms to kernels: one path a term, one block of workspace a call.

#include <algorithm>

#include "backend/cuda/call.h"
#include "product/cuda/ampere.h"
#include "product/cuda/few_rows.h"
#include "product/cuda/paths.h"

namespace graft::cuda {
namespace {

// The y that several terms add up, unless it is float32 itself: their sum is made in float32, in
// the workspace, and rounded once.
TensorView summed_output(std::span<const Term> terms) {
  for (std::size_t i = 1; i < terms.size(); ++i) {
    const Term& term = terms[i];
    const bool sums = term.accumulate && term.y.present() && term.y == terms[i - 1].y;
    if (sums && term.y.size() > 0 && term.y.dtype() != DType::kFloat32) return term.y;
  }
  return {};
}

struct Plan {
  std::vector<Term> terms;  // as they are run
  TensorView summed;        // absent: every term writes its own y
  std::size_t sum_bytes = 0, term_bytes = 0;

  Plan(std::span<const Term> all, const DeviceFacts& facts)
      : terms(all.begin(), all.end()), summed(summed_output(all)) {
    if (summed.present()) {
      sum_bytes = static_cast<std::size_t>(summed.size()) * sizeof(float);
      sum_bytes = (sum_bytes + 255) / 256 * 256;
      for (Term& term : terms) {
        if (term.y == summed) added_.push_back(&term);
      }
      aim(nullptr);
    }
    for (const Term& term : terms) term_bytes = std::max(term_bytes, bytes_of(term, facts));
  }

  // Points the terms that are added up at their sum.
  void aim(void* sum) {
    for (Term* term : added_) {
      term->y = TensorView(sum, DType::kFloat32, {summed.dim(0), summed.dim(1)}, summed.device());
    }
  }

  static std::size_t bytes_of(const Term& term, const DeviceFacts& facts) {
    switch (path_of(term, facts)) {
      case Path::kSmall:
        return 0;
      case Path::kFewRows:
        return few_rows_workspace(term);
      case Path::kAmpere:
        return ampere_workspace(term, facts);
      case Path::kGeneral:
        break;
    }
    return general_bytes(term, facts);
  }

 private:
  std::vector<Term*> added_;  // of `terms`, to one sum
};

void run_term(const Call& call, const Term& term, std::byte* workspace) {
  switch (path_of(term, call.facts())) {
    case Path::kSmall:
      return run_small(call, term);
    case Path::kFewRows:
      return run_few_rows(call, term, workspace);
    case Path::kAmpere:
      return run_ampere(call, term, workspace);
    case Path::kGeneral:
      return run_general(call, term, workspace);
  }
}

}  // namespace

Path path_of(const Term& term, const DeviceFacts& facts) {
  if (fits_small(term, facts)) return Path::kSmall;
  if (few_rows_takes(term).yes) return Path::kFewRows;
  if (ampere_takes(term).yes) return Path::kAmpere;
  return Path::kGeneral;
}

const char* name_of(Path path) {
  switch (path) {
    case Path::kSmall:
      return "small";
    case Path::kFewRows:
      return "few_rows";
    case Path::kAmpere:
      return "ampere";
    case Path::kGeneral:
      return "general";
  }
  return "";
}

void run(const char* op, Context& context, std::span<const Term> terms) {
  Call call(op, context);
  Plan plan(terms, call.facts());
  std::byte* const workspace = call.workspace(plan.sum_bytes + plan.term_bytes);
  if (plan.summed.present()) plan.aim(workspace);
  for (const Term& term : plan.terms) run_term(call, term, workspace + plan.sum_bytes);
  if (plan.summed.present()) {
    sum_partials(call, reinterpret_cast<const float*>(workspace), 1, {}, false, plan.summed);
  }
}

std::size_t scratch_bytes(std::span<const Term> terms) {
  if (terms.empty()) return 0;
  const Plan plan(terms, facts_of(terms.front().x.device().index));
  return plan.sum_bytes + plan.term_bytes;
}

}  // namespace graft::cuda
