// A matrix that lies in memory in any strides, counted in elements: A and B in the order of MLX or of
// PEFT, or transposed for a gradient.
template <typename P>
struct View {
  float get(uint row, uint col) const {
    return float(data[long(row) * row_stride + long(col) * col_stride]);
  }
  P data;
  long row_stride;
  long col_stride;
};
