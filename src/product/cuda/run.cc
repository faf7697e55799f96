// From terms to kernels: one path a term, one launch for those that go together, one block of
// workspace a call.

#include <algorithm>

#include "backend/cuda/call.h"
#include "product/cuda/ampere.h"
#include "product/cuda/few_rows.h"
#include "product/cuda/hopper.h"
#include "product/cuda/hopper_rows.h"
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

std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

// A term on one of Hopper's paths: tiles with what they make beside them, and outer products that
// they have no time for, as a term of its own, which reads the h that the tiles leave.
struct HopperTerms {
  bool few;  // rows
  Term tiles;
  Term outer;                     // without outer products: none are left
  std::vector<std::size_t> of_h;  // the outer products of the h that the tiles make
  std::size_t h_bytes = 0;        // of an h that only they ask for
  std::size_t rest_bytes = 0;     // of either term, one after the other

  HopperTerms(Path path, const Term& term, const DeviceFacts& facts)
      : few(path == Path::kHopperRows), tiles(term) {
    if (!term.outer_products.empty() && (few || !hopper_makes_outer(term, facts))) {
      outer.x = term.x;
      outer.multiply = term.multiply;
      outer.outer_products = std::move(tiles.outer_products);
      tiles.outer_products.clear();
      for (std::size_t i = 0; i < outer.outer_products.size(); ++i) {
        if (!outer.outer_products[i].coefficients.present()) of_h.push_back(i);
      }
      if (!of_h.empty() && !term.pair.h.present()) {
        h_bytes =
            aligned(static_cast<std::size_t>(term.x.dim(0) * term.pair.rank()) * sizeof(float));
      }
      use_h(nullptr);
      rest_bytes = ampere_workspace(outer, facts);
    }
    rest_bytes = std::max(rest_bytes, few ? hopper_rows_workspace(tiles, facts)
                                          : hopper_workspace_bytes({&tiles, 1}, facts));
  }

  std::size_t bytes() const { return h_bytes + rest_bytes; }

  // Puts an h that is asked for at `memory`, and lets the outer products read h.
  void use_h(void* memory) {
    LowRank& pair = tiles.pair;
    if (h_bytes > 0) {
      pair.h = TensorView(memory, DType::kFloat32, {tiles.x.dim(0), pair.rank()}, tiles.x.device());
    }
    for (const std::size_t i : of_h) outer.outer_products[i].coefficients = pair.h;
  }
};

// A term without what it has beside its base product.
Term base_of(const Term& term) {
  Term base = term;
  base.pair = {}, base.outer_products.clear();
  return base;
}

// Hopper's tiles take dropout where the rank is small. Elsewhere the base product alone is theirs,
// and the pair is added to y by the matrix units' other path: y goes through memory once more,
// which costs a tenth of what the whole term would there.
bool parts_for_hopper(const Term& term, const DeviceFacts& facts) {
  const bool drops = term.pair.input_dropout != nullptr || term.pair.output_dropout != nullptr;
  if (!drops || path_of(term, facts) == Path::kHopper) return false;
  const Path base = path_of(base_of(term), facts);
  return base == Path::kHopper || base == Path::kHopperRows;
}

std::vector<Term> parted(std::span<const Term> terms, const DeviceFacts& facts) {
  std::vector<Term> parts;
  for (const Term& term : terms) {
    parts.push_back(term);
    if (!parts_for_hopper(term, facts)) continue;
    parts.back() = base_of(term);
    parts.push_back(term);
    Term& pair = parts.back();
    pair.w = {}, pair.bias = {}, pair.accumulate = true;
  }
  return parts;
}

// Whether a term of one row can be in one launch with `others`: none waits for another.
bool goes_with(const Term& term, std::span<const Term> others) {
  return std::all_of(others.begin(), others.end(), [&](const Term& other) {
    return term.x == other.x && term.multiply == other.multiply && !(term.y == other.y);
  });
}

// Terms that run together, on one path.
struct Job {
  Path path;
  std::size_t first, count;
};

struct Plan {
  std::span<const Term> terms;  // as they are run: those that were given, or others in their place
  std::vector<Job> jobs;
  TensorView summed;  // absent: every term writes its own y
  std::size_t sum_bytes = 0, job_bytes = 0;

  Plan(std::span<const Term> all, const DeviceFacts& facts)
      : terms(all), summed(summed_output(all)) {
    if (summed.present()) {  // what is summed in float32 is no term for Hopper
      others_.assign(all.begin(), all.end());
      sum_bytes = aligned(static_cast<std::size_t>(summed.size()) * sizeof(float));
      for (Term& term : others_) {
        if (term.y == summed) added_.push_back(&term);
      }
      aim(nullptr);
      terms = others_;
    } else if (std::any_of(all.begin(), all.end(),
                           [&](const Term& term) { return parts_for_hopper(term, facts); })) {
      others_ = parted(all, facts);
      terms = others_;
    }
    for (std::size_t i = 0; i < terms.size(); i += jobs.back().count) {
      const Path path = path_of(terms[i], facts);
      std::size_t count = 1;
      if (path == Path::kHopper) {
        while (i + count < terms.size() && path_of(terms[i + count], facts) == path) ++count;
        count = hopper_takes_together(terms.subspan(i, count));
      } else if (path == Path::kFewRows && terms[i].x.dim(0) == 1) {
        while (i + count < terms.size() && count < kMostFewLayers &&
               goes_with(terms[i + count], terms.subspan(i, count)) &&
               path_of(terms[i + count], facts) == path) {
          ++count;
        }
      }
      jobs.push_back({path, i, count});
      job_bytes = std::max(job_bytes, bytes_of(jobs.back(), facts));
    }
  }

