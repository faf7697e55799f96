#include "benchmarks/graft_bench/blas.h"

#include <dlfcn.h>

namespace graft::bench {
namespace {

// Values of the C interface to the BLAS.
constexpr int kRowMajor = 101;
constexpr int kNoTranspose = 111;
constexpr int kTranspose = 112;

int transpose_of(const Blas::Matrix& matrix) {
  return matrix.transposed ? kTranspose : kNoTranspose;
}

}  // namespace

Blas::Blas() : sgemm_(reinterpret_cast<Sgemm>(::dlsym(RTLD_DEFAULT, "cblas_sgemm"))) {}

std::string Blas::version() const {
  using GetConfig = char* (*)();
  if (void* symbol = ::dlsym(RTLD_DEFAULT, "openblas_get_config")) {
    return reinterpret_cast<GetConfig>(symbol)();
  }
  Dl_info where{};
  if (present() && ::dladdr(reinterpret_cast<void*>(sgemm_), &where) != 0 && where.dli_fname) {
    const std::string path = where.dli_fname;
    return path.substr(path.rfind('/') + 1);
  }
  return "none";
}

void Blas::multiply(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const Matrix& a,
                    const Matrix& b, float beta, float* c) const {
  sgemm_(kRowMajor, transpose_of(a), transpose_of(b), static_cast<int>(m), static_cast<int>(n),
         static_cast<int>(k), alpha, a.data, static_cast<int>(a.columns), b.data,
         static_cast<int>(b.columns), beta, c, static_cast<int>(n));
}

}  // namespace graft::bench
