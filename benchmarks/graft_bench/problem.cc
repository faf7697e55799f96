#include "benchmarks/graft_bench/problem.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "benchmarks/graft_bench/arithmetic.h"
#include "graft/context.h"

namespace graft::bench {
namespace {

constexpr std::size_t kCacheLine = 64;

mx::array random_array(mx::Shape shape, const Case& item, int seed) {
  const mx::array values =
      mx::random::normal(shape, mx::float32, mx::random::key(static_cast<std::uint64_t>(seed)));
  mx::array array = mx::contiguous(mx::astype(values, item.bf16 ? mx::bfloat16 : mx::float32));
  mx::eval(array);
  return array;
}

// Of the cache that a core has for itself.
std::size_t core_cache_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  const long bytes = ::sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return static_cast<std::size_t>(bytes);
#endif
  return std::size_t{1} << 20;
}

int narrow(std::int64_t size) { return static_cast<int>(size); }

}  // namespace

Buffer::Buffer(std::size_t bytes) {
  const std::size_t rounded =
      (std::max<std::size_t>(bytes, 1) + kCacheLine - 1) & ~(kCacheLine - 1);
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(kCacheLine, rounded)));
  if (!data_) throw std::bad_alloc();
  std::memset(data_.get(), 0, rounded);
}

Buffer::Buffer(const mx::array& array) : Buffer(array.nbytes()) {
  std::memcpy(data_.get(), array.data<std::byte>(), array.nbytes());
}

void Buffer::Free::operator()(std::byte* data) const { std::free(data); }

Tensors::Tensors(const Case& item, int seed)
    : x(random_array({narrow(item.batch), narrow(item.sequence), narrow(item.in)}, item, seed)),
      dy(random_array({narrow(item.batch), narrow(item.sequence), narrow(item.out)}, item,
                      seed + 1)),
      w(random_array({item.op == Op::kLoraDelta ? 0 : narrow(item.out), narrow(item.in)}, item,
                     seed + 2)),
      a(random_array({narrow(item.in), narrow(item.rank)}, item, seed + 3)),
      b(random_array({narrow(item.rank), narrow(item.out)}, item, seed + 4)),
      raw_x(x),
      raw_dy(dy),
      raw_w(w),
      raw_a(a),
      raw_b(b) {
  if (item.op != Op::kLoraDelta) {
    packed =
        mlx::pack(w, item.bf16 ? mx::bfloat16 : mx::float32, item.pass == Pass::kForwardBackward);
  }
  const auto rows = static_cast<std::size_t>(item.rows());
  const auto in = static_cast<std::size_t>(item.in);
  const auto out = static_cast<std::size_t>(item.out);
  const auto rank = static_cast<std::size_t>(item.rank);
  const std::size_t element = item.bf16 ? 2 : 4;
  y = Buffer(rows * out * element);
  dx = Buffer(rows * in * element);
  h = Buffer(rows * rank * 4);
  g = Buffer(rows * rank * 4);
  da = Buffer(in * rank * 4);
  db = Buffer(rank * out * 4);
}

std::vector<Tensors> make_sets(const Case& item, double rotate_bytes) {
  const auto count = static_cast<int>(std::ceil(rotate_bytes / bytes(item)));
  std::vector<Tensors> sets;
  for (int i = 0; i < std::max(1, count); ++i) sets.emplace_back(item, i * 8);
  return sets;
}

double usual_rotate_bytes() {
  return 2.0 * num_threads() * static_cast<double>(core_cache_bytes());
}

}  // namespace graft::bench
