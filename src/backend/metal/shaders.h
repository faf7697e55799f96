#pragma once

namespace graft::metal::shaders {

// The shaders' text, put into the library when it is built (cmake/GraftShaders.cmake).
extern const char* const kPhilox;  // src/backend/metal/philox.metal
extern const char* const kLora;    // src/lora/metal.metal

}  // namespace graft::metal::shaders
