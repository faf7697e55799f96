// Rows of a matrix, each the work of a team: the threads of a simdgroup, or of a threadgroup. Of a
// row's elements thread i of a team has i, i + size, i + 2 size, ...

// kNarrow: a row is a simdgroup's, kRowsOfGroup of them in a threadgroup, nothing is shared and nothing
// waits; simdgroups past the last row are not there. Else it is a threadgroup's, of whole simdgroups,
// and every thread has to take part in what is computed together, those too that have no elements.
constant constexpr uint kRowsOfGroup = 8;

template <bool kNarrow>
struct Team {
  uint size() const { return kNarrow ? 32 : simdgroups * 32; }
  float sum(float value) const {
    value = simd_sum(value);
    if (kNarrow) return value;
    share(value);
    return simd_sum(lane < simdgroups ? shared[lane] : 0.0f);
  }
  float largest(float value) const {
    value = simd_max(value);
    if (kNarrow) return value;
    share(value);
    return simd_max(shared[lane < simdgroups ? lane : 0]);
  }
  // The first barrier: what was shared before has been read by all.
  void share(float value) const {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (lane == 0) shared[simdgroup] = value;
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  uint row;
  uint index;
  uint lane;
  uint simdgroup;
  uint simdgroups;
  threadgroup float* shared;
};

template <bool kNarrow>
Team<kNarrow> team_of(uint group, uint index, uint lane, uint simdgroup, uint simdgroups,
                      threadgroup float* shared) {
  return {kNarrow ? group * kRowsOfGroup + simdgroup : group, kNarrow ? lane : index, lane,
          simdgroup, simdgroups, shared};
}

// How many elements a thread has at the most. A constant where they stay in registers, so that the
// loop over them can be unrolled and none needs an address.
template <int kKept, typename Team>
uint turns(Team team, uint features) {
  return kKept > 0 ? uint(kKept) : (features + team.size() - 1) / team.size();
}

// What a thread needs again of its elements: kKept values that stay in registers, or none, and then
// the caller makes them from memory again.
template <int kKept>
struct Kept {
  void keep(uint turn, float value) {
    if (kKept > 0) values[kKept > 0 ? turn : 0] = value;
  }
  float kept(uint turn) const { return values[kKept > 0 ? turn : 0]; }
  float values[kKept > 0 ? kKept : 1];
};

// Sums over rows are made in two launches: a block of kRows rows each, a thread a column of a block,
// then this, over blocks. Of columns there are many, so each is a thread's.
struct BlockScalars {
  uint rows;  // here: blocks
  uint features;
};

template <typename T>
[[kernel]] void add_blocks(const device float* blocks [[buffer(0)]], device T* sums [[buffer(1)]],
                           constant const BlockScalars& scalars [[buffer(2)]],
                           uint col [[thread_position_in_grid]]) {
  float sum = 0.0f;
  for (uint block = 0; block < scalars.rows; ++block) {
    sum += blocks[ulong(block) * scalars.features + col];
  }
  sums[col] = T(sum);
}
