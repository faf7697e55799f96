// The reader of adapter_config.json: the input is the file.

#include "graft/llm/adapter/adapter_config.h"
#include "graft/llm/model/model_names.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace graft::llm;
  using namespace graft::llm::fuzz;
  read_or_refuse([&] {
    const AdapterConfig config = read_adapter_config(view(data, size), kName);
    require(config.options.rank >= 1, "a rank is at least 1");
    require(config.options.alpha > 0, "alpha is above 0");
    require(config.options.dropout >= 0 && config.options.dropout < 1, "dropout is below 1");
    require(!config.options.targets.empty(), "an adapter adapts something");
    for (const int layer : config.options.layers) require(layer >= 0, "layers are numbers");
    require(same_model(config.base_model, config.base_model), "a model is itself");
  });
  return 0;
}
