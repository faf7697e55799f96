// y = (x - mean) * rstd * weight + bias with rstd = 1 / sqrt(mean((x - mean)^2) + eps) a row, and
// its gradients. The variance is taken from the deviations themselves, after the mean is known.

struct NormScalars {
  uint features;
  float eps;
};

// Without a weight or a bias, those are not read.
template <typename T, typename W, typename B, bool kWeight, bool kBias, int kKept, bool kNarrow>
[[kernel]] void layer_norm(
                const device T* x [[buffer(0)]], const device W* weight [[buffer(1)]],
                const device B* bias [[buffer(2)]], device T* y [[buffer(3)]],
                device float* mean [[buffer(4)]], device float* rstd [[buffer(5)]],
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
  float sum = 0.0f;
  for (uint i = 0; i < turns<kKept>(team, features); ++i) {
    const uint n = team.index + i * team.size();
    if (n >= features) break;
    const float value = float(x[begin + n]);
    values.keep(i, value);
    sum += value;
  }
  const float middle = team.sum(sum) / float(features);
  float squares = 0.0f;
  for (uint i = 0; i < turns<kKept>(team, features); ++i) {
    const uint n = team.index + i * team.size();
    if (n >= features) break;
    const float apart = (kKept > 0 ? values.kept(i) : float(x[begin + n])) - middle;
    squares = fma(apart, apart, squares);
  }
  const float factor = precise::rsqrt(team.sum(squares) / float(features) + scalars.eps);
  if (team.index == 0) {
    mean[team.row] = middle;
    rstd[team.row] = factor;
  }
  for (uint i = 0; i < turns<kKept>(team, features); ++i) {
    const uint n = team.index + i * team.size();
    if (n >= features) break;
    const float normal = ((kKept > 0 ? values.kept(i) : float(x[begin + n])) - middle) * factor;
    const float scaled = kWeight ? normal * float(weight[n]) : normal;
    y[begin + n] = T(kBias ? scaled + float(bias[n]) : scaled);
  }
}

// dx = rstd * (g - mean(g) - normal * mean(g * normal)) with g = dy * weight, normal = (x - mean) *
// rstd.
template <typename T, typename W, bool kWeight, int kKept, bool kNarrow>
[[kernel]] void layer_norm_backward(
                const device T* dy [[buffer(0)]], const device T* x [[buffer(1)]],
                const device W* weight [[buffer(2)]], const device float* mean [[buffer(3)]],
                const device float* rstd [[buffer(4)]], device T* dx [[buffer(5)]],
                constant const NormScalars& scalars [[buffer(6)]],
                uint group [[threadgroup_position_in_grid]],
                uint index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                uint simdgroup [[simdgroup_index_in_threadgroup]],
                uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float shared[kNarrow ? 1 : 32];
  const Team<kNarrow> team = team_of<kNarrow>(group, index, lane, simdgroup, simdgroups, shared);
  const uint features = scalars.features;
  const ulong begin = ulong(team.row) * features;
  const float middle = mean[team.row], factor = rstd[team.row];
  Kept<kKept> slopes, normals;
  float sum = 0.0f, dot = 0.0f;
  for (uint i = 0; i < turns<kKept>(team, features); ++i) {
    const uint n = team.index + i * team.size();
    if (n >= features) break;
    const float slope = float(dy[begin + n]) * (kWeight ? float(weight[n]) : 1.0f);
    const float normal = (float(x[begin + n]) - middle) * factor;
    slopes.keep(i, slope);
    normals.keep(i, normal);
    sum += slope;
    dot = fma(slope, normal, dot);
  }
  const float mean_slope = team.sum(sum) / float(features);
  const float mean_dot = team.sum(dot) / float(features);
  for (uint i = 0; i < turns<kKept>(team, features); ++i) {
    const uint n = team.index + i * team.size();
    if (n >= features) break;
    const float slope = kKept > 0 ? slopes.kept(i)
                                  : float(dy[begin + n]) * (kWeight ? float(weight[n]) : 1.0f);
    const float normal = kKept > 0 ? normals.kept(i) : (float(x[begin + n]) - middle) * factor;
    dx[begin + n] = T(factor * (slope - mean_slope - normal * mean_dot));
  }
}

// Of a column, the sums of dy * normal and of dy over a block of rows.
template <typename T, int kRows>
[[kernel]] void layer_norm_sums(
                const device T* dy [[buffer(0)]], const device T* x [[buffer(1)]],
                const device float* mean [[buffer(2)]], const device float* rstd [[buffer(3)]],
                device float* dweight [[buffer(4)]], device float* dbias [[buffer(5)]],
                constant const BlockScalars& scalars [[buffer(6)]],
                uint2 at [[thread_position_in_grid]]) {
  const uint features = scalars.features, first = at.y * kRows;
  const uint end = min(first + uint(kRows), scalars.rows);
  float weighted = 0.0f, plain = 0.0f;
  for (uint row = first; row < end; ++row) {
    const ulong element = ulong(row) * features + at.x;
    const float slope = float(dy[element]);
    weighted = fma(slope, (float(x[element]) - mean[row]) * rstd[row], weighted);
    plain += slope;
  }
  dweight[ulong(at.y) * features + at.x] = weighted;
  dbias[ulong(at.y) * features + at.x] = plain;
}
