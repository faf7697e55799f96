#include "weight/cpu/dense.h"

#include <bit>
#include <string>

#include "backend/bfloat16.h"
#include "backend/element.h"
#include "graft/context.h"
#include "graft/error.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace graft::cpu {

DensePanels::DensePanels(const Check& check, const ConstTensorView& w, DType multiply,
                         Packing directions)
    : out_features_(w.dim(0)), in_features_(w.dim(1)), dtype_(multiply) {
  check.dtype("w", w, {DType::kFloat32, DType::kBFloat16});
  if (multiply != DType::kFloat32 && multiply != DType::kBFloat16) {
    check.fail(std::string("multiply: expected float32 or bfloat16, got ") + name_of(multiply));
  }
  format_ = panel_format(multiply);

  const Source source = Source::of(w);
  const auto pack = [&](const Source& s, std::int64_t n, std::int64_t k) {
    Block panels = allocate(check, packed_panels_size(format_, n, k));
    pack_panels(Context(), format_, s, n, k, panels.get());
    return panels;
  };
  forward_ = pack(source, out_features_, in_features_);
  if (directions == Packing::kForwardAndBackward) {
    backward_ = pack(source.transposed(), in_features_, out_features_);
  }
}

DensePanels::Block DensePanels::allocate(const Check& check, std::int64_t elements) {
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  const std::size_t bytes = static_cast<std::size_t>(elements) * sizeof(std::uint32_t);
  const std::size_t alignment = bytes >= kHugePage ? kHugePage : 64;
  const std::size_t rounded = (bytes + alignment) / alignment * alignment;
  Block panels(static_cast<std::uint32_t*>(std::aligned_alloc(alignment, rounded)));
  if (panels == nullptr) {
    check.fail(ErrorCode::kOutOfMemory,
               "w: could not allocate " + std::to_string(rounded) + " bytes");
  }
#if defined(__linux__)
  // Panels are streamed: fewer page-table walks. Only a hint.
  if (bytes >= kHugePage) madvise(panels.get(), rounded, MADV_HUGEPAGE);
#endif
  nbytes_ += bytes;
  return panels;
}

void DensePanels::check_usable(const Check& check) const {
  check.that(format_.width == panel_format(dtype_).width,
             "weight: packed for another instruction set than set_cpu_isa() chose; pack it again");
}

void DensePanels::unpack(const TensorView& w) const {
  const std::int64_t width = format_.width;
  const std::int64_t panel_size = format_.column_panel_size(in_features_);
  for (std::int64_t n = 0; n < out_features_; ++n) {
    const std::uint32_t* panel = forward_.get() + n / width * panel_size + n % width;
    for (std::int64_t k = 0; k < in_features_; ++k) {
      const std::uint32_t bits = panel[k / format_.k_per_step * width];
      const float value =
          format_.bfloat16
              ? from_bfloat16(static_cast<std::uint16_t>(k % 2 == 0 ? bits : bits >> 16))
              : std::bit_cast<float>(bits);
      store_element(w, n, k, value);
    }
  }
}

const std::uint32_t* packed_panels(const Weight& weight, Direction direction) {
  if (!weight.is_packed()) return nullptr;
  // Dense panels are the one thing that check_weight lets through to the CPU.
  return static_cast<const DensePanels*>(weight.storage())->panels(direction);
}

}  // namespace graft::cpu