  std::span<const Term> terms_of(const Job& job) const {
    return terms.subspan(job.first, job.count);
  }

  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  // Points the terms that are added up at their sum.
  void aim(void* sum) {
    for (Term* term : added_) {
      term->y = TensorView(sum, DType::kFloat32, {summed.dim(0), summed.dim(1)}, summed.device());
    }
  }

 private:
  std::size_t bytes_of(const Job& job, const DeviceFacts& facts) const {
    const Term& term = terms[job.first];
    switch (job.path) {
      case Path::kSmall:
        return small_bytes(term, facts);
      case Path::kFewRows:
        return few_rows_workspace(terms_of(job));
      case Path::kFewFloats:
        return few_floats_bytes(term);
      case Path::kHopperRows:
      case Path::kHopper:
        return job.count > 1 ? hopper_workspace_bytes(terms_of(job), facts)
                             : HopperTerms(job.path, term, facts).bytes();
      case Path::kAmpere:
        return ampere_workspace(term, facts);
      case Path::kGeneral:
        break;
    }
    return general_bytes(term, facts);
  }

  std::vector<Term> others_;
  std::vector<Term*> added_;  // of them, to one sum
};

void run_on_hopper(const char* op, const Call& call, Path path, const Term& term,
                   std::byte* workspace) {
  HopperTerms terms(path, term, call.facts());
  terms.use_h(workspace);
  if (terms.few) {
    run_hopper_rows(op, call, terms.tiles, workspace + terms.h_bytes);
  } else {
    run_hopper(op, call, {&terms.tiles, 1}, workspace + terms.h_bytes);
  }
  if (!terms.outer.outer_products.empty()) {
    run_ampere(call, terms.outer, workspace + terms.h_bytes);
  }
}

void run_job(const char* op, const Call& call, Path path, std::span<const Term> terms,
             std::byte* workspace) {
  const Term& term = terms[0];
  switch (path) {
    case Path::kSmall:
      return run_small(call, term, workspace);
    case Path::kFewRows:
      return run_few_rows(call, terms, workspace);
    case Path::kFewFloats:
      return run_few_floats(call, term, workspace);
    case Path::kHopperRows:
    case Path::kHopper:
      if (terms.size() > 1) return run_hopper(op, call, terms, workspace);
      return run_on_hopper(op, call, path, term, workspace);
    case Path::kAmpere:
      return run_ampere(call, term, workspace);
    case Path::kGeneral:
      return run_general(call, term, workspace);
  }
}

// hopper's tiles are better where there are two tiles above each other, if it takes them.
bool prefers_hopper_rows(const Term& term, const DeviceFacts& facts) {
  if (!hopper_rows_takes(term, facts).yes) return false;
  return term.x.dim(0) <= 128 || !hopper_takes(term, facts).yes;
}

}  // namespace

Path path_of(const Term& term, const DeviceFacts& facts) {
  if (fits_small(term, facts)) return Path::kSmall;
  const bool few = few_rows_takes(term).yes, rows = prefers_hopper_rows(term, facts);
  // Where both do, few_rows is faster as long as W costs more than what it does besides.
  const std::int64_t most_few = term.pair.present() ? 1 : 4;
  if (few && (!rows || term.x.dim(0) <= most_few)) return Path::kFewRows;
  if (few_floats_takes(term)) return Path::kFewFloats;
  if (rows) return Path::kHopperRows;
  if (hopper_takes(term, facts).yes) return Path::kHopper;
  if (ampere_takes(term).yes) return Path::kAmpere;
  return Path::kGeneral;
}

const char* name_of(Path path) {
  switch (path) {
    case Path::kSmall:
      return "small";
    case Path::kFewRows:
    case Path::kFewFloats:
      return "few_rows";
    case Path::kHopperRows:
      return "hopper_rows";
    case Path::kHopper:
      return "hopper";
    case Path::kAmpere:
      return "ampere";
    case Path::kGeneral:
      return "general";
  }
  return "";
}

const char* path_name(const Term& term, const DeviceFacts& facts) {
  if (!parts_for_hopper(term, facts)) return name_of(path_of(term, facts));
  const bool few = path_of(base_of(term), facts) == Path::kHopperRows;
  return few ? "hopper_rows+ampere" : "hopper+ampere";
}

void run(const char* op, Context& context, std::span<const Term> terms) {
  Call call(op, context);
  Plan plan(terms, call.facts());
  std::byte* const workspace = call.workspace(plan.sum_bytes + plan.job_bytes);
  if (plan.summed.present()) plan.aim(workspace);
  for (const Job& job : plan.jobs) {
    run_job(op, call, job.path, plan.terms_of(job), workspace + plan.sum_bytes);
  }
  if (plan.summed.present()) {
    sum_partials(call, reinterpret_cast<const float*>(workspace), 1, {}, false, plan.summed);
  }
}

std::size_t scratch_bytes(std::span<const Term> terms) {
  if (terms.empty()) return 0;
  const Plan plan(terms, facts_of(terms.front().x.device().index));
  return plan.sum_bytes + plan.job_bytes;
}

}  // namespace graft::cuda
