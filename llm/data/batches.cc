#include "graft/llm/data/batches.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <utility>

#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

// Uniform below `bound`. std::uniform_int_distribution may differ between standard libraries; the
// generator itself may not.
std::uint64_t below(std::mt19937_64& random, std::uint64_t bound) {
  constexpr std::uint64_t kMax = std::numeric_limits<std::uint64_t>::max();
  const std::uint64_t fair = kMax - kMax % bound;
  std::uint64_t value = random();
  while (value >= fair) value = random();
  return value % bound;
}

void check_positive(const char* flag, std::int64_t value) {
  if (value < 1) throw UserError(fmt::format("{} is {}, expected at least 1", flag, value));
}

}  // namespace

std::vector<std::size_t> permutation(std::size_t size, std::uint64_t seed, std::uint64_t epoch) {
  const auto low = [](std::uint64_t value) { return static_cast<std::uint32_t>(value); };
  const auto high = [](std::uint64_t value) { return static_cast<std::uint32_t>(value >> 32); };
  std::seed_seq mixed{low(seed), high(seed), low(epoch), high(epoch)};
  std::mt19937_64 random(mixed);
  std::vector<std::size_t> order(size);
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (std::size_t left = size; left > 1; --left) {
    std::swap(order[left - 1], order[below(random, left)]);
  }
  return order;
}

Batches::Batches(const std::vector<Sample>& samples, const BatchOptions& options)
    : samples_(samples), options_(options) {
  check_positive("--batch-size", options.batch_size);
  check_positive("the padding multiple", options.pad_multiple);
  if (samples.empty()) throw UserError("no samples to make batches of");
  for (const Sample& sample : samples) {
    if (sample.tokens.size() < 2) throw UserError("a sample of fewer than two tokens");
  }

  std::vector<std::size_t> by_length(samples.size());
  std::iota(by_length.begin(), by_length.end(), std::size_t{0});
  std::stable_sort(by_length.begin(), by_length.end(), [&](std::size_t a, std::size_t b) {
    return samples[a].tokens.size() < samples[b].tokens.size();
  });
  const auto batch_size = static_cast<std::size_t>(options.batch_size);
  for (std::size_t i = 0; i < by_length.size(); i += batch_size) {
    const std::size_t end = std::min(i + batch_size, by_length.size());
    groups_.emplace_back(by_length.begin() + static_cast<std::ptrdiff_t>(i),
                         by_length.begin() + static_cast<std::ptrdiff_t>(end));
  }
}

const Batches::Group& Batches::group_at(std::int64_t step) {
  if (step < 0) throw UserError(fmt::format("batches: expected a step from 0 on, got {}", step));
  if (const std::int64_t epoch = step / per_epoch(); epoch != epoch_) {
    order_ = permutation(groups_.size(), options_.seed, static_cast<std::uint64_t>(epoch));
    epoch_ = epoch;
  }
  return groups_[order_[static_cast<std::size_t>(step % per_epoch())]];
}

Batch Batches::at(std::int64_t step) { return make(group_at(step)); }

BatchShape Batches::shape_of(const Group& group) const {
  std::size_t longest = 0;
  for (const std::size_t i : group) longest = std::max(longest, samples_[i].tokens.size());
  // The last token of a sample is only ever a target.
  const std::int64_t multiple = options_.pad_multiple;
  const std::int64_t length =
      (static_cast<std::int64_t>(longest) - 1 + multiple - 1) / multiple * multiple;
  return {static_cast<std::int64_t>(group.size()), length};
}

Batch Batches::make(const Group& group) const {
  Batch batch;
  const BatchShape shape = shape_of(group);
  const auto length = static_cast<std::size_t>(shape.length);
  batch.batch_size = shape.batch_size;
  batch.length = shape.length;
  batch.tokens.assign(group.size() * length, options_.pad_token);
  batch.targets.assign(group.size() * length, kIgnoreIndex);
  for (std::size_t row = 0; row < group.size(); ++row) {
    const Sample& sample = samples_[group[row]];
    for (std::size_t t = 0; t + 1 < sample.tokens.size(); ++t) {
      batch.tokens[row * length + t] = sample.tokens[t];
      if (!sample.is_target[t + 1]) continue;
      batch.targets[row * length + t] = sample.tokens[t + 1];
      ++batch.num_targets;
    }
    batch.num_inputs += static_cast<std::int64_t>(sample.tokens.size()) - 1;
  }
  return batch;
}

}  // namespace graft::llm
