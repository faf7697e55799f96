// y = (x - mean) * rstd * weight + bias with rstd = 1 / sqrt(mean((x - mean)^2) + eps) a row, and
// its gradients. The variance is taken from the deviations themselves, after the mean is known.

// Without a weight or a bias, those are not read.
template <typename T, int kKept, bool kWeight, bool kBias, typename X, typename W, typename B,
          typename Team>
void layer_norm(X x, W weight, B bias, float eps, device T* y, device float* mean,
                device float* rstd, uint features, Team team) {
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
  const float factor = precise::rsqrt(team.sum(squares) / float(features) + eps);
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
template <typename T, int kKept, bool kWeight, typename DY, typename X, typename M, typename F,
          typename W, typename Team>
void layer_norm_backward(DY dy, X x, M mean, F rstd, W weight, device T* dx, uint features,
                         Team team) {
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

// Of a column, the sums of dy * normal and of dy over the rows from `first` to `end`.
template <typename DY, typename X, typename M, typename F>
void layer_norm_sums(DY dy, X x, M mean, F rstd, device float* dweight, device float* dbias,
                     uint features, uint col, uint block, uint first, uint end) {
  float weighted = 0.0f, plain = 0.0f;
  for (uint row = first; row < end; ++row) {
    const ulong at = ulong(row) * features + col;
    const float slope = float(dy[at]);
    weighted = fma(slope, (float(x[at]) - mean[row]) * rstd[row], weighted);
    plain += slope;
  }
  dweight[ulong(block) * features + col] = weighted;
  dbias[ulong(block) * features + col] = plain;
}
