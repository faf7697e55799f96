#pragma once

#include <cstdint>
#include <string>

namespace graft::bench {

/// The BLAS behind MLX, found at run time as the dynamic linker gives it to MLX: builds differ in
/// which one they link.
class Blas {
 public:
  Blas();

  bool present() const { return sgemm_ != nullptr; }
  std::string version() const;  ///< "OpenBLAS 0.3.21 ...", or what little is known.

  /// A row-major matrix operand: `transposed` reads the (rows, columns) memory as its transpose.
  struct Matrix {
    const float* data;
    std::int64_t columns;  ///< In memory: the distance between rows.
    bool transposed = false;
  };

  /// c (m, n) = alpha·a (m, k)·b (k, n) + beta·c.
  void multiply(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const Matrix& a,
                const Matrix& b, float beta, float* c) const;

 private:
  using Sgemm = void (*)(int order, int transpose_a, int transpose_b, int m, int n, int k,
                         float alpha, const float* a, int lda, const float* b, int ldb, float beta,
                         float* c, int ldc);
  Sgemm sgemm_ = nullptr;
};

}  // namespace graft::bench
