// y = s * rstd * weight with rstd = 1 / sqrt(mean(s * s) + eps) a row, s = x or x + residual, and
// its gradients. What is normalised is s as it is stored: rounded to T.

template <bool kResidual, typename T>
float rms_norm_element(const device T* x, const device T* residual, ulong at) {
  return kResidual ? float(T(float(x[at]) + float(residual[at]))) : float(x[at]);
}

struct NormScalars {
  uint features;
  float eps;
};

// Without a residual, `residual` and `sum` are not touched.
template <typename T, typename W, bool kResidual, int kKept, bool kNarrow>
[[kernel]] void rms_norm(
                const device T* x [[buffer(0)]], const device T* residual [[buffer(1)]],
                const device W* weight [[buffer(2)]], device T* y [[buffer(3)]],
                device T* sum [[buffer(4)]], device float* rstd [[buffer(5)]],
                constant const NormScalars& scalars [[buffer(6)]],
                uint group [[threadgroup_position_in_grid]],
                uint index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                uint simdgroup [[simdgroup_index_in_threadgroup]],
                uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float shared[kNarrow ? 1 : 32];
  const Team<kNarrow> team = team_of<kNarrow>(group, index, lane, simdgroup, simdgroups, shared);
  const uint features = scalars.features;
  const ulong begin = ulong(team.row) * features;
  Kept<kKept> values;
  float squares = 0.0f;
  for (uint i = 0; i < turns<kKept>(team, features); ++i) {
    const uint n = team.index + i * team.size();
    if (n >= features) break;
    const float value = rms_norm_element<kResidual>(x, residual, begin + n);
    values.keep(i, value);
    if (kResidual) sum[begin + n] = T(value);
    squares = fma(value, value, squares);
  }
  const float factor = precise::rsqrt(team.sum(squares) / float(features) + scalars.eps);
  if (team.index == 0) rstd[team.row] = factor;
  for (uint i = 0; i < turns<kKept>(team, features); ++i) {
    const uint n = team.index + i * team.size();
    if (n >= features) break;
    const float value =
        kKept > 0 ? values.kept(i) : rms_norm_element<kResidual>(x, residual, begin + n);
    y[begin + n] = T(value * factor * float(weight[n]));
  }
}

// ds = rstd * (g - s * rstd^2 * mean(g * s)) + dsum with g = dy * weight. Without dsum, it is not
// read.
template <typename T, typename W, bool kSum, int kKept, bool kNarrow>
[[kernel]] void rms_norm_backward(
                const device T* dy [[buffer(0)]], const device T* s [[buffer(1)]],
                const device W* weight [[buffer(2)]], const device float* rstd [[buffer(3)]],
                const device T* dsum [[buffer(4)]], device T* ds [[buffer(5)]],
                constant const NormScalars& scalars [[buffer(6)]],
                uint group [[threadgroup_position_in_grid]],
                uint index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                uint simdgroup [[simdgroup_index_in_threadgroup]],
                uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float shared[kNarrow ? 1 : 32];
  const Team<kNarrow> team = team_of<kNarrow>(group, index, lane, simdgroup, simdgroups, shared);
  const uint features = scalars.features;
  const ulong begin = ulong(team.row) * features;
  Kept<kKept> slopes, values;
  float dot = 0.0f;
  for (uint i = 0; i < turns<kKept>(team, features); ++i) {
    const uint n = team.index + i * team.size();
    if (n >= features) break;
    const float slope = float(dy[begin + n]) * float(weight[n]), value = float(s[begin + n]);
    slopes.keep(i, slope);
    values.keep(i, value);
    dot = fma(slope, value, dot);
  }
  const float factor = rstd[team.row];
  const float pull = factor * factor * team.sum(dot) / float(features);
  for (uint i = 0; i < turns<kKept>(team, features); ++i) {
    const uint n = team.index + i * team.size();
    if (n >= features) break;
    const float slope = kKept > 0 ? slopes.kept(i) : float(dy[begin + n]) * float(weight[n]);
    const float value = kKept > 0 ? values.kept(i) : float(s[begin + n]);
    const float result = factor * fma(-pull, value, slope);
    ds[begin + n] = T(kSum ? result + float(dsum[begin + n]) : result);
  }
}

// Of a column, the sum of dy * s * rstd over a block of rows.
template <typename T, int kRows>
[[kernel]] void rms_norm_dweight(
                const device T* dy [[buffer(0)]], const device T* s [[buffer(1)]],
                const device float* rstd [[buffer(2)]], device float* dweight [[buffer(3)]],
                constant const BlockScalars& scalars [[buffer(4)]],
                uint2 at [[thread_position_in_grid]]) {
  const uint features = scalars.features, first = at.y * kRows;
  const uint end = min(first + uint(kRows), scalars.rows);
  float sum = 0.0f;
  for (uint row = first; row < end; ++row) {
    const ulong element = ulong(row) * features + at.x;
    sum = fma(float(dy[element]), float(s[element]) * rstd[row], sum);
  }
  dweight[ulong(at.y) * features + at.x] = sum;
}
