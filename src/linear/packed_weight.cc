#include "graft/packed_weight.h"

#include <string>

#include "backend/bfloat16.h"
#include "backend/element.h"
#include "checks.h"
#include "graft/context.h"
#include "graft/error.h"
#include "linear/packed_weight_impl.h"
#include "product/cpu/packed_panels.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace graft {
namespace {

PackedWeight::Impl::Panels allocate(std::int64_t elements) {
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  const std::size_t bytes = static_cast<std::size_t>(elements) * sizeof(std::uint32_t);
  const std::size_t alignment = bytes >= kHugePage ? kHugePage : 64;
  const std::size_t rounded = (bytes + alignment) / alignment * alignment;
  PackedWeight::Impl::Panels panels(
      static_cast<std::uint32_t*>(std::aligned_alloc(alignment, rounded)));
  if (panels == nullptr) {
    throw Error(ErrorCode::kOutOfMemory,
                "[packed_weight] w: could not allocate " + std::to_string(rounded) + " bytes");
  }
#if defined(__linux__)
  // Panels are streamed: fewer page-table walks. Only a hint.
  if (bytes >= kHugePage) madvise(panels.get(), rounded, MADV_HUGEPAGE);
#endif
  return panels;
}

}  // namespace

PackedWeight::PackedWeight(const ConstTensorView& w, DType dtype, Packing packing)
    : impl_(std::make_unique<Impl>()) {
  const Check check("packed_weight");
  check.rank("w", w, 2);
  check.dtype("w", w, {DType::kFloat32, DType::kBFloat16});
  check.device("w", w, Device{});
  if (dtype != DType::kFloat32 && dtype != DType::kBFloat16) {
    check.fail(std::string("dtype: expected float32 or bfloat16, got ") + name_of(dtype));
  }
  const cpu::Kernels& kernels = cpu::kernels_for(dtype);
  impl_->out_features = w.dim(0);
  impl_->in_features = w.dim(1);
  impl_->dtype = dtype;
  impl_->kernels = &kernels;

  const cpu::Source source = cpu::Source::of(w);
  const auto pack = [&](const cpu::Source& s, std::int64_t n, std::int64_t k) {
    const std::int64_t size = cpu::packed_panels_size(kernels, n, k);
    Impl::Panels panels = allocate(size);
    cpu::pack_panels(Context(), kernels, s, n, k, panels.get());
    impl_->nbytes += static_cast<std::size_t>(size) * sizeof(std::uint32_t);
    return panels;
  };
  impl_->forward = pack(source, w.dim(0), w.dim(1));
  if (packing == Packing::kForwardAndBackward) {
    impl_->backward = pack(source.transposed(), w.dim(1), w.dim(0));
  }
}

PackedWeight::PackedWeight(PackedWeight&&) noexcept = default;
PackedWeight& PackedWeight::operator=(PackedWeight&&) noexcept = default;
PackedWeight::~PackedWeight() = default;

std::int64_t PackedWeight::out_features() const { return impl_->out_features; }
std::int64_t PackedWeight::in_features() const { return impl_->in_features; }
DType PackedWeight::dtype() const { return impl_->dtype; }
bool PackedWeight::serves_backward() const { return impl_->backward != nullptr; }
std::size_t PackedWeight::nbytes() const { return impl_->nbytes; }

void PackedWeight::unpack(const TensorView& w) const {
  const Check check("packed_weight.unpack");
  check.shape("w", w, {out_features(), in_features()});
  check.dtype("w", w, {DType::kFloat32, DType::kBFloat16});
  check.writable("w", w);
  const cpu::Kernels& kernels = *impl_->kernels;
  const std::int64_t width = kernels.width;
  const std::int64_t panel_size = kernels.column_panel_size(in_features());
  for (std::int64_t n = 0; n < out_features(); ++n) {
    const std::uint32_t* panel = impl_->forward.get() + n / width * panel_size + n % width;
    for (std::int64_t k = 0; k < in_features(); ++k) {
      const std::uint32_t bits = panel[k / kernels.k_per_step * width];
      const float value =
          kernels.bfloat16
              ? from_bfloat16(static_cast<std::uint16_t>(k % 2 == 0 ? bits : bits >> 16))
              : std::bit_cast<float>(bits);
      store_element(w, n, k, value);
    }
  }
}

}  // namespace graft
