#include <dlfcn.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <string>

// MLX's Linux CPU wheel carries a reference BLAS, some 40 times slower than OpenBLAS. graft::mlx
// links OpenBLAS ahead of it; the dynamic linker then gives every caller, MLX included, the first
// definition it finds. That order is lost silently, so look where it ended.
TEST(Blas, MlxMultipliesThroughOpenBlas) {
#ifndef __linux__
  GTEST_SKIP() << "only the Linux wheel of MLX carries a BLAS of its own";
#endif
  ASSERT_NE(mlx::core::version(), nullptr);  // libmlx is linked and loaded
  void* sgemm = dlsym(RTLD_DEFAULT, "cblas_sgemm");
  ASSERT_NE(sgemm, nullptr);
  Dl_info where{};
  ASSERT_NE(dladdr(sgemm, &where), 0);
  const std::string library = where.dli_fname;
  EXPECT_NE(library.find("openblas"), std::string::npos) << "cblas_sgemm is in " << library;
  EXPECT_EQ(library.find("libmlx"), std::string::npos) << "cblas_sgemm is in " << library;
}
