// y = s * rstd * weight with rstd = 1 / sqrt(mean(s * s) + eps) a row, s = x or x + residual, and
// its gradients. What is normalised is s as it is stored: rounded to T.

template <typename T, bool kResidual, typename X, typename R>
float rms_norm_element(X x, R residual, ulong at) {
  return kResidual ? float(T(float(x[at]) + float(residual[at]))) : float(x[at]);
}

// Without a residual, `residual` and `sum` are not touched.
template <typename T, int kKept, bool kResidual, typename X, typename W, typename R, typename Team>
void rms_norm(X x, W weight, R residual, float eps, device T* y, device T* sum, device float* rstd,
              uint features, Team team) {
  const ulong begin = ulong(team.row) * features;
  Kept<kKept> values;
  float squares = 0.0f;
  for (uint i = 0; i < turns<kKept>(team, features); ++i) {
    const uint n = team.index + i * team.size();
    if (n >= features) break;
    const float value = rms_norm_element<T, kResidual>(x, residual, begin + n);
    values.keep(i, value);
    if (kResidual) sum[begin + n] = T(value);
    squares = fma(value, value, squares);
  }
  const float factor = precise::rsqrt(team.sum(squares) / float(features) + eps);
  if (team.index == 0) rstd[team.row] = factor;
  for (uint i = 0; i < turns<kKept>(team, features); ++i) {
    const uint n = team.index + i * team.size();
    if (n >= features) break;
    const float value =
        kKept > 0 ? values.kept(i) : rms_norm_element<T, kResidual>(x, residual, begin + n);
    y[begin + n] = T(value * factor * float(weight[n]));
  }
}

// ds = rstd * (g - s * rstd^2 * mean(g * s)) + dsum with g = dy * weight. Without dsum, it is not
// read.
template <typename T, int kKept, bool kSum, typename DY, typename S, typename W, typename F,
          typename DSum, typename Team>
void rms_norm_backward(DY dy, S s, W weight, F rstd, DSum dsum, device T* ds, uint features,
                       Team team) {
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

// Of a column, the sum of dy * s * rstd over the rows from `first` to `end`.
template <typename DY, typename S, typename F>
float rms_norm_dweight(DY dy, S s, F rstd, uint features, uint col, uint first, uint end) {
  float sum = 0.0f;
  for (uint row = first; row < end; ++row) {
    const ulong at = ulong(row) * features + col;
    sum = fma(float(dy[at]), float(s[at]) * rstd[row], sum);
  }
  return sum;
}
