#include "backend/table.h"
#include "graft/attention.h"

namespace graft::cuda {
namespace {

// Hosts have FlashAttention or cuDNN's, which nothing here could beat.
Support left_to_hosts() {
  return Support::no("attention on CUDA is left to the host's own kernels");
}

}  // namespace

Support supports(const AttentionForward&) { return left_to_hosts(); }
Support supports(const AttentionBackward&) { return left_to_hosts(); }
std::size_t scratch_bytes(const AttentionForward&, int) { return 0; }
std::size_t scratch_bytes(const AttentionBackward&, int) { return 0; }

void attention_forward(Context&, const AttentionForward&) { require("attention", left_to_hosts()); }

void attention_backward(Context&, const AttentionBackward&) {
  require("attention_backward", left_to_hosts());
}

}  // namespace graft::cuda
