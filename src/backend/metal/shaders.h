#pragma once

namespace graft::metal::shaders {

// The shaders' text, put into the library when it is built (cmake/GraftShaders.cmake).
extern const char* const kPhilox;     // src/backend/metal/philox.metal
extern const char* const kRows;       // src/backend/metal/rows.metal
extern const char* const kTile;       // src/backend/metal/tile.metal
extern const char* const kView;       // src/backend/metal/view.metal
extern const char* const kLayerNorm;  // src/layer_norm/metal.metal
extern const char* const kLora;       // src/lora/metal.metal
extern const char* const kLoraFew;    // src/lora/metal_few.metal
extern const char* const kLoraTiles;  // src/lora/metal_tiles.metal
extern const char* const kRmsNorm;    // src/rms_norm/metal.metal
extern const char* const kSoftmax;    // src/softmax/metal.metal

}  // namespace graft::metal::shaders
