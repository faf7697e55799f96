#include "benchmarks/cuda/turns.h"

#include <memory>

#include "benchmarks/cuda/device_memory.h"
#include "benchmarks/cuda/facts.h"

namespace graft::bench {
namespace {

class Graph {
 public:
  Graph(const Contender& contender, cudaStream_t stream, std::size_t sets, std::size_t calls)
      : stream_(stream), calls_(calls) {
    contender.call(stream, 0);  // what is made once must not be made while capturing
    must(cudaStreamSynchronize(stream), contender.name.c_str());
    cudaGraph_t graph = nullptr;
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (std::size_t i = 0; i < calls; ++i) contender.call(stream, i % sets);
    must(cudaStreamEndCapture(stream, &graph), "capture");
    must(cudaGraphInstantiate(&ready_, graph, 0), "instantiate");
    cudaGraphDestroy(graph);
    must(cudaEventCreate(&begin_), "event");
    must(cudaEventCreate(&end_), "event");
    for (int i = 0; i < 3; ++i) replay();
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    cudaGraphExecDestroy(ready_);
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }

  // Microseconds a call.
  double replay() {
    must(cudaEventRecord(begin_, stream_), "record");
    must(cudaGraphLaunch(ready_, stream_), "replay");
    must(cudaEventRecord(end_, stream_), "record");
    must(cudaEventSynchronize(end_), "replay");
    float milliseconds = 0;
    must(cudaEventElapsedTime(&milliseconds, begin_, end_), "elapsed");
    return milliseconds * 1000.0 / static_cast<double>(calls_);
  }

 private:
  cudaStream_t stream_;
  std::size_t calls_;
  cudaGraphExec_t ready_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace

std::vector<Turns> take_turns(const std::vector<Contender>& contenders, std::size_t sets,
                              std::size_t calls, int rounds) {
  must(cudaDeviceSynchronize(), "the tensors");
  cudaStream_t stream = nullptr;
  must(cudaStreamCreate(&stream), "cudaStreamCreate");
  std::vector<std::vector<double>> times(contenders.size());
  {
    std::vector<std::unique_ptr<Graph>> graphs;
    for (const Contender& contender : contenders) {
      graphs.push_back(std::make_unique<Graph>(contender, stream, sets, calls));
    }
    for (int round = 0; round < rounds; ++round) {
      for (std::size_t turn = 0; turn < graphs.size(); ++turn) {
        const std::size_t i = round % 2 == 0 ? turn : graphs.size() - 1 - turn;
        times[i].push_back(graphs[i]->replay());
      }
    }
  }
  cudaStreamDestroy(stream);

  std::vector<Turns> result(contenders.size());
  for (std::size_t i = 0; i < contenders.size(); ++i) {
    result[i] = {quantile(times[i], 0.5), quantile(times[i], 0.1), quantile(times[i], 0.9), {}};
    for (std::size_t j = 0; j < contenders.size(); ++j) {
      std::vector<double> ratios;
      for (std::size_t round = 0; round < times[i].size(); ++round) {
        ratios.push_back(times[i][round] / times[j][round]);
      }
      result[i].ratios.push_back(quantile(ratios, 0.5));
    }
  }
  return result;
}

}  // namespace graft::bench
