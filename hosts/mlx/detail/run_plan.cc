#include <mlx/allocator.h>
#include <mlx/backend/cpu/encoder.h>
#include <mlx/backend/metal/metal.h>

#include <atomic>
#include <utility>

#include "graft/mlx/detail/metal_runner.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx::detail {
namespace {

// One for the process, as it would have one Metal.
std::atomic<MetalStandin*> the_standin = nullptr;

void run_on_standin(const metal::Plan& plan, Arrays temporaries, const Arrays& inputs,
                    const Arrays& outputs, mx::Stream stream) {
  auto& encoder = mx::cpu::get_command_encoder(stream);
  encoder.dispatch([=, steps = plan.steps, standin = metal_standin()] {
    for (const metal::Step& step : steps) {
      Arrays buffers;
      for (const auto* operands : {&step.reads, &step.writes}) {
        for (const metal::Operand& operand : *operands) {
          buffers.push_back(buffer_of(operand, inputs, outputs, temporaries));
        }
      }
      standin->launch(step, buffers);
    }
  });
}

}  // namespace

MetalStandin* set_metal_standin(MetalStandin* standin) { return the_standin.exchange(standin); }
MetalStandin* metal_standin() { return the_standin; }

bool on_metal(mx::Stream stream) {
  if (stream.device == mx::Device::cpu) return the_standin != nullptr;
  return mx::metal::is_available();
}

const mx::array& buffer_of(const metal::Operand& operand, const Arrays& inputs,
                           const Arrays& outputs, const Arrays& temporaries) {
  const Arrays& of = operand.of == metal::Operand::Of::kInputs    ? inputs
                     : operand.of == metal::Operand::Of::kOutputs ? outputs
                                                                  : temporaries;
  return of[static_cast<std::size_t>(operand.index)];
}

void run_plan(const metal::Plan& plan, const Arrays& inputs, Arrays& outputs, mx::Stream stream) {
  for (mx::array& output : outputs) output.set_data(mx::allocator::malloc(output.nbytes()));
  Arrays temporaries;
  for (const auto& [dtype, shape] : plan.temporaries) {
    mx::array memory({shape.begin(), shape.end()}, dtype_of(dtype), nullptr, {});
    memory.set_data(mx::allocator::malloc(memory.nbytes()));
    temporaries.push_back(std::move(memory));
  }
  if (stream.device == mx::Device::cpu) {
    run_on_standin(plan, std::move(temporaries), inputs, outputs, stream);
  } else {
    run_on_gpu(plan, inputs, outputs, temporaries, stream);
  }
}

mx::array row_contiguous(const mx::array& x, mx::Stream stream) {
  if (x.flags().row_contiguous) return x;
  if (stream.device != mx::Device::cpu) return copied_on_gpu(x, stream);
  metal_standin()->copied(x);
  return dense_array(x, stream);
}

}  // namespace graft::mlx::detail
