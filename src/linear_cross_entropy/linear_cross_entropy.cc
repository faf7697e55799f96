#include "graft/linear_cross_entropy.h"

#include <string>

#include "checks.h"
#include "linear_cross_entropy/cpu.h"
#include "weight/weight.h"

namespace graft {

namespace {

constexpr const char* kOp = "linear_cross_entropy";

void check_targets(const Check& check, const LinearCrossEntropy& p) {
  const std::int64_t vocabulary = p.weight.out_features();
  for (std::int64_t row = 0; row < p.targets.dim(0); ++row) {
    const std::int32_t target = p.targets.data_as<std::int32_t>()[row * p.targets.stride(0)];
    if (target == p.ignore_index || (target >= 0 && target < vocabulary)) continue;
    check.fail("targets: expected 0 to " + std::to_string(vocabulary - 1) + ", or " +
               std::to_string(p.ignore_index) + " to ignore, got " + std::to_string(target) +
               " at row " + std::to_string(row));
  }
}

void check_params(const LinearCrossEntropy& p) {
  const Check check(kOp);
  const Device device = p.x.device();
  check_weight(check, p.weight, device,
               p.dx.present() ? Direction::kBackward : Direction::kForward);
  check.rank("x", p.x, 2);
  check.shape("x", p.x, {p.x.dim(0), p.weight.in_features()});
  check.last_axis_dense("x", p.x);
  check.shape("targets", p.targets, {p.x.dim(0)});
  check.dtype("targets", p.targets, {DType::kInt32});
  check.device("targets", p.targets, device);
  check.shape("losses", p.losses, {p.x.dim(0)});
  check.dtype("losses", p.losses, {DType::kFloat32});
  check.writable("losses", p.losses);
  check.device("losses", p.losses, device);
  if (p.dx.present()) {
    check.shape("dx", p.dx, {p.x.dim(0), p.weight.in_features()});
    check.dtype("dx", p.dx, {p.x.dtype()});
    check.rows_output("dx", p.dx, device);
  }
}

}  // namespace

Support supports(const LinearCrossEntropy& params) {
  return all_of(
      {on_cpu(params.x.device()), float_on_cpu("x", params.x), weight_on_cpu(params.weight)});
}

void linear_cross_entropy(Context& context, const LinearCrossEntropy& params) {
  check_params(params);
  require(kOp, supports(params));
  check_targets(Check(kOp), params);
  cpu::linear_cross_entropy(context, params);
}

}  // namespace graft
