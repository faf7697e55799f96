#include "backend/cuda/device.h"

#include <cuda_runtime_api.h>

#include <array>
#include <mutex>
#include <string>

#include "backend/table.h"

namespace graft::cuda {
namespace {

struct Entry {
  std::once_flag asked;
  Support support;
  DeviceFacts facts;
};

int attribute(cudaDeviceAttr name, int index) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, name, index) == cudaSuccess ? value : 0;
}

void ask(int index, Entry& entry) {
  DeviceFacts& facts = entry.facts;
  facts.major = attribute(cudaDevAttrComputeCapabilityMajor, index);
  facts.minor = attribute(cudaDevAttrComputeCapabilityMinor, index);
  facts.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, index);
  facts.shared_bytes =
      static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  facts.l2_bytes = static_cast<std::size_t>(attribute(cudaDevAttrL2CacheSize, index));
  if (facts.major >= 9) {
    for (int blocks = 1; blocks < static_cast<int>(facts.clusters_of.size()); ++blocks) {
      facts.clusters_of[static_cast<std::size_t>(blocks)] =
          count_clusters(index, facts.shared_bytes, blocks);
    }
  }
  entry.support = supports_facts(index, facts);
}

// The devices, counted once: null where there are none, and then `why`.
struct Devices {
  int count = 0;
  std::string why;
  std::array<Entry, kMostDevices> entries;

  Devices() {
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) {
      count = 0;
      why = std::string("no CUDA device: ") + cudaGetErrorString(error);
      cudaGetLastError();  // so that nobody takes it for an error of a later call
    } else if (count == 0) {
      why = "no CUDA device on this machine";
    }
    if (count > kMostDevices) count = kMostDevices;
  }
};

Devices& devices() {
  static Devices all;
  return all;
}

Entry& entry_of(int index) {
  Entry& entry = devices().entries[static_cast<std::size_t>(index)];
  std::call_once(entry.asked, [&] { ask(index, entry); });
  return entry;
}

}  // namespace

Support supports_facts(int index, const DeviceFacts& facts) {
  constexpr int kOldestMajor = 8;  // bfloat16 in the matrix units, and cp.async
  if (facts.major >= kOldestMajor) return {};
  return Support::no("cuda:" + std::to_string(index) + " has compute capability " +
                     std::to_string(facts.major) + "." + std::to_string(facts.minor) +
                     ", the kernels need 8.0 (Ampere) or later");
}

Support available() {
  for (int index = 0; index < devices().count; ++index) {
    if (entry_of(index).support) return {};
  }
  return devices().count > 0 ? entry_of(0).support : Support::no(devices().why);
}

Support supports_device(int index) {
  if (devices().count == 0) return Support::no(devices().why);
  if (index < 0 || index >= devices().count) {
    return Support::no("cuda:" + std::to_string(index) + " is not here: this machine has " +
                       std::to_string(devices().count) + " CUDA device(s), counted from 0");
  }
  return entry_of(index).support;
}

const DeviceFacts& facts_of(int index) { return entry_of(index).facts; }

PlannedAs::PlannedAs(int index, const DeviceFacts& facts) : index_(index), own_(facts_of(index)) {
  entry_of(index).facts = facts;
}

PlannedAs::~PlannedAs() { entry_of(index_).facts = own_; }

}  // namespace graft::cuda
