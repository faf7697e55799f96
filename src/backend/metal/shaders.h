#pragma once

namespace graft::metal::shaders {

// The shaders' text, put into the library when it is built (cmake/GraftShaders.cmake).
extern const char* const kPhilox;       // src/backend/metal/philox.metal
extern const char* const kRows;         // src/backend/metal/rows.metal
extern const char* const kView;         // src/backend/metal/view.metal
extern const char* const kLayerNorm;    // src/layer_norm/metal.metal
extern const char* const kLora;         // src/lora/metal.metal
extern const char* const kFew;          // src/product/metal/few.metal
extern const char* const kProductTile;  // src/product/metal/product_tile.metal
extern const char* const kShrink;       // src/product/metal/shrink.metal
extern const char* const kTile;         // src/product/metal/tile.metal
extern const char* const kRmsNorm;      // src/rms_norm/metal.metal
extern const char* const kSoftmax;      // src/softmax/metal.metal

}  // namespace graft::metal::shaders
