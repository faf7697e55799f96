#include "graft/llm/train/checkpoint.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "graft/llm/data/fingerprint.h"
#include "graft/llm/files/atomic_file.h"
#include "graft/llm/files/folder_lock.h"
#include "graft/llm/user_error.h"
#include "tests/support/syncs.h"
#include "tests/support/tiny_model.h"

namespace graft::llm {
namespace {

namespace fs = std::filesystem;
using testing::NotedSyncs;
using testing::read_text;
using testing::TemporaryFolder;
using testing::write_text;

Checkpoint checkpoint_of(int iteration) {
  Checkpoint checkpoint;
  checkpoint.flags = {{"--rank", 8}};
  checkpoint.inputs = {"m", "t", "v", "here"};
  checkpoint.data = {7, 5, iteration / 5, iteration % 5};
  checkpoint.loop.window = {0.1 + iteration, 1.0 / 3, 11, 12};
  checkpoint.loop.validated = iteration - 1;
  checkpoint.trainer.iteration = iteration;
  checkpoint.loop.best = {1.0 / 7, iteration - 2, 2};
  checkpoint.trainer.optimizer = {{0.5f, 1e-30f}, {0.25f, -0.0f}, iteration};
  checkpoint.trainer.pending = {{1.5f, -2e-38f}, 33, 2};
  checkpoint.trainer.dropout = {~std::uint64_t{0}, {std::uint64_t{3} << 62, 1}};
  checkpoint.metrics = "{\"iter\": 1}\n";
  return checkpoint;
}

const std::vector<FileContents> kAdapter = {{"adapter_model.safetensors", "weights"},
                                            {"adapter_config.json", "{}"}};

TEST(Checkpoint, ComesBackAsItWas) {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), kAdapter, checkpoint_of(12));
  std::vector<std::string> damaged;
  const auto found = last_checkpoint(folder.path(), damaged);
  ASSERT_TRUE(found);
  EXPECT_TRUE(damaged.empty());
  EXPECT_EQ(found->path, folder.file("checkpoints/0000012"));

  const Checkpoint& back = found->checkpoint;
  const Checkpoint expected = checkpoint_of(12);
  EXPECT_EQ(back.flags, expected.flags);
  EXPECT_EQ(back.inputs.machine, "here");
  EXPECT_EQ(back.data.seed, 7u);
  EXPECT_EQ(back.data.epoch, 2);
  EXPECT_EQ(back.data.position, 2);
  EXPECT_EQ(back.loop.window.loss_sum, expected.loop.window.loss_sum);
  EXPECT_EQ(back.loop.window.seconds, expected.loop.window.seconds);
  EXPECT_EQ(back.loop.validated, 11);
  EXPECT_EQ(back.loop.saved, 12);
  EXPECT_EQ(back.loop.best.loss, expected.loop.best.loss);
  EXPECT_EQ(back.loop.best.iteration, 10);
  EXPECT_EQ(back.loop.best.validations_since, 2);
  EXPECT_EQ(back.trainer.optimizer.steps, 12);
  EXPECT_EQ(back.trainer.pending.targets, 33);
  EXPECT_EQ(back.trainer.pending.iterations, 2);
  EXPECT_EQ(back.trainer.dropout.seed, expected.trainer.dropout.seed);
  EXPECT_EQ(back.trainer.dropout.offsets, expected.trainer.dropout.offsets);
  EXPECT_EQ(back.metrics, expected.metrics);
}

TEST(Checkpoint, TheLastWholeOneIsFound) {
  const TemporaryFolder folder;
  std::vector<std::string> damaged;
  EXPECT_FALSE(last_checkpoint(folder.path(), damaged));
  for (const int iteration : {9, 10, 11, 12}) {
    save_checkpoint(folder.path(), kAdapter, checkpoint_of(iteration));
  }
  write_text(folder.file("checkpoints/0000012/adapter_model.safetensors"), "weightz");
  fs::remove(folder.file("checkpoints/0000011/state.json"));
  fs::create_directory(folder.file("checkpoints/0000013.99.graft-tmp"));
  const auto found = last_checkpoint(folder.path(), damaged);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->checkpoint.trainer.iteration, 10);
  EXPECT_EQ(damaged.size(), 2u);

  // Iterations that had been damaged come again, in the place of what is left of them.
  save_checkpoint(folder.path(), kAdapter, checkpoint_of(11));
  EXPECT_EQ(last_checkpoint(folder.path(), damaged)->checkpoint.trainer.iteration, 11);
}

TEST(Checkpoint, AnyDamagedByteOfTheStateIsSurvived) {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), kAdapter, checkpoint_of(3));
  const std::string state = folder.file("checkpoints/0000003/state.json");
  const std::string text = read_text(state);
  for (std::size_t at = 0; at < text.size(); ++at) {
    std::string changed = text;
    changed[at] = changed[at] == '-' ? '{' : '-';
    write_text(state, changed);
    std::vector<std::string> damaged;
    EXPECT_NO_THROW(last_checkpoint(folder.path(), damaged)) << at;
  }
}

