"""The shader check must find what it is there to find, and nothing in shaders that are right."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "check_shaders.py"
sys.path.insert(0, str(ROOT / "tools"))
import check_shaders  # noqa: E402
import shader_syntax  # noqa: E402

NOWHERE = Path("shader.metal")

# A text of the form in which MLX hands one to Metal, with much of what Graft's shaders use.
RIGHT = """
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

constant constexpr int kWidth = 8;  // no "double", no goto
struct Sum {
  float value;
  Sum(float v) : value(v) {}
  thread Sum& operator+=(const thread Sum& other) { value += other.value; return *this; }
  float operator()(int i) const thread { return value * i; }
};
template <typename T, int N>
struct Loader {
  static constexpr constant int kCount = N;
  const device T* from;
  threadgroup T* to;
  void load(uint lane) {
    for (int i = 0; i < N; ++i) { to[i * N + lane] = from[i]; }
  }
};
template <typename Pointer> inline float total(Pointer p, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += float(p[i]) * 2.0f;
  return sum;
}
inline void exchange(thread float& a, thread float& b) { const float c = a; a = b; b = c; }
inline float at(const threadgroup float (&tile)[8][8], int i) { return tile[i][i & 7]; }
inline ushort upper(bfloat x) { return as_type<ushort>(x) & 0xff00; }
template <typename T, bool Twice>
[[kernel]] void custom_kernel_work(
  const device T* x [[buffer(0)]],
  const constant int* x_shape [[buffer(1)]],
  const constant float& scale [[buffer(2)]],
  device T* y [[buffer(3)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {

  threadgroup float tile[8][8];
  threadgroup T other[kWidth * (4 + Twice)];
  const uint i = thread_position_in_grid.x, j = i * 2 & 3;
  Loader<T, 4> loader{x, other};
  loader.load(i);
  threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
  simdgroup_barrier(mem_flags::mem_none);
  simdgroup_matrix<float, 8, 8> a, b, c = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  simdgroup_matrix<T, 8, 8> d;
  simdgroup_load(d, x + i, 8);
  simdgroup_load(a, &tile[0][0], 8, ulong2(0, 1), true);
  simdgroup_load(b, &tile[1][0]);
  simdgroup_multiply_accumulate(c, a, d, c);
  simdgroup_store(c, &tile[0][0]);
  thread auto& pair = c.thread_elements();
  float lo = pair[0], hi = pair.y;
  exchange(lo, hi);
  Sum sum = Sum(lo);
  sum += Sum(hi);
  const device vec<T, 4>* p = (const device vec<T, 4>*)(x + 4 * i);
  const device vec<T, 4>* q = reinterpret_cast<const device vec<T, 4>*>(x);
  const vec<T, 4> r = p[0] + vec<T, 4>(q[1].x, T(1), r.y, T(lo));
  float4 f = float4(r.x, r[1], lo * hi, 1.0f);
  f = fma(f, float4(2.0f), f);
  if (i & j) {
    y[i] = T(simd_sum(lo) + simd_max(hi) + simd_shuffle(lo, 3) + simd_broadcast(lo, 0));
  } else {
    y[i] = T(total(x, 3) + total(&tile[0][0], 3) + total(x_shape, 2) + at(tile, 1));
  }
  const ulong wide = mulhi(uint(3), j) * as_type<uint>(scale);
  float parts[4] = {lo * hi, lo, -lo, sum(2)};
  y[j] = select(y[i], T(max(lo, 0.0f) + rsqrt(hi) + precise::exp(scale) + parts[wide & 3]), lo > 0);
  if constexpr (Twice) y[j] += y[j];
}

template [[host_name("custom_kernel_work_half")]] [[kernel]] decltype(
    custom_kernel_work<float16_t, 1>) custom_kernel_work<float16_t, 1>;
template [[host_name("custom_kernel_work_bfloat")]] [[kernel]] decltype(
    custom_kernel_work<bfloat16_t, 0>) custom_kernel_work<bfloat16_t, 0>;
"""


def kernel(body, before=""):
    return ("#include <metal_simdgroup_matrix>\n" + before +
            "[[kernel]] void test_kernel(const device float* x [[buffer(0)]], "
            "device float* y [[buffer(1)]], const constant float& s [[buffer(2)]], "
            "uint3 i [[thread_position_in_grid]]) {\n" + body + "\n}\n")


def twins(test, check, what, right, wrong):
    """`right` has no fault, and in `wrong` there is one that says `what`."""
    test.assertEqual([], check(right))
    found = check(wrong)
    test.assertTrue(any(what in line for line in found), f"found: {found}\nin: {wrong}")


class Lint(unittest.TestCase):
    def twins(self, what, right, wrong):
        twins(self, lambda text: check_shaders.faults(text, NOWHERE), what, right, wrong)

    def in_kernel(self, what, right, wrong):
        self.twins(what, kernel(right), kernel(wrong))

    def test_lets_a_right_shader_pass(self):
        self.assertEqual([], check_shaders.faults(RIGHT, NOWHERE))

    def test_says_where_a_fault_is(self):
        text = "/* two\n lines */\ninline float one() {\n  return double(1);\n}\n"
        self.assertEqual(["shader.metal:4: Metal has no double: use float"],
                         check_shaders.faults(text, NOWHERE))

    def test_double(self):
        self.in_kernel("no double", "float d = 1; // double", "double d = 1;")
        self.in_kernel("no double", "float2 d;", "double2 d;")
        self.twins("no double", "#define F float\n", "#define F double\n")
        self.in_kernel("double in C++", "y[0] = 1.5f + 2e3f + 1.h;", "y[0] = 1.5;")
        self.in_kernel("double in C++", "y[0] = x[1];", "y[0] = 1e-3;")

    def test_lambdas(self):
        self.in_kernel("no lambdas", "float a[2]; y[0] = a[1];",
                       "auto f = [](float a) { return a; };")
        self.in_kernel("no lambdas", "y[0] = max(x[0], x[1]);", "run([&] { y[0] = 1; });")

    def test_static_locals(self):
        self.in_kernel("no static locals", "const float a = 1.0f;", "static const float a = 1.0f;")
        self.twins("no static locals", "static inline float f() { return 1.0f; }\n",
                   "inline float f() { static float a = 1.0f; return a; }\n")

    def test_recursion(self):
        self.twins("(f -> f)", "int g(int n) { return n; }\nint f(int n) { return g(n); }",
                   "inline int f(int n) { return n ? f(n - 1) : 0; }")
        self.twins("(f -> f)", "template <int N> int g() { return N; }",
                   "template <int N> int f() { return f<N - 1>(); }")
        self.twins("(f -> g -> f)", "int g(int n) { return n; }\nint f(int n) { return g(n); }",
                   "int g(int n);\nint f(int n) { return g(n); }\nint g(int n) { return f(n); }")
        self.twins("(run -> go -> run)",
                   "struct S { float run() { return 1.0f; } };\n"
                   "inline float run(thread S& s) { return s.run(); }",
                   "struct S { float run() { return go(); }\n float go() { return run(); } };")
        self.twins("(max -> max)", "inline float max(float a) { return metal::max(a, 0.0f); }",
                   "inline float max(float a) { return max(a); }")

    def test_goto_new_delete_virtual_and_exceptions(self):
        self.in_kernel("no goto", "float go = 1;", "goto end; end:;")
        self.in_kernel("no new", "float newer = 1;", "y[0] = *new float;")
        self.in_kernel("no delete", "float deleted = 1;", "delete x;")
        self.twins("no virtual", "struct S { void f(); };", "struct S { virtual void f(); };")
        self.in_kernel("no exceptions", "float thrown = 1;", "throw 1;")
        self.in_kernel("no exceptions", "{ y[0] = 1; }", "try { y[0] = 1; } catch (...) {}")

    def test_threadgroup_arrays_outside_a_kernel(self):
        what, array = "outside a kernel's body", "threadgroup float tile[8];"
        inside = kernel(array) + kernel(array).replace("[[kernel]]", "kernel")
        self.twins(what, inside, f"inline void f() {{ {array} }}")
        self.twins(what, inside, array)
        self.twins(what, "struct S { threadgroup float* tile; };", f"struct S {{ {array} }};")
        self.twins(what, "inline void f(threadgroup float* tile) { tile[0] = 1; }",
                   "inline void f(threadgroup float tile[8]) { tile[0] = 1; }")
        self.twins(what, "struct S { float f() const threadgroup { return 1.0f; } };",
                   "struct S { float f() { threadgroup float tile[8]; return 1.0f; } };")
        self.twins(what, kernel("if (x[0] > 0) { " + array + " }"),
                   "void f() { if (true) { " + array + " } }")

    def test_threadgroup_arrays_of_another_form(self):
        right = ("threadgroup float a[8];\nthreadgroup vec<half, 4> b[8][kWidth + 1];\n"
                 "threadgroup float* p = a;\nthreadgroup float (&q)[8] = a;")
        for wrong in ("threadgroup float a[8], b[8];", "threadgroup float a[2] = {1, 2};",
                      "threadgroup float a;", "float threadgroup a[8];",
                      "threadgroup unsigned int a[8];", "const threadgroup float a[8];",
                      "alignas(16) threadgroup float a[8];",
                      "threadgroup struct { float x; } a[8];"):
            self.in_kernel("of a form that tests cannot run", right, wrong)

    def test_pointers_without_an_address_space(self):
        what = "names no address space"
        for space in ("device", "constant", "threadgroup", "thread"):
            self.twins(what, f"void f(const {space} float* p, {space} int& n) {{}}",
                       "void f(const float* p) {}")
        self.twins(what, "template <typename Pointer> void f(Pointer p) {}",
                   "template <typename T> void f(T* p) {}")
        self.twins(what, "void f(device float* p);", "void f(float* p);")
        self.twins(what, "void f(thread float (&p)[4]) {}", "void f(float (&p)[4]) {}")
        self.twins(what, "void f(device vec<float, 4>* p) {}", "void f(vec<float, 4>* p) {}")
        self.twins(what, "void f(thread Tile<device float*>& t) {}",
                   "void f(Tile<device float*>& t) {}")
        self.twins(what, "void f(device float* thread* p) {}", "void f(device float** p) {}")
        self.twins(what, "device float* f(int n) { return 0; }", "float* f(int n) { return 0; }")
        self.twins(what, "struct S { device float* p; };", "struct S { float* p; };")
        self.twins(what, "struct S { thread S& operator=(const thread S& s) { return *this; } };",
                   "struct S { thread S& operator=(const S& s) { return *this; } };")
        self.twins(what, "using P = device float*;", "using P = float*;")
        self.twins(what, "template <class T> struct Of<device T*> {};",
                   "template <class T> struct Of<T*> {};")
        self.twins(what, kernel(""), kernel("").replace("device float* y", "float* y"))

    def test_locals_without_an_address_space(self):
        what = "names no address space"
        for right, wrong in (("device float* p = y;", "float* p = y;"),
                             ("thread float& r = a;", "float& r = a;"),
                             ("thread auto& r = a;", "auto& r = a;"),
                             ("const device half *p, n;", "const half *p, n;"),
                             ("for (device float* p = y; p; ++p) {}",
                              "for (float* p = y; p; ++p) {}"),
                             ("if (x[0] > 0) { device float* p = y; }",
                              "if (x[0] > 0) { float* p = y; }"),
                             ("thread metal::vec<T, 4>& v = w;", "metal::vec<T, 4>& v = w;"),
                             ("thread float (&r)[4] = a;", "float (&r)[4] = a;")):
            self.in_kernel(what, right, wrong)

    def test_tells_multiplication_from_a_pointer(self):
        self.assertEqual([], check_shaders.faults(kernel(
            "for (uint k = 0; k & i.x; ++k) {} if (i.x & i.y) {} while (a * b) {}\n"
            "const uint c = a * b & d; y[a * b] = f(a * b, c & d, *x, &y[0]);\n"
            "float2 v = {a * b, a}; run<(A * B), 3>(a & b); return a * b;"), NOWHERE))

    def test_casts_without_an_address_space(self):
        what = "names no address space"
        self.in_kernel(what, "y[0] = *(const device float*)x;", "y[0] = *(const float*)x;")
        self.in_kernel(what, "auto p = static_cast<device vec<T, 4>*>(y);",
                       "auto p = static_cast<vec<T, 4>*>(y);")
        self.in_kernel(what, "f((thread float&)a);", "f((float&)a);")

    def test_what_is_not_ascii(self):
        self.twins("U+00B7 is not ASCII", "// a * b\n", "// a \u00b7 b\n")

    def test_includes(self):
        self.twins("neither a <metal_...>", "#include <metal_stdlib>\n", "#include <cmath>\n")
        self.twins("neither a <metal_...>", "#  include <metal_math>\n", '#include "nowhere.h"\n')
        self.twins("neither a <metal_...>", "// #include <cmath>\n", "#include <metal/../cmath>\n")

    def test_checks_the_headers_that_a_shader_includes(self):
        with tempfile.TemporaryDirectory() as folder:
            shader, header = Path(folder).resolve() / "a.metal", Path(folder).resolve() / "b.h"
            shader.write_text('#include "b.h"\n', encoding="utf-8")
            header.write_text('#include "a.metal"\ninline float f() { return 1.0f; }\n', "utf-8")
            self.assertEqual([], check_shaders.faults(shader.read_text(), shader))
            header.write_text("#include <cstdint>\n", encoding="utf-8")
            found = check_shaders.faults(shader.read_text(), shader)
            self.assertIn("b.h:1: <cstdint> is", found[0])

    def test_text_that_would_escape_the_check(self):
        self.twins("a raw string", 'static_assert(true, "R(");\n', 'R"(double)"\n')
        self.twins("is never closed", "void f() {}\n",
                   "void f() {\n#if A\n{\n#else\n{\n#endif\n}\n")
        self.twins("closes nothing", "void f() {}\n", "void f() {}}\n")

    def test_the_body_of_a_kernel(self):
        body = "threadgroup float tile[8];\ntile[0] = 1;\n"
        twins(self, lambda text: check_shaders.faults(text, NOWHERE, body=True), "shader.metal:3:",
              body, body + "double d;\n")

    def test_command_line(self):
        for text, status in ((RIGHT, 0), ("double d;", 1)):
            run = subprocess.run([sys.executable, TOOL, "-"], input=text, text=True,
                                 capture_output=True, check=False)
            self.assertEqual(status, run.returncode, run.stdout)
        self.assertIn("stdin:1: Metal has no double", run.stdout)

    def test_without_clang_syntax_counts_as_unchecked(self):
        run = subprocess.run([sys.executable, TOOL, "--syntax", "-"], input=RIGHT, text=True,
                             env={"PATH": "/nowhere"}, capture_output=True, check=False)
        self.assertEqual(3, run.returncode)
        self.assertIn("clang is not installed", run.stderr)


@unittest.skipUnless(shader_syntax.compiler(), "clang is not installed")
class Syntax(unittest.TestCase):
    def twins(self, what, right, wrong):
        twins(self, lambda text: shader_syntax.faults(text, NOWHERE), what, right, wrong)

    def in_kernel(self, what, right, wrong, before=""):
        self.twins(what, kernel(right, before), kernel(wrong, before))

    def test_lets_a_right_shader_pass(self):
        self.assertEqual([], shader_syntax.faults(RIGHT, NOWHERE))

    def test_says_where_a_fault_is(self):
        found = shader_syntax.faults(kernel("threadgroup float a[2];\n\nnonsense;"), NOWHERE)
        self.assertEqual(["shader.metal:5:1: error: use of undeclared identifier 'nonsense'"],
                         [line.replace("unknown type name", "use of undeclared identifier")
                          for line in found])

    def test_instantiates_the_kernel(self):
        self.twins("in instantiation of function template", RIGHT,
                   RIGHT.replace("y[j] += y[j]", "r.nonsense()"))

    def test_a_pointer_to_other_memory(self):
        before = "inline void fill(threadgroup float* tile) { tile[0] = 1; }\n"
        tile = "threadgroup float tile[8];\n"
        self.in_kernel("no matching function for call to 'fill'", tile + "fill(tile);",
                       tile + "fill(y);", before)
        self.in_kernel("cannot initialize", "const device float* p = x;",
                       "const constant float* p = x;")
        self.in_kernel("cannot initialize", "const constant float* p = &s;",
                       "const device float* p = &s;")
        self.in_kernel("cannot initialize", tile + "threadgroup float* p = tile;",
                       tile + "device float* p = tile;")
        self.in_kernel("changes address space", tile + "threadgroup float& r = tile[1];",
                       tile + "thread float& r = tile[1];")

    def test_a_pointer_without_an_address_space(self):
        before = "inline float first({} p) {{ return p[0]; }}\n"
        call = "y[0] = first(x);"
        self.twins("no matching function", kernel(call, before.format("const device float*")),
                   kernel(call, before.format("const float*")))
        self.in_kernel("cannot initialize", "device float* p = y;", "float* p = y;")
        self.in_kernel("address space", "const constant float& r = s;",
                       "thread const float& r = s;")

    def test_casts_between_address_spaces(self):
        tile, what = "threadgroup float tile[8];\n", "shader.metal:4: a C-style cast changes"
        self.in_kernel(what, tile + "threadgroup float4* p = (threadgroup float4*)tile;",
                       tile + "device float4* p = (device float4*)tile;")
        self.in_kernel(what, tile + "y[0] = ((device int*)y)[0];",
                       tile + "y[0] = 1 + *(device float*)(tile + 1);")
        self.in_kernel("reinterpret_cast from", "auto p = reinterpret_cast<device float4*>(y);",
                       "auto p = reinterpret_cast<threadgroup float4*>(y);")

    def test_threadgroup_arrays_outside_a_kernel(self):
        array = "threadgroup float tile[8]; tile[0] = 1;"
        self.twins("automatic variable qualified", kernel(array), f"inline void f() {{ {array} }}")

    def test_writes_to_an_input(self):
        self.in_kernel("not assignable", "y[0] = x[0];", "x[0] = y[0];")
        self.in_kernel("const-qualified", "y[0] = s;", "s = y[0];")

    def test_simdgroup_matrices(self):
        before = "using M = simdgroup_matrix<float, 8, 8>;\n"
        self.in_kernel("no matching function for call to 'simdgroup_load'",
                       "M m; simdgroup_load(m, x, 8);", "M m; simdgroup_load(m, &s, 8);", before)
        self.in_kernel("no matching function for call to 'simdgroup_load'",
                       "simdgroup_float8x8 m; simdgroup_load(m, x, 8);",
                       "simdgroup_half8x8 m; simdgroup_load(m, x, 8);")
        self.in_kernel("no matching function for call to 'simdgroup_store'",
                       "M m; simdgroup_store(m, y, 8);", "M m; simdgroup_store(m, x, 8);", before)
        self.in_kernel("8 x 8", "M m;", "simdgroup_matrix<float, 4, 8> m;", before)

    def test_types_of_arguments(self):
        self.in_kernel("no matching function for call to 'max'", "y[0] = max(x[0], 0.0f);",
                       "y[0] = max(x[0], 0);")
        self.in_kernel("types of one size", "y[0] = as_type<float>(i.x);",
                       "y[0] = as_type<half>(i.x);")
        self.in_kernel("no matching function for call to 'threadgroup_barrier'",
                       "threadgroup_barrier(mem_flags::mem_none);", "threadgroup_barrier();")

    def test_features_later_than_metal_has(self):
        self.twins("error", "template <class T> T f(T x) { return x; }\n",
                   "template <class T> requires true T f(T x) { return x; }\n")

    def test_command_line_checks_the_text_too(self):
        text = kernel("").replace("device float* y", "float* y")
        run = subprocess.run([sys.executable, TOOL, "--syntax", "-"], input=text, text=True,
                             capture_output=True, check=False)
        self.assertEqual(1, run.returncode, run.stderr)
        self.assertIn("'float*' names no address space", run.stdout)


if __name__ == "__main__":
    unittest.main()
