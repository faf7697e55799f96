#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace graft::bench {

/// Which operation of the core is measured.
enum class Op : std::uint8_t {
  kLinear,      ///< y = x·Wᵀ, the base product alone.
  kLoraDelta,   ///< y = scaling·(x·A)·B.
  kLoraLinear,  ///< y = x·Wᵀ + scaling·(drop(x)·A)·B.
};

/// What of it is timed together.
enum class Pass : std::uint8_t {
  kForward,          ///< y.
  kForwardBackward,  ///< y, then dx, dA and dB (of a linear: dx).
};

const char* name_of(Op op);      ///< "linear", "lora_delta", "lora_linear".
const char* name_of(Pass pass);  ///< "forward", "forward+backward".

/// One line of the result: x is (batch, sequence, in_features), W (out_features, in_features).
struct Case {
  std::string set;  ///< Which list the shape comes from: "plan", "grid", "model", "wide".
  Op op = Op::kLinear;
  Pass pass = Pass::kForward;
  std::int64_t batch = 1;
  std::int64_t sequence = 1;
  std::int64_t in = 0;
  std::int64_t out = 0;
  std::int64_t rank = 0;  ///< 0 for a linear.
  bool bf16 = false;      ///< Of all tensors; otherwise float32.
  float dropout = 0.0f;

  std::int64_t rows() const { return batch * sequence; }
};

/// "4x128x576>1536", batch × sequence × in_features and then out_features.
std::string shape_of(const Case& item);

/// What `--filter` looks into: "model lora_linear forward 4x128x576>1536 r8 f32 dropout0".
std::string label_of(const Case& item);

/// What `all_cases` lists.
struct CaseOptions {
  bool bf16 = false;
  float dropout = 0.1f;              ///< Of the rows with dropout; 0 leaves them out.
  bool quick = false;                ///< A few small shapes, each kind of row among them.
  std::vector<std::string> filter;   ///< Keeps the cases whose label has all of these words,
  std::vector<std::string> without;  ///< and none of these.
};

std::vector<Case> all_cases(const CaseOptions& options);

}  // namespace graft::bench