// Runs `work` in a process that the system kills within the write of a file's byte `limit`.
bool killed_at_byte(rlim_t limit, const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit limits{limit, limit};
    ::setrlimit(RLIMIT_FSIZE, &limits);
    std::signal(SIGXFSZ, SIG_DFL);
    const rlimit no_core{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    work();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status);
}

bool can_swap_names(const TemporaryFolder& folder) {
#ifdef __APPLE__
  static_cast<void>(folder);
  return true;
#else
  const std::string at = folder.path();
  return ::renameat2(AT_FDCWD, at.c_str(), AT_FDCWD, at.c_str(), RENAME_EXCHANGE) == 0;
#endif
}

TEST(AtomicFile, AFolderIsWholeOrNotThereWhereverItsWriterIsKilled) {
  const TemporaryFolder folder;
  // Each file is longer than those before, so that a limit picks the file and the byte.
  std::vector<FileContents> files;
  for (const std::size_t size : {10, 1000, 70000}) {
    files.push_back({std::to_string(size), std::string(size, 'x')});
  }
  int killed = 0;
  for (const rlim_t limit : {0, 5, 9, 10, 500, 999, 1000, 60000, 69999, 70000}) {
    const std::string path = folder.file(std::to_string(limit));
    const bool died = killed_at_byte(limit, [&] { write_folder_atomically(path, files); });
    EXPECT_EQ(died, limit < 70000) << limit;
    EXPECT_EQ(fs::exists(path), !died) << limit;
    killed += died;
  }
  EXPECT_EQ(killed, 9);
  remove_unfinished_writes(folder.path());
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
}

TEST(AtomicFile, FilesThatBelongTogetherChangeTogetherOrNotAtAll) {
  const TemporaryFolder folder;
  write_files_atomically(folder.path(), {{"a", "old"}, {"b", "old"}});
  const std::vector<FileContents> files = {{"a", "new"}, {"b", std::string(5000, 'n')}};
  EXPECT_TRUE(killed_at_byte(4000, [&] { write_files_atomically(folder.path(), files); }));
  EXPECT_EQ(read_text(folder.file("a")), "old");
  EXPECT_EQ(read_text(folder.file("b")), "old");
  write_files_atomically(folder.path(), files);
  EXPECT_EQ(read_text(folder.file("a")), "new");
}

TEST(AtomicFile, AFailedWriteLeavesWhatWasThereAndNothingElse) {
  const TemporaryFolder folder;
  write_folder_atomically(folder.file("kept"), {{"a", "old"}});
  const auto try_with = [&](const std::vector<FileContents>& files) {
    try {
      write_folder_atomically(folder.file("kept"), files);
    } catch (const UserError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(try_with({{"a", "new"}, {"no/such/folder", "x"}}).find("no/such/folder"),
            std::string::npos);
  EXPECT_EQ(read_text(folder.file("kept/a")), "old");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
}

TEST(AtomicFile, AReplacedFolderIsThereAllTheTime) {
  const TemporaryFolder folder;
  const std::string kept = folder.file("kept");
  write_folder_atomically(kept, {{"a", "old"}});
  if (!can_swap_names(folder)) GTEST_SKIP() << "the file system cannot swap names";
  std::atomic<bool> done = false;
  int missing = 0;
  std::thread reader([&] {
    while (!done) missing += !fs::exists(kept);
  });
  for (int i = 0; i < 300; ++i) write_folder_atomically(kept, {{"a", std::to_string(i)}});
  done = true;
  reader.join();
  EXPECT_EQ(missing, 0);
  EXPECT_EQ(read_text(kept + "/a"), "299");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
}

TEST(AtomicFile, WhatIsMadeIsOnDiskWithAllFoldersAboveIt) {
  const TemporaryFolder folder;
  {
    const NotedSyncs syncs;
    make_folder(folder.file("a/b/c/"));
    for (const char* above : {"", "a", "a/b"}) EXPECT_TRUE(syncs.has(folder.file(above))) << above;
  }
  const NotedSyncs syncs;
  make_folder(folder.file("a/b/d"));
  EXPECT_TRUE(syncs.has(folder.file("a/b")));
  EXPECT_FALSE(syncs.has(folder.file("a")));
}

TEST(FolderLock, IsHeldByOne) {
  const TemporaryFolder folder;
  {
    const FolderLock lock(folder.path());
    EXPECT_THROW(FolderLock(folder.path()), UserError);
  }
  EXPECT_NO_THROW(FolderLock(folder.path()));
}

TEST(Fingerprint, TellsChangesApart) {
  const std::string text(100, 'x');
  for (std::size_t at = 0; at < text.size(); ++at) {
    std::string changed = text;
    changed[at] = static_cast<char>(changed[at] ^ '\x80');
    EXPECT_NE(fingerprint_of(changed), fingerprint_of(text)) << at;
  }
  EXPECT_NE(fingerprint_of(std::string(3, '\0')), fingerprint_of(std::string(4, '\0')));
  const std::vector<Sample> samples = {{{1, 2}, {false, true}}};
  EXPECT_NE(fingerprint_of(samples), fingerprint_of({{{1, 2}, {false, false}}}));
}

}  // namespace
}  // namespace graft::llm
