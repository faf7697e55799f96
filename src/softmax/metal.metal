// y = exp(scale * (x - max(x))) / sum of those, a row, and its gradient, scale * y * (dy - sum(dy *
// y)). The scale is applied to the difference: scale * x itself might overflow. The maximum is a
// finite number even of a row of nothing but -inf, whose exponentials are 0 then, and their
// quotients NaN.

constant constexpr float kSmallest = -3.402823466e+38f;

// The row stays in registers: one read. Threads without elements keep -inf, which adds nothing.
template <typename T, int kKept, bool kNarrow>
void softmax_short(const device T* x, float scale, device T* y, uint features, Team<kNarrow> team) {
  const ulong begin = ulong(team.row) * features;
  float kept[kKept > 0 ? kKept : 1];
  float most = kSmallest;
  for (int i = 0; i < kKept; ++i) {
    const uint n = team.index + uint(i) * team.size();
    kept[i] = n < features ? float(x[begin + n]) : -INFINITY;
    most = max(most, kept[i]);
  }
  most = team.largest(most);
  float sum = 0.0f;
  for (int i = 0; i < kKept; ++i) {
    kept[i] = precise::exp(scale * (kept[i] - most));
    sum += kept[i];
  }
  const float factor = 1.0f / team.sum(sum);
  for (int i = 0; i < kKept; ++i) {
    const uint n = team.index + uint(i) * team.size();
    if (n < features) y[begin + n] = T(kept[i] * factor);
  }
}

// Two reads: maximum and sum come from one, the sum made smaller whenever the maximum grows.
template <typename T, bool kNarrow>
void softmax_long(const device T* x, float scale, device T* y, uint features, Team<kNarrow> team) {
  const ulong begin = ulong(team.row) * features;
  float mine = kSmallest, sum = 0.0f;
  for (uint n = team.index; n < features; n += team.size()) {
    const float value = float(x[begin + n]);
    const float most = max(mine, value);
    sum = sum * precise::exp(scale * (mine - most)) + precise::exp(scale * (value - most));
    mine = most;
  }
  const float most = team.largest(mine);
  const float factor = 1.0f / team.sum(sum * precise::exp(scale * (mine - most)));
  for (uint n = team.index; n < features; n += team.size()) {
    y[begin + n] = T(precise::exp(scale * (float(x[begin + n]) - most)) * factor);
  }
}

struct SoftmaxScalars {
  uint features;
  float scale;
};

// Threads keep kKept elements of a row each, or, if that is 0, read them again.
template <typename T, int kKept, bool kNarrow>
[[kernel]] void softmax(const device T* x [[buffer(0)]], device T* y [[buffer(1)]],
                        constant const SoftmaxScalars& scalars [[buffer(2)]],
                        uint group [[threadgroup_position_in_grid]],
                        uint index [[thread_index_in_threadgroup]],
                        uint lane [[thread_index_in_simdgroup]],
                        uint simdgroup [[simdgroup_index_in_threadgroup]],
                        uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float shared[kNarrow ? 1 : 32];
  const Team<kNarrow> team = team_of<kNarrow>(group, index, lane, simdgroup, simdgroups, shared);
  if (kKept > 0) {
    softmax_short<T, kKept>(x, scalars.scale, y, scalars.features, team);
  } else {
    softmax_long<T>(x, scalars.scale, y, scalars.features, team);
  }
}

template <typename T, int kKept, bool kNarrow>
[[kernel]] void softmax_backward(const device T* dy [[buffer(0)]], const device T* y [[buffer(1)]],
                                 device T* dx [[buffer(2)]],
                                 constant const SoftmaxScalars& scalars [[buffer(3)]],
                                 uint group [[threadgroup_position_in_grid]],
                                 uint index [[thread_index_in_threadgroup]],
                                 uint lane [[thread_index_in_simdgroup]],
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
    const float slope = float(dy[begin + n]), value = float(y[begin + n]);
    slopes.keep(i, slope);
    values.keep(i, value);
    dot = fma(slope, value, dot);
  }
  dot = team.sum(dot);
  for (uint i = 0; i < turns<kKept>(team, features); ++i) {
    const uint n = team.index + i * team.size();
    if (n >= features) break;
    const float slope = kKept > 0 ? slopes.kept(i) : float(dy[begin + n]);
    const float value = kKept > 0 ? values.kept(i) : float(y[begin + n]);
    dx[begin + n] = T(scalars.scale * value * (slope - dot));
  }
}
