// What ThreadSanitizer may overlook in a test that evaluates MLX graphs, built into the test.
//
// MLX's library comes without instrumentation: ThreadSanitizer sees its locks, but not the atomic
// counts of its shared pointers, and takes the end of an Event or a buffer, dropped by whichever
// thread lets go last, for a race. Named are only the functions where that happens, none of which
// runs our kernels, so that a race of ours, which MLX's threads also run, is still reported.
#if defined(__SANITIZE_THREAD__)
extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() {
  return "race:mlx::core::Event::wait\n"
         "race:mlx::core::array::wait\n"
         "race:mlx::core::array::is_available\n"
         "race:mlx::core::array::ArrayDesc::~ArrayDesc\n"
         "race:mlx::core::scheduler::Scheduler::signal_event\n";
}
#endif
