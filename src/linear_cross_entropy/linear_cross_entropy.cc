#include "graft/linear_cross_entropy.h"

#include "backend/table.h"
#include "weight/weight.h"

namespace graft {

namespace {

constexpr const char* kOp = "linear_cross_entropy";

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
  return supports_on(params.x.device(), params);
}

std::size_t scratch_bytes(const LinearCrossEntropy& params, int threads) {
  return scratch_bytes_on(params.x.device(), kOp, params, threads);
}

void linear_cross_entropy(Context& context, const LinearCrossEntropy& params) {
  check_params(params);
  run_on(params.x.device(), kOp, context, params);
}

}  // namespace graft
